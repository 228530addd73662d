"""ZeRO at every stage makes the steps of one process, keeps float32 what has to be, and hands its state on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from falcon_h1r.config import ModelConfig
from falcon_h1r.config_run import EngineConfig
from falcon_h1r.config_stage import OptimizerConfig
from falcon_h1r.distributed.engine import Engine, TorchEngine
from falcon_h1r.distributed.engines import open_engine
from falcon_h1r.distributed.fragments import MOMENTS, WEIGHT
from falcon_h1r.distributed.world import World
from falcon_h1r.model.decode_prefill import read_row
from falcon_h1r.model.load import load_model
from falcon_h1r.model.precision import FULL_PRECISION
from falcon_h1r.sft.loop import train_step

pytest.importorskip("deepspeed")

ALONE = World(0, 1, torch.device("cpu"))
SETTINGS = OptimizerConfig(learning_rate=1e-2, weight_decay=0.1, clip_grad_norm=1.0)
LENGTHS = [60, 3, 40, 2, 9]  # very unequal: with several ranks, some get a lone short document or nothing
STAGES = [0, 1, 2, 3]
FAST_STAGES = [stage if stage == 3 else pytest.param(stage, marks=pytest.mark.slow) for stage in STAGES]
Lines = dict[tuple[str, str], torch.Tensor]
RunOnRanks = Callable[[int, Callable[[World], Any]], list[Any]]


def deepspeed_engine(model, world: World, stage: int, settings: OptimizerConfig = SETTINGS, **options: Any) -> Engine:
    return open_engine(model, settings, 5, world, EngineConfig(name="deepspeed", zero_stage=stage, **options))


def train(engine: Engine, documents, num_steps: int = 3) -> list[dict[str, float]]:
    return [train_step(engine, documents, row_tokens=64) for _ in range(num_steps)]


def weights_of(engine: Engine) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in engine.full_weights()}


def lines_of(engine: Engine) -> Lines:
    """The whole training state, from all ranks' fragments; every entry has to be written exactly once."""
    own = [(f.name, f.start, {kind: t.clone() for kind, t in f.tensors.items()}) for f in engine.fragments()]
    lines: Lines = {}
    for name, start, tensors in (fragment for rank in engine.world.gather(own) for fragment in rank):
        numel = getattr(engine.trained[name], "ds_numel", engine.trained[name].numel())
        for kind, part in tensors.items():
            line = lines.setdefault((name, kind), torch.full((numel,), math.nan))
            assert line[start : start + len(part)].isnan().all()
            line[start : start + len(part)] = part
    assert not any(line.isnan().any() for line in lines.values())
    return lines


PLAIN: dict[str, Any] = {}
LAYER, SELECTIVE = {"activation_checkpointing": "layer"}, {"activation_checkpointing": "selective"}
OFFLOADED = {**LAYER, "activation_offload": True}
FAST = [(1, PLAIN), (3, SELECTIVE)]
SLOW = [
    (stage, options)
    for stage in STAGES
    for options in (PLAIN, LAYER, SELECTIVE, OFFLOADED, {"optimizer_offload": True})
    if (stage, options) not in FAST and not (stage == 0 and "optimizer_offload" in options)
]


