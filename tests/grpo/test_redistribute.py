"""Rollouts go to the ranks that learn from them: each once, as it was, in rows of nearly equal cost."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon_h1r.config_grpo import GRPOConfig, GRPOLossConfig
from falcon_h1r.config_stage import LimitsConfig, OptimizerConfig
from falcon_h1r.data.packing import Document, pack_row
from falcon_h1r.distributed.engine import TorchEngine
from falcon_h1r.distributed.world import World
from falcon_h1r.grpo.carried import PartialGroup
from falcon_h1r.grpo.collect import GroupBatch
from falcon_h1r.grpo.documents import credit_rollouts
from falcon_h1r.grpo.learn import Learner
from falcon_h1r.grpo.ledger import Scored
from falcon_h1r.grpo.metrics import group_facts
from falcon_h1r.grpo.redistribute import DealtDocuments, gather_documents, redistribute
from falcon_h1r.types import Rollout, RolloutGroup, StopReason, Verdict
from tests.grpo.conftest import in_threads, stream_of

ALONE = World(0, 1, torch.device("cpu"))
CONFIG = GRPOConfig(group_size=3, limits=LimitsConfig(prompt_tokens=3, response_tokens=20, row_tokens=32))


def rollout_documents(groups: list[RolloutGroup], config: GRPOConfig) -> list[Document]:
    """What is dealt to many ranks, on one: the documents of groups that are all at hand."""
    return [each.document() for each in credit_rollouts(groups, config) if each is not None]


def scored_groups(lengths: list[list[int]], seed: int = 0) -> list[RolloutGroup]:
    """A group for every list: a rollout of each length, the first one right; those of 20 tokens were cut."""
    rng, stream = random.Random(seed), stream_of([0] * max(1, len(lengths)))
    groups = []
    for index, of_group in enumerate(lengths):
        problem, prompt = stream[f"0/{index}"]
        rollouts, verdicts = [], []
        for sample, length in enumerate(of_group):
            ids = [rng.randrange(50) for _ in range(length)]
            reason: StopReason = "length" if length == 20 else "stop"
            logprobs = [-rng.random() for _ in ids]
            rollouts.append(Rollout(problem.uid, sample, prompt.input_ids, ids, logprobs, reason, 0, "text"))
            verdicts.append(Verdict("correct" if sample == 0 else "wrong", "string", ""))
        rewards = [float(verdict.correct) for verdict in verdicts]
        groups.append(RolloutGroup(problem, rollouts, rewards, verdicts, [{"correct": r} for r in rewards]))
    return groups


def held_by(rank: int, groups: list[RolloutGroup], owners: list[int]) -> GroupBatch:
    """A rank's view of a batch of groups that these ranks sampled."""
    facts = [group_facts(group) for group in groups]
    chosen = [Scored(n, owner, each) for n, (owner, each) in enumerate(zip(owners, facts, strict=True))]
    own = {number: group for number, group in enumerate(groups) if owners[number] == rank}
    return GroupBatch(chosen, facts, {}, own, [], {}, {})


def dealt(
    groups: list[RolloutGroup], owners: list[int], size: int, degree: int = 1, config: GRPOConfig = CONFIG
) -> list[DealtDocuments]:
    stream = stream_of([0] * max(1, len(groups)))

    def work(world: Any) -> DealtDocuments:
        return redistribute(held_by(world.rank, groups, owners), stream, config, world)

    return in_threads(size, work, degree)


