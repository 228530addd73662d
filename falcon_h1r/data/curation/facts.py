"""What is remembered of a trace between reading it and writing it: fixed numbers, by position in the corpus.

A chunk's facts are files beside each other, `000012.npy` (a row a trace), `000012.minhash.npy` (signatures, where
duplicates are looked for) and `000012.json` (the names that the numbers stand for, details, rows that could not be
read). The last is written last: a chunk that has one has been judged.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from falcon_h1r.data.jsonl import new_file
from falcon_h1r.types import DIFFICULTIES, InputError, Trace, content_hash

NAMED = ("source", "teacher", "domain", "family", "reason")  # columns that are places in a list of names
KEPT = ""  # the reason of a trace that nothing speaks against

FACTS = np.dtype(
    [
        ("problem", "u8"),  # hash of its uid
        ("source", "i4"),
        ("teacher", "i4"),
        ("domain", "i4"),
        ("family", "i4"),
        ("reason", "i4"),
        ("difficulty", "i1"),  # place in DIFFICULTIES, -1: unknown
        ("verdict", "i1"),  # place in VERDICTS, 0: not judged
        ("given", "i1"),  # what the source says: -1 nothing, 0 wrong, 1 right
        ("verifiable", "?"),
        ("hardness", "f4"),  # in [0, 1], of a problem that is hard by its label
        ("pass_rate", "f4"),  # as the source says; nan: nothing
        ("weight", "f4"),  # the source's, then times difficulty's
        ("prompt_tokens", "i4"),
        ("response_tokens", "i4"),
    ]
)
VERDICTS = ("", "correct", "wrong", "undecided", "unverifiable_gold", "no_answer")
CORRECT = VERDICTS.index("correct")
# Of these traces it is known whether they solve their problem.
ANSWERED = tuple(map(VERDICTS.index, ("correct", "wrong", "undecided", "no_answer")))

Facts = NDArray[Any]  # of dtype FACTS


def problem_key(uid: str) -> int:
    """64 bits of a uid: those it is written in where it is a content_hash, else of its own hash."""
    return int(uid if re.fullmatch("[0-9a-f]{16}", uid) else content_hash(uid), 16)


@dataclass(slots=True)
class ChunkNotes:
    """What a chunk says beside its numbers."""

    names: dict[str, list[str]] = field(default_factory=lambda: {column: [] for column in NAMED})
    details: dict[str, str] = field(default_factory=dict)  # why a trace was dropped, by place in the chunk
    num_unreadable: int = 0  # rows
    unverifiable_golds: list[str] = field(default_factory=list)
    disagreements: list[int] = field(default_factory=list)  # places whose verdict is not the source's
    seconds: dict[str, float] = field(default_factory=dict)  # by stage


@dataclass(frozen=True, slots=True)
class Judged:
    """What was found out about a trace."""

    reason: str  # why it is dropped; KEPT
    detail: str  # in the words of what found it
    verdict: str  # one of VERDICTS, the first where it was not verified
    hardness: float
    prompt_tokens: int
    response_tokens: int


class FactsWriter:
    """Facts of one chunk, gathered trace by trace."""

    def __init__(self, source: str) -> None:
        self._source = source
        self.notes = ChunkNotes()
        self.origins: list[str] = []
        self._places: dict[str, dict[str, int]] = {column: {} for column in NAMED}
        self._rows: list[tuple[Any, ...]] = []

    def add(self, trace: Trace, judged: Judged) -> None:
        problem, verdict = trace.problem, VERDICTS.index(judged.verdict)
        difficulty = -1 if problem.difficulty is None else DIFFICULTIES.index(problem.difficulty)
        self.origins.append(trace.origin)
        if judged.detail:
            self.notes.details[str(len(self._rows))] = judged.detail
        if trace.given_verdict is not None and verdict in ANSWERED and (verdict == CORRECT) != trace.given_verdict:
            self.notes.disagreements.append(len(self._rows))
        self._rows.append(
            (
                problem_key(problem.uid),
                self._place("source", self._source),
                self._place("teacher", trace.teacher),
                self._place("domain", problem.domain),
                self._place("family", problem.family),
                self._place("reason", judged.reason),
                difficulty,
                verdict,
                -1 if trace.given_verdict is None else int(trace.given_verdict),
                problem.verifiable,
                judged.hardness,
                np.nan if problem.pass_rate is None else problem.pass_rate,
                trace.weight,
                judged.prompt_tokens,
                judged.response_tokens,
            )
        )

    @property
    def facts(self) -> Facts:
        return np.array(self._rows, dtype=FACTS)

    def _place(self, column: str, name: str) -> int:
        places = self._places[column]
        if name not in places:
            places[name] = len(places)
            self.notes.names[column].append(name)
        return places[name]


@dataclass(frozen=True, slots=True)
class ChunkFiles:
    """Where a chunk's facts are. `exists` once all of them are written."""

    folder: Path
    index: int

    @property
    def facts(self) -> Path:
        return self.folder / f"{self.index:06d}.npy"

    @property
    def signatures(self) -> Path:
        return self.folder / f"{self.index:06d}.minhash.npy"

    @property
    def origins(self) -> Path:
        return self.folder / f"{self.index:06d}.origins"

    @property
    def notes(self) -> Path:
        return self.folder / f"{self.index:06d}.json"

    def exists(self) -> bool:
        return self.notes.is_file()

    def write(self, writer: FactsWriter, signatures: NDArray[np.uint32] | None) -> None:
        _write_array(self.facts, writer.facts)
        if signatures is not None:
            _write_array(self.signatures, signatures)
        with new_file(self.origins) as file:
            file.write(json.dumps(writer.origins).encode())
        with new_file(self.notes) as file:
            file.write(json.dumps(asdict(writer.notes)).encode())

    def read_notes(self, with_places: bool = True) -> ChunkNotes:
        """Without what is said of single traces, where the notes of all chunks are held at once."""
        notes = ChunkNotes(**json.loads(self.notes.read_bytes()))
        if not with_places:
            notes.details.clear()
            notes.disagreements.clear()
        return notes

    def read_origins(self) -> list[str]:
        origins: list[str] = json.loads(self.origins.read_bytes())
        return origins


