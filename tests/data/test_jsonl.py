from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from falcon_h1r.data.jsonl import read_jsonl, write_jsonl
from falcon_h1r.types import InputError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(rows=st.lists(st.dictionaries(st.text(max_size=8), JSON, max_size=4), min_size=1, max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
def test_any_rows_come_back_as_they_were_written(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, rows)
    assert list(read_jsonl(path)) == list(enumerate(rows, start=1))


def test_line_breaks_and_half_characters_within_a_text_survive(tmp_path: Path) -> None:
    rows = [{"text": "a\nb\r\u2028c\x85d"}, {"text": "\ud800"}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert [row for _, row in read_jsonl(tmp_path / "rows.jsonl")] == rows


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"old": 1}])

    def rows() -> Iterator[dict[str, Any]]:
        yield {"new": 1}
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_jsonl(path, rows())
    assert json.loads(path.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_no_rows_make_an_empty_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "none.jsonl", [])
    assert (tmp_path / "none.jsonl").read_text() == ""


def test_blank_lines_are_passed_over_and_still_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('\ufeff{"a": 1}\n\n  \n{"a": 2}', encoding="utf-8")
    assert list(read_jsonl(path)) == [(1, {"a": 1}), (4, {"a": 2})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "{path}: holds no rows"),
        (b"\n \n", "{path}: holds no rows"),
        (b'{"a": 1}\n{"a": }\n', "{path}, line 2: not JSON (Expecting value, column 7)"),
        (b'{"a": 1\n', "{path}, line 1: not JSON (Expecting ',' delimiter, column 8)"),
        (b"[1]\n", "{path}, line 1: has to be a JSON object, not a list"),
        (b"null\n", "{path}, line 1: has to be a JSON object, not null"),
        (b"3\n", "{path}, line 1: has to be a JSON object, not a number"),
        (b"\x80\x04\x95 pickled", "{path}, line 1: not UTF-8 text"),
        (b"PK\x03\x04", "{path}, line 1: not JSON (Expecting value, column 1)"),
    ],
)
def test_a_broken_file_is_told_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError) as raised:
        list(read_jsonl(path))
    assert str(raised.value) == message.format(path=path)


@pytest.mark.parametrize("line", ['{"a": ' + "9" * 5000 + "}", '{"a": ' + "[" * 200_000 + "}"])
def test_json_beyond_what_python_reads_is_an_input_error_too(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(line)
    with pytest.raises(InputError, match=r"line 1: not JSON"):
        list(read_jsonl(path))


def test_what_gzip_packed_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n{"a": }\n'))
    rows = read_jsonl(path)
    assert next(rows) == (1, {"a": 1})
    with pytest.raises(InputError, match=r"rows\.jsonl\.gz, line 2: not JSON"):
        next(rows)


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.jsonl: no such file$"):
        list(read_jsonl(tmp_path / "absent.jsonl"))
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\)$"):
        list(read_jsonl(tmp_path))
