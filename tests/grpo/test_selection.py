"""RL selection: blocks that a cut run goes on from, the files that are left, and GRPO's look at them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from falcon_h1r.config import Config
from falcon_h1r.config_grpo import GRPOConfig, SelectionConfig
from falcon_h1r.config_selection import asks_for_selection, selection_limits
from falcon_h1r.config_sources import SourceConfig
from falcon_h1r.distributed.watch import StopRequested
from falcon_h1r.distributed.world import World
from falcon_h1r.grpo.rewards import Scorer
from falcon_h1r.grpo.selection.handover import check_selected
from falcon_h1r.grpo.selection.outcome import write_selection
from falcon_h1r.grpo.selection.rates_file import PassRateFile
from falcon_h1r.grpo.selection.rules import Tally
from falcon_h1r.grpo.selection.sampling import problems_of_a_block, sample_blocks, sampling_settings
from falcon_h1r.grpo.selection.screening import Drop
from falcon_h1r.rollout.sampler import Prompt, SamplingSettings
from falcon_h1r.types import InputError, Problem, Rollout, to_row
from falcon_h1r.verifier import Verifier

ALONE = World(0, 1, torch.device("cpu"))


# -----------------------------------------------------------------------------
# Blocks


class ScriptedSampler:
    """Of problem i, the first i rollouts are right; the last is cut. Remembers how many prompts it got at a time."""

    def __init__(self, fail_after: int = 10**9) -> None:
        self.num_prompts: list[int] = []
        self._fail_after = fail_after

    def generate(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> list[Rollout]:
        if len(self.num_prompts) == self._fail_after:
            raise StopRequested
        self.num_prompts.append(len(prompts))
        rollouts = []
        for prompt in prompts:
            right = int(prompt.problem_uid.split("/")[0])
            for sample in range(settings.num_samples):
                text = f"<think>hm</think>\\boxed{{{'7' if sample < right else f'{8 + sample % 2}.0'}}}"
                stop = "length" if sample + 1 == settings.num_samples else "stop"
                rollouts.append(
                    Rollout(prompt.problem_uid, sample, prompt.input_ids, [1, 2], [0.0, 0.0], stop, 0, text)
                )
        return rollouts

    def load_weights(self, policy: Any) -> None: ...


PROBLEMS = [Problem(f"{right}/{index}", f"question {index}", "7") for index, right in enumerate([0, 4, 1, 0, 2, 3, 0])]
PROMPTS = [[5, 6]] * len(PROBLEMS)
GRPO = GRPOConfig(selection=SelectionConfig(num_rollouts=4, keep_unsolved_share=0.0))


def sampled(folder: Path, sampler: ScriptedSampler, world: World = ALONE, resume: bool = False) -> bytes:
    rates = PassRateFile(folder / "pass_rates.jsonl")
    start = rates.open(PROBLEMS, resume)
    with Verifier(after_think=True) as verifier:
        settings = sampling_settings(GRPO, seed=0)
        sample_blocks(PROBLEMS[start:], PROMPTS[start:], sampler, Scorer(verifier, GRPO), settings, rates, 2, world)
    return (folder / "pass_rates.jsonl").read_bytes()


def test_a_row_says_how_the_rollouts_ended(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in sampled(tmp_path, ScriptedSampler()).splitlines()]
    assert [row["uid"] for row in rows] == [problem.uid for problem in PROBLEMS]
    assert [row["pass_rate"] for row in rows] == [0.0, 1.0, 0.25, 0.0, 0.5, 0.75, 0.0]
    assert rows[0] == {
        "uid": "0/0",
        "pass_rate": 0.0,
        "num_rollouts": 4,
        "num_correct": 0,
        "num_truncated": 1,
        "num_undecided": 0,
        "majority_frequency": 2,
        "mean_response_tokens": 2.0,
    }


@pytest.mark.parametrize("cut_bytes", [0, 1, 30])
def test_a_run_that_was_cut_goes_on_from_its_last_whole_row(tmp_path: Path, cut_bytes: int) -> None:
    once, again = tmp_path / "once", tmp_path / "again"
    once.mkdir(), again.mkdir()
    whole = sampled(once, ScriptedSampler())
    with pytest.raises(StopRequested, match="stopped with 3 problems left to sample; resume=true"):
        sampled(again, ScriptedSampler(fail_after=2))
    path = again / "pass_rates.jsonl"
    path.write_bytes(path.read_bytes()[: -cut_bytes or None])
    sampler = ScriptedSampler()
    assert sampled(again, sampler, resume=True) == whole
    assert sum(sampler.num_prompts) == len(PROBLEMS) - 4 + (cut_bytes > 0)
    assert sampled(again, ScriptedSampler(fail_after=0), resume=True) == whole


def test_rows_of_other_problems_are_refused(tmp_path: Path) -> None:
    sampled(tmp_path, ScriptedSampler())
    with pytest.raises(InputError, match=r"pass_rates\.jsonl: not of these problems"):
        PassRateFile(tmp_path / "pass_rates.jsonl").open(PROBLEMS[1:], resume=True)
    assert PassRateFile(tmp_path / "pass_rates.jsonl").open(PROBLEMS[1:], resume=False) == 0


def test_ranks_share_a_block_and_the_file_does_not_show_it(tmp_path: Path, run_on_ranks: Any) -> None:
    alone = sampled(tmp_path, ScriptedSampler())
    (tmp_path / "shared").mkdir()

    def work(world: World) -> list[int]:
        rates = PassRateFile(tmp_path / "shared" / "pass_rates.jsonl")
        sampler = ScriptedSampler()
        with Verifier(after_think=True) as verifier:
            settings = sampling_settings(GRPO, seed=0)
            sample_blocks(PROBLEMS, PROMPTS, sampler, Scorer(verifier, GRPO), settings, rates, 3, world)
        return sampler.num_prompts

    assert run_on_ranks(2, work) == [[2, 2, 1], [1, 1, 0]]
    assert (tmp_path / "shared" / "pass_rates.jsonl").read_bytes() == alone


def test_a_block_fills_every_rank_some_times() -> None:
    grpo = GRPOConfig(selection=SelectionConfig(num_rollouts=8))
    grpo.rollout.max_slots = 64
    assert problems_of_a_block(grpo, 3) == 3 * 32
    grpo.rollout.max_slots = 1
    assert problems_of_a_block(grpo, 3) == 3


# -----------------------------------------------------------------------------
# What is left, and GRPO's look at it


def test_the_files_say_what_was_kept_and_why_the_rest_was_not(tmp_path: Path) -> None:
    sampled(tmp_path, ScriptedSampler())
    problems = [Problem("x", "other", "1", domain="science"), *PROBLEMS]
    summary = write_selection(tmp_path, problems, {0: Drop("other_domain", "science")}, GRPO, seed=0)
    kept = [json.loads(line) for line in (tmp_path / "rl.jsonl").read_text().splitlines()]
    dropped = [json.loads(line) for line in (tmp_path / "dropped.jsonl").read_text().splitlines()]
    assert [(row["uid"], row["pass_rate"]) for row in kept] == [("1/2", 0.25), ("2/4", 0.5), ("3/5", 0.75)]
    assert [(row["uid"], row["reason"]) for row in dropped] == [
        ("x", "other_domain"),
        ("0/0", "consistent_wrong"),
        ("4/1", "solved"),
        ("0/3", "consistent_wrong"),
        ("0/6", "consistent_wrong"),
    ]
    assert dropped[1]["detail"] == "0 of 4 right, 2 agree, 1 cut by the limit"
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary["funnel"]["problems"] == 8 and summary["funnel"]["selected"] == len(kept)
    assert summary["dropped"] == {"other_domain": 1, "solved": 1, "consistent_wrong": 3}
    assert summary["pass_rates"] == {"0/4": 3, "1/4": 1, "2/4": 1, "3/4": 1, "4/4": 1}
    assert summary["kept_unsolved"] == 0
    assert summary["rollouts"]["number"] == 28 and summary["rollouts"]["tokens"] == 56


def test_a_small_share_of_the_unsolved_is_kept_whatever_else_is_there(tmp_path: Path) -> None:
    problems = [Problem(str(number), f"question {number}", "7") for number in range(400)]
    rows = [{"uid": problem.uid, "pass_rate": 0.0, **asdict(Tally(8, 0, 0, 0, 0, 10.0))} for problem in problems]
    (tmp_path / "pass_rates.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    grpo = GRPOConfig(selection=SelectionConfig(num_rollouts=8))
    summary = write_selection(tmp_path, problems, {}, grpo, seed=3)
    kept = (tmp_path / "rl.jsonl").read_bytes()
    assert summary["kept_unsolved"] == summary["funnel"]["selected"] == kept.count(b"\n")
    assert 20 < kept.count(b"\n") < 60
    write_selection(tmp_path, problems[:200], {}, grpo, seed=3)
    assert kept.startswith((tmp_path / "rl.jsonl").read_bytes())


def own_problems(folder: Path, *pass_rates: float | None) -> GRPOConfig:
    folder.mkdir()
    rows = [to_row(Problem(str(n), f"question {n}", "7", pass_rate=rate)) for n, rate in enumerate(pass_rates)]
    (folder / "rl.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return GRPOConfig(data=SourceConfig(path=str(folder / "rl.jsonl"), curated=True))


def test_grpo_refuses_problems_that_were_not_selected_as_it_is_told(tmp_path: Path) -> None:
    grpo = own_problems(tmp_path / "select", 0.5, None)
    check_selected(grpo)
    grpo.selection.num_rollouts = 8
    with pytest.raises(InputError, match=r"rl\.jsonl: problem 2 \(1\) has no pass_rate.*run recipes/selection\.py"):
        check_selected(grpo)
    grpo = own_problems(tmp_path / "again", 0.5, 0.25)
    grpo.selection.num_rollouts = 8
    check_selected(grpo)
    grpo.selection.disjoint_from_sft = True
    for text in (None, "{}", "[]", '{"settings": {"disjoint_from_sft": false}}', "{"):
        if text is not None:
            (tmp_path / "again" / "summary.json").write_text(text)
        with pytest.raises(InputError, match=r"disjoint_from_sft=true: .*run recipes/selection\.py") as refusal:
            check_selected(grpo)
        assert "\n" not in str(refusal.value)
    (tmp_path / "again" / "summary.json").write_text('{"settings": {"disjoint_from_sft": true}}')
    check_selected(grpo)


def test_what_asks_for_a_selection() -> None:
    assert not asks_for_selection(Config().grpo.selection)
    for setting in (
        {"num_rollouts": 1},
        {"disjoint_from_sft": True},
        {"drop_unverifiable": True},
        {"domains": ["math", "science"]},
    ):
        assert asks_for_selection(SelectionConfig(**setting))


def test_responses_are_as_long_as_grpos_where_nothing_else_is_said() -> None:
    grpo = GRPOConfig()
    assert selection_limits(grpo).response_tokens == grpo.limits.response_tokens
    grpo.selection.max_response_tokens = 7
    limits = selection_limits(grpo)
    assert (limits.prompt_tokens, limits.response_tokens) == (grpo.limits.prompt_tokens, 7)
    assert limits.row_tokens == grpo.limits.prompt_tokens + 7
