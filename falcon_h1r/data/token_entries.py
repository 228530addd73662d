"""Entries of the tokenised corpus: what becomes of a piece of its file, kept under a hash of all that decides it.

    CACHE/KEY/tokens.bin    uint32, the ids of the piece's documents end to end
    CACHE/KEY/index.npz     of each document: length, loss spans, end of the answer, weight, uid

An entry is written beside its place and renamed, so that readers trust whatever has the name of one.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from falcon_h1r.config import ConversationConfig
from falcon_h1r.data.file_lock import FileLock, host_name
from falcon_h1r.data.tokenisation import EncodedTrace, encode
from falcon_h1r.types import InputError, Trace, trace_from_row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT_VERSION = 1  # of entries and of what is in them: a change of the tokenisation raises it
PIECE_BYTES = 16 * 2**20
BATCH_BYTES = 2**20  # of traces that are tokenised at once
WHERE_FROM = ("is_local", "local_files_only", "name_or_path")  # of a tokenizer: changes no token
TOKENS, INDEX = "tokens.bin", "index.npz"


@dataclass(frozen=True, slots=True)
class Encoding:
    """All that decides tokens beside the traces."""

    tokenizer: str  # its folder
    tokenizer_hash: str
    system_prompt: str
    conversations: ConversationConfig

    def key(self, piece: bytes) -> str:
        """The name of the entry that a piece of the file becomes."""
        told = [FORMAT_VERSION, self.tokenizer_hash, self.system_prompt, asdict(self.conversations)]
        digest = hashlib.sha256(json.dumps(told).encode())
        digest.update(piece)
        return digest.hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Piece:
    """Whole lines of a file, from byte `start` to byte `end`."""

    path: str
    start: int
    end: int

    def read(self) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.start)
            return file.read(self.end - self.start)


def pieces_of(path: Path, piece_bytes: int = PIECE_BYTES) -> list[Piece]:
    """The file in pieces of about so many bytes: lines added at its end leave all but the last as they are."""
    size, borders = path.stat().st_size, [0]
    with open(path, "rb") as file:
        while borders[-1] < size:
            file.seek(min(borders[-1] + piece_bytes, size))
            file.readline()
            borders.append(file.tell())
    return [Piece(str(path), start, end) for start, end in pairwise(borders)]


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, cache: Path) -> tuple[str, str]:
    """Write the tokenizer into the cache, once; its folder and the hash of its files."""
    cache.mkdir(parents=True, exist_ok=True)
    beside = cache / f".tokenizer.{host_name()}.{os.getpid()}.partial"
    tokenizer.save_pretrained(beside)
    digest = hashlib.sha256()
    for path in sorted(beside.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            if path.name == "tokenizer_config.json":
                kept = {name: value for name, value in json.loads(content).items() if name not in WHERE_FROM}
                content = json.dumps(kept, sort_keys=True).encode()
            digest.update(f"{path.relative_to(beside)}\n".encode() + content)
    fingerprint = digest.hexdigest()[:32]
    folder = cache / f"tokenizer-{fingerprint}"
    _name(beside, folder)
    return str(folder), fingerprint


@dataclass(frozen=True, slots=True)
class Made:
    """What became of a piece: its entry's key, and the tokens that this process has made (0: the entry was there)."""

    key: str
    num_bytes: int
    num_tokens: int
    is_whole: bool  # False: another process is at it


def make_entry(piece: Piece, encoding: Encoding, tokenizer: PreTrainedTokenizerBase, cache: Path) -> Made:
    """Tokenise a piece, unless its entry is there or another process holds its lock.

    Raises:
        InputError: naming the line, by its place in the file, whose conversation cannot be rendered.
    """
    data = piece.read()
    key = encoding.key(data)
    if (cache / key).is_dir():
        return Made(key, len(data), 0, True)
    lock = FileLock(lock_path(cache, key))
    if not lock.acquire():
        return Made(key, len(data), 0, (cache / key).is_dir())
    try:
        if (cache / key).is_dir():  # made between the look and the lock
            return Made(key, len(data), 0, True)
        for left in cache.glob(f".{key}.*.partial"):  # by a process that died
            shutil.rmtree(left, ignore_errors=True)
        return Made(key, len(data), _write_entry(cache / key, piece, data, encoding, tokenizer), True)
    finally:
        lock.release()


def lock_path(cache: Path, key: str) -> Path:
    return cache / f"{key}.lock"


def _write_entry(entry: Path, piece: Piece, data: bytes, encoding: Encoding, tokenizer: PreTrainedTokenizerBase) -> int:
    """Write beside the entry's place, then name it; returns its tokens."""
    beside = entry.with_name(f".{entry.name}.{host_name()}.{os.getpid()}.partial")
    beside.mkdir()
    columns: list[dict[str, Any]] = []
    with open(beside / TOKENS, "wb") as file:
        for batch in _batches(piece, data):
            try:
                encoded = encode(tokenizer, batch, encoding.system_prompt, encoding.conversations)
            except InputError as error:
                raise InputError(f"{piece.path}: {error}") from None
            file.write(np.concatenate([np.array(one.input_ids, np.uint32) for one in encoded]).tobytes())
            columns.append(_columns(encoded))
        _sync(file)
    columns.append(_columns([]))  # of a piece without rows, all there is
    index: dict[str, Any] = {name: np.concatenate([part[name] for part in columns]) for name in columns[0]}
    with open(beside / INDEX, "wb") as file:
        np.savez(file, **index)
        _sync(file)
    _name(beside, entry)
    return int(index["lengths"].sum())


def _batches(piece: Piece, data: bytes) -> Iterator[list[Trace]]:
    """The piece's traces, some at a time: tokens as Python's numbers take ten times the text's memory."""
    batch, place, first = list[Trace](), piece.start, piece.start
    for line in io.BytesIO(data):
        if line.strip():
            try:
                batch.append(trace_from_row(json.loads(line.decode("utf-8-sig"))))
            except (ValueError, TypeError, KeyError, AttributeError):
                raise InputError(f"{piece.path}, line at byte {place}: not a row that curation writes") from None
        place += len(line)
        if place - first >= BATCH_BYTES and batch:
            yield batch
            batch, first = [], place
    if batch:
        yield batch


def _columns(encoded: Sequence[EncodedTrace]) -> dict[str, Any]:
    """The index of some documents; the uids as bytes and how many of them each has."""
    uids = [one.uid.encode() for one in encoded]
    return {
        "lengths": np.array([len(one.input_ids) for one in encoded], np.int64),
        "num_spans": np.array([len(one.loss_spans) for one in encoded], np.int64),
        "spans": np.array([span for one in encoded for span in one.loss_spans], np.uint32).reshape(-1, 2),
        "answer_ends": np.array([one.answer_end for one in encoded], np.int64),
        "weights": np.array([one.weight for one in encoded], np.float64),
        "uid_bytes": np.array([len(uid) for uid in uids], np.int64),
        "uids": np.frombuffer(b"".join(uids), np.uint8),
    }


def copy_entry(entry: Path, folder: Path) -> None:
    """An entry to a folder of the node's own, whole or not at all."""
    if not (folder / entry.name).is_dir():
        beside = folder / f".{entry.name}.{host_name()}.{os.getpid()}.partial"
        shutil.copytree(entry, beside)
        _name(beside, folder / entry.name)


def _name(beside: Path, folder: Path) -> None:
    """Rename a folder into place; one that is there already stays, for its name says what is in it."""
    try:
        os.rename(beside, folder)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        shutil.rmtree(beside)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
