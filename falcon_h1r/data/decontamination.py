"""Copies of evaluation problems in traces, found by the n-grams of their letters and digits.

    overlap(problem, trace) = its distinct n-grams that stand anywhere in the trace / all of its distinct n-grams

A trace is contaminated from `min_overlap` of any one problem. A problem shorter than n characters is looked for whole;
one below SHORTEST would be found everywhere, so it only matches a text that is nothing else.

    windows of the trace -> bitmaps of the problems' hashes -> their sorted hashes -> the characters themselves
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from falcon_h1r.config_data import DecontaminationConfig
from falcon_h1r.data.ngrams import Codes, codes_of, normalise, normalise_with_positions, window_hashes
from falcon_h1r.data.sources import load_problems
from falcon_h1r.types import InputError, Problem, Trace

SHORTEST = 20  # letters and digits of a problem that is looked for inside of longer text
WHOLE_BELOW = 40  # characters; a shorter problem is looked for whole, for parts of it stand in many texts
_BITMAP_BITS = 22
_CONFIRMED_AT_ONCE = 4096
_SHOWN = 200  # characters of a match in a description
_BORDER = "\n"  # between texts: no normalised text holds it, so no n-gram crosses


@dataclass(frozen=True, slots=True)
class Match:
    """An evaluation problem that a trace holds."""

    set_name: str
    uid: str
    overlap: float  # share of the problem's distinct n-grams
    text: str  # as it stands in the trace: the longest stretch that was found
    question: str  # as the evaluation asks it

    def describe(self) -> str:
        return f"{self.set_name} {self.uid}: {self.overlap:.0%} of it, {self.text[:_SHOWN]!r}"


@dataclass(frozen=True, slots=True)
class _Windows:
    """What is looked for at one width: windows of the problems' text, sorted by hash."""

    width: int
    hashes: NDArray[np.uint64]  # (W)
    starts: NDArray[np.int64]  # (W): where each window stands in the problems' text
    owners: NDArray[np.int64]  # (W): its problem
    bitmaps: NDArray[np.bool_]  # (2, 2^_BITMAP_BITS): the hashes' upper bits, and those below

    @classmethod
    def at(cls, width: int, codes: Codes, starts: list[int], owners: list[int]) -> _Windows | None:
        if not starts:
            return None
        hashes = window_hashes(codes, width)[starts]
        order = np.argsort(hashes, kind="stable")
        bitmaps = np.zeros((2, 1 << _BITMAP_BITS), np.bool_)
        for half, bitmap in enumerate(bitmaps):
            bitmap[_bits(hashes, half)] = True
        return cls(width, hashes[order], np.array(starts)[order], np.array(owners)[order], bitmaps)

    def find(self, codes: Codes, among: Codes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(M), (M): windows found in the trace's `codes`, and where; confirmed on the problems' characters."""
        hashes = window_hashes(codes, self.width)
        places = np.flatnonzero(self.bitmaps[0].take(_bits(hashes, 0)))
        places = places[self.bitmaps[1].take(_bits(hashes[places], 1))]
        first = np.searchsorted(self.hashes, hashes[places], "left")
        counts = np.searchsorted(self.hashes, hashes[places], "right") - first
        window = np.repeat(first - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        places = np.repeat(places, counts)
        equal = np.empty(len(places), np.bool_)
        offsets = np.arange(self.width)
        for start in range(0, len(places), _CONFIRMED_AT_ONCE):
            some = slice(start, start + _CONFIRMED_AT_ONCE)
            found, wanted = codes[places[some, None] + offsets], among[self.starts[window[some], None] + offsets]
            equal[some] = (found == wanted).all(axis=1)
        return window[equal], places[equal]


def _bits(hashes: NDArray[np.uint64], half: int) -> NDArray[np.int64]:
    """Where a hash stands in each of the two bitmaps. The lowest bits are left out: they say least."""
    upper = (hashes >> np.uint64(64 - (1 + half) * _BITMAP_BITS)).view(np.int64)
    return upper & ((1 << _BITMAP_BITS) - 1) if half else upper


class EvaluationIndex:
    """The problems that evaluation asks, ready to be looked for. Pickles, and is only read once it is built.

    Args:
        sets: the evaluation problems by the name of their set.
        config: `ngram_characters` (n) and `min_overlap`.

    Raises:
        InputError: if a question has neither letter nor digit, and so cannot be looked for.
    """

    def __init__(self, sets: Mapping[str, Sequence[Problem]], config: DecontaminationConfig) -> None:
        self._config = config
        self._shortest = min(SHORTEST, config.ngram_characters)
        self._problems = [(name, problem) for name, problems in sets.items() for problem in problems]
        self._tiny: dict[str, int] = {}  # normalised text of a problem that has to be equal -> its number
        self._lengths = np.zeros(len(self._problems), np.int64)  # of those that are looked for whole
        self._num_ngrams = np.zeros(len(self._problems), np.int64)
        starts: dict[int, list[int]] = {self._shortest: [], config.ngram_characters: []}  # by width
        owners: dict[int, list[int]] = {self._shortest: [], config.ngram_characters: []}
        texts: list[str] = []
        end = 0
        for number, (name, problem) in enumerate(self._problems):
            text = normalise(problem.question)
            if not text:
                raise InputError(f"evaluation set {name}, problem {problem.uid}: its question has no letter or digit")
            if len(text) < self._shortest:
                self._tiny.setdefault(text, number)
                continue
            if len(text) < max(config.ngram_characters, WHOLE_BELOW):
                self._lengths[number] = len(text)
                ngrams = [0]  # its first characters lead to all of them
                width = self._shortest
            else:
                width = config.ngram_characters
                ngrams = list({text[at : at + width]: at for at in range(len(text) - width + 1)}.values())
            starts[width].extend(end + at for at in ngrams)
            owners[width].extend([number] * len(ngrams))
            self._num_ngrams[number] = len(ngrams)
            texts.append(text + _BORDER)
            end += len(texts[-1])
        self._codes = codes_of("".join(texts))
        windows = [_Windows.at(width, self._codes, starts[width], owners[width]) for width in starts]
        self._windows = [one for one in windows if one is not None]

    def __len__(self) -> int:
        return len(self._problems)

    @classmethod
    def from_config(cls, config: DecontaminationConfig) -> EvaluationIndex:
        """Of the config's `sets`, but for those `switched_off`. Raises InputError where a set cannot be read."""
        sets = {name: load_problems(source) for name, source in config.sets.items() if name not in config.switched_off}
        return cls(sets, config)

    def find(self, said: Trace | Iterable[str]) -> Match | None:
        """The evaluation problem that overlaps most with anything that is said; None below `min_overlap`.

        Of a trace, or of texts that belong together: n-grams found in any of them count, none crosses a border.
        """
        parts = list(dict.fromkeys(texts_of(said) if isinstance(said, Trace) else said))
        normalised = [normalise(part) for part in parts]
        for part, text in zip(parts, normalised, strict=True):
            if text in self._tiny:
                return self._match(self._tiny[text], 1.0, part.strip())
        joined = _BORDER.join(normalised)
        if len(joined) < self._shortest:
            return None
        codes = codes_of(joined)
        overlap, number, width, places = max(
            (self._best(windows, *windows.find(codes, self._codes), codes) for windows in self._windows),
            key=lambda found: (found[0], -found[1]),
            default=(0.0, 0, 0, np.empty(0, np.int64)),
        )
        if overlap == 0 or overlap < self._config.min_overlap:
            return None
        return self._match(number, overlap, _stretch(parts, normalised, places, width))

    def _best(
        self, windows: _Windows, window: NDArray[np.int64], places: NDArray[np.int64], codes: Codes
    ) -> tuple[float, int, int, NDArray[np.int64]]:
        """Of the problem that most was found of: overlap (0: of none), number, width of a find, and the places."""
        if not len(window):
            return 0.0, 0, windows.width, places
        numbers = windows.owners[window]
        short = self._lengths[numbers] > 0  # whose first characters were found: do the others follow?
        for index in np.flatnonzero(short):
            length, start = self._lengths[numbers[index]], windows.starts[window[index]]
            found, wanted = codes[places[index] :][:length], self._codes[start : start + length]
            short[index] = np.array_equal(found, wanted)
        if short.any():
            number = int(numbers[short].min())
            return 1.0, number, int(self._lengths[number]), np.sort(places[short & (numbers == number)])
        distinct = windows.owners[np.unique(window)]
        distinct = distinct[self._lengths[distinct] == 0]
        overlaps = np.bincount(distinct, minlength=len(self._problems)) / np.maximum(self._num_ngrams, 1)
        number = int(overlaps.argmax())
        return float(overlaps[number]), number, windows.width, np.sort(places[numbers == number])

    def _match(self, number: int, overlap: float, text: str) -> Match:
        name, problem = self._problems[number]
        return Match(name, problem.uid, overlap, text, problem.question)


def texts_of(trace: Trace) -> list[str]:
    """All that a trace says: question, turns, reasoning, response."""
    turns = [text for turn in trace.turns for text in (turn.content, turn.reasoning)]
    return [text for text in (trace.problem.question, *turns, trace.reasoning, trace.response) if text]


def overlap_slowly(question: str, texts: Iterable[str], width: int) -> float:
    """A problem's overlap by the definition: n-grams as sets of strings."""
    wanted, parts = normalise(question), [normalise(text) for text in texts]
    if len(wanted) < min(SHORTEST, width):
        return float(wanted in parts)
    width = len(wanted) if len(wanted) < max(WHOLE_BELOW, width) else width
    ngrams = {wanted[at : at + width] for at in range(len(wanted) - width + 1)}
    return sum(any(ngram in part for part in parts) for ngram in ngrams) / len(ngrams)


def _stretch(parts: list[str], normalised: list[str], places: NDArray[np.int64], width: int) -> str:
    """The longest stretch of a trace that the windows at `places` cover without a gap of their own width."""
    runs = np.split(places, np.flatnonzero(np.diff(places) > width) + 1)
    longest = max(runs, key=lambda run: int(run[-1] - run[0]))
    first, last = int(longest[0]), int(longest[-1]) + width - 1
    for part, text in zip(parts, normalised, strict=True):
        if first < len(text):
            _, positions = normalise_with_positions(part)
            return part[positions[first] : positions[min(last, len(text) - 1)] + 1]
        first, last = first - len(text) - len(_BORDER), last - len(text) - len(_BORDER)
    raise AssertionError("a place beyond the texts")
