"""What trees are worth: exact fractions, many-digit numbers, sets of reals, and sympy for limits and integrals."""
