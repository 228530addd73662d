"""The maths verifier: whether the answer in a response's last box equals the gold.

`verify` judges in this process, `Verifier` with killable processes around the algebra, `canonical_answer`
gives the key for majority voting. Importing this package imports neither torch nor sympy.
"""

from falcon_h1r.verifier.canonical import canonical_answer
from falcon_h1r.verifier.equivalence import check_gold, verify
from falcon_h1r.verifier.extract import count_boxed, extract_answer, extract_boxed
from falcon_h1r.verifier.service import Verifier

__all__ = [
    "Verifier",
    "canonical_answer",
    "check_gold",
    "count_boxed",
    "extract_answer",
    "extract_boxed",
    "verify",
]