@given(
    lengths=st.lists(st.lists(st.integers(0, 20), min_size=3, max_size=3), max_size=7),
    size=st.sampled_from([1, 2, 4]),
    degree=st.sampled_from([1, 2]),
    truncated=st.sampled_from(["keep", "mask"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_every_document_is_in_one_row_as_one_rank_would_have_made_it(
    lengths: list[list[int]], size: int, degree: int, truncated: str, seed: int
) -> None:
    degree = min(degree, size)
    config = replace(CONFIG, truncated=truncated)
    groups = scored_groups(lengths, seed)
    owners = [random.Random(f"{seed}/{n}").randrange(size) for n in range(len(groups))]
    expected = rollout_documents(groups, config)
    by_rank = dealt(groups, owners, size, degree, config)

    assert len({len(each.rows) for each in by_rank}) == 1
    for data_rank in range(size // degree):
        sharing = by_rank[data_rank * degree : (data_rank + 1) * degree]
        for other in sharing[1:]:
            for own_row, other_row in zip(sharing[0].rows, other.rows, strict=True):
                assert torch.equal(own_row.input_ids, other_row.input_ids)
                assert torch.equal(own_row.advantages, other_row.advantages)  # type: ignore[arg-type]
    for each in by_rank:
        for row in each.rows:
            assert row.num_tokens <= 32 and row.num_tokens % degree == 0
            assert row.advantages is not None and row.positives is not None and row.sampler_logprobs is not None
    indices = sorted(index for each in by_rank[::degree] for index in each.own)
    assert indices == list(range(len(expected)))
    for each in by_rank:
        for index, document in each.own.items():
            wanted = expected[index]
            assert (document.uid, document.input_ids) == (wanted.uid, wanted.input_ids)
            assert (document.advantages, document.loss_weights) == (wanted.advantages, wanted.loss_weights)
            assert document.sampler_logprobs == wanted.sampler_logprobs
    uids = [uid for each in by_rank[::degree] for row in each.rows for uid in row.uids if uid]
    assert sorted(uids) == sorted(document.uid for document in expected)


def test_a_rank_that_sampled_nothing_trains_as_much_as_the_others() -> None:
    groups = scored_groups([[8, 9, 10]] * 8)
    costs = [sum(row.num_tokens for row in each.rows) for each in dealt(groups, [0] * 8, 4)]
    assert max(costs) - min(costs) <= 13


def test_a_rank_is_sent_what_it_learns_from_and_nothing_else() -> None:
    groups = scored_groups([[8, 9, 10]] * 8)
    for rank, each in enumerate(dealt(groups, [n % 4 for n in range(8)], 4)):
        planned = {index for row in each.plan[rank::4] for index in row}
        assert set(each.own) == planned


def test_documents_are_gathered_in_the_plans_order() -> None:
    groups = scored_groups([[3, 4, 5], [6, 7, 8]])
    stream = stream_of([0, 0])

    def work(world: Any) -> list[str]:
        found = redistribute(held_by(world.rank, groups, [1, 0]), stream, CONFIG, world)
        return [document.uid for document in gather_documents(found, world)]

    expected = [document.uid for document in rollout_documents(groups, CONFIG)]
    assert in_threads(2, work) == [expected, expected]


def test_nothing_to_learn_from_is_no_rows() -> None:
    config = replace(CONFIG, truncated="mask")
    for groups in ([], scored_groups([[20, 20, 0]])):
        (found,) = dealt(groups, [0] * len(groups), 1, config=config)
        assert found == DealtDocuments([], {}, [])


# -----------------------------------------------------------------------------
# Credit


def test_documents_carry_their_rollouts_credit() -> None:
    documents = rollout_documents(scored_groups([[2, 2, 2]]), CONFIG)
    assert [document.loss_weights for document in documents] == [[0.0, 0.0, 0.0, 0.5, 0.5]] * 3
    advantages = [document.advantages[-1] for document in documents if document.advantages]
    assert advantages == pytest.approx([1.1545, -0.5772, -0.5772], abs=1e-3)
    assert documents[0].positives == [0.0, 0.0, 0.0, 1.0, 1.0]
    assert documents[1].positives == [0.0] * 5


@pytest.mark.parametrize(("aggregation", "weight"), [("sequence", 1 / 4), ("token", 1.0), ("constant", 1 / 20)])
def test_a_token_weighs_what_the_aggregation_says(aggregation: str, weight: float) -> None:
    config = replace(CONFIG, loss=GRPOLossConfig(aggregation=aggregation))
    documents = rollout_documents(scored_groups([[4, 4, 4]]), config)
    assert documents[0].loss_weights == [0.0, 0.0, 0.0] + [weight] * 4


def test_masked_and_empty_rollouts_have_a_part_in_the_mean_and_none_in_the_loss() -> None:
    groups = scored_groups([[20, 0, 5]])
    kept = rollout_documents(groups, CONFIG)
    masked = rollout_documents(groups, replace(CONFIG, truncated="mask"))
    assert [document.uid for document in kept] == ["0/0/0", "0/0/2"]
    assert masked == kept[1:]
    assert kept[1].advantages is not None and kept[1].advantages[-1] < -0.5


def test_partial_groups_count_what_goes_on() -> None:
    rollout = Rollout("a", 0, [1], [2, 3], [-1.0, -1.0], "abort", 0, "")
    assert PartialGroup(0, 1, (rollout, replace(rollout, stop_reason="stop"))).num_unfinished == 1


def test_rollouts_without_a_loss_still_count_among_the_batchs(tiny_model) -> None:
    """A batch of truncated rollouts makes a small step, not a few rollouts a large one; so it does in TRL."""
    rollouts = [[1, 2], [3]]
    documents = [
        Document(
            [7, *ids],
            [0.0] + [1.0 / len(ids)] * len(ids),
            [0.0] + [1.0] * len(ids),
            [0.0] * (1 + len(ids)),
            [0.0] + [-6.0] * len(ids),
            uid=str(index),
        )
        for index, ids in enumerate(rollouts)
    ]

    def norm(num_left_out: int) -> float:
        engine = TorchEngine(copy.deepcopy(tiny_model), OptimizerConfig(clip_grad_norm=0.0), 1, ALONE)
        return Learner(engine, CONFIG).update([pack_row(documents)], num_left_out)["grad_norm"]

    assert norm(2) == pytest.approx(norm(0) / 2, rel=1e-6)
