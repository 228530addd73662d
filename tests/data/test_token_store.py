"""The tokenised corpus: the documents of encode_traces, made once, by whoever comes first, and whole or not at all."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from falcon_h1r.config import ConversationConfig
from falcon_h1r.data import token_entries
from falcon_h1r.data.file_lock import FileLock, StaleLocks
from falcon_h1r.data.jsonl import write_jsonl
from falcon_h1r.data.packing import Document
from falcon_h1r.data.token_entries import TOKENS, Encoding, Made, lock_path, pieces_of, save_tokenizer
from falcon_h1r.data.token_store import TokenStore, stage_entries, tokenise
from falcon_h1r.data.tokenisation import encode_traces
from falcon_h1r.types import InputError, Problem, Trace, Turn, to_row

SYSTEM = "Think first."
PIECE = 600  # bytes


def make_trace(number: int) -> Trace:
    turns = (Turn("user", "Ça?"), Turn("assistant", "<tool_call>", "r"), Turn("tool", "1")) if number % 5 == 0 else ()
    problem = Problem(f"uid-{number}", f"What is {number} + 1?", str(number + 1))
    return Trace(problem, "t", f"One more than {number}.", rf"\boxed{{{number + 1}}}", number % 4 / 2, turns)


TRACES = [make_trace(number) for number in range(24)]


@pytest.fixture
def traces_file(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "traces.jsonl", map(to_row, TRACES))
    return tmp_path / "traces.jsonl"


@pytest.fixture
def encoding(tokenizer: Any, tmp_path: Path) -> Encoding:
    return Encoding(*save_tokenizer(tokenizer, tmp_path / "cache"), SYSTEM, ConversationConfig())


def test_the_store_holds_the_documents_of_the_traces(
    tokenizer: Any, traces_file: Path, encoding: Encoding, tmp_path: Path
) -> None:
    keys = tokenise(traces_file, encoding, tokenizer, tmp_path / "cache", piece_bytes=PIECE)
    store = TokenStore(tmp_path / "cache", keys)
    expected = encode_traces(tokenizer, TRACES, SYSTEM)
    assert len(keys) > 3
    assert list(store) == expected
    assert store[-1] == expected[-1] and store[2:9:3] == expected[2:9:3]
    assert [store.uid(number) for number in range(len(store))] == [document.uid for document in expected]
    index = store.document_index
    assert index.lengths.tolist() == [len(document) for document in expected]
    assert index.carries_loss.tolist() == [trace.weight != 0 for trace in TRACES]
    first = [next((t for t, w in enumerate(d.loss_weights) if w), None) for d in expected]
    assert [n for n, f in zip(index.prompt_lengths.tolist(), first, strict=True) if f is not None] == [
        f for f in first if f is not None
    ]
    with pytest.raises(IndexError):
        store[len(expected)]


def test_shards_are_opened_when_asked_for_and_let_go(
    tokenizer: Any, traces_file: Path, encoding: Encoding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("falcon_h1r.data.token_store.OPEN_SHARDS", 2)
    store = TokenStore(
        tmp_path / "cache", tokenise(traces_file, encoding, tokenizer, tmp_path / "cache", piece_bytes=PIECE)
    )
    assert len(store._shards) == 0
    expected = encode_traces(tokenizer, TRACES, SYSTEM)
    assert [store[number] for number in (0, 23, 7, 0)] == [expected[number] for number in (0, 23, 7, 0)]
    assert len(store._shards) == 2


def test_pieces_are_whole_lines_and_lines_added_leave_the_first_as_they_are(traces_file: Path) -> None:
    pieces = pieces_of(traces_file, PIECE)
    assert b"".join(piece.read() for piece in pieces) == traces_file.read_bytes()
    assert all(piece.read().endswith(b"\n") for piece in pieces)
    with open(traces_file, "a") as file:
        file.write(json.dumps(to_row(make_trace(99))) + "\n")
    assert pieces_of(traces_file, PIECE)[: len(pieces) - 1] == pieces[:-1]


def made_tokens(*arguments: Any, **rest: Any) -> tuple[int, list[str]]:
    """How many tokens were made anew, and the keys."""
    found: list[Made] = []
    keys = tokenise(*arguments, report=found.append, piece_bytes=PIECE, **rest)
    assert [made.is_whole for made in found] == [True] * len(keys)
    return sum(made.num_tokens for made in found), keys


def test_nothing_is_made_twice_and_every_setting_makes_other_entries(
    tokenizer: Any, traces_file: Path, encoding: Encoding, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    made, keys = made_tokens(traces_file, encoding, tokenizer, cache)
    assert made == sum(len(document) for document in encode_traces(tokenizer, TRACES, SYSTEM))
    assert made_tokens(traces_file, encoding, tokenizer, cache) == (0, keys)
    for other in (
        Encoding(encoding.tokenizer, "another", SYSTEM, encoding.conversations),
        Encoding(encoding.tokenizer, encoding.tokenizer_hash, "", encoding.conversations),
        Encoding(
            encoding.tokenizer, encoding.tokenizer_hash, SYSTEM, ConversationConfig(tool_calls_keep_thinking=False)
        ),
    ):
        assert not set(keys) & {other.key(piece.read()) for piece in pieces_of(traces_file, PIECE)}
    assert save_tokenizer(tokenizer, cache) == (encoding.tokenizer, encoding.tokenizer_hash)
    assert not list(cache.glob(".*")) and not list(cache.glob("*.lock"))


def test_a_bad_row_is_named_by_its_place(tokenizer: Any, traces_file: Path, encoding: Encoding, tmp_path: Path) -> None:
    size = traces_file.stat().st_size
    with open(traces_file, "a") as file:
        file.write('{"problem": 1}\n')
    with pytest.raises(InputError, match=f"traces.jsonl, line at byte {size}: not a row that curation writes"):
        tokenise(traces_file, encoding, tokenizer, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.lock")), "its lock is given back"


def test_a_half_written_entry_is_none(tokenizer: Any, traces_file: Path, encoding: Encoding, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    key = encoding.key(traces_file.read_bytes())
    left = cache / f".{key}.elsewhere.1.partial"
    left.mkdir()
    (left / TOKENS).write_bytes(b"half")
    assert tokenise(traces_file, encoding, tokenizer, cache) == [key]
    assert list(TokenStore(cache, [key])) == encode_traces(tokenizer, TRACES, SYSTEM)
    assert not left.exists()


def test_entries_are_staged_whole(tokenizer: Any, traces_file: Path, encoding: Encoding, tmp_path: Path) -> None:
    keys = tokenise(traces_file, encoding, tokenizer, tmp_path / "cache", piece_bytes=PIECE)
    for _ in range(2):
        stage_entries(tmp_path / "cache", [*keys, keys[0]], tmp_path / "local")
    assert sorted(path.name for path in (tmp_path / "local").iterdir()) == sorted(set(keys))
    assert list(TokenStore(tmp_path / "local", keys)) == encode_traces(tokenizer, TRACES, SYSTEM)


# -----------------------------------------------------------------------------
# Several processes


def test_two_processes_that_race_make_one_entry_each_reads(
    tokenizer: Any, traces_file: Path, encoding: Encoding, tmp_path: Path
) -> None:
    """Both begin at once; what one makes the other waits for."""
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()

    def race() -> None:
        slow = token_entries.encode
        token_entries.encode = lambda *arguments: (time.sleep(0.05), slow(*arguments))[1]
        barrier.wait()
        made, keys = made_tokens(traces_file, encoding, tokenizer, tmp_path / "cache")
        store = TokenStore(tmp_path / "cache", keys)
        results.put((made, keys, sum(len(document) for document in store)))

    processes = [context.Process(target=race) for _ in range(2)]
    for process in processes:
        process.start()
    (first, keys, num_tokens), (second, other_keys, other_tokens) = results.get(), results.get()
    for process in processes:
        process.join()
    assert keys == other_keys and num_tokens == other_tokens == first + second
    assert first and second, "they shared the work"


@pytest.mark.slow
def test_workers_make_the_same_entries(tokenizer: Any, traces_file: Path, encoding: Encoding, tmp_path: Path) -> None:
    made, keys = made_tokens(traces_file, encoding, tokenizer, tmp_path / "cache", num_workers=2)
    assert made_tokens(traces_file, encoding, tokenizer, tmp_path / "other") == (made, keys)
    for key in keys:
        assert (tmp_path / "cache" / key / TOKENS).read_bytes() == (tmp_path / "other" / key / TOKENS).read_bytes()


@pytest.mark.slow
def test_a_bad_row_ends_the_workers(tokenizer: Any, traces_file: Path, encoding: Encoding, tmp_path: Path) -> None:
    with open(traces_file, "a") as file:
        file.write("[]\n")
    with pytest.raises(InputError, match="not a row that curation writes"):
        tokenise(traces_file, encoding, tokenizer, tmp_path / "cache", num_workers=2, piece_bytes=PIECE)


def test_a_lock_is_one_processs_until_it_gives_it_back(tmp_path: Path) -> None:
    ours, other = FileLock(tmp_path / "a.lock"), FileLock(tmp_path / "a.lock")
    assert ours.acquire() and not other.acquire()
    holder = json.loads((tmp_path / "a.lock").read_text())
    assert holder["pid"] == os.getpid() and holder["host"] and holder["time"] <= time.time()
    ours.release()
    assert other.acquire()
    other.release()


def test_a_lock_that_is_kept_fresh_is_not_taken_away(tmp_path: Path) -> None:
    lock, watch = lock_path(tmp_path, "key"), StaleLocks(stale_seconds=0.05)
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "time": 0.0}))
    for touched in range(4):
        os.utime(lock, (touched, touched))
        assert not watch.remove_if_stale(lock)
        time.sleep(0.02)
    time.sleep(0.06)
    assert watch.remove_if_stale(lock)
    assert not watch.remove_if_stale(lock), "there is none any more"


def test_a_lock_of_a_process_that_died_here_is_taken_away_at_once(
    tokenizer: Any, traces_file: Path, encoding: Encoding, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    key = encoding.key(traces_file.read_bytes())
    child = multiprocessing.get_context("fork").Process(target=lambda: FileLock(lock_path(cache, key)).acquire())
    child.start()
    child.join()
    assert lock_path(cache, key).exists()
    assert tokenise(traces_file, encoding, tokenizer, cache, stale_seconds=1e9) == [key]


def test_what_another_process_has_begun_is_waited_for(
    tokenizer: Any, traces_file: Path, encoding: Encoding, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    first, *rest = [encoding.key(piece.read()) for piece in pieces_of(traces_file, PIECE)]
    lock_path(cache, first).write_text(json.dumps({"host": "elsewhere", "pid": 1, "time": 0.0}))
    pauses: list[list[bool]] = []

    def pause() -> None:
        pauses.append([(cache / key).is_dir() for key in (first, *rest)])
        if len(pauses) == 2:
            lock_path(cache, first).unlink()  # the other one gives up

    assert tokenise(traces_file, encoding, tokenizer, cache, piece_bytes=PIECE, pause=pause) == [first, *rest]
    assert pauses == [[False] + [True] * len(rest)] * 2, "all else was done first"
    assert list(TokenStore(cache, [first, *rest])) == encode_traces(tokenizer, TRACES, SYSTEM)


def test_the_ids_are_stored_in_four_bytes(
    tokenizer: Any, traces_file: Path, encoding: Encoding, tmp_path: Path
) -> None:
    (key,) = tokenise(traces_file, encoding, tokenizer, tmp_path / "cache")
    documents: list[Document] = encode_traces(tokenizer, TRACES, SYSTEM)
    ids = np.fromfile(tmp_path / "cache" / key / TOKENS, np.uint32).tolist()
    assert ids == [token for document in documents for token in document.input_ids]
