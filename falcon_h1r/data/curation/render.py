"""The rows that come out: each chunk read again, its traces written to who stays and who does not.

A chunk becomes `000012.kept-0.jsonl` and so on, a stream for each domain where domains are mixed, and
`000012.dropped.jsonl`; `000012.rendered.json` is written last. `lay_down` then merges the streams in the mix's order
by copying lines.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from falcon_h1r.config_data import CurateConfig
from falcon_h1r.data.chunks import BadRow, Chunk, read_chunk
from falcon_h1r.data.curation.facts import KEPT, VERDICTS, ChunkFiles, ChunkNotes, CorpusFacts, Facts
from falcon_h1r.data.curation.judge import OTHER_TEACHER
from falcon_h1r.data.curation.mix import ENOUGH_OF_DOMAIN, Mix
from falcon_h1r.data.curation.reduce import DUPLICATE, ENOUGH_OF_PROBLEM, NO_WEIGHT, WEIGHT_DIGITS, Reduced
from falcon_h1r.data.jsonl import json_line, new_file
from falcon_h1r.types import DIFFICULTIES, InputError, Trace, to_row

EXAMPLES = 3  # of each reason, in the report
UNREADABLE = "unreadable"
LATER = (OTHER_TEACHER, NO_WEIGHT, DUPLICATE, ENOUGH_OF_PROBLEM, ENOUGH_OF_DOMAIN)  # reasons that reduce.py gave
LONGEST_EXAMPLE = 600  # characters of a text


@dataclass(frozen=True, slots=True)
class ChunkDecisions:
    """What was decided of one chunk's traces; plain values, to travel to another process."""

    facts: Facts  # (n)
    reasons: list[str]  # names that the facts' reasons stand for
    streams: NDArray[np.int32]  # (n): where a kept trace goes
    pass_rates: NDArray[np.float32]  # (n), written where difficulty was measured by them
    graded: bool  # whether difficulty was measured, not read
    duplicates: dict[int, str]  # place -> which one it repeats


@dataclass(slots=True)
class Rendered:
    """What the report shows of a chunk."""

    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # by reason
    disagreements: list[dict[str, Any]] = field(default_factory=list)

    def remember(self, reason: str, example: dict[str, Any]) -> None:
        """One of the first of its reason."""
        examples = self.examples.setdefault(reason, [])
        if len(examples) < EXAMPLES:
            examples.append(example)


@dataclass(frozen=True, slots=True)
class RenderedFiles:
    folder: Path
    index: int

    def kept(self, stream: int) -> Path:
        return self.folder / f"{self.index:06d}.kept-{stream}.jsonl"

    @property
    def dropped(self) -> Path:
        return self.folder / f"{self.index:06d}.dropped.jsonl"

    @property
    def done(self) -> Path:
        return self.folder / f"{self.index:06d}.rendered.json"

    def read(self) -> Rendered:
        return Rendered(**json.loads(self.done.read_bytes()))


def decisions_by_chunk(
    corpus: CorpusFacts, reduced: Reduced, files: Sequence[ChunkFiles], graded: bool
) -> Iterator[ChunkDecisions]:
    """One after the other, in order."""

    @lru_cache(maxsize=8)
    def origins(chunk: int) -> list[str]:
        return files[chunk].read_origins()

    def origin(position: int) -> str:
        chunk = int(np.searchsorted(corpus.chunk_starts, position, side="right")) - 1
        return origins(chunk)[position - corpus.chunk_starts[chunk]]

    duplicate = corpus.place("reason", DUPLICATE)
    for index in range(len(files)):
        stretch = slice(corpus.chunk_starts[index], corpus.chunk_starts[index + 1])
        facts = corpus.facts[stretch]
        repeats = np.flatnonzero(facts["reason"] == duplicate)
        yield ChunkDecisions(
            facts,
            corpus.names["reason"],
            stream_of(corpus, reduced.mix)[facts["domain"]],
            reduced.pass_rates[stretch],
            graded,
            {int(place): f"of {origin(int(reduced.duplicate_of[stretch][place]))}" for place in repeats},
        )


def stream_of(corpus: CorpusFacts, mix: Mix) -> NDArray[np.int32]:
    """By domain: the stream that its kept traces go to. Without a mix all go to one, in the corpus' order."""
    num_domains = len(corpus.names["domain"])
    return np.arange(num_domains, dtype=np.int32) if mix.targets else np.zeros(num_domains, np.int32)


