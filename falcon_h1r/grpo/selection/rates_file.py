"""pass_rates.jsonl: what was measured of every problem, and all that a run has to know to go on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from falcon_h1r.checkpoint.files import sync_path
from falcon_h1r.grpo.selection.rules import Tally
from falcon_h1r.tracking import RowFile
from falcon_h1r.types import InputError, Problem

Row = dict[str, Any]


def rate_row(uid: str, tally: Tally) -> Row:
    """A problem's row in pass_rates.jsonl."""
    return {"uid": uid, "pass_rate": tally.pass_rate, **asdict(tally)}


def tally_of(row: Mapping[str, Any]) -> Tally:
    """What `rate_row` was made of."""
    return Tally(**{field.name: row[field.name] for field in fields(Tally)})


class PassRateFile:
    """The rows of a run, one a problem and in their order. Only the main rank touches it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = RowFile(path)

    def open(self, problems: Sequence[Problem], resume: bool) -> int:
        """How many of the problems an earlier try has measured, from the first on; what a kill has cut in half is cut
        off. Without `resume`, none, and the file begins anew.

        Raises:
            InputError: where the rows are not of these problems.
        """
        if not resume:
            self.path.unlink(missing_ok=True)
        if not self.path.exists():
            return 0
        rows, num_bytes = _whole_rows(self.path.read_bytes())
        if [row.get("uid") for row in rows] != [problem.uid for problem in problems[: len(rows)]]:
            raise InputError(f"{self.path}: not of these problems, which have changed since; name another folder")
        with self.path.open("r+b") as file:
            file.truncate(num_bytes)
        sync_path(self.path)
        return len(rows)

    def append(self, rows: Iterable[Row]) -> None:
        """On the disk when this returns, where it takes them."""
        self._file.append(rows)
        with suppress(OSError):  # a full disk: the rows wait, and `tallies` insists
            self._file.sync()

    def tallies(self) -> dict[str, Tally]:
        """All that was measured, by uid.

        Raises:
            OSError: where the disk has not taken all of it.
        """
        self._file.sync()
        rows = _whole_rows(self.path.read_bytes())[0] if self.path.exists() else []
        return {row["uid"]: tally_of(row) for row in rows}


def _whole_rows(content: bytes) -> tuple[list[Row], int]:
    """The rows before the first that is not whole, and how many bytes they take."""
    rows: list[Row] = []
    num_bytes = 0
    for line in content.splitlines(keepends=True):
        try:
            row = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            break
        if not isinstance(row, dict):
            break
        rows.append(row)
        num_bytes += len(line)
    return rows, num_bytes
