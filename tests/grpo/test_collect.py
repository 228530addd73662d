"""Filling a batch: contrast, backfill and its bound, and golds that cannot be judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from falcon_h1r.config import Config
from falcon_h1r.config_grpo import GRPOConfig, RewardConfig
from falcon_h1r.config_sources import SourceConfig
from falcon_h1r.distributed.world import World
from falcon_h1r.grpo.collect import collect_groups
from falcon_h1r.grpo.documents import rollout_documents
from falcon_h1r.grpo.metrics import group_facts, rollout_metrics
from falcon_h1r.grpo.rewards import Scorer, well_formed
from falcon_h1r.grpo.stream import ProblemStream, open_stream
from falcon_h1r.rollout.sampler import Prompt, SamplingSettings
from falcon_h1r.types import InputError, Problem, Rollout
from falcon_h1r.verifier import Verifier

ALONE = World(0, 1, torch.device("cpu"))


class ScriptedSampler:
    """Of problem i, the first i rollouts are right: problem 0 and problem G give groups without contrast."""

    def __init__(self) -> None:
        self.num_prompts: list[int] = []

    def generate(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> list[Rollout]:
        self.num_prompts.append(len(prompts))
        rollouts = []
        for prompt in prompts:
            right = int(prompt.problem_uid.split("/")[0])
            for sample in range(settings.num_samples):
                text = f"<think>hm</think>\\boxed{{{'7' if sample < right else '8'}}}"
                rollouts.append(
                    Rollout(prompt.problem_uid, sample, prompt.input_ids, [1, 2], [-1.0, -1.0], "stop", 0, text)
                )
        return rollouts

    def load_weights(self, policy: Any) -> None: ...


def stream_of(num_right: list[int]) -> ProblemStream:
    problems = [Problem(f"{right}/{index}", f"question {index}", "7") for index, right in enumerate(num_right)]
    return ProblemStream(problems, [[5, 6]] * len(problems), seed=0)


@pytest.fixture
def verifier():
    with Verifier(after_think=True) as verifier:
        yield verifier


def test_several_boxes_cost_what_the_config_says_and_are_counted(verifier) -> None:
    config = GRPOConfig(problems_per_step=1, group_size=2, reward=RewardConfig(several_boxes_penalty=0.25))
    problem = Problem("1/0", "question", "7")
    texts = ("<think>\\boxed{1} \\boxed{2}</think>\\boxed{7}", "<think>hm</think>\\boxed{8} or \\boxed{7}")
    rollouts = [Rollout(problem.uid, k, [5], [1], [-1.0], "stop", 0, text) for k, text in enumerate(texts)]
    scorer = Scorer(verifier, config)
    verdicts = [scorer.submit(problem, rollout).result() for rollout in rollouts]
    group = scorer.score(problem, rollouts, verdicts)
    assert group.rewards == [1.0, 0.75]
    metrics = rollout_metrics([group_facts(group)])
    assert metrics["several_boxes_share"] == 0.5


def test_groups_without_contrast_are_replaced_until_the_batch_is_full(verifier) -> None:
    config = GRPOConfig(problems_per_step=4, group_size=4, max_backfill_rounds=50)
    sampler = ScriptedSampler()
    batch = collect_groups(
        stream_of([0, 4, 1, 0, 2, 3, 4, 0]), sampler, Scorer(verifier, config), config, ALONE, seed=1
    )
    assert len(batch.groups) == 4
    assert all(0 < sum(group.rewards) < 4 for group in batch.groups)
    assert sampler.num_prompts[0] == 4
    missing = 4 - sum(group.has_contrast for group in batch.drawn[:4])
    assert sampler.num_prompts[1] == missing  # no more than is missing
    assert sum(sampler.num_prompts) == len(batch.drawn)


def test_backfill_is_bounded_and_averages_count_what_was_dropped(verifier) -> None:
    config = GRPOConfig(problems_per_step=4, group_size=4, max_backfill_rounds=2)
    batch = collect_groups(stream_of([0, 4, 0, 4]), ScriptedSampler(), Scorer(verifier, config), config, ALONE, seed=1)
    assert batch.groups == []
    metrics = rollout_metrics([group_facts(group) for group in batch.drawn])
    assert (len(batch.groups), batch.num_rounds, metrics["zero_variance_share"]) == (0, 3, 1.0)
    assert metrics["pass_at_1"] == 0.5


def test_documents_carry_their_rollouts_credit(verifier) -> None:
    config = GRPOConfig(problems_per_step=1, group_size=4)
    batch = collect_groups(stream_of([1]), ScriptedSampler(), Scorer(verifier, config), config, ALONE, seed=1)
    documents = rollout_documents(batch.groups, config)
    assert [document.loss_weights for document in documents] == [[0.0, 0.0, 0.5, 0.5]] * 4
    advantages = [document.advantages[-1] for document in documents if document.advantages]
    assert advantages == pytest.approx([1.4997, -0.4999, -0.4999, -0.4999], abs=1e-3)
    assert documents[0].sampler_logprobs == [0.0, 0.0, -1.0, -1.0]


def test_unusable_problems_are_left_out_and_counted(tokenizer, verifier) -> None:
    config = Config(system_prompt="")
    config.grpo.limits.prompt_tokens = 60
    config.grpo.problems_per_step = 1
    problems = [
        Problem.from_question("Compute 1+1.", "2"),
        Problem.from_question("Compute 1+2.", r"\frac{1}{"),
        Problem.from_question("Compute 1+3. " * 30, "4"),
        Problem.from_question("Compute 1+1.", "2"),
        Problem.from_question("Write a haiku.", "2", domain="other"),
    ]
    stream, counts = open_stream(problems, tokenizer, config, Scorer(verifier, config.grpo).check_problem)
    assert counts == {"other_domain": 1, "repeated": 1, "unverifiable_gold": 1, "prompt_too_long": 1}
    assert {problem.uid for problem, _ in stream.take(1)} == {problems[0].uid}
    config.grpo.data = SourceConfig(path="rl.jsonl")
    with pytest.raises(InputError, match="rl.jsonl: 0 usable problems are fewer than grpo.problems_per_step=1"):
        open_stream(problems[1:3], tokenizer, config, Scorer(verifier, config.grpo).check_problem)


def test_the_stream_visits_every_problem_once_an_epoch() -> None:
    stream = stream_of([0, 1, 2, 3, 4])
    uids = [problem.uid for _ in range(15) for problem, _ in stream.take(1)]
    assert [sorted(uids[i : i + 5]) for i in (0, 5, 10)] == [["0/0", "1/1", "2/2", "3/3", "4/4"]] * 3


def test_one_draw_never_holds_a_problem_twice_even_across_an_epochs_border() -> None:
    stream = stream_of([0, 1, 2, 3, 4])
    for _ in range(20):
        uids = [problem.uid for problem, _ in stream.take(4)]
        assert len(set(uids)) == 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"<think>a</think>\boxed{1}", True),
        (r"a</think>\boxed{1}", False),
        (r"<think>a \boxed{1}", False),
        ("<think>a</think>", False),
        (r"<think>a</think>b</think>\boxed{1}", False),
    ],
)
def test_a_well_formed_response_thinks_once_then_answers(text: str, expected: bool) -> None:
    assert well_formed(text) is expected


def test_a_stream_goes_on_from_its_position_and_from_no_other_problems() -> None:
    problems = [Problem(str(index), f"question {index}", "7") for index in range(7)]
    prompts = [[index] for index in range(7)]
    stream = ProblemStream(problems, prompts, seed=3)
    stream.take(5)
    state = stream.state_dict()
    expected = [problem.uid for _ in range(3) for problem, _ in stream.take(4)]
    again = ProblemStream(problems, prompts, seed=3)
    again.load_state_dict(state)
    assert [problem.uid for _ in range(3) for problem, _ in again.take(4)] == expected
    with pytest.raises(InputError, match="grpo.data: 6 usable problems, where the checkpoint counts 7"):
        ProblemStream(problems[:6], prompts[:6], seed=3).load_state_dict(state)
