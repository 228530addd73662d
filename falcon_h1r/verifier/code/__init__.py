"""The code reward: whether the Python program in a response passes its problem's tests.

`CodeVerifier` runs programs in confined processes, `parse_tests` reads the tests that data sets have. See
docs/code_reward.md. Importing this package imports neither torch nor the sandbox's workers.
"""

from falcon_h1r.verifier.code.extract import extract_program
from falcon_h1r.verifier.code.formats import CallCase, CodeTests, StdinCase, check_tests, parse_tests
from falcon_h1r.verifier.code.service import CodeVerifier

__all__ = [
    "CallCase",
    "CodeTests",
    "CodeVerifier",
    "StdinCase",
    "check_tests",
    "extract_program",
    "parse_tests",
]
