"""One table: what is red decides; a pipe gets plain lines; doctor.json holds all of it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from falcon_h1r.config_checks_tools import DOCTOR_CHECKS
from falcon_h1r.doctor.finding import Finding
from falcon_h1r.doctor.place import beside_the_run, free_again
from falcon_h1r.doctor.report import coloured_table, is_fit, plain_lines, print_table, write_files
from falcon_h1r.doctor.runner import Outcome
from falcon_h1r.doctor.suite import CHECKS

GREEN = Outcome("host", [Finding("limits", "ok", "open files 4096")], 0.1)
YELLOW = Outcome("versions", [Finding("pins", "warn", "numpy 2.5 (pin 2.4)", "install the pins")], 0.2)
RED = Outcome("engine", [Finding("step", "failed", "not [bold]finite[/]", "use float32")], 0.3, {1: "Traceback ..."})


@pytest.mark.parametrize(("outcomes", "fit"), [([GREEN], True), ([GREEN, YELLOW], True), ([GREEN, RED], False)])
def test_only_red_is_unfit(outcomes: list[Outcome], fit: bool) -> None:
    assert is_fit(outcomes) == fit


def test_a_pipe_gets_a_line_a_finding_and_what_to_do_below() -> None:
    stream = io.StringIO()
    print_table([GREEN, YELLOW, RED], 3.0, stream)
    lines = stream.getvalue().splitlines()
    assert lines == plain_lines([GREEN, YELLOW, RED], 3.0)
    assert lines[1] == "ok       limits  open files 4096"
    assert lines[3:5] == ["LOOK     pins    numpy 2.5 (pin 2.4)", "                 -> install the pins"]
    assert lines[-1] == "NOT fit to train: 1 ok, 1 LOOK, 1 FAILED; 3 s"
    assert "\x1b" not in stream.getvalue()


def test_a_terminal_gets_a_row_a_finding_in_its_own_words() -> None:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=160, force_terminal=True)
    console.print(coloured_table([GREEN, YELLOW, RED]))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "not [bold]finite[/]" in shown and "\x1b[31m" in shown


def test_the_folder_gets_findings_and_tracebacks(tmp_path: Path) -> None:
    write_files([GREEN, RED], 3.0, 2, tmp_path)
    page = json.loads((tmp_path / "doctor.json").read_text())
    assert (page["fit"], page["ranks"], [each["name"] for each in page["checks"]]) == (False, 2, ["host", "engine"])
    assert page["checks"][1]["findings"][0]["advice"] == "use float32"
    assert "engine, rank 1" in (tmp_path / "doctor_tracebacks.txt").read_text()


def test_the_config_knows_every_check_by_name() -> None:
    assert tuple(check.name for check in CHECKS) == DOCTOR_CHECKS


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["d.py"], ["d.py", "name=doctor"]),
        (["d.py", "run_dir=runs/x/"], ["d.py", "run_dir=runs/x/doctor", "name=doctor"]),
        (["d.py", "run_dir=null"], ["d.py", "run_dir=null", "name=doctor"]),
        (["d.py", "name=mine"], ["d.py", "name=mine"]),
    ],
)
def test_the_runs_own_folder_stays_free(given: list[str], expected: list[str]) -> None:
    assert beside_the_run(given) == expected
    assert beside_the_run(expected) == expected  # relaunched ranks see the line that was changed already


def test_only_the_doctors_own_folder_is_given_free(tmp_path: Path) -> None:
    for name, kept in (("doctor", False), ("doctor-2", False), ("run", True)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text("name: x\n")
        free_again(folder)
        assert (folder / "config.yaml").exists() == kept
