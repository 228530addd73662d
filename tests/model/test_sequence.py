"""A row shared by several ranks trains as it does on one: the loss, and every gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import FalconH1ForCausalLM

from falcon_h1r.config import ModelConfig
from falcon_h1r.config_run import EngineConfig
from falcon_h1r.config_stage import OptimizerConfig
from falcon_h1r.data.packing import Document, PackedBatch, pack_for_rank, pack_row
from falcon_h1r.distributed.engine import TorchEngine
from falcon_h1r.distributed.world import World, join_sequence_group
from falcon_h1r.model.load import random_policy
from falcon_h1r.model.sequence import SequenceGroup, check_degree, own_groups, query_heads
from falcon_h1r.sft.losses import weighted_cross_entropy
from falcon_h1r.types import InputError
from tests.conftest import TINY_ARCHITECTURE

ALONE = World(0, 1, torch.device("cpu"))

# Rows of 64 tokens. Shards of 32 or 16 tokens end at, before and after documents; [61, 3] leaves the last shard of
# four with a document's end and another document.
ROWS = {
    "at": [16, 16, 32],
    "before": [15, 16, 17, 15, 1],
    "after": [17, 16, 16, 15],
    "one document": [64],
    "one-token documents": [31, 1, 1, 31],
    "short of the kernel": [2, 3, 29, 2, 28],
}

# KV heads: fewer than, as many as and more than the ranks; query heads that the degree does not divide; both numbers
# of SSM groups.
SHAPES = {
    "replicated": {"num_attention_heads": 4, "num_key_value_heads": 1, "mamba_n_groups": 1},
    "shared": {"num_attention_heads": 4, "num_key_value_heads": 4, "mamba_n_groups": 2},
    "padded": {"num_attention_heads": 6, "num_key_value_heads": 2, "mamba_n_groups": 4, "head_dim": 8},
    "seven billion": {"num_attention_heads": 12, "num_key_value_heads": 2, "mamba_n_groups": 1, "head_dim": 4},
}


def policy(tokenizer: Any, shape: str, dtype: str) -> FalconH1ForCausalLM:
    ssm = {"mamba_n_heads": 8, "mamba_d_ssm": 64}
    settings = ModelConfig(dtype=dtype, architecture={**TINY_ARCHITECTURE, **ssm, **SHAPES[shape]})
    return random_policy(settings, tokenizer, seed=0).eval()


def with_sequence(world: World, degree: int) -> World:
    return replace(world, sequence=join_sequence_group(world.rank, world.size, degree))


def results(model: FalconH1ForCausalLM, row: PackedBatch, world: World, **settings: Any) -> dict[str, Tensor]:
    """The loss of the row and every gradient, summed over ranks as the engine does before a step."""
    engine = TorchEngine(model, OptimizerConfig(), 1, world, EngineConfig(**settings))
    logprobs, entropies = engine.logprobs(row, temperature=0.8)
    loss = weighted_cross_entropy(logprobs, row, denominator=row.loss_weights.sum().item())
    engine.backward(loss)
    engine._sum_gradients()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return {"loss": loss.detach(), "logprobs": logprobs.detach(), "entropies": entropies, **found}


def largest_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """Of any entry, beside the largest of its tensor; the loss beside itself."""
    assert found.keys() == expected.keys()
    errors = {
        name: ((found[name] - expected[name]).abs().max() / expected[name].abs().max().clamp(min=1e-30)).item()
        for name in expected
    }
    worst = max(errors, key=errors.__getitem__)
    return errors[worst], worst


@pytest.mark.parametrize(
    ("shape", "degree"),
    [
        *((shape, 2) for shape in SHAPES),
        *(pytest.param(shape, 4, marks=[] if shape == "padded" else pytest.mark.slow) for shape in SHAPES),
        pytest.param("seven billion", 8, marks=pytest.mark.slow),
    ],
)
def test_ranks_that_share_a_row_get_the_loss_and_gradients_of_one(
    tokenizer, random_documents, run_on_ranks: Callable[..., list[Any]], shape: str, degree: int
) -> None:
    rows = [pack_row(random_documents(lengths)) for lengths in ROWS.values()]

    def work(world: World) -> list[list[dict[str, Tensor]]]:
        shared = with_sequence(world, degree)
        return [
            [results(policy(tokenizer, shape, dtype), row, shared) for row in rows] for dtype in ("float64", "float32")
        ]

    by_rank = run_on_ranks(degree, work)
    for precision, (dtype, tolerance) in enumerate([("float64", 1e-10), ("float32", 1e-5)]):
        model = policy(tokenizer, shape, dtype)
        for index, row in enumerate(rows):
            expected = results(model, row, ALONE)
            for found in by_rank:
                error, name = largest_error(found[precision][index], expected)
                assert error < tolerance, f"{name}, row {list(ROWS)[index]!r}, {dtype}: {error:.1e}"


def test_data_and_sequence_ranks_together_count_each_token_once(tokenizer, random_documents, run_on_ranks) -> None:
    """Four ranks, two to a row; the rows' tokens do not divide by two, so that both have a tail."""
    documents = random_documents([33, 12, 20, 8])
    whole = pack_row(documents)
    denominator = whole.loss_weights.sum().item()

    def work(world: World) -> tuple[float, dict[str, Tensor]]:
        world = with_sequence(world, 2)
        model = policy(tokenizer, "replicated", "float64")
        engine = TorchEngine(model, OptimizerConfig(), 1, world)
        engine.check_gradient_scale()
        rows = pack_for_rank(documents, 64, world.data_rank, world.data_size, world.sequence.size)
        losses = []
        for row in rows:
            loss = weighted_cross_entropy(engine.logprobs(row)[0], row, denominator)
            engine.backward(loss)
            losses.append(loss.item())
        engine._sum_gradients()
        total = world.sum_over_data([sum(losses)])[0]
        return total, {name: parameter.grad for name, parameter in model.named_parameters()}  # type: ignore[misc]

    model = policy(tokenizer, "replicated", "float64")
    engine = TorchEngine(model, OptimizerConfig(), 1, ALONE)
    loss = weighted_cross_entropy(engine.logprobs(whole)[0], whole, denominator)
    engine.backward(loss)
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    for total, gradients in run_on_ranks(4, work):
        assert abs(total - loss.item()) < 1e-12
        error, name = largest_error(gradients, expected)
        assert error < 1e-10, name