def render_chunk(
    chunk: Chunk, notes: ChunkNotes, decisions: ChunkDecisions, config: CurateConfig, files: RenderedFiles
) -> None:
    """Read a chunk's texts again and write each to its stream.

    Raises:
        InputError: where the chunk does not hold what was judged.
    """
    rendered = Rendered()
    disagreements = set(notes.disagreements)
    places = 0
    with ExitStack() as stack:
        dropped = stack.enter_context(new_file(files.dropped))
        kept: dict[int, BinaryIO] = {
            int(stream): stack.enter_context(new_file(files.kept(int(stream))))
            for stream in np.unique(decisions.streams)
        }

        def write_bad(bad: BadRow) -> None:
            row = {"reason": UNREADABLE, "detail": bad.reason, "origin": bad.where, "raw": bad.raw}
            dropped.write(json_line(row))
            rendered.remember(UNREADABLE, row)

        max_bytes = int(config.max_row_megabytes * 1e6)
        on_bad = write_bad if config.on_error == "skip" else None
        for trace in read_chunk(chunk, config.sources[chunk.source], max_bytes, on_bad):
            if places == len(decisions.facts):
                raise _changed(chunk)
            fact = decisions.facts[places]
            reason = decisions.reasons[fact["reason"]]
            if places in disagreements:
                rendered.disagreements.append(_disagreement(trace, VERDICTS[fact["verdict"]]))
            if reason == KEPT:
                kept[int(decisions.streams[places])].write(json_line(to_row(_graded(trace, fact, decisions, places))))
            else:
                detail = decisions.duplicates.get(places, "") if reason in LATER else notes.details.get(str(places), "")
                dropped.write(json_line({"reason": reason, "detail": detail, **to_row(trace)}))
                rendered.remember(reason, _example(trace, reason, detail))
            places += 1
    if places != len(decisions.facts):
        raise _changed(chunk)
    with new_file(files.done) as file:
        file.write(json.dumps(asdict(rendered)).encode())


def _changed(chunk: Chunk) -> InputError:
    return InputError(f"{chunk.path}: has changed since it was judged; curate from the start in a new folder")


def _graded(trace: Trace, fact: Any, decisions: ChunkDecisions, place: int) -> Trace:
    problem = trace.problem
    if decisions.graded:
        rate = float(decisions.pass_rates[place])
        problem = replace(
            problem,
            difficulty=None if fact["difficulty"] < 0 else DIFFICULTIES[fact["difficulty"]],
            pass_rate=problem.pass_rate if np.isnan(rate) else round(rate, 6),
        )
    return replace(trace, problem=problem, weight=round(float(fact["weight"]), WEIGHT_DIGITS))


def _disagreement(trace: Trace, verdict: str) -> dict[str, Any]:
    return {
        "origin": trace.origin,
        "teacher": trace.teacher,
        "given": trace.given_verdict,
        "verdict": verdict,
        "gold": trace.problem.answer,
        "response": _cut(trace.response),
        "question": _cut(trace.problem.question),
    }


def _example(trace: Trace, reason: str, detail: str) -> dict[str, Any]:
    return {
        "reason": reason,
        "detail": _cut(detail),
        "origin": trace.origin,
        "teacher": trace.teacher,
        "question": _cut(trace.problem.question),
        "gold": _cut(trace.problem.answer),
        "reasoning": _cut(trace.reasoning),
        "response": _cut(trace.response),
    }


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_EXAMPLE else text[: LONGEST_EXAMPLE - 3] + "..."


# -----------------------------------------------------------------------------
# The files that stay


def lay_down(corpus: CorpusFacts, mix: Mix, files: Sequence[RenderedFiles], target: Path) -> None:
    """Merge the streams of all chunks into one file, in the mix's order."""
    alive, stream_by_domain = corpus.alive(), stream_of(corpus, mix)
    stream_by_trace = stream_by_domain[corpus.facts["domain"]]
    with ExitStack() as stack, new_file(target) as out:
        readers = {}
        for stream in map(int, np.unique(stream_by_domain)):
            positions = np.flatnonzero(alive & (stream_by_trace == stream))
            readers[stream] = stack.enter_context(_StreamReader(positions, [one.kept(stream) for one in files]))
        for position, stream in zip(mix.order, stream_by_trace[mix.order], strict=True):
            out.write(readers[int(stream)].line_at(int(position)))


class _StreamReader:
    """Lines of one stream by position in the corpus; asked in ascending order, over and over where it repeats."""

    def __init__(self, positions: NDArray[np.int64], paths: Sequence[Path]) -> None:
        self._positions, self._paths = positions, paths
        self._lines: Iterator[bytes] = iter(())
        self._next = len(positions)  # index into positions of the line that comes next

    def __enter__(self) -> _StreamReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines = iter(())  # closes the file that is open

    def line_at(self, position: int) -> bytes:
        index = int(np.searchsorted(self._positions, position))
        if index < self._next:
            self._lines, self._next = _lines_of(self._paths), 0
        while True:
            line = next(self._lines)
            self._next += 1
            if self._next > index:
                return line


def _lines_of(paths: Sequence[Path]) -> Iterator[bytes]:
    for path in paths:
        if path.is_file():
            with open(path, "rb") as file:
                yield from file


def concatenate(paths: Sequence[Path], target: Path) -> None:
    """One file of all, in order."""
    with new_file(target) as out:
        for path in paths:
            with open(path, "rb") as file:
                shutil.copyfileobj(file, out, 1 << 20)
