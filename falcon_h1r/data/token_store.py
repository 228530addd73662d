"""The tokenised corpus: made by parallel processes, kept under content hashes, read a document at a time.

The traces' file is cut into pieces of whole lines, each of which becomes an entry of the cache (token_entries).
Processes of one node share the pieces; nodes that share the cache compete for them and wait for each other's entries.
Nothing is tokenised twice, by this run or the next, and never is more than a piece of the corpus in a process's memory.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from falcon_h1r.data.file_lock import STALE_SECONDS, StaleLocks
from falcon_h1r.data.packing import Document
from falcon_h1r.data.packing_plan import Indices
from falcon_h1r.data.token_entries import (
    INDEX,
    PIECE_BYTES,
    TOKENS,
    Encoding,
    Made,
    Piece,
    copy_entry,
    lock_path,
    make_entry,
    pieces_of,
)
from falcon_h1r.data.tokenisation import spread_weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPEN_SHARDS = 64  # mapped at once by a reader: each takes a file descriptor
POLL_SECONDS = 0.2

Report = Callable[[Made], None]


def tokenise(
    path: Path,
    encoding: Encoding,
    tokenizer: PreTrainedTokenizerBase,
    cache: Path,
    num_workers: int = 1,
    report: Report = lambda _: None,
    piece_bytes: int = PIECE_BYTES,
    stale_seconds: float = STALE_SECONDS,
    pause: Callable[[], None] = lambda: time.sleep(POLL_SECONDS),
) -> list[str]:
    """Make the entries that are missing, wait for those that others make; the keys of all, in the file's order.

    Args:
        path: traces as curation writes them, one JSON object a line.
        tokenizer: what `encoding.tokenizer` holds, for work in this process; workers load it from there.
        num_workers: 1: this process alone.
        report: told of every piece whose entry is there; what it raises ends the work.
        pause: what to do until the next look at entries that others make; what it raises ends the work, too.

    Raises:
        InputError: naming a row that cannot be tokenised.
    """
    cache.mkdir(parents=True, exist_ok=True)
    pieces = pieces_of(path, piece_bytes)
    keys, left, stale = [""] * len(pieces), list(range(len(pieces))), StaleLocks(stale_seconds)
    with _makers(encoding, tokenizer, cache, min(num_workers, len(pieces))) as make_all:
        while left:
            busy = []
            for number, made in make_all([(number, pieces[number]) for number in left]):
                keys[number] = made.key
                if made.is_whole:
                    report(made)
                else:
                    busy.append(number)
            while busy and not any(
                (cache / keys[number]).is_dir()
                or stale.remove_if_stale(lock_path(cache, keys[number]))
                or not lock_path(cache, keys[number]).exists()
                for number in busy
            ):
                pause()
            left = busy
    return keys


MakeAll = Callable[[Sequence[tuple[int, Piece]]], Iterator[tuple[int, Made]]]


@contextmanager
def _makers(encoding: Encoding, tokenizer: PreTrainedTokenizerBase, cache: Path, num_workers: int) -> Iterator[MakeAll]:
    """Makes the entries of numbered pieces, in this process or in a pool's."""
    if num_workers <= 1:
        yield lambda pieces: ((number, make_entry(piece, encoding, tokenizer, cache)) for number, piece in pieces)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of this process's threads
    pool = ProcessPoolExecutor(num_workers, context, _begin_worker, (encoding, str(cache), os.getpid()))

    def make_all(pieces: Sequence[tuple[int, Piece]]) -> Iterator[tuple[int, Made]]:
        futures = {pool.submit(_make_in_worker, piece): number for number, piece in pieces}
        for future in as_completed(futures):
            yield futures[future], future.result()

    try:
        yield make_all
    finally:
        pool.shutdown(cancel_futures=True)


_worker: dict[str, Any] = {}  # what a worker process has loaded


def _begin_worker(encoding: Encoding, cache: str, parent: int) -> None:
    from transformers import AutoTokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one worker, one core
    tokenizer = AutoTokenizer.from_pretrained(encoding.tokenizer, local_files_only=True)
    _worker.update(encoding=encoding, tokenizer=tokenizer, cache=Path(cache), parent=parent)


def _make_in_worker(piece: Piece) -> Made:
    if os.getppid() != _worker["parent"]:
        os._exit(1)  # who asked is gone
    return make_entry(piece, _worker["encoding"], _worker["tokenizer"], _worker["cache"])


def stage_entries(cache: Path, keys: Sequence[str], folder: Path) -> None:
    """Copy entries to a folder of the node's own; by one process of a node."""
    folder.mkdir(parents=True, exist_ok=True)
    for key in dict.fromkeys(keys):
        copy_entry(cache / key, folder)


# -----------------------------------------------------------------------------
# Reading


@dataclass(frozen=True, slots=True)
class DocumentIndex:
    """What is known of documents without reading their tokens: (num_documents) each."""

    lengths: Indices
    prompt_lengths: Indices  # tokens before the first that carries loss
    answer_ends: Indices  # tokens that hold the answer
    carries_loss: Any  # bool


class TokenStore(Sequence[Document]):
    """Documents of the entries `keys` of a folder, in this order. Lengths are in memory, tokens stay on the disk."""

    def __init__(self, folder: Path, keys: Sequence[str]) -> None:
        self._folder, self._keys = folder, list(keys)
        parts: dict[str, list[Any]] = {}
        for key in self._keys:
            with np.load(folder / key / INDEX) as index:
                for name in index.files:
                    parts.setdefault(name, []).append(index[name])
        columns = {name: np.concatenate(found) for name, found in parts.items()}
        lengths, spans = columns["lengths"], columns["spans"]
        self._first_of_entry = _starts([len(one) for one in parts["lengths"]])
        self._first_token, self._first_span = _starts(lengths), _starts(columns["num_spans"])
        self._first_uid_byte, self._uid_bytes = _starts(columns["uid_bytes"]), columns["uids"]
        self._spans, self._weights = spans, columns["weights"]
        self._shards: OrderedDict[int, Any] = OrderedDict()
        self.document_index = DocumentIndex(
            lengths,
            spans[self._first_span[:-1], 0].astype(np.int64),
            columns["answer_ends"],
            self._weights != 0,
        )

    def __len__(self) -> int:
        return len(self._weights)

    def __getitem__(self, number: Any) -> Any:
        """A document; or, for a slice, a list of them."""
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        number %= len(self)
        entry = int(np.searchsorted(self._first_of_entry, number, side="right")) - 1
        before = self._first_token[self._first_of_entry[entry]]
        start, end = self._first_token[number] - before, self._first_token[number + 1] - before
        ids = self._shard(entry)[start:end].tolist()
        spans = self._spans[self._first_span[number] : self._first_span[number + 1]].tolist()
        return Document(ids, spread_weights(len(ids), spans, float(self._weights[number])), uid=self.uid(number))

    def uid(self, number: int) -> str:
        """Of a document, without its tokens."""
        start, end = self._first_uid_byte[number], self._first_uid_byte[number + 1]
        return bytes(self._uid_bytes[start:end]).decode()

    def _shard(self, entry: int) -> Any:
        """The tokens of an entry, mapped; the one that was not asked for longest is let go."""
        if entry not in self._shards:
            self._shards[entry] = np.memmap(self._folder / self._keys[entry] / TOKENS, np.uint32, "r")
            if len(self._shards) > OPEN_SHARDS:
                self._shards.popitem(last=False)
        self._shards.move_to_end(entry)
        return self._shards[entry]


def _starts(counts: Any) -> Indices:
    """Where each of so many begins, and the end of the last."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
