"""The check after a sync, with any sampler: silent where logprobs agree, loud where they do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from falcon_h1r.config_stage import OptimizerConfig
from falcon_h1r.data.packing import Document, pack_row
from falcon_h1r.distributed.engine import TorchEngine
from falcon_h1r.distributed.watch import StopRequested
from falcon_h1r.distributed.world import World
from falcon_h1r.rollout.sampler import Prompt, SamplingSettings
from falcon_h1r.rollout.sync_check import SamplerOutOfSync, SyncCheck, check_sync
from falcon_h1r.types import Rollout

PROMPTS = [Prompt("a", [5, 6, 7]), Prompt("b", [9, 10])]
CHECK = SyncCheck(PROMPTS, SamplingSettings(2, 3, temperature=0.8), max_gap=1e-6, advice="Ask a doctor.")


class Scorer:
    """A sampler whose rollouts have the trainer's logprobs, plus `error`."""

    def __init__(self, engine: TorchEngine, error: float, free_slots: int = 4) -> None:
        self.engine, self.error, self.free_slots, self.policy_version = engine, error, free_slots, 7
        self.seeds: list[int] = []

    def generate(self, prompts: list[Prompt], settings: SamplingSettings) -> list[Rollout]:
        self.seeds.append(settings.seed)
        rollouts = []
        for prompt in prompts:
            ids = [*prompt.input_ids, 20, 21, 22]
            row = pack_row([Document(ids, [0.0] * len(prompt.input_ids) + [1.0] * 3)])
            logprobs = self.engine.logprobs(row, settings.temperature)[0][-3:].tolist()
            sampled = [logprobs[0] + self.error, logprobs[1] - self.error, logprobs[2] + self.error]
            rollouts.append(Rollout(prompt.problem_uid, 0, prompt.input_ids, ids[-3:], sampled, "length", 7, ""))
        return rollouts


def engine_of(model: Any, world: World) -> TorchEngine:
    return TorchEngine(model, OptimizerConfig(), 1, world)


ALONE = World(0, 1, torch.device("cpu"))


def test_equal_logprobs_pass_and_their_gap_is_returned(tiny_model) -> None:
    sampler: Any = Scorer(engine_of(tiny_model, ALONE), error=0.0)
    gap = check_sync(sampler.engine, sampler, CHECK)
    assert gap is not None and gap < 1e-12
    assert sampler.seeds == [7]  # of the policy's version: every sync draws others


@pytest.mark.parametrize("error", [1e-3, float("nan")])
def test_a_gap_is_measured_by_its_size_whatever_its_sign(tiny_model, error: float) -> None:
    sampler: Any = Scorer(engine_of(tiny_model, ALONE), error)
    said = "policy 7: its logprobs are (0.001|nan) from the trainer's, 1e-06 allowed .*6 tokens.*Ask a doctor"
    with pytest.raises(SamplerOutOfSync, match=said):
        check_sync(sampler.engine, sampler, CHECK)


def test_the_gap_of_the_worst_rank_is_told_to_all(tiny_model, run_on_ranks) -> None:
    def work(world: World) -> str:
        sampler: Any = Scorer(engine_of(tiny_model, world), error=[0.0, 0.0, 0.25][world.rank])
        sampler.free_slots = [4, 0, 4][world.rank]  # rank 1 samples nothing, but scores
        with pytest.raises(SamplerOutOfSync) as caught:
            check_sync(sampler.engine, sampler, CHECK)
        return f"{len(sampler.seeds)} {caught.value}"

    told = run_on_ranks(3, work)
    assert [each[:1] for each in told] == ["1", "0", "1"]
    assert len({each[2:] for each in told}) == 1 and "sampler of rank 2" in told[0] and "are 0.25 from" in told[0]


def test_ranks_that_share_a_row_score_the_same_one(tiny_model, run_on_ranks) -> None:
    def work(world: World) -> float | None:
        engine = engine_of(tiny_model, world.sharing_rows(2))
        sampler: Any = Scorer(engine_of(tiny_model, ALONE), error=0.0, free_slots=4 * (world.rank == 0))
        return check_sync(engine, sampler, CHECK)

    gaps = run_on_ranks(2, work)
    assert gaps[0] == gaps[1] and gaps[0] < 1e-9


def test_a_rank_that_is_to_stop_leaves_no_other_waiting(tiny_model, run_on_ranks) -> None:
    def work(world: World) -> float | None:
        sampler: Any = Scorer(engine_of(tiny_model, world), error=1.0)
        if world.rank == 1:

            def stopped(*_: Any) -> list[Rollout]:
                raise StopRequested

            sampler.generate = stopped
        return check_sync(sampler.engine, sampler, CHECK)

    assert run_on_ranks(2, work) == [None, None]


def test_where_nobody_samples_nothing_is_said_to_be_in_sync(tiny_model) -> None:
    sampler: Any = Scorer(engine_of(tiny_model, ALONE), error=0.0, free_slots=0)
    with pytest.raises(SamplerOutOfSync, match="no rank samples"):
        check_sync(sampler.engine, sampler, CHECK)
