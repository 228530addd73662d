"""The configured engine: it starts, sums gradients over ranks, makes a step, and keeps the SSM's scalars in float32."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from falcon_h1r.data.packing import pack_for_rank
from falcon_h1r.distributed.engine import Engine, StepOutcome
from falcon_h1r.doctor.examination import ROW_TOKENS, SETTINGS, Examination
from falcon_h1r.doctor.finding import FAILED, OK, SKIPPED, WARN, Finding, graded
from falcon_h1r.model.precision import FULL_PRECISION, compute_dtype

PROBE = "gradient probe"  # with which the engine's own refusal begins
LEAST_MOVED_SHARE = 0.5  # of entries; the gradient of a few may vanish, those of most do not


def check_engine(examination: Examination) -> list[Finding]:
    """Start, probe, one step; what the step did to A_log, D and dt_bias."""
    try:
        engine = examination.engine = examination.open_engine()
    except RuntimeError as error:
        if not str(error).startswith(PROBE):
            raise
        advice = "gradients are averaged or counted twice, so every learning rate would be wrong: install the pins"
        return [Finding("gradient scale", FAILED, str(error), advice)]
    name = examination.config.engine.name
    name += f", ZeRO {examination.config.engine.zero_stage}" if name == "deepspeed" else ""
    before = ssm_scalars(engine)
    started = time.perf_counter()
    outcome, loss = take_step(engine, examination)
    seconds = time.perf_counter() - started
    after = ssm_scalars(engine)
    return [
        Finding("engine", OK, f"{name}; {model_shown(engine)}"),
        Finding("gradient scale", OK, f"summed over {engine.world.size} ranks"),
        step_finding(outcome, loss, seconds),
        dtypes_finding(engine, after),
        moves_finding(before, after, set(engine.trained)),
    ]


def take_step(engine: Engine, examination: Examination) -> tuple[StepOutcome, float]:
    """One optimizer step on the examination's documents; its outcome and the global mean loss."""
    world = engine.world
    documents = examination.documents()
    rows = pack_for_rank(documents, ROW_TOKENS, world.data_rank, world.data_size, world.sequence.size)
    num_weighted = sum(len(document) - 1 for document in documents)
    local_loss = 0.0
    engine.model.train()
    for row in rows:
        row = row.to(world.device)
        logprobs, _ = engine.logprobs(row)
        loss = -(logprobs * row.loss_weights).sum() / num_weighted
        engine.backward(loss)
        local_loss += loss.item()
    outcome = engine.step()
    engine.model.eval()
    return outcome, world.sum_over_data([local_loss])[0]


def ssm_scalars(engine: Engine) -> dict[str, Tensor]:
    """A_log, D and dt_bias of every layer, whole. Every rank has to ask."""
    return {name: weight.clone() for name, weight in engine.full_weights() if name.endswith(FULL_PRECISION)}


def model_shown(engine: Engine) -> str:
    """Its size, and what it computes in."""
    count = sum(getattr(p, "ds_numel", p.numel()) for p in engine.model.parameters())
    return f"{count:,} parameters, {str(compute_dtype(engine.model)).removeprefix('torch.')}"


def step_finding(outcome: StepOutcome, loss: float, seconds: float) -> Finding:
    """A step that is applied has a finite loss and gradient on every rank."""
    measured = f"loss {loss:.3f}, gradient norm {outcome.grad_norm:.3f}, {seconds:.2f} s with its warm-up"
    advice = "loss or gradient is not finite: see the kernels' lines; try model.dtype=float32"
    return graded("step", OK if outcome.applied else FAILED, measured, advice)


def dtypes_finding(engine: Engine, scalars: dict[str, Tensor]) -> Finding:
    """The SSM's scalars after the engine's start, and the weights that are trained."""
    narrow = {name: str(w.dtype) for name, w in scalars.items() if torch.finfo(w.dtype).bits < 32}
    if narrow:
        name, dtype = next(iter(narrow.items()))
        advice = "the engine cast them: updates vanish; switch its own mixed precision off"
        return Finding("SSM dtypes", FAILED, f"{name} is {dtype}, and {len(narrow) - 1} more", advice)
    kinds = sorted({str(p.dtype).removeprefix("torch.") for p in engine.trained.values()})
    low = [kind for kind in kinds if kind not in ("float32", "float64")]
    status = WARN if low else OK
    advice = "trained weights have no float32 master copy: small updates are lost"
    measured = f"A_log, D, dt_bias float32 at least; trained weights {', '.join(kinds)}"
    return graded("SSM dtypes", status, measured, advice)


def moves_finding(before: dict[str, Tensor], after: dict[str, Tensor], trained: set[str]) -> Finding:
    """Whether a step of the least learning rate changes them. One rounded to bfloat16 stays where it was."""
    shared = [name for name in before if name in trained]
    if not shared:
        return Finding("SSM updates", SKIPPED, "not trained", "adapters are trained instead (model.lora.rank)")
    moved = {name: (after[name] != before[name]).float().mean().item() for name in shared}
    stuck = min(moved, key=lambda name: moved[name])
    mean = sum((after[n].double() - before[n].double()).abs().mean().item() for n in shared) / len(shared)
    measured = f"of {stuck}, {moved[stuck]:.0%} moved by a step of {SETTINGS.learning_rate:g}; {mean:.1e} on average"
    advice = "they are kept in too few bits, or get no gradient: do not train like this"
    return graded("SSM updates", OK if moved[stuck] >= LEAST_MOVED_SHARE else FAILED, measured, advice)
