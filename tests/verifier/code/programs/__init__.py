"""Families of right and wrong programs that the verifier is measured with."""

from __future__ import annotations

from tests.verifier.code.programs import graphs, numbers, sequences, text

FAMILIES = (*numbers.FAMILIES, *text.FAMILIES, *sequences.FAMILIES, *graphs.FAMILIES)
