"""Which documents a step sees, and what the limits do to them."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from falcon_h1r.config import LimitsConfig, OptimizerConfig, SFTConfig
from falcon_h1r.data.packing import Document, pack_row
from falcon_h1r.distributed.engine import TorchEngine
from falcon_h1r.distributed.world import World
from falcon_h1r.sft.corpus import TrainingData, fit_documents
from falcon_h1r.sft.loop import train_step
from falcon_h1r.sft.losses import weighted_cross_entropy
from falcon_h1r.sft.steps import step_documents, total_steps
from falcon_h1r.types import InputError

ALONE = World(0, 1, torch.device("cpu"))


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


def test_training_lowers_the_loss(tiny_model, random_documents) -> None:
    documents = random_documents([20, 7, 13, 4])
    engine = TorchEngine(tiny_model, OptimizerConfig(learning_rate=1e-2, schedule="constant"), 30, ALONE)
    losses = [train_step(engine, documents, 64)["loss"] for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]


def test_overlong_traces_are_dropped_or_trimmed_and_counted() -> None:
    def trace(prompt: int, response: int) -> Document:
        return Document([1] * (prompt + response), [0.0] * prompt + [1.0] * response)

    documents = [trace(4, 6), trace(4, 9), trace(7, 2)]
    limits = LimitsConfig(prompt_tokens=5, response_tokens=6, row_tokens=16)
    dropped = fit_documents(documents, limits, "drop")
    assert ([len(d) for d in dropped.documents], dropped.num_dropped, dropped.num_trimmed) == ([10], 2, 0)
    trimmed = fit_documents(documents, limits, "trim")
    assert ([len(d) for d in trimmed.documents], trimmed.num_dropped, trimmed.num_trimmed) == ([10, 10], 1, 1)
    weightless = fit_documents([*documents[:1], Document([1, 2], [0.0, 0.0])], limits, "drop")
    assert (len(weightless.documents), weightless.num_weightless) == (1, 1)
    with pytest.raises(InputError, match="none of 1 traces fits"):
        fit_documents(documents[2:], limits, "trim")


def test_steps_follow_from_epochs_unless_given() -> None:
    assert total_steps(SFTConfig(num_epochs=3), 3_110_000 / 512) == 18_223
    assert total_steps(SFTConfig(num_steps=7), 10) == 7


def test_a_run_does_not_go_on_with_other_data(random_documents) -> None:
    documents = random_documents([5, 6, 7])
    begun = TrainingData(documents, "traces.jsonl").state_dict()
    TrainingData(documents, "moved.jsonl").load_state_dict(begun)
    for other in (documents[:2], documents[::-1], random_documents([5, 6, 8])):
        with pytest.raises(InputError, match="sft.data.path=traces.jsonl: . documents that are not the 3 the run"):
            TrainingData(other, "traces.jsonl").load_state_dict(begun)
