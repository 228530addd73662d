"""GRPO on the report page: curves by part and by phase, alarms, families, transcripts with their rewards."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from falcon_h1r.evaluation.report import write_report
from falcon_h1r.evaluation.report_grpo import alarm_rows, family_rows, gradient_rows, grpo_panels, stretches
from falcon_h1r.grpo.alarms import Alarms

NUM_STEPS = 60


def grpo_rows() -> list[dict[str, Any]]:
    """A run that learns for forty steps, then answers with more and more boxes and ever longer."""
    alarms, rows = Alarms(), []
    for step in range(1, NUM_STEPS + 1):
        learnt, broken = 1 - math.exp(-step / 30), max(0, step - 40) / 20
        row: dict[str, Any] = {
            "reward_mean": learnt - 0.1,
            "reward_correct_mean": learnt,
            "reward_format_mean": -0.1,
            "pass_at_1": learnt,
            "pass_at_group": min(1.0, learnt + 0.2),
            "response_tokens_mean": 100 * (1 + 3 * broken),
            "response_tokens_p95": 200 * (1 + 3 * broken),
            "several_boxes_share": broken,
            "entropy": 0.5 - 0.2 * learnt,
            "zero_variance_share": 0.3,
            "clip_low_share": 0.001,
            "clip_high_share": 0.002,
            "sampler_kl": 0.001,
            "sampling_seconds": 3.0,
            "training_seconds": 2.0,
            "sync_seconds": 0.1,
            "sampling_skew_seconds": 0.5,
            "family_reward_mean/long_sums": learnt / 2,
            "family_pass_at_1/long_sums": learnt / 2,
            "family_reward_mean/roots": learnt,
            "family_pass_at_1/roots": learnt,
            "grad_norm": 0.5,
            "grad_norm_layer_0": 0.25,
        }
        row |= alarms.look(row, announce=False)
        rows.append({"stage": "grpo", "step": step, **row, "seconds": 1.0 * step})
    return rows


def sample(step: int, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "problem_uid": "1",
        "question": "1 < 2?",
        "gold": "7",
        "response": "<think>a</think>\\boxed{7} \\boxed{8}",
        "status": "wrong",
        "reward": -0.25,
        "parts": {"correct": 0.0, "several_boxes": -0.25},
        "structure": "repeated",
        "repeated_ngram_share": 0.5,
        **more,
    }


class Text(HTMLParser):
    """What a reader sees, plots aside."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.feed(re.sub(r"<(svg|style).*?</\1>", "", source, flags=re.DOTALL))

    def handle_data(self, data: str) -> None:
        self.words += data.split()

    def __contains__(self, words: str) -> bool:
        return words in " ".join(self.words)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("run")
    (folder / "grpo").mkdir()
    (folder / "grpo" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in grpo_rows()))
    rows = [sample(1), sample(60, structure="whole", repeated_ngram_share=0.0)]
    (folder / "grpo" / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return write_report(folder).read_text()


def test_the_page_names_the_alarms_their_steps_and_what_to_look_at(source: str) -> None:
    text = Text(source)
    assert "several boxes" in text and "length explosion" in text
    assert "transcripts for answers that hedge; several_boxes_penalty" in text
    on = [row["step"] for row in grpo_rows() if row["alarm_several_boxes"]]
    assert f"{on[0]}–{on[-1]} several_boxes_share" in text


def test_curves_are_drawn_by_part_by_phase_and_by_clip_and_tabled_keys_are_not(source: str) -> None:
    titles = re.findall(r'aria-label="([^"]*)"', source)
    for title in ("Reward", "Reward by part", "pass@k in training", "Response tokens", "Clipped tokens"):
        assert titles.count(title) == 1
    for title in ("Seconds by phase", "Skew over ranks, seconds", "What responses show"):
        assert titles.count(title) == 1
    assert not [title for title in titles if title.lower().startswith(("alarm", "family", "grad norm"))]


def test_transcripts_show_what_their_rewards_are_made_of(source: str) -> None:
    text = Text(source)
    assert "correct 0, several boxes -0.25" in text
    assert "structure: repeated 50.0% of n-grams repeated" in text


def test_families_are_compared_between_the_first_tenth_and_the_last(source: str) -> None:
    rows = grpo_rows()
    (roots, sums) = family_rows(rows)
    assert (roots["name"], sums["name"]) == ("roots", "long sums")
    firsts, lasts = ([row["family_pass_at_1/roots"] for row in part] for part in (rows[:6], rows[-6:]))
    assert roots["pass"] == pytest.approx([sum(firsts) / 6, sum(lasts) / 6])
    assert f"{100 * sum(lasts) / 6:.1f}%" in Text(source)
    assert gradient_rows(rows) == [("layer 0", 0.25, 0.25)]


def test_steps_in_a_row_are_one_stretch() -> None:
    assert stretches([3]) == "3"
    assert stretches([3, 4, 5, 9, 11, 12]) == "3–5, 9, 11–12"


def test_an_alarm_that_was_never_on_or_that_nobody_knows_is_not_listed() -> None:
    assert alarm_rows([{"step": 1, "alarm_no_contrast": 0.0, "alarm_of_old": 1.0}]) == []
    assert alarm_rows([]) == []


def test_a_run_without_penalties_or_phases_has_no_empty_plots() -> None:
    panels = dict(grpo_panels([{"step": 1, "reward_mean": 0.5, "reward_correct_mean": 0.5}]))
    assert "Reward by part" not in panels
    assert panels["Seconds by phase"] == ()
