"""Near-duplicates: MinHash signatures of word shingles, and who is dropped, in flat memory.

    P[h_min(A) = h_min(B)] = J(A, B) = |A & B| / |A | B|           (Broder, "On the resemblance and containment", 1997)
    P[a pair is compared]  = 1 - (1 - J^r)^b, b bands of r hashes  (Leskovec, Rajaraman, Ullman, "Mining of Massive
                                                                    Datasets", 3.4)

With 20 bands of 6 hashes that is 0.92 at J = 0.7, 0.998 at 0.8, and 1 - 3e-7 at 0.9. A pair that is compared counts as
near-duplicates where the share of equal hashes, an estimate of J, reaches the threshold.

Greedy, in the order of the traces: each is compared with the earlier ones that are kept, and dropped for the
first that it nearly equals. So of a chain, A like B like C and A unlike C, B is dropped for A, and C stays: B is not
there any more to speak against it. No trace is dropped for one that is itself dropped.
"""

from __future__ import annotations

import functools
import mmap
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from falcon_h1r.config_data import DuplicatesConfig
from falcon_h1r.data.shingles import shingle_hashes
from falcon_h1r.types import InputError, Trace

Signatures = NDArray[np.uint32]

_SEED = 1997
_SHINGLES_AT_ONCE = 512
_COMPARED_AT_ONCE = 256
_COMPARED_BEFORE_RELEASE = 4096  # traces, of whose comparisons pages are held
_MIX = np.uint64(0x9E3779B97F4A7C15)


def signature(trace: Trace, config: DuplicatesConfig) -> Signatures:
    """(num_hashes) uint32 of what is compared: with `of=question` the question alone, else all that the trace says."""
    if config.of == "question":
        return signature_of_text(trace.problem.question, config)
    turns = [text for turn in trace.turns for text in (turn.reasoning, turn.content)]
    return signature_of_text("\n".join([trace.problem.question, *turns, trace.reasoning, trace.response]), config)


