"""The report page of synthetic runs: whole, in parts, and with text that wants to be markup."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from falcon_h1r.evaluation.metrics import differences, summarise
from falcon_h1r.evaluation.report import write_report
from falcon_h1r.evaluation.run_folder import read_rows
from falcon_h1r.evaluation.transcripts import MAX_CHARACTERS, pick_rollouts, pick_transcripts

HOSTILE = "<think>\n3 < 4 & 5 > 2 <script>alert('x')</script>\n</think>\nSo \\boxed{%s}."


def evaluation_rows(skill: float, seed: int) -> list[dict[str, Any]]:
    """12 problems of 2 families and 3 difficulties, 4 samples and a greedy response each."""
    generator, rows = np.random.default_rng(seed), []
    for index in range(12):
        for sample in range(5):
            answer = "7" if generator.random() < skill else "8"
            row = {"problem_uid": f"{index:04x}", "question": f"What is ${index}$ <b>mod</b> 9?", "gold": "7"}
            row |= {
                "family": ["linear_equation", "$cost"][index % 2],
                "difficulty": ["easy", "medium", "hard"][index % 3],
            }
            row |= {"greedy": sample == 4, "sample_index": sample % 4, "response": HOSTILE % answer}
            row |= {
                "prediction": answer,
                "answer_key": answer,
                "stage": "number",
                "reason": "",
                "stop_reason": "stop",
            }
            rows.append(row | {"status": "correct" if answer == "7" else "wrong", "response_tokens": 20 + sample})
    return rows


EVALUATIONS = {
    "base": evaluation_rows(0.0, 0),
    "sft": evaluation_rows(0.4, 1),
    "grpo": evaluation_rows(0.8, 2),
}


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_run(run_dir: Path) -> dict[str, Any]:
    """A whole run's folder; returns its summary."""
    summary: dict[str, Any] = {stage: summarise(rows, 4, 0) for stage, rows in EVALUATIONS.items()}
    summary["differences"] = {
        "sft_minus_base": differences([(EVALUATIONS["sft"], EVALUATIONS["base"])], 4, 0),
        "grpo_minus_sft": differences([(EVALUATIONS["grpo"], EVALUATIONS["sft"])], 4, 0),
    }
    summary["wall_seconds"] = {"curate": 5.0, "sft": 3700.0, "grpo": 130.0, "total": 3835.0}
    summary |= {"peak_memory_gib": 1.827, "seed": 11, "versions": {"python": "3.11.2", "torch": "2.13.0"}}
    for stage, rows in EVALUATIONS.items():
        write_rows(run_dir / "evaluate" / stage / "samples.jsonl", rows)
    (run_dir / "summary.json").write_text(json.dumps(summary))
    (run_dir / "config.yaml").write_text("sft:\n  learning_rate: 0.00321\n")
    (run_dir / "curate").mkdir()
    (run_dir / "curate" / "summary.json").write_text(
        json.dumps({"funnel": {"traces": 12000, "verified": 3841}, "weights": {"hard": 1.75}, "teacher": "verbose"})
    )
    steps = range(1, 41)
    sft = [{"stage": "sft", "step": step, "loss": 1 / step, "seconds": 1.0 * step} for step in steps]
    sft[3]["loss"] = None
    sft[9] |= {"dev_loss": 0.5, "dev_pass_at_1": 0.25}
    write_rows(run_dir / "sft" / "metrics.jsonl", sft)
    grpo = [{"stage": "grpo", "step": s, "reward_mean": s / 50, "novel_metric": 2.5, "seconds": 1.0} for s in steps]
    write_rows(run_dir / "grpo" / "metrics.jsonl", grpo)
    rollout = {
        "problem_uid": "0001",
        "question": "1 < 2?",
        "gold": "7",
        "response": HOSTILE % 7,
        "status": "correct",
    }
    write_rows(run_dir / "grpo" / "samples.jsonl", [rollout | {"step": s, "reward": 1.0} for s in steps])
    return summary