def _write_array(path: Path, array: NDArray[Any]) -> None:
    content = io.BytesIO()
    np.save(content, array)
    with new_file(path) as file:
        file.write(content.getbuffer())  # a full disk is told as such, which numpy's own writing does not


@dataclass(slots=True)
class CorpusFacts:
    """All chunks' facts end to end, N traces; names are those of the whole corpus, sorted."""

    facts: Facts  # (N)
    names: dict[str, list[str]]
    chunk_starts: NDArray[np.int64]  # (chunks + 1): where each begins

    def place(self, column: str, name: str) -> int:
        """The number of a name, which is new where there was none."""
        if name not in self.names[column]:
            self.names[column].append(name)
        return self.names[column].index(name)

    def alive(self) -> NDArray[np.bool_]:
        """(N): nothing speaks against it so far."""
        return self.facts["reason"] == self.place("reason", KEPT)

    def drop(self, which: NDArray[np.bool_], reason: str) -> None:
        """Of those alive, drop these."""
        self.facts["reason"][which & self.alive()] = self.place("reason", reason)


def load_corpus(files: Sequence[ChunkFiles]) -> CorpusFacts:
    """Read and join: 56 bytes a trace."""
    notes = [chunk.read_notes(with_places=False) for chunk in files]
    names = {column: sorted({name for note in notes for name in note.names[column]}) for column in NAMED}
    numbers = {column: {name: place for place, name in enumerate(names[column])} for column in NAMED}
    parts: list[Facts] = []
    for chunk, note in zip(files, notes, strict=True):
        facts = np.load(chunk.facts)
        if facts.dtype != FACTS:
            raise InputError(f"{chunk.facts}: written by another version; curate from the start in a new folder")
        for column in NAMED:
            places = np.array([numbers[column][name] for name in note.names[column]], dtype=np.int32)
            facts[column] = places[facts[column]] if len(places) else facts[column]
        parts.append(facts)
    starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    return CorpusFacts(np.concatenate(parts) if parts else np.empty(0, FACTS), names, starts)


def counted(names: Iterable[str], places: NDArray[np.int32], length: int) -> dict[str, int]:
    """How often each name stands there, sorted by name; names that do not are left out."""
    counts = np.bincount(places, minlength=length)
    return {name: int(count) for name, count in sorted(zip(names, counts, strict=False)) if count}
