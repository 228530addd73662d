"""A step of the cold start: its documents, its loss, and what is counted of it."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from falcon_h1r.config import SFTConfig
from falcon_h1r.config_stage import LimitsConfig, OptimizerConfig
from falcon_h1r.data.packing import Document, pack_row
from falcon_h1r.distributed.engine import TorchEngine
from falcon_h1r.distributed.world import World
from falcon_h1r.sft.corpus import fit_documents
from falcon_h1r.sft.loop import train_step
from falcon_h1r.sft.losses import weighted_cross_entropy
from falcon_h1r.sft.steps import step_documents, total_steps

ALONE = World(0, 1, torch.device("cpu"))
PLAIN = OptimizerConfig(learning_rate=1e-3, weight_decay=0.0, clip_grad_norm=0.0, schedule="constant")


@given(num_documents=st.integers(1, 30), batch=st.integers(1, 12), seed=st.integers(0, 3))
def test_every_epoch_holds_every_document_once(num_documents: int, batch: int, seed: int) -> None:
    documents = [Document([index + 1], [0.0], uid=str(index)) for index in range(num_documents)]
    steps = -(-3 * num_documents // batch)
    seen = [d.uid for step in range(steps) for d in step_documents(documents, step, batch, seed)][: 3 * num_documents]
    for epoch in range(3):
        uids = seen[epoch * num_documents : (epoch + 1) * num_documents]
        assert Counter(uids) == Counter(document.uid for document in documents)


def test_the_loss_is_the_weighted_mean_however_documents_are_split(random_documents) -> None:
    documents = random_documents([5, 9, 3])
    logprobs = -torch.rand(17, dtype=torch.float64)
    whole = pack_row(documents)
    expected = -(logprobs * whole.loss_weights).sum() / whole.loss_weights.sum()
    denominator = whole.loss_weights.sum().item()
    parts = [pack_row(documents[:1]), pack_row(documents[1:])]
    split = [logprobs[:5], logprobs[5:]]
    total = sum(weighted_cross_entropy(lp, part, denominator).item() for lp, part in zip(split, parts, strict=True))
    assert total == pytest.approx(expected.item(), rel=1e-7)


def test_a_step_does_not_depend_on_how_its_documents_fill_rows(tiny_model, random_documents) -> None:
    documents = random_documents([20, 7, 13, 4])
    results = []
    for row_tokens in (20, 27, 64):
        model = copy.deepcopy(tiny_model)
        engine = TorchEngine(model, OptimizerConfig(learning_rate=1e-2), 2, ALONE)
        loss = train_step(engine, documents, row_tokens)["loss"]
        results.append((loss, torch.cat([p.detach().flatten() for p in model.parameters()])))
    for loss, weights in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-10)
        assert (weights - results[0][1]).abs().max() < 1e-7


@pytest.mark.parametrize("denominator", ["weights", "tokens"])
def test_gradients_are_the_same_on_any_number_of_ranks(
    tiny_model, random_documents, run_on_ranks, denominator: str
) -> None:
    documents = random_documents([20, 7, 13, 4, 31, 9])

    def work(world: World) -> tuple[float, torch.Tensor]:
        engine = TorchEngine(copy.deepcopy(tiny_model), PLAIN, 1, world)
        loss = train_step(engine, documents, 32, denominator)["loss"]
        own = [(f.name, f.start, f.tensors["exp_avg"].flatten()) for f in engine.fragments()]
        parts = sorted((part for rank in world.gather(own) for part in rank), key=lambda part: part[:2])
        return loss, torch.cat([tensor for _, _, tensor in parts])

    (loss, gradient), *others = [work(ALONE), *run_on_ranks(2, work)]
    assert gradient.norm() > 0
    for other_loss, other_gradient in others:
        assert other_loss == pytest.approx(loss, rel=1e-10)
        assert (other_gradient - gradient).norm() < 1e-10 * gradient.norm()


def test_the_denominators_differ_by_the_mean_weight(tiny_model, random_documents) -> None:
    """Of the loss and of its gradient: sum of weights over number of tokens."""
    found = {}
    for denominator in ("weights", "tokens"):
        engine = TorchEngine(copy.deepcopy(tiny_model), PLAIN, 1, ALONE)
        metrics = train_step(engine, random_documents([20, 7, 13]), 64, denominator)
        gradient = torch.cat([f.tensors["exp_avg"].flatten() for f in engine.fragments()])
        found[denominator] = metrics["loss"], gradient
    mean_weight = metrics["loss_weight"] / metrics["loss_tokens"]
    assert mean_weight != 1
    assert found["tokens"][0] == pytest.approx(found["weights"][0] * mean_weight, rel=1e-12)
    assert torch.allclose(found["tokens"][1], found["weights"][1] * mean_weight, rtol=1e-10, atol=1e-15)


def test_a_step_counts_what_was_cut(tiny_model) -> None:
    documents = [Document([1, 2, 3, 4], [0, 1, 1, 1]), Document([5, 6], [0, 1])]
    fitted = fit_documents(documents, LimitsConfig(prompt_tokens=4, response_tokens=2, row_tokens=8), "trim")
    metrics = train_step(TorchEngine(tiny_model, PLAIN, 1, ALONE), fitted.documents, 8)
    assert (metrics["sequences"], metrics["truncated_sequences"], metrics["tokens"]) == (2, 1, 5)


def test_training_lowers_the_loss(tiny_model, random_documents) -> None:
    documents = random_documents([20, 7, 13, 4])
    engine = TorchEngine(tiny_model, OptimizerConfig(learning_rate=1e-2, schedule="constant"), 30, ALONE)
    losses = [train_step(engine, documents, 64)["loss"] for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]


def test_steps_follow_from_epochs_unless_given() -> None:
    assert total_steps(SFTConfig(num_epochs=3), 3_110_000 / 512) == 18_223
    assert total_steps(SFTConfig(num_steps=7), 10) == 7