class Page(HTMLParser):
    """The page's text, and whether its elements nest."""

    VOID = frozenset({"meta", "br", "link", "img", "input", "hr"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.text, self.open, self.tags = "", [], set[str]()
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "svg"} & set(self.open):
            self.text += data


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    run_dir = tmp_path_factory.mktemp("runs") / "quickstart"
    run_dir.mkdir()
    summary = write_run(run_dir)
    path = write_report(run_dir)
    assert path == run_dir / "report.html"
    return path.read_text(), summary


def test_the_report_holds_the_numbers_of_the_summary(whole_run: tuple[str, dict[str, Any]]) -> None:
    source, summary = whole_run
    text = re.sub(r"\s+", " ", Page(source).text)
    for stage in ("base", "sft", "grpo"):
        for metric in ("pass_at_1", "greedy", "pass_at_4", "maj_at_4"):
            low, high = summary[stage][f"{metric}_interval"]
            assert f"{100 * summary[stage][metric]:.1f}%" in text
            assert f"{100 * low:.1f}% to {100 * high:.1f}%" in text
    gain = summary["differences"]["grpo_minus_sft"]["pass_at_1"]
    assert f"GRPO − SFT is {100 * gain['value']:+.1f} points" in text
    for fact in (
        "pass@4",
        "1.83 GiB",
        "1:03:55",
        "1:01:40",
        "torch 2.13.0",
        "0.00321",
        "12,000",
        "3,841",
        "1.75",
    ):
        assert fact in text.replace("torch2", "torch 2")


def test_model_text_cannot_become_markup(whole_run: tuple[str, dict[str, Any]]) -> None:
    source, _ = whole_run
    page = Page(source)
    assert "&lt;think&gt;" in source and "<think>" not in source
    assert "script" not in page.tags and "b" in page.tags
    assert "3 < 4 & 5 > 2 <script>alert('x')</script>" in page.text


def test_the_page_needs_no_network(whole_run: tuple[str, dict[str, Any]]) -> None:
    source, _ = whole_run
    assert re.findall(r"""https?://|(?:src|href)=["'](?!#)|@import|url\((?!#)""", source) == []


def test_nothing_on_the_page_is_not_a_number(whole_run: tuple[str, dict[str, Any]]) -> None:
    assert re.findall(r"\b(?:nan|NaN|inf|None|Infinity)\b", whole_run[0]) == []


def test_every_section_of_a_whole_run_is_there(whole_run: tuple[str, dict[str, Any]]) -> None:
    sections = re.findall(r'<section id="([^"]*)"', whole_run[0])
    assert sections == [
        *("accuracy", "breakdown", "curation", "curves-sft", "curves-grpo", "transcripts", "rollouts", "run")
    ]


def test_metrics_nobody_foresaw_are_plotted(whole_run: tuple[str, dict[str, Any]]) -> None:
    assert 'aria-label="Novel metric"' in whole_run[0]


def test_plots_follow_the_colour_scheme(whole_run: tuple[str, dict[str, Any]]) -> None:
    plots = re.findall(r"<svg.*?</svg>", whole_run[0], flags=re.DOTALL)
    assert len(plots) == 8  # accuracy, differences, two breakdowns, loss, dev accuracy, reward, novel metric
    for plot in plots:
        assert "var(--" in plot
        assert not re.search(r"(?:fill|stroke): #", plot)


def test_the_same_run_gives_the_same_page(whole_run: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    run_dir = tmp_path / "quickstart"
    run_dir.mkdir()
    write_run(run_dir)
    assert write_report(run_dir).read_text() == whole_run[0]


def test_samples_alone_make_a_report_with_numbers_computed_from_them(tmp_path: Path) -> None:
    for stage in ("sft", "grpo"):
        write_rows(tmp_path / "evaluate" / stage / "samples.jsonl", EVALUATIONS[stage])
    source = write_report(tmp_path).read_text()
    expected = summarise(EVALUATIONS["grpo"], 4, 0)
    assert f"{100 * expected['pass_at_1']:.1f}%" in source
    assert "GRPO − SFT" in source
    assert re.findall(r'<section id="([^"]*)"', source) == ["accuracy", "breakdown", "transcripts"]


def test_an_evaluation_of_one_model_has_its_transcripts_right_and_wrong(tmp_path: Path) -> None:
    write_rows(tmp_path / "evaluate" / "falcon <7B>" / "samples.jsonl", EVALUATIONS["sft"])
    text = Page(write_report(tmp_path).read_text()).text
    assert "falcon <7B>" in text
    assert "Right" in text and "Wrong" in text


def test_training_alone_makes_a_report_of_its_curves(tmp_path: Path) -> None:
    write_rows(tmp_path / "sft" / "metrics.jsonl", [{"stage": "sft", "step": s, "loss": 1.0} for s in (1, 2)])
    source = write_report(tmp_path).read_text()
    assert re.findall(r'<section id="([^"]*)"', source) == ["curves-sft"]


def test_an_empty_folder_makes_an_empty_report(tmp_path: Path) -> None:
    assert "<section" not in write_report(tmp_path).read_text()


def test_a_half_written_last_line_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": NaN}\n{"step": 2, "lo')
    assert read_rows(path) == [{"step": 1, "loss": None}]


# ------------------------------------------------------------------------------------------------------------
# Transcripts


def test_transcripts_show_one_problem_under_every_model_by_what_became_of_it() -> None:
    groups = pick_transcripts(EVALUATIONS)
    for group in groups:
        for item in group["problems"]:
            assert list(item["responses"]) == ["base", "sft", "grpo"]
            assert all(response["greedy"] for response in item["responses"].values())
    learnt = next(group for group in groups if group["title"].startswith("Learnt"))
    for item in learnt["problems"]:
        assert [item["responses"][stage]["status"] for stage in ("sft", "grpo")] == ["wrong", "correct"]


def test_transcripts_come_from_different_families_first() -> None:
    groups = pick_transcripts({"sft": evaluation_rows(1.0, 0)})
    assert {item["problem"]["family"] for item in groups[0]["problems"][:2]} == {"linear_equation", "$cost"}


def test_an_endless_response_is_cut_in_the_middle_and_says_so() -> None:
    rows = evaluation_rows(1.0, 0)
    for row in rows:
        row["response"] = "<think>" + "x" * 50_000 + "\\boxed{7}"
    shown = pick_transcripts({"sft": rows})[0]["problems"][0]["responses"]["sft"]
    assert len(shown["thinking"]) < MAX_CHARACTERS + 20
    assert shown["thinking"].endswith("\\boxed{7}")
    assert shown["left_out"] == 50_000 + len("<think>\\boxed{7}") - MAX_CHARACTERS


def test_rollouts_span_the_training_and_show_right_and_wrong() -> None:
    rows = [
        {"step": step, "reward": reward, "response": ""} for step in range(1, 101) for reward in (0.0, 0.0, 0.0, 1.0)
    ]
    picked = pick_rollouts(rows)
    assert [picked[0]["step"], picked[-1]["step"]] == [1, 100]
    assert [row["reward"] for row in picked[:3]] == [1.0, 0.0, 0.0]
