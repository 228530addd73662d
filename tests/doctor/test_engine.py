"""Engine, sampler and resume: green as they are, red when gradients, dtypes, logprobs or the state are not right."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from falcon_h1r.checkpoint import state as checkpoint_state
from falcon_h1r.distributed.engine import TorchEngine
from falcon_h1r.distributed.world import World, join_sequence_group
from falcon_h1r.doctor.engine import check_engine
from falcon_h1r.doctor.examination import Examination
from falcon_h1r.doctor.finding import Finding
from falcon_h1r.doctor.resume import check_resume
from falcon_h1r.doctor.sampler import check_sampler
from falcon_h1r.model.precision import FULL_PRECISION
from falcon_h1r.rollout.torch_sampler import TorchSampler
from tests.doctor.examinations import ALONE, RunOnRanks, assert_green, examination, only, statuses

SETTINGS = {
    "plain": [],
    "bfloat16": ["model.dtype=bfloat16"],
    "adapters": ["model.lora.rank=4"],
    "full": ["doctor.full=true"],
}


def all_three(patient: Examination) -> list[Finding]:
    return [*check_engine(patient), *check_sampler(patient), *check_resume(patient)]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_sound_engine_is_green(name: str, tmp_path: Path) -> None:
    findings = all_three(examination(tmp_path, ALONE, *SETTINGS[name]))
    assert_green(findings)
    assert [f.name for f in findings if f.status == "skipped"] == (["SSM updates"] if name == "adapters" else [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("overrides", [[], ["engine.sequence_parallel=2"]], ids=["data", "sequence"])
def test_two_ranks_are_green(run_on_ranks: RunOnRanks, tmp_path: Path, overrides: list[str]) -> None:
    def work(world: World) -> list[Finding]:
        patient = examination(tmp_path, world, *overrides)
        degree = patient.config.engine.sequence_parallel
        patient.world = replace(world, sequence=join_sequence_group(world.rank, world.size, degree))
        return all_three(patient)

    for findings in run_on_ranks(2, work):
        assert_green(findings)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_a_sharded_engine_is_green(run_on_ranks: RunOnRanks, tmp_path: Path, stage: int) -> None:
    pytest.importorskip("deepspeed")
    overrides = ["engine.name=deepspeed", f"engine.zero_stage={stage}", "model.dtype=bfloat16"]
    for findings in run_on_ranks(2, lambda world: all_three(examination(tmp_path, world, *overrides))):
        assert_green(findings)


def test_averaged_gradients_are_red(run_on_ranks: RunOnRanks, tmp_path: Path) -> None:
    def work(world: World) -> list[Finding]:
        summed = TorchEngine._sum_gradients

        def averaged(engine: TorchEngine) -> None:
            summed(engine)
            for parameter in engine.parameters:
                parameter.grad /= engine.world.size

        TorchEngine._sum_gradients = averaged  # in this rank's own process
        return check_engine(examination(tmp_path, world))

    for (found,) in run_on_ranks(2, work):
        assert (found.name, found.status) == ("gradient scale", "failed")


def test_scalars_cast_to_bfloat16_are_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model = Examination.make_model

    def cast(patient: Examination, seed: int) -> Any:
        model = make_model(patient, seed)
        for name, parameter in model.named_parameters():
            if name.endswith(FULL_PRECISION):
                parameter.data = parameter.data.bfloat16()
        return model

    monkeypatch.setattr(Examination, "make_model", cast)
    found = statuses(check_engine(examination(tmp_path)))
    assert found["SSM dtypes"] == found["SSM updates"] == "failed"
    assert found["step"] == "ok"


def test_scalars_that_do_not_move_are_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update = TorchEngine._update

    def all_but_dt_bias(engine: TorchEngine) -> Any:
        for name, parameter in engine.trained.items():
            if name.endswith("dt_bias"):
                parameter.grad = None
        return update(engine)

    monkeypatch.setattr(TorchEngine, "_update", all_but_dt_bias)
    found = only(check_engine(examination(tmp_path)), "SSM updates")
    assert found.status == "failed" and "dt_bias" in found.measured


def test_a_step_that_is_refused_is_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logprobs = TorchEngine.logprobs

    def infinite(engine: TorchEngine, *arguments: Any) -> Any:
        found, entropies = logprobs(engine, *arguments)
        return found * torch.inf, entropies

    monkeypatch.setattr(TorchEngine, "logprobs", infinite)
    assert statuses(check_engine(examination(tmp_path)))["step"] == "failed"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gap_between_sampler_and_trainer_is_red(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = TorchSampler.generate

    def shifted(sampler: TorchSampler, *arguments: Any) -> Any:
        rollouts = generate(sampler, *arguments)
        for rollout in rollouts:
            rollout.sampler_logprobs[:] = [logprob - 0.2 for logprob in rollout.sampler_logprobs]
        return rollouts

    monkeypatch.setattr(TorchSampler, "generate", shifted)
    (found,) = check_sampler(examination(tmp_path, ALONE, f"model.dtype={dtype}"))
    assert found.status == "failed"


def test_another_sampler_than_torchs_is_not_claimed_to_be_tried(tmp_path: Path) -> None:
    found = statuses(check_sampler(examination(tmp_path, ALONE, "grpo.rollout.name=vllm_server")))
    assert found == {"vllm_server sampler": "skipped", "sampler logprobs": "ok"}


@pytest.mark.parametrize("kind", ["weight", "exp_avg", "exp_avg_sq"])
def test_a_state_that_does_not_come_back_is_red(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_state = TorchEngine.load_state

    def spoilt(engine: TorchEngine, read: Any, *position: int) -> None:
        def read_other(name: str, stored: str, start: int, length: int) -> torch.Tensor:
            line = read(name, stored, start, length)
            return torch.nextafter(line, torch.full_like(line, 9.0)) if stored == kind else line

        load_state(engine, read_other, *position)

    monkeypatch.setattr(TorchEngine, "load_state", spoilt)
    (found,) = check_resume(examination(tmp_path))
    assert found.status == "failed" and f"|{kind}|" in found.measured


def test_a_checkpoint_that_cannot_be_written_is_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint_state, "write_tensors", full)
    (found,) = check_resume(examination(tmp_path))
    assert found.status == "failed" and "No space left" in found.measured
