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
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from falcon_h1r.config_data import DuplicatesConfig
from falcon_h1r.data.shingles import shingle_hashes
from falcon_h1r.types import InputError, Trace

Signatures = NDArray[np.uint32]

_SEED = 1997
_SHINGLES_AT_ONCE = 512
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
    candidates, buckets = _shared_buckets(table, members, config)
    result[candidates] = _greedy(table, candidates, buckets, config)
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
    """The rows of many files as one table that stays on disk."""

    def __init__(self, paths: Sequence[Path], num_hashes: int) -> None:
        self._arrays = [_mapped(path, num_hashes) for path in paths]
        self._starts = np.cumsum([0, *map(len, self._arrays)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def band_keys(self, members: NDArray[np.int64], columns: slice) -> NDArray[np.uint64]:
        """(members): a hash of each one's band. Unequal bands of equal hash only cost a comparison."""
        keys = np.empty(len(members), np.uint64)
        cuts = np.searchsorted(members, self._starts)
        for array, start, left, right in zip(self._arrays, self._starts, cuts, cuts[1:], strict=False):
            band = array[members[left:right] - start, columns] if right > left else array[:0, columns]
            key = np.zeros(len(band), np.uint64)
            for column in band.T:
                key = (key ^ column) * _MIX
                key ^= key >> np.uint64(29)
            keys[left:right] = key
        return keys

    def row(self, index: int) -> Signatures:
        file = int(np.searchsorted(self._starts, index, "right")) - 1
        return np.asarray(self._arrays[file][index - self._starts[file]])


def _mapped(path: Path, num_hashes: int) -> Signatures:
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
    """(U), (U, num_bands): traces that share a band with another, in order, and the bucket of each band; -1: alone.

    A bucket is called by its first member's place among the U.
    """
    width = config.num_hashes // config.num_bands
    found: list[tuple[NDArray[np.int32], NDArray[np.int32]]] = []  # of each band: members that share it, buckets
    shares = np.zeros(len(members), np.bool_)
    for band in range(config.num_bands):
        keys = table.band_keys(members, slice(band * width, (band + 1) * width))
        order = np.argsort(keys, kind="stable").astype(np.int32)
        keys = keys[order]
        new = np.ones(len(keys) + 1, np.bool_)
        np.not_equal(keys[1:], keys[:-1], out=new[1:-1])
        several = ~(new[:-1] & new[1:])
        first = order[np.flatnonzero(new[:-1])]  # stable: the least of its bucket
        bucket = first[np.cumsum(new[:-1])[several] - 1]
        found.append((order[several], bucket))
        shares[order[several]] = True
    candidates = np.flatnonzero(shares)
    rank = np.cumsum(shares, dtype=np.int32) - 1
    buckets = np.full((len(candidates), config.num_bands), -1, np.int32)
    for band in reversed(range(config.num_bands)):
        some, bucket = found.pop()
        buckets[rank[some], band] = rank[bucket]
    return members[candidates], buckets


def _greedy(
    table: _SignatureFiles, candidates: NDArray[np.int64], buckets: NDArray[np.int32], config: DuplicatesConfig
) -> NDArray[np.int64]:
    """(U): for each of the candidates, the first kept one that it nearly equals, or -1. Overwrites `buckets`."""
    result = np.full(len(candidates), -1, np.int64)
    latest = np.full(buckets.shape, -1, np.int32)  # by bucket and band: its latest kept candidate
    previous = buckets  # by candidate and band, once that is kept: the one kept before it in that bucket
    for number in range(len(candidates)):
        bands = np.flatnonzero(buckets[number] >= 0)
        mine = buckets[number, bands]
        heads = latest[mine, bands]
        row = table.row(int(candidates[number]))
        for earlier in _chained(heads, previous, bands):
            if np.count_nonzero(row == table.row(int(candidates[earlier]))) >= _needed(config):
                result[number] = candidates[earlier]
                break
        else:
            previous[number, bands] = heads
            latest[mine, bands] = number
    return result


def _chained(heads: NDArray[np.int32], previous: NDArray[np.int32], bands: NDArray[np.int64]) -> list[int]:
    """All that `previous` leads to from these heads, one a band, and they themselves, in order."""
    found: set[int] = set()
    while (there := heads >= 0).any():
        heads, bands = heads[there], bands[there]
        found.update(heads.tolist())
        heads = previous[heads, bands]
    return sorted(found)


def _needed(config: DuplicatesConfig) -> int:
    """How many hashes of two near-duplicates have to be equal."""
    return int(np.ceil(config.threshold * config.num_hashes - 1e-9))
