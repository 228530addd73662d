"""The figures of a page as JSON lines beside it, each appended as soon as it is measured: a killed run loses none.

    {"figure": "setting", "environment": {...}, "pair_files": [...], "commands": [...], "revisions": [...]}
    {"figure": "pair", "pair": {...}, "content": ..., "judgements": {"ours": {...}, "Math-Verify": {...}}}
    {"figure": "start", "measured": {...}}, and so "imports" and "batch"

The texts of a pair are kept only as its answer and gold, shortened: enough for the page to show it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from falcon_h1r.benchmark.verifier.judges import Judgement
from falcon_h1r.benchmark.verifier.pairs import Pair
from falcon_h1r.data.jsonl import read_jsonl, write_jsonl
from falcon_h1r.types import InputError
from falcon_h1r.verifier import extract_boxed

SHOWN_CHARS = 80  # of an answer or a gold


@dataclass(slots=True)
class PairFigures:
    """What every judge said of one pair. The pair's texts are shortened, `content` is of the whole ones."""

    pair: Pair
    content: str
    judgements: dict[str, Judgement]

    def as_row(self) -> dict[str, Any]:
        judgements = {name: asdict(judgement) for name, judgement in self.judgements.items()}
        return {"figure": "pair", "pair": asdict(self.pair), "content": self.content, "judgements": judgements}


@dataclass(slots=True)
class VerifierFigures:
    """Everything measured for one page."""

    environment: dict[str, Any]  # hardware, ours, peer: what has to be the same to be compared
    pair_files: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    revisions: list[str] = field(default_factory=list)
    pairs: dict[str, PairFigures] = field(default_factory=dict)  # by id
    start: dict[str, Any] | None = None
    imports: dict[str, Any] | None = None
    batch: dict[str, Any] | None = None

    def rows(self) -> list[dict[str, Any]]:
        setting = {
            "environment": self.environment,
            "pair_files": self.pair_files,
            "commands": self.commands,
            "revisions": self.revisions,
        }
        others = {"start": self.start, "imports": self.imports, "batch": self.batch}
        return [
            {"figure": "setting", **setting},
            *(figures.as_row() for figures in self.pairs.values()),
            *({"figure": name, "measured": measured} for name, measured in others.items() if measured is not None),
        ]

    def write(self, path: Path) -> None:
        """All of them anew; the file is whole at any time."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(path, self.rows())

    @classmethod
    def read(cls, path: Path) -> VerifierFigures:
        """What a file holds; of two lines on one thing the later counts, a line cut off by a kill does not.

        Raises:
            InputError: for a file that holds something else.
        """
        _drop_torn_line(path)
        figures = cls({})
        try:
            for _, row in read_jsonl(path):
                figures._take(row)
        except (KeyError, TypeError, AttributeError):
            raise InputError(f"benchmark.page: {path} holds something else than figures of suite=verifier") from None
        return figures

    def _take(self, row: Mapping[str, Any]) -> None:
        if row["figure"] == "pair":
            judgements = {name: Judgement(**judgement) for name, judgement in row["judgements"].items()}
            pair = Pair(**row["pair"])
            self.pairs[pair.id] = PairFigures(pair, row["content"], judgements)
        elif row["figure"] == "setting":
            for name, value in row.items():
                if name != "figure":
                    setattr(self, name, value)
        else:
            setattr(self, row["figure"], row["measured"])


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """One more line, on the disk's side when this returns."""
    with open(path, "a", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def shown_pair(pair: Pair) -> Pair:
    """The pair as the page shows it: its answer for the response, both shortened."""
    answer = extract_boxed(pair.prediction)
    shown = pair.prediction if answer is None else answer
    return replace(pair, prediction=_shortened(shown), gold=_shortened(pair.gold))


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    text = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)
    return text if len(text) <= SHOWN_CHARS else f"{text[: SHOWN_CHARS - 4]} ..."


def _drop_torn_line(path: Path) -> None:
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        path.write_bytes(whole)