@pytest.mark.parametrize(
    ("stage", "options"), [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)], ids=str
)
def test_every_stage_makes_the_steps_of_one_process(
    tiny_model, random_documents, run_on_ranks: RunOnRanks, stage: int, options: dict[str, Any]
) -> None:
    model, documents = tiny_model.float(), random_documents(LENGTHS)

    def work(world: World) -> Any:
        engine = deepspeed_engine(model, world, stage, **options)
        return train(engine, documents), weights_of(engine)

    by_rank = run_on_ranks(2, work)
    alone = TorchEngine(model, SETTINGS, 5, ALONE)
    expected, expected_weights = train(alone, documents), weights_of(alone)
    for metrics, weights in by_rank:
        for ours, theirs in zip(metrics, expected, strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)
        for name, weight in expected_weights.items():
            torch.testing.assert_close(weights[name], weight, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("stage", [pytest.param(0, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_world_of_one_needs_no_launcher(tiny_model, random_documents, run_on_ranks: RunOnRanks, stage: int) -> None:
    model, documents = tiny_model.float(), random_documents(LENGTHS)
    (losses,) = run_on_ranks(1, lambda _: [m["loss"] for m in train(deepspeed_engine(model, ALONE, stage), documents)])
    alone = [metrics["loss"] for metrics in train(TorchEngine(model, SETTINGS, 5, ALONE), documents)]
    assert losses == pytest.approx(alone, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("written_by", "read_by"), [(1, 3), (3, 1), (2, 2), (3, 3), (0, 3), (3, 0)])
def test_any_stage_goes_on_from_the_state_of_any_other(
    tiny_model, random_documents, run_on_ranks: RunOnRanks, written_by: int, read_by: int
) -> None:
    model, documents = tiny_model.float(), random_documents(LENGTHS)

    def write(world: World) -> Any:
        engine = deepspeed_engine(model, world, written_by)
        train(engine, documents, 2)
        lines = lines_of(engine)
        return lines, [metrics["loss"] for metrics in train(engine, documents)]

    (lines, expected), _ = run_on_ranks(2, write)

    def go_on(world: World) -> Any:
        engine = deepspeed_engine(model, world, read_by)
        engine.load_state(lambda name, kind, start, n: lines[name, kind][start : start + n], 2, 2)
        assert all(torch.equal(line, lines[key]) for key, line in lines_of(engine).items())
        return [metrics["loss"] for metrics in train(engine, documents)]

    for losses in run_on_ranks(4, go_on):
        assert losses == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("stage", FAST_STAGES)
def test_a_discarded_step_leaves_no_trace(tiny_model, random_documents, run_on_ranks: RunOnRanks, stage: int) -> None:
    model, documents = tiny_model.float(), random_documents(LENGTHS)

    def work(world: World) -> Any:
        engine = deepspeed_engine(model, world, stage)
        first = train(engine, documents, 1)
        before = lines_of(engine)
        from falcon_h1r.data.packing import pack_for_rank

        for row in pack_for_rank(documents, 64, world.rank, world.size):
            engine.backward(engine.logprobs(row)[0].sum())
        engine.discard_step()
        after = lines_of(engine)
        same = all(torch.equal(before[key], after[key]) for key in before)
        return same, [m["loss"] for m in first + train(engine, documents, 2)]

    by_rank = run_on_ranks(2, work)
    alone = [metrics["loss"] for metrics in train(TorchEngine(model, SETTINGS, 5, ALONE), documents)]
    for same, losses in by_rank:
        assert same and losses == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize(
    ("stage", "where"),
    [
        case if case in [(0, "gradient"), (3, "loss")] else pytest.param(*case, marks=pytest.mark.slow)
        for case in itertools.product(STAGES, ["loss", "gradient"])
    ],
)
def test_what_is_not_finite_updates_nothing(
    tiny_model, random_documents, run_on_ranks: RunOnRanks, stage: int, where: str
) -> None:
    model, documents = tiny_model.float(), random_documents(LENGTHS)

    def work(world: World) -> Any:
        engine = deepspeed_engine(model, world, stage)
        train(engine, documents, 1)
        before = lines_of(engine)
        from falcon_h1r.data.packing import pack_for_rank

        for row in pack_for_rank(documents, 64, world.rank, world.size):
            logprobs = engine.logprobs(row)[0].sum()
            if world.rank == 1:  # on one rank only
                logprobs = logprobs * math.inf if where == "loss" else logprobs + (logprobs - logprobs.detach()).sqrt()
            engine.backward(logprobs)
        outcome = engine.step()
        after = lines_of(engine)
        return outcome.applied, all(torch.equal(before[key], after[key]) for key in before), engine.steps_done

    assert run_on_ranks(2, work) == [(False, True, 2)] * 2


@pytest.mark.parametrize("stage", FAST_STAGES)
def test_bfloat16_training_moves_the_ssms_scalars_by_updates_of_1e_5(
    tiny_model, random_documents, run_on_ranks: RunOnRanks, tmp_path, stage: int
) -> None:
    """At start, after a step, after saving and loading, and in what a sampler reads: float32, and moved."""
    tiny_model.float().save_pretrained(tmp_path)
    settings = OptimizerConfig(learning_rate=1e-5, weight_decay=0.0, schedule="constant")
    documents = random_documents(LENGTHS)

    def scalars(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = {name: weight for name, weight in weights.items() if name.endswith(FULL_PRECISION)}
        assert len(found) == 3 * 2 and all(weight.dtype == torch.float32 for weight in found.values())
        return found

    def work(world: World) -> Any:
        model = load_model(ModelConfig(path=str(tmp_path), dtype="bfloat16"), world.device, to_train=True)
        engine = deepspeed_engine(model, world, stage, settings)
        started = scalars(weights_of(engine))
        first = train(engine, documents, 1)
        stepped = scalars(weights_of(engine))
        lines = lines_of(engine)
        engine.load_state(lambda name, kind, start, n: lines[name, kind][start : start + n], 1, 1)
        train(engine, documents, 1)
        resumed = scalars(weights_of(engine))
        with engine.whole():
            synced = scalars({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
            logits = read_row(model, [documents[0].input_ids])[0].logits
        moves = [
            (b[name] - a[name]).abs().mean().item()
            for a, b in ((started, stepped), (stepped, resumed))
            for name in started
        ]
        return (
            moves,
            all(torch.equal(synced[n], resumed[n]) for n in synced),
            engine.logprobs(row_of(documents[0]))[0].dtype,
            first[0]["loss"],
            logits.dtype,
        )

    def row_of(document):
        from falcon_h1r.data.packing import pack_row

        return pack_row([document])

    for moves, is_synced, dtype, loss, logits_dtype in run_on_ranks(2, work):
        assert moves == pytest.approx([1e-5] * len(moves), rel=0.25)  # Adam's first steps are of the learning rate
        assert is_synced and dtype == torch.float32 == logits_dtype and math.isfinite(loss)


def test_kinds_are_what_the_optimizer_calls_them(tiny_model, random_documents) -> None:
    engine = TorchEngine(tiny_model, SETTINGS, 5, ALONE)
    train(engine, random_documents(LENGTHS), 1)
    assert {kind for fragment in engine.fragments() for kind in fragment.tensors} == {WEIGHT, *MOMENTS}
