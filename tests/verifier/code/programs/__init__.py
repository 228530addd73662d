"""Families of right and wrong programs that the verifier is measured with."""

from __future__ import annotations

from tests.verifier.code.programs import graphs, lists, numbers, sequences, tables, text, words

FAMILIES = tuple(
    family for file in (numbers, text, words, sequences, lists, graphs, tables) for family in file.FAMILIES
)