@functools.cache
def _coefficients(num_hashes: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """(num_hashes, 1), (num_hashes, 1): a and b of each hash function, the same in every process and release."""
    factors, terms = np.random.PCG64(_SEED).random_raw((2, num_hashes, 1))
    return factors | np.uint64(1), terms


def signature_of_text(text: str, config: DuplicatesConfig) -> Signatures:
    """(num_hashes) uint32: the least hash of the text's shingles, under each of so many hash functions.

    h(x) = (a x + b mod 2^64) >> 32 for the 32-bit x of a shingle: strongly universal (Dietzfelbinger 1996).
    """
    shingles = shingle_hashes(text, config.shingle_words)
    factors, terms = _coefficients(config.num_hashes)
    least = np.full(config.num_hashes, np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, len(shingles), _SHINGLES_AT_ONCE):
        hashes = shingles[None, start : start + _SHINGLES_AT_ONCE] * factors
        hashes += terms
        np.minimum(least, hashes.min(axis=1), out=least)
    return (least >> np.uint64(32)).astype(np.uint32)


def signature_slowly(text: str, config: DuplicatesConfig) -> list[int]:
    """`signature_of_text`, by the formula."""
    shingles = [int(shingle) for shingle in shingle_hashes(text, config.shingle_words)]
    factors, terms = _coefficients(config.num_hashes)
    return [
        min((int(a) * shingle + int(b)) % (1 << 64) >> 32 for shingle in shingles)
        for a, b in zip(factors.flat, terms.flat, strict=True)
    ]


def find_duplicates(
    paths: Sequence[Path],
    alive: NDArray[np.bool_],
    config: DuplicatesConfig,
    groups: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """(N) int64: the earlier trace, in global order, that each is a near-duplicate of; -1 where it stays.

    Args:
        paths: `.npy` files (n_i, num_hashes) uint32, whose rows one after the other are the N traces.
        alive: (N) which traces are still there; the others are neither dropped nor a reason to drop one.
        groups: (N) the problem of each trace. Its first trace alive speaks for all of them: they are no duplicates of
            one another, and go together if it goes.

    Memory: about 60 bytes a trace, and up to 12 num_bands more for one that shares a band with another. Signatures
    stay on disk, which is read once for each band.

    Raises:
        InputError: if a file holds other than signatures of `num_hashes`.
        ValueError: if the files hold other than N rows.
    """
    assert config.num_hashes % config.num_bands == 0, "the config's checks see to that"
    table = _SignatureFiles(paths, config.num_hashes)
    if not (len(table) == len(alive) and (groups is None or len(groups) == len(alive))):
        raise ValueError(f"signatures of {len(table)} traces, and {len(alive)} traces")
    result = np.full(len(alive), -1, np.int64)
    members = np.flatnonzero(alive)
    if groups is not None:
        members = members[np.unique(groups[members], return_index=True)[1]]
        members.sort()
    candidates, starts = _shared_buckets(table, members, config)
    result[candidates] = _greedy(table, candidates, starts, _needed(config))
    if groups is not None:
        dropped = np.flatnonzero(result >= 0)
        order = dropped[np.argsort(groups[dropped])]
        at = np.searchsorted(groups[order], groups)
        mine = alive & (at < len(order))
        mine[mine] = groups[order[at[mine]]] == groups[mine]
        result[mine] = result[order[at[mine]]]
    return result


def find_duplicates_slowly(
    rows: Signatures, alive: NDArray[np.bool_], config: DuplicatesConfig, groups: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """`find_duplicates` by the definition: every trace against each earlier one that is kept. rows: (N, num_hashes)."""
    width = config.num_hashes // config.num_bands
    kept: list[int] = []
    verdicts: dict[int, int] = {}  # by group
    result = np.full(len(alive), -1, np.int64)
    for index in np.flatnonzero(alive).tolist():
        group = index if groups is None else int(groups[index])
        if group not in verdicts:
            verdicts[group] = -1
            for earlier in kept:
                equal = rows[index] == rows[earlier]
                if equal.reshape(-1, width).all(axis=1).any() and equal.sum() >= _needed(config):
                    verdicts[group] = earlier
                    break
            else:
                kept.append(index)
        result[index] = verdicts[group]
    return result


class _SignatureFiles:
    """The rows of many files as one table that stays on disk: pages that were read are given back after use."""

    def __init__(self, paths: Sequence[Path], num_hashes: int) -> None:
        self._mapped = [_mapped(path, num_hashes) for path in paths]
        self._arrays: list[Signatures] = [np.asarray(one) for one in self._mapped]  # indexing an np.memmap is slow
        self._starts = np.cumsum([0, *map(len, self._arrays)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def band_keys(self, members: NDArray[np.int64], columns: slice) -> NDArray[np.uint64]:
        """(members): a hash of each one's band. Unequal bands of equal hash only cost a comparison."""
        keys = np.empty(len(members), np.uint64)
        cuts = np.searchsorted(members, self._starts)
        for file, (left, right) in enumerate(pairwise(cuts)):
            if left == right:
                continue
            band = self._arrays[file][members[left:right] - self._starts[file], columns]
            key = np.zeros(len(band), np.uint64)
            for column in band.T:
                key = (key ^ column) * _MIX
                key ^= key >> np.uint64(29)
            keys[left:right] = key
            self._release(self._mapped[file])
        return keys

    def release(self) -> None:
        """Give back the memory of all that has been read; the system's cache keeps it as long as it likes."""
        for one in self._mapped:
            self._release(one)

    @staticmethod
    def _release(mapped: Any) -> None:
        mapped._mmap.madvise(mmap.MADV_DONTNEED)

    def rows(self, indices: NDArray[np.int64]) -> Signatures:
        """(indices, num_hashes), of ascending indices."""
        files = np.searchsorted(self._starts, indices[[0, -1]], "right") - 1
        parts = []
        for file in range(files[0], files[1] + 1):
            some = slice(None)
            if files[0] != files[1]:
                some = slice(*np.searchsorted(indices, self._starts[file : file + 2]))
            parts.append(self._arrays[file][indices[some] - self._starts[file]])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _mapped(path: Path, num_hashes: int) -> Any:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"{path}: no signatures ({error})") from None
    if array.ndim != 2 or array.shape[1] != num_hashes or array.dtype != np.uint32:
        raise InputError(f"{path}: {array.dtype} {array.shape} are no signatures of {num_hashes} hashes")
    return array


def _shared_buckets(
    table: _SignatureFiles, members: NDArray[np.int64], config: DuplicatesConfig
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """(U), (U, num_bands): traces that share a band with another, in order, and where each one's bucket starts.

    A band's buckets of two and more lie one after the other, as long as they have members. -1: alone in this band.
    """
    width = config.num_hashes // config.num_bands
    found: list[tuple[NDArray[np.int32], NDArray[np.int32]]] = []  # of each band: members that share it, starts
    shares = np.zeros(len(members), np.bool_)
    for band in range(config.num_bands):
        keys = table.band_keys(members, slice(band * width, (band + 1) * width))
        order = np.argsort(keys, kind="stable").astype(np.int32)
        keys = keys[order]
        new = np.ones(len(keys) + 1, np.bool_)
        np.not_equal(keys[1:], keys[:-1], out=new[1:-1])
        several = ~(new[:-1] & new[1:])
        order, new = order[several], new[:-1][several]
        found.append((order, np.flatnonzero(new).astype(np.int32)[np.cumsum(new) - 1]))
        shares[order] = True
    rank = np.cumsum(shares, dtype=np.int32) - 1
    starts = np.full((np.count_nonzero(shares), config.num_bands), -1, np.int32)
    for band in reversed(range(config.num_bands)):
        order, its_starts = found.pop()
        starts[rank[order], band] = its_starts
    return members[shares], starts


def _greedy(
    table: _SignatureFiles, candidates: NDArray[np.int64], starts: NDArray[np.int32], needed: int
) -> NDArray[np.int64]:
    """(U): for each of the candidates, the first kept one with `needed` equal hashes, or -1.

    A bucket's entries are the number of its kept candidates and then these, -1 where there is none yet; the last
    member finds no entry left, and needs none.
    """
    result = np.full(len(candidates), -1, np.int64)
    count, num_bands = starts.shape
    kept = np.full((num_bands, count + 1), -1, np.int32)
    kept[:, -1] = 0
    for band in range(num_bands):
        kept[band, starts[:, band][starts[:, band] >= 0]] = 0
        kept[band, np.count_nonzero(starts[:, band] >= 0)] = 0  # behind the last bucket
    for number in range(count):
        if number % _COMPARED_BEFORE_RELEASE == 0:
            table.release()
        bands = np.flatnonzero(starts[number] >= 0)
        mine = starts[number, bands]
        sizes = kept[bands, mine]
        lists = [
            kept[band, start + 1 : start + 1 + size]
            for band, start, size in zip(bands.tolist(), mine.tolist(), sizes.tolist(), strict=True)
            if size
        ]
        index = candidates[number : number + 1]
        result[number] = (
            _first_alike(table, index, candidates[np.unique(np.concatenate(lists))], needed) if lists else -1
        )
        if result[number] < 0:
            free = kept[bands, mine + 1 + sizes] < 0
            kept[bands[free], (mine + 1 + sizes)[free]] = number
            kept[bands[free], mine[free]] += 1
    return result


def _first_alike(table: _SignatureFiles, index: NDArray[np.int64], earlier: NDArray[np.int64], needed: int) -> int:
    """The first of the earlier traces whose signature equals that of `index` (1) in enough places, or -1."""
    row = table.rows(index)
    for start in range(0, len(earlier), _COMPARED_AT_ONCE):
        some = earlier[start : start + _COMPARED_AT_ONCE]
        alike = np.flatnonzero(np.count_nonzero(table.rows(some) == row, axis=1) >= needed)
        if len(alike):
            return int(some[alike[0]])
    return -1


def _needed(config: DuplicatesConfig) -> int:
    """How many hashes of two near-duplicates have to be equal."""
    return int(np.ceil(config.threshold * config.num_hashes - 1e-9))