@pytest.mark.parametrize("mode", ["layer", "selective"])
def test_a_layer_run_again_exchanges_again(tokenizer, random_documents, run_on_ranks, mode: str) -> None:
    row = pack_row(random_documents(ROWS["before"]))

    def work(world: World) -> dict[str, Tensor]:
        model = policy(tokenizer, "replicated", "float64")
        return results(model, row, with_sequence(world, 2), activation_checkpointing=mode)

    expected = results(policy(tokenizer, "replicated", "float64"), row, ALONE)
    for found in run_on_ranks(2, work):
        assert largest_error(found, expected)[0] < 1e-10


def test_a_rank_whose_tokens_carry_no_loss_takes_part(tokenizer, run_on_ranks) -> None:
    document = Document(list(range(16)), [0.0] * 3 + [1.0] * 4 + [0.0] * 9)
    row = pack_row([document])

    def work(world: World) -> dict[str, Tensor]:
        return results(policy(tokenizer, "replicated", "float64"), row, with_sequence(world, 2))

    expected = results(policy(tokenizer, "replicated", "float64"), row, ALONE)
    for found in run_on_ranks(2, work):
        assert largest_error(found, expected)[0] < 1e-10


# -----------------------------------------------------------------------------
# Which heads go where


@given(num_kv_heads=st.integers(1, 6), group=st.integers(1, 8), size=st.sampled_from([1, 2, 3, 4, 8]), data=st.data())
def test_every_query_head_finds_its_kv_head(num_kv_heads: int, group: int, size: int, data: st.DataObject) -> None:
    """On every rank SDPA's rule, query head j reads KV head j // (queries / KV heads), gives the model's."""
    num_heads = num_kv_heads * group
    padded, reads = query_heads(num_heads, num_kv_heads, size)
    assert padded % size == 0 and padded - num_heads < size and len(reads) % size == 0
    own, own_kv = padded // size, len(reads) // size
    assert own % own_kv == 0
    for head in range(num_heads):
        rank, place = divmod(head, own)
        read = reads[rank * own_kv + place // (own // own_kv)]
        assert read == head // group


@pytest.mark.parametrize(("degree", "padded", "kv_a_rank"), [(2, 12, 1), (4, 12, 1), (8, 16, 1)])
def test_the_degrees_of_the_7b(degree: int, padded: int, kv_a_rank: int) -> None:
    heads, reads = query_heads(12, 2, degree)
    assert (heads, len(reads)) == (padded, degree * kv_a_rank)
    check_degree(degree, num_ssm_heads=24, num_groups=1)
    for rank in range(degree):
        assert own_groups(24, 1, SequenceGroup(rank, degree)) == slice(0, 1)


@pytest.mark.parametrize(("degree", "heads", "groups", "why"), [(5, 24, 1, "24 mamba_n_heads"), (4, 24, 3, "across")])
def test_a_degree_that_the_ssm_does_not_allow_is_refused(degree: int, heads: int, groups: int, why: str) -> None:
    with pytest.raises(InputError, match=why) as refusal:
        check_degree(degree, heads, groups)
    assert str(refusal.value).startswith(f"engine.sequence_parallel={degree}: ")


def test_a_degree_that_does_not_divide_the_ranks_is_refused() -> None:
    with pytest.raises(InputError, match="engine.sequence_parallel=2: does not divide the 3 processes"):
        join_sequence_group(0, 3, 2)


def test_exchanges_undo_each_other_whatever_the_strides(run_on_ranks) -> None:
    """all_to_all reads memory in order: a permuted view has to arrive as the tensor it is."""

    def work(world: World) -> bool:
        group = SequenceGroup(world.rank, world.size, dist.group.WORLD)
        tokens = torch.arange(4 * 6 * 5.0).view(5, 6, 4).permute(2, 1, 0) + 1000 * world.rank  # (t 4, H 6, 5)
        heads = group.to_heads(tokens)
        wanted = torch.cat([tokens - 1000 * world.rank + 1000 * rank for rank in range(2)])
        own = slice(3 * world.rank, 3 * world.rank + 3)
        return torch.equal(heads, wanted[:, own]) and torch.equal(group.to_tokens(heads), tokens)

    assert run_on_ranks(2, work) == [True, True]
