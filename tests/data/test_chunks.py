"""A corpus in chunks: the table, what is read from it, bad rows, and the memory it takes."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from falcon_h1r.config_sources import SourceConfig
from falcon_h1r.data import hub
from falcon_h1r.data.chunks import BadRow, Chunk, plan_chunks, read_chunk
from falcon_h1r.data.jsonl import write_jsonl
from falcon_h1r.data.sources import load_problems, load_traces
from falcon_h1r.types import InputError, Trace, to_row

MEGABYTE = 1 << 20
COT: dict[str, Any] = {"reasoning_field": "cot"}


def row(number: int, cot: str = "so") -> dict[str, Any]:
    return {"question": f"{number}?", "answer": number, "cot": cot}


def lines(path: Path, *rows: Any) -> Path:
    """A file with a line for each row: bytes as they are, anything else as JSON."""
    content = b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


def parquet(path: Path, rows: list[dict[str, Any]], group_rows: int = 1000) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group_rows)
    return path


def read_all(
    sources: dict[str, SourceConfig], spool: Path, chunk_bytes: int = MEGABYTE, max_row_bytes: int = MEGABYTE
) -> tuple[list[Trace], list[BadRow]]:
    """All traces and all bad rows, the chunk table having gone through JSON."""
    bad: list[BadRow] = []
    traces: list[Trace] = []
    table = json.loads(json.dumps([asdict(chunk) for chunk in plan_chunks(sources, chunk_bytes, spool)]))
    for chunk in (Chunk(**values) for values in table):
        traces += read_chunk(chunk, sources[chunk.source], max_row_bytes, bad.append)
    return traces, bad


def first_error(source: SourceConfig, spool: Path, max_row_bytes: int = MEGABYTE) -> str:
    with pytest.raises(InputError) as raised:
        for chunk in plan_chunks({"s": source}, MEGABYTE, spool):
            list(read_chunk(chunk, source, max_row_bytes))
    assert "\n" not in str(raised.value)
    return str(raised.value)


# -----------------------------------------------------------------------------
# The table


def test_chunks_follow_sources_files_and_lines(tmp_path: Path) -> None:
    lines(tmp_path / "b" / "2.jsonl", row(3), row(4))
    lines(tmp_path / "b" / "1.jsonl", row(1), b"", row(2))
    (tmp_path / "b" / "notes.txt").write_text("no rows")
    one = lines(tmp_path / "a.jsonl", row(0))
    sources = {"z": SourceConfig(path=str(tmp_path / "b"), **COT), "a": SourceConfig(path=str(one), **COT)}
    length = len(json.dumps(row(1))) + 1
    first, second = str(tmp_path / "b" / "1.jsonl"), str(tmp_path / "b" / "2.jsonl")
    assert plan_chunks(sources, 1, tmp_path / "spool") == [
        Chunk(0, "z", first, 1, 0, length),
        Chunk(1, "z", first, 2, length, length + 1),
        Chunk(2, "z", first, 3, length + 1, 2 * length + 1),
        Chunk(3, "z", second, 1, 0, length),
        Chunk(4, "z", second, 2, length, 2 * length),
        Chunk(5, "a", str(one), 1, 0, length),
    ]
    traces, bad = read_all(sources, tmp_path / "spool")
    assert [trace.origin for trace in traces] == [
        "z:1.jsonl:1", "z:1.jsonl:3", "z:2.jsonl:1", "z:2.jsonl:2", "a:a.jsonl:1",
    ]  # fmt: skip
    assert [trace.problem.answer for trace in traces] == ["1", "2", "3", "4", "0"] and not bad


@given(
    content=st.lists(st.sampled_from([b"", b"  ", b"x", b"\r"]) | st.integers(0, 10**9), max_size=12),
    chunk_bytes=st.integers(1, 200),
    ends=st.booleans(),
    limit=st.none() | st.integers(1, 12),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
def test_any_chunks_read_what_one_chunk_reads(
    tmp_path: Path, content: list[Any], chunk_bytes: int, ends: bool, limit: int | None
) -> None:
    path = lines(tmp_path / "rows.jsonl", *(row(line) if isinstance(line, int) else line for line in content))
    if not ends:
        path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    sources = {"s": SourceConfig(path=str(path), limit=limit, **COT)}
    whole, wrong = read_all(sources, tmp_path)
    assert read_all(sources, tmp_path, chunk_bytes) == (whole, wrong)
    chunks = plan_chunks(sources, chunk_bytes, tmp_path)
    assert [chunk.start for chunk in chunks[1:]] == [chunk.end for chunk in chunks[:-1]], "no byte is in two, or none"
    rows = [line for line in content if isinstance(line, int) or line == b"x"][:limit]
    assert [trace.problem.answer for trace in whole] == [str(line) for line in rows if isinstance(line, int)]
    assert len(wrong) == (rows.count(b"x") or (not rows))


def test_line_numbers_are_right_beyond_the_blocks_of_the_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("falcon_h1r.data.chunks._BLOCK", 64)
    path = lines(tmp_path / "rows.jsonl", *[row(number, "so" * (number % 50)) for number in range(200)], b"broken")
    source = SourceConfig(path=str(path), **COT)
    assert len(plan_chunks({"s": source}, 1000, tmp_path)) > 10
    traces, bad = read_all({"s": source}, tmp_path, chunk_bytes=1000)
    assert [trace.origin for trace in traces] == [f"s:rows.jsonl:{number}" for number in range(1, 201)]
    assert [one.where for one in bad] == [f"{path}, line 201"]


def test_the_limit_counts_rows_over_all_files(tmp_path: Path) -> None:
    lines(tmp_path / "1.jsonl", row(1), b"", b"broken")
    parquet(tmp_path / "2.parquet", [row(3), row(4), row(5)], group_rows=2)
    lines(tmp_path / "3.jsonl.gz", row(6), row(7))
    for limit, answers in ((1, ["1"]), (2, ["1"]), (4, ["1", "3", "4"]), (6, ["1", "3", "4", "5", "6"])):
        sources = {"s": SourceConfig(path=str(tmp_path), limit=limit, **COT)}
        traces, bad = read_all(sources, tmp_path / "spool", chunk_bytes=1)
        assert [trace.problem.answer for trace in traces] == answers
        assert len(bad) == (limit > 1)


def test_a_source_is_checked_before_its_files(tmp_path: Path) -> None:
    source = SourceConfig(path=str(tmp_path / "absent.jsonl"))
    with pytest.raises(InputError, match="^curate.sources.mine: no reasoning to learn from"):
        plan_chunks({"mine": source}, 1, tmp_path)
    with pytest.raises(InputError, match="^curate.sources.mine.limit=0 has to be at least 1"):
        plan_chunks({"mine": replace(source, limit=0)}, 1, tmp_path)
    source.reasoning_field = "cot"
    for path, message in (
        ("absent.jsonl", "absent.jsonl: no such file"),
        ("*.jsonl", "*.jsonl: no file matches"),
        ("", "has no .jsonl or .jsonl.gz or .parquet files"),
    ):
        assert first_error(replace(source, path=str(tmp_path / path)), tmp_path / "spool").endswith(message)
    lines(tmp_path / "rows.jsonl.zst", row(1))
    assert first_error(replace(source, path=str(tmp_path / "rows.jsonl.zst")), tmp_path).endswith(
        "rows.jsonl.zst: .zst is not read; unpack it, or pack it with gzip"
    )


# -----------------------------------------------------------------------------
# Formats


def test_all_formats_hold_the_same_traces(tmp_path: Path) -> None:
    rows = [row(number, "so" * number) for number in range(100)]
    files = [
        lines(tmp_path / "rows.jsonl", *rows),
        lines(tmp_path / "rows.jsonl.gz", *rows),
        parquet(tmp_path / "rows.parquet", rows, group_rows=7),
        parquet(tmp_path / "rows.data", rows),
    ]
    expected = load_traces(SourceConfig(path=str(files[0]), **COT))
    assert len(expected) == 100
    for file in files:
        source = SourceConfig(path=str(file), format="parquet" if file.suffix == ".data" else None, **COT)
        assert load_traces(source) == expected
        assert len(load_problems(replace(source, limit=3))) == 3
        for chunk_bytes in (1, 300, MEGABYTE):
            traces, bad = read_all({"s": source}, tmp_path, chunk_bytes)
            assert [replace(trace, origin="") for trace in traces] == expected and not bad
            assert [trace.origin for trace in traces] == [f"s:{file.name}:{number}" for number in range(1, 101)]


def test_parquet_chunks_are_runs_of_rows_within_and_across_row_groups(tmp_path: Path) -> None:
    path = parquet(tmp_path / "rows.parquet", [row(number) for number in range(10)], group_rows=4)
    source = SourceConfig(path=str(path), **COT)
    one_each = plan_chunks({"s": source}, 1, tmp_path)
    assert [(chunk.first_row, chunk.start, chunk.end) for chunk in one_each] == [(n + 1, n, n + 1) for n in range(10)]
    assert [(chunk.start, chunk.end) for chunk in plan_chunks({"s": source}, MEGABYTE, tmp_path)] == [(0, 10)]


def test_a_pattern_reads_folders_below_and_origins_tell_them_apart(tmp_path: Path) -> None:
    lines(tmp_path / "x" / "rows.jsonl", row(1))
    lines(tmp_path / "y" / "rows.jsonl", row(2))
    source = SourceConfig(path=str(tmp_path / "*" / "rows.jsonl"), **COT)
    traces, _ = read_all({"s": source}, tmp_path)
    assert [trace.origin for trace in traces] == ["s:x/rows.jsonl:1", "s:y/rows.jsonl:1"]


def test_what_curation_wrote_keeps_its_origins(tmp_path: Path) -> None:
    (trace,) = load_traces(SourceConfig(path=str(lines(tmp_path / "rows.jsonl", row(1))), **COT))
    write_jsonl(tmp_path / "traces.jsonl", [to_row(trace), to_row(replace(trace, origin="openr1:x:3#1"))])
    traces, _ = read_all({"s": SourceConfig(path=str(tmp_path / "traces.jsonl"), curated=True)}, tmp_path)
    assert [trace.origin for trace in traces] == ["s:traces.jsonl:1", "openr1:x:3#1"]


# -----------------------------------------------------------------------------
# Bad rows


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"question": }', "not JSON (Expecting value, column 14)"),
        (b"[1]", "has to be a JSON object, not a list"),
        (b'{"question": "\xff"}', "not UTF-8 text"),
        (row(1, "x" * 3000), "longer than 2,000 bytes"),
        ({"question": "?", "answer": 1}, "no field 'cot' (it has: question, answer)"),
        ({**row(1), "cot": 3}, "field 'cot' has to be text, not a number"),
        ({**row(1), "question": " "}, "field 'question' is empty"),
    ],
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_a_bad_line_is_an_error_or_is_passed_over(tmp_path: Path, line: Any, reason: str, name: str) -> None:
    path = lines(tmp_path / name, row(1), b"", line, row(2))
    source = SourceConfig(path=str(path), **COT)
    assert first_error(source, tmp_path, max_row_bytes=2000) == f"{path}, line 3: {reason}"
    for chunk_bytes in (1, MEGABYTE):
        traces, bad = read_all({"s": source}, tmp_path, chunk_bytes, max_row_bytes=2000)
        assert [trace.problem.answer for trace in traces] == ["1", "2"]
        raw = line if isinstance(line, bytes) else json.dumps(line).encode()
        assert bad == [BadRow(f"{path}, line 3", reason, raw.decode(errors="replace")[:2000])]


def test_a_row_may_be_as_long_as_the_limit_and_no_longer(tmp_path: Path) -> None:
    length = len(json.dumps(row(1)))
    for ending in (b"\n", b"\r\n", b""):
        path = tmp_path / "rows.jsonl"
        path.write_bytes(json.dumps(row(1)).encode() + ending)
        sources = {"s": SourceConfig(path=str(path), **COT)}
        assert [len(part) for part in read_all(sources, tmp_path, max_row_bytes=length)] == [1, 0]
        assert [len(part) for part in read_all(sources, tmp_path, max_row_bytes=length - 1)] == [0, 1]


def test_verdicts_that_do_not_fit_make_a_bad_row_and_no_traces(tmp_path: Path) -> None:
    good = {"question": "?", "answer": 1, "gens": ["a", "b"], "right": [True, False]}
    path = lines(tmp_path / "rows.jsonl", {**good, "right": [True]}, {**good, "gens": ["a", 3]}, good)
    source = SourceConfig(path=str(path), generations_field="gens", verdict_field="right")
    traces, bad = read_all({"s": source}, tmp_path)
    assert [(trace.origin, trace.given_verdict) for trace in traces] == [
        ("s:rows.jsonl:3#1", True),
        ("s:rows.jsonl:3#2", False),
    ]
    assert [one.reason for one in bad] == [
        "field 'right' has 1 verdicts for 2 generations",
        "field 'gens[1]' has to be text, not a number",
    ]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.jsonl", b"", "holds no rows"),
        ("blank.jsonl", b"\n \n", "holds no rows"),
        ("binary.jsonl", b"\x7fELF\0\0\n\n\n", "not UTF-8 text but a binary file"),
        ("wide.jsonl", '{"question": 1}\n'.encode("utf-16"), "not UTF-8 text but a binary file"),
        ("plain.jsonl.gz", b'{"question": 1}\n', "cannot be read (Not a gzipped file (b'{\"'))"),
        ("cut.jsonl.gz", gzip.compress(b'{"question": 1}\n' * 9, mtime=0)[:-12], "cannot be read (Compressed file"),
        ("blank.jsonl.gz", gzip.compress(b"\n", mtime=0), "holds no rows"),
        ("text.parquet", b"text", "not a parquet file that can be read ("),
        ("empty.parquet", b"", "not a parquet file that can be read ("),
    ],
)
def test_a_file_that_cannot_be_read_is_one_bad_row(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    source = SourceConfig(path=str(path), **COT)
    assert first_error(source, tmp_path).startswith(f"{path}: {reason}")
    for chunk_bytes in (1, MEGABYTE):
        traces, (bad,) = read_all({"s": source}, tmp_path, chunk_bytes)
        assert not traces and bad.where == str(path) and bad.reason.startswith(reason)


def test_bad_rows_of_parquet(tmp_path: Path) -> None:
    path = parquet(tmp_path / "rows.parquet", [row(1), {**row(2), "cot": "x" * 5000}, {**row(3), "question": ""}])
    source = SourceConfig(path=str(path), **COT)
    traces, bad = read_all({"s": source}, tmp_path, max_row_bytes=2000)
    assert [trace.problem.answer for trace in traces] == ["1"]
    assert bad == [
        BadRow(f"{path}, row 2", "longer than 2,000 bytes", ""),
        BadRow(f"{path}, row 3", "field 'question' is empty", json.dumps({**row(3), "question": ""})),
    ]
    assert first_error(replace(source, reasoning_field="why"), tmp_path) == (
        f"{path}, row 1: no field 'why' (it has: question, answer, cot)"
    )
    assert first_error(replace(source, question_field="answer"), tmp_path) == (
        f"{path}, row 1: field 'answer' has to be text, not a number"
    )


def test_chats_and_generations_in_parquet_come_with_nulls_for_what_others_have(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "now", "arguments": "{}"}}
    chats = [
        [{"role": "user", "content": "?"}, {"role": "assistant", "content": None, "tool_calls": [call]}],
        [{"role": "user", "content": "??"}, {"role": "assistant", "content": "!"}],
    ]
    rows = [{"messages": chats[0], "gens": ["a", None]}, {"messages": chats[1], "gens": []}]
    path = parquet(tmp_path / "rows.parquet", rows)
    source = SourceConfig(path=str(path), messages_field="messages", answer_field=None)
    responses = [trace.response for trace in load_traces(source)]
    assert responses == ['<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>', "!"]
    source = SourceConfig(path=str(path), question_field="gens", generations_field="gens", answer_field=None)
    assert first_error(source, tmp_path) == f"{path}, row 1: field 'gens' has to be text, not a list"


def test_a_parquet_file_without_rows_and_one_that_breaks_off(tmp_path: Path) -> None:
    empty = tmp_path / "empty.parquet"
    pq.write_table(pa.table({"question": pa.array([], pa.string())}), empty)
    assert first_error(SourceConfig(path=str(empty), **COT), tmp_path) == f"{empty}: holds no rows"
    rows = [row(number, f"{number * 7919 % 1000:03d}" * 400) for number in range(300)]
    broken = parquet(tmp_path / "broken.parquet", rows, group_rows=100)
    content = bytearray(broken.read_bytes())
    middle = pq.ParquetFile(broken).metadata.row_group(1).column(2).data_page_offset
    content[middle : middle + 200] = b"\xff" * 200
    broken.write_bytes(content)
    traces, (bad,) = read_all({"s": SourceConfig(path=str(broken), **COT)}, tmp_path, chunk_bytes=100 * MEGABYTE)
    assert len(traces) == 100
    assert bad.where == f"{broken}, row 101" and bad.reason.startswith("cannot be read from here on (")
    halves = [Chunk(0, "s", str(broken), 101, 100, 150), Chunk(1, "s", str(broken), 151, 150, 300)]
    wheres: list[str] = []
    for half in halves:
        list(read_chunk(half, SourceConfig(path=str(broken), **COT), MEGABYTE, lambda bad: wheres.append(bad.where)))
    assert wheres == [f"{broken}, row 101", f"{broken}, row 151"]


def test_text_in_parquet_that_is_not_utf8_is_a_bad_row(tmp_path: Path) -> None:
    text = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff"))
    table = pa.table({"question": text, "answer": [1, 2], "cot": ["so", "so"]})
    pq.write_table(table, tmp_path / "rows.parquet")
    traces, (bad,) = read_all({"s": SourceConfig(path=str(tmp_path / "rows.parquet"), **COT)}, tmp_path)
    assert [trace.problem.question for trace in traces] == ["a"]
    assert bad.where.endswith(", row 2") and bad.reason.startswith("a value cannot be read ('utf-8' codec")


def test_values_in_parquet_beyond_python_are_bad_rows(tmp_path: Path) -> None:
    columns = {"question": ["a", "b"], "answer": [1, 2], "cot": ["so", "so"]}
    for kind, value in ((pa.timestamp("s"), 10**15), (pa.duration("s"), 2**62)):
        pq.write_table(pa.table({**columns, "at": pa.array([0, value], kind)}), tmp_path / "rows.parquet")
        traces, (bad,) = read_all({"s": SourceConfig(path=str(tmp_path / "rows.parquet"), **COT)}, tmp_path)
        assert [trace.problem.question for trace in traces] == ["a"]
        assert bad.where.endswith(", row 2") and bad.reason.startswith("a value cannot be read (")


def test_a_row_of_a_dictionary_column_is_as_long_as_its_own_value(tmp_path: Path) -> None:
    questions = pa.array([f"{number} " + "x" * 100 for number in range(100)]).dictionary_encode()
    table = pa.table({"question": questions, "answer": list(range(100)), "cot": ["so"] * 100})
    pq.write_table(table, tmp_path / "rows.parquet")
    source = SourceConfig(path=str(tmp_path / "rows.parquet"), **COT)
    traces, bad = read_all({"s": source}, tmp_path, max_row_bytes=1000)
    assert len(traces) == 100 and not bad


# -----------------------------------------------------------------------------
# Memory


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.parametrize("limit", [None, 3])
@pytest.mark.usefixtures("traced")
def test_a_line_of_sixty_megabytes_is_never_held(tmp_path: Path, limit: int | None) -> None:
    path = tmp_path / "rows.jsonl"
    with open(path, "wb") as file:
        file.write(json.dumps(row(1)).encode() + b"\n")
        for _ in range(60):
            file.write(b"x" * MEGABYTE)
        file.write(b"\n" + json.dumps(row(2)).encode() + b"\n")
    tracemalloc.reset_peak()
    sources = {"s": SourceConfig(path=str(path), limit=limit, **COT)}
    traces, (bad,) = read_all(sources, tmp_path, chunk_bytes=16 * MEGABYTE)
    assert [trace.origin for trace in traces] == ["s:rows.jsonl:1", "s:rows.jsonl:3"]
    assert (bad.where, bad.reason, len(bad.raw)) == (f"{path}, line 2", "longer than 1,048,576 bytes", 2000)
    assert tracemalloc.get_traced_memory()[1] < 25 * MEGABYTE


def test_a_large_row_group_is_read_a_few_rows_at_a_time(tmp_path: Path) -> None:
    rows = [row(number, f"{number:08d}" * 8192) for number in range(500)]
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, write_batch_size=16)  # pages as small as they can be
    source = SourceConfig(path=str(path), **COT)
    (chunk,) = plan_chunks({"s": source}, 1000 * MEGABYTE, tmp_path)
    del rows
    most, before = 0, pa.total_allocated_bytes()
    num_traces = 0
    for _ in read_chunk(chunk, source, MEGABYTE):
        num_traces += 1
        most = max(most, pa.total_allocated_bytes() - before)
    assert num_traces == 500 and most < 16 * MEGABYTE, "of the 32 that the column has"


# -----------------------------------------------------------------------------
# Hub datasets


def hub_source(folder: Path, **rest: Any) -> SourceConfig:
    return SourceConfig(path=str(folder), format="hub", **COT, **rest)


def test_a_folder_is_streamed_as_a_dataset_spooled_and_read(tmp_path: Path) -> None:
    lines(tmp_path / "dataset" / "train.jsonl", *[row(number) for number in range(5)])
    source = hub_source(tmp_path / "dataset")
    assert [trace.problem.answer for trace in load_traces(source)] == ["0", "1", "2", "3", "4"]
    chunks = plan_chunks({"s": source}, 1, tmp_path / "spool", part_rows=2)
    assert [chunk.first_row for chunk in chunks] == [1, 2, 3, 4, 5]
    traces = [trace for chunk in chunks for trace in read_chunk(chunk, source, MEGABYTE)]
    assert [trace.origin for trace in traces] == [f"s:train:{number}" for number in range(1, 6)]
    assert [path.name for path in sorted((tmp_path / "spool" / "s").iterdir())] == [
        "dataset.jsonl", "done.jsonl", "part-000000.jsonl", "part-000001.jsonl", "part-000002.jsonl",
    ]  # fmt: skip
    with pytest.raises(InputError) as raised:
        list(read_chunk(chunks[3], replace(source, reasoning_field="why"), MEGABYTE))
    assert str(raised.value).startswith(f"{tmp_path / 'dataset'}, split train, row 4: no field 'why'")


class FakeStream:
    """What datasets gives: an iterable that skips, and may break."""

    def __init__(self, rows: list[dict[str, Any]], breaks_at: int | None = None, first: int = 0) -> None:
        self.rows, self.breaks_at, self.first = rows, breaks_at, first

    def skip(self, count: int) -> FakeStream:
        return FakeStream(self.rows, self.breaks_at, self.first + count)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number in range(self.first, len(self.rows)):
            if number == self.breaks_at:
                raise ConnectionError("the hub is gone\nfor good")
            yield self.rows[number]


def fake_hub(monkeypatch: pytest.MonkeyPatch, stream: FakeStream) -> list[tuple[Any, ...]]:
    """Put a stream in the place of the hub's; the calls are noted."""
    calls: list[tuple[Any, ...]] = []

    def load_dataset(*names: Any, **rest: Any) -> FakeStream:
        calls.append((*names, rest))
        return stream

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    return calls


