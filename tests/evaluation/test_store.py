"""Rows on disk: complete or absent, of any number of processes, found without being held in memory."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from falcon_h1r.evaluation.rows import confidence_of, online_row, scored_trace
from falcon_h1r.evaluation.store import GREEDY, ONLINE, SAMPLES, RowKey, Store, agree_on_what_is_asked
from falcon_h1r.evaluation.tasks import Judged
from falcon_h1r.scaling.engine import ConfidenceSettings, DrawnTrace
from falcon_h1r.types import InputError, Problem, Verdict


def row(index: int, **fields: Any) -> dict[str, Any]:
    return {"problem_uid": "p", "sample_index": index, "response": "r", "response_tokens": index + 1, **fields}


def test_rows_of_all_processes_are_found_by_each(tmp_path: Path) -> None:
    with Store(tmp_path, "a") as one, Store(tmp_path, "b") as other:
        one.append(SAMPLES, row(0))
        other.append(GREEDY, row(0))
        other.append(ONLINE, row(0))
        for store in (one, other):
            assert sorted(key.kind for key, _ in store.refresh()) == [GREEDY, ONLINE, SAMPLES]
            assert RowKey(SAMPLES, "p", 0) in store and RowKey(SAMPLES, "p", 1) not in store
            assert store.row(RowKey(GREEDY, "p", 0)) == row(0)
        one.append(SAMPLES, row(1))
        assert other.refresh() == [(RowKey(SAMPLES, "p", 1), 2)]
        assert other.refresh() == []


def test_every_cut_of_a_line_is_no_row_and_none_is_misread(tmp_path: Path) -> None:
    with Store(tmp_path, "dead") as store:
        store.append(SAMPLES, row(0))
        store.append(SAMPLES, row(1, response='a "quoted"\nline\u2028 of ünïcode \ud800'))
        whole = store.own.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(len(whole)):
        (tmp_path / "rows-dead.jsonl").write_bytes(whole[:length])
        with Store(tmp_path, "next") as store:
            assert len(store.refresh()) == (length >= first)
    (tmp_path / "rows-dead.jsonl").write_bytes(whole)
    with Store(tmp_path, "next") as store:
        store.refresh()
        assert store.row(RowKey(SAMPLES, "p", 1))["response"] == 'a "quoted"\nline\u2028 of ünïcode \ud800'


def test_a_row_that_is_being_written_is_found_when_it_is_whole(tmp_path: Path) -> None:
    with Store(tmp_path, "a") as store:
        store.append(SAMPLES, row(0))
        whole = store.own.read_bytes()
        store.own.write_bytes(whole[:20])
        with Store(tmp_path, "b") as other:
            assert other.refresh() == []
            store.own.write_bytes(whole)
            assert len(other.refresh()) == 1


def test_of_two_rows_of_one_key_the_same_counts_whoever_reads(tmp_path: Path) -> None:
    for owner, response in (("b", "one"), ("a", "other"), ("c", "one")):
        with Store(tmp_path, owner) as store:
            store.append(SAMPLES, row(0, response=response))
    found = set()
    for names in (("a", "b", "c"), ("c", "a", "b")):
        for name, new in zip(("a", "b", "c"), names, strict=True):
            (tmp_path / f"rows-{name}.jsonl").rename(tmp_path / f"aside-{new}")
        for new in names:
            (tmp_path / f"aside-{new}").rename(tmp_path / f"rows-{new}.jsonl")
        with Store(tmp_path, "reader") as store:
            assert len(store.refresh()) == 1
            found.add(store.row(RowKey(SAMPLES, "p", 0))["response"])
    assert len(found) == 1


def test_texts_are_not_held_in_memory(tmp_path: Path) -> None:
    with Store(tmp_path, "a") as store:
        store.append(ONLINE, row(3, question="q", answer_key="7"))
        store.refresh()
        assert store.online == {
            "p": {3: {"problem_uid": "p", "sample_index": 3, "response_tokens": 4, "answer_key": "7"}}
        }


def test_a_line_that_is_no_row_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows-x.jsonl").write_text('{"kind": "samples"}\n')
    with Store(tmp_path, "a") as store, pytest.raises(InputError, match=r"rows-x.jsonl, byte 0: no row"):
        store.refresh()


def test_a_disk_that_takes_no_more_is_named_and_leaves_whole_rows(tmp_path: Path) -> None:
    with Store(tmp_path, "a") as store:
        store.own.symlink_to("/dev/full")
        with pytest.raises(InputError, match=r"rows-a.jsonl: cannot be written \(No space left"):
            store.append(SAMPLES, row(0))


@pytest.mark.parametrize("changed", [{"a": {"b": 2}}, {"a": {"b": 1}, "c": 0}])
def test_what_is_asked_is_agreed_on_once(changed: dict[str, Any], tmp_path: Path) -> None:
    agree_on_what_is_asked(tmp_path / "parts", {"a": {"b": 1}})
    agree_on_what_is_asked(tmp_path / "parts", {"a": {"b": 1}})
    with pytest.raises(InputError, match=r"^(a\.b=2|c=0): the evaluation in .* was begun with (1|null), and goes on"):
        agree_on_what_is_asked(tmp_path / "parts", changed)
    assert len(list((tmp_path / "parts").iterdir())) == 1


def test_a_trace_comes_back_from_its_row_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    problem, judged = Problem("p", "q", "7"), Judged(Verdict("correct", "number", ""), "7", "7")
    settings = ConfidenceSettings(window_tokens=3)
    for num_tokens in (0, 1, 5, 40):
        confidences = {name: rng.uniform(0, 20, num_tokens) for name in settings.measures}
        trace = DrawnTrace("p", 4, "text", num_tokens, "stop", confidences)
        measured = confidence_of(trace, settings)
        read = scored_trace(json.loads(json.dumps(online_row(problem, trace, judged, measured, 0.1, False))))
        assert (read.sample_index, read.answer, read.num_tokens, read.is_right) == (4, "7", num_tokens, True)
        for name, summary in measured.items():
            if num_tokens:
                assert read.confidence[name] == summary
            else:
                assert math.isnan(read.confidence[name].mean) and read.confidence[name].minima == ()
