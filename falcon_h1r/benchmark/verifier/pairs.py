"""Labelled pairs: what a response's answer is held against, and whether they are equal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from falcon_h1r.data.jsonl import read_jsonl
from falcon_h1r.types import InputError, content_hash

ADVERSARIAL = "adversarial"  # the kind of pairs that attack the judge: bombs, injections, hedging


@dataclass(frozen=True, slots=True)
class Pair:
    """A response, its gold and the label. Of `any_verdict` pairs only the time counts."""

    id: str
    prediction: str
    gold: str
    expected: bool
    kind: str
    any_verdict: bool = False

    @property
    def is_adversarial(self) -> bool:
        return self.kind == ADVERSARIAL

    @property
    def content(self) -> str:
        """Equal for pairs that ask a judge the same."""
        return content_hash("\0".join((self.prediction, self.gold)).encode("utf-8", "backslashreplace").decode())


def read_pairs(paths: Sequence[str]) -> list[Pair]:
    """The pairs of all files, in their order.

    Raises:
        InputError: for a file that is missing, a line that is no pair, an id that comes twice.
    """
    if not paths:
        raise InputError("benchmark.pairs is empty: name files of labelled pairs")
    pairs: dict[str, Pair] = {}
    for path in paths:
        for number, row in read_jsonl(path):
            pair = _pair(row, f"{path}, line {number}")
            if pair.id in pairs:
                raise InputError(f"{path}, line {number}: id {pair.id!r} came before")
            pairs[pair.id] = pair
    return list(pairs.values())


def _pair(row: dict[str, Any], where: str) -> Pair:
    for name in ("id", "prediction", "gold", "kind"):
        if not isinstance(row.get(name), str):
            raise InputError(f"{where}: {name} has to be text")
    for name, value in (("expected", row.get("expected")), ("any_verdict", row.get("any_verdict", False))):
        if not isinstance(value, bool):
            raise InputError(f"{where}: {name} has to be true or false")
    return Pair(row["id"], row["prediction"], row["gold"], row["expected"], row["kind"], row.get("any_verdict", False))