def test_a_stream_that_broke_off_goes_on_after_its_whole_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(number) for number in range(7)]
    source = SourceConfig(path="org/set", format="hub", subset="big", split="test", revision="abc", **COT)
    calls = fake_hub(monkeypatch, FakeStream(rows, breaks_at=5))
    with pytest.raises(InputError) as raised:
        plan_chunks({"s": source}, MEGABYTE, tmp_path, part_rows=2)
    assert str(raised.value) == "org/set, split test: the stream broke off after row 5 (the hub is gone)"
    assert calls == [("org/set", "big", {"split": "test", "revision": "abc", "streaming": True})]
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "s").glob("part-*")}
    assert len(kept) == 2

    fake_hub(monkeypatch, FakeStream([{}] * 4 + rows[4:]))  # what is kept is not read again
    chunks = plan_chunks({"s": source}, MEGABYTE, tmp_path, part_rows=2)
    assert {name: (tmp_path / "s" / name).stat().st_mtime_ns for name in kept} == kept
    traces = [trace for chunk in chunks for trace in read_chunk(chunk, source, MEGABYTE)]
    assert [(trace.problem.answer, trace.origin) for trace in traces] == [(str(n), f"s:test:{n + 1}") for n in range(7)]

    calls = fake_hub(monkeypatch, FakeStream([]))
    assert plan_chunks({"s": source}, MEGABYTE, tmp_path, part_rows=2) == chunks
    assert not calls, "a stream that has ended is not opened again"
    with pytest.raises(InputError, match="holds rows read with revision=abc; delete it to read anew"):
        plan_chunks({"s": replace(source, revision=None)}, MEGABYTE, tmp_path, part_rows=2)


def test_a_limit_ends_the_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub(monkeypatch, FakeStream([row(number) for number in range(9)], breaks_at=4))
    for part_rows in (1, 2, 3, 10):
        source = SourceConfig(path="org/set", format="hub", limit=3, **COT)
        traces = [
            trace
            for chunk in plan_chunks({"s": source}, 1, tmp_path / str(part_rows), part_rows=part_rows)
            for trace in read_chunk(chunk, source, MEGABYTE)
        ]
        assert [trace.origin for trace in traces] == ["s:train:1", "s:train:2", "s:train:3"]


def test_a_dataset_that_cannot_be_loaded_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError) as raised:
        list(hub.hub_rows(hub_source(tmp_path / "absent")))
    assert str(raised.value).startswith(f"{tmp_path / 'absent'}, split train: cannot be loaded (")
    assert "\n" not in str(raised.value)
    fake_hub(monkeypatch, FakeStream([]))
    with pytest.raises(InputError, match="^org/set, split train: holds no rows$"):
        plan_chunks({"s": hub_source(Path("org/set"))}, 1, tmp_path)
