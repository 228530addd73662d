"""Rollouts from the ranks that sampled them to the ranks that learn from them.

Sampling gives whole groups to whoever has room, so that ranks end with uneven shares. All of them know every chosen
rollout's length, and so make the same plan of rows of nearly equal cost (falcon_h1r.data.packing_plan); each then
sends its rollouts to the ranks whose rows they are in, and to nobody else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from falcon_h1r.config_grpo import GRPOConfig
from falcon_h1r.data.packing import Document, PackedBatch, pack_row_evenly, weightless_document
from falcon_h1r.data.packing_plan import plan_rows
from falcon_h1r.distributed.world import World
from falcon_h1r.grpo.collect import GroupBatch
from falcon_h1r.grpo.documents import CreditedRollout, credit_rollouts, is_learnt_from
from falcon_h1r.grpo.ledger import Scored
from falcon_h1r.grpo.stream import ProblemStream


@dataclass(frozen=True, slots=True)
class DealtDocuments:
    """A step's documents, planned on all ranks, and this rank's rows of them."""

    plan: list[list[int]]  # documents by row, in the order dealt to data ranks
    own: dict[int, Document]  # by index: those of this rank's rows
    rows: list[PackedBatch]  # this rank's; all ranks have as many, none where there is nothing to learn from
    num_left_out: int = 0  # chosen rollouts, over all ranks, without a loss and so without a document


def redistribute(batch: GroupBatch, stream: ProblemStream, config: GRPOConfig, world: World) -> DealtDocuments:
    """Give every rank the documents of its rows. Under sequence parallelism a row's go to all ranks that share it."""
    places, lengths = _learnt_rollouts(batch.chosen, stream, config)
    if not lengths:
        return DealtDocuments([], {}, [])
    plan = plan_rows(lengths, config.limits.row_tokens, world.data_size)
    data_rank_of = {index: number % world.data_size for number, row in enumerate(plan) for index in row}
    credited = _credit_own(batch, config)
    outgoing: list[list[tuple[int, CreditedRollout]]] = [[] for _ in range(world.size)]
    for index, place in enumerate(places):
        if (rollout := credited.get(place)) is not None:
            first = data_rank_of[index] * world.sequence.size
            for rank in range(first, first + world.sequence.size):
                outgoing[rank].append((index, rollout))
    received = world.exchange(outgoing)
    own = {index: rollout.document() for sent in received for index, rollout in sent}
    model = [blank_document()]
    rows = [
        pack_row_evenly([own[index] for index in sorted(row)], world.sequence.size, model)
        for row in plan[world.data_rank :: world.data_size]
    ]
    num_chosen = sum(len(each.facts.rollouts) for each in batch.chosen)
    return DealtDocuments(plan, own, rows, num_chosen - len(lengths))


def gather_documents(dealt: DealtDocuments, world: World) -> list[Document]:
    """All of a step's documents on every rank, in the plan's order: for a batch that is to be written out."""
    by_index = {index: document for own in world.gather(dealt.own) for index, document in own.items()}
    return [by_index[index] for index in sorted(by_index)]


def blank_document() -> Document:
    """What an empty row takes its fields from."""
    return weightless_document(1, [Document([0], [0.0], advantages=[0.0], positives=[0.0], sampler_logprobs=[0.0])])


def _learnt_rollouts(
    chosen: Sequence[Scored], stream: ProblemStream, config: GRPOConfig
) -> tuple[list[tuple[int, int]], list[int]]:
    """(group's number, sample) of every document, in the order drawn, and its length in tokens; from facts alone."""
    places, lengths = [], []
    for each in chosen:
        _, prompt = stream[each.facts.problem_uid]
        for sample, rollout in enumerate(each.facts.rollouts):
            if is_learnt_from(rollout.response_tokens, rollout.stop_reason, config):
                places.append((each.number, sample))
                lengths.append(len(prompt.input_ids) + rollout.response_tokens)
    return places, lengths


def _credit_own(batch: GroupBatch, config: GRPOConfig) -> dict[tuple[int, int], CreditedRollout]:
    """The rollouts that this rank holds, by place."""
    numbers = sorted(batch.own_groups)
    credited = credit_rollouts([batch.own_groups[n] for n in numbers], config, torch.tensor(batch.rewards))
    places = [(number, sample) for number in numbers for sample in range(config.group_size)]
    return {place: each for place, each in zip(places, credited, strict=True) if each is not None}
