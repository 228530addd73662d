"""The plan as text for a console or a pipe, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from falcon_h1r.config import Config
from falcon_h1r.config_tools import PlanConfig
from falcon_h1r.planning.search import GIB, Planned, Subject, best, search, usable_bytes
from falcon_h1r.planning.speed import StepTime
from falcon_h1r.planning.stages import GRPOPlan, Split, StagePlan

SECONDS_A_DAY = 86_400
NUM_SPLITS = 5
TITLES = {"sft": "cold start (SFT)", "grpo": "GRPO, training"}


def render_plan(config: Config, subject: Subject, num_gpus: int, sft: StagePlan | None, grpo: GRPOPlan | None) -> str:
    """All of it."""
    lines = [*_header(config, subject, num_gpus)]
    if sft is not None:
        lines += _stage_lines(sft, config.plan)
        lines += _counts_lines(sft, subject, config.plan)
    if grpo is not None:
        lines += _stage_lines(grpo.training, config.plan)
        lines += _split_lines(grpo, config.plan)
    lines += _assumptions(config.plan)
    return "\n".join(lines)


def plan_as_dict(num_gpus: int, sft: StagePlan | None, grpo: GRPOPlan | None) -> dict[str, Any]:
    """What plan.json holds: bytes and seconds."""
    content: dict[str, Any] = {"num_gpus": num_gpus}
    if sft is not None:
        content["sft"] = _stage_dict(sft)
    if grpo is not None:
        content["grpo"] = _stage_dict(grpo.training)
        content["grpo"]["splits"] = [asdict(split) | {"seconds": split.seconds} for split in grpo.splits]
    return content


def _stage_dict(stage: StagePlan) -> dict[str, Any]:
    chosen = best(stage.found)
    return {
        "work": asdict(stage.work),
        "num_steps": stage.num_steps,
        "asked": _planned_dict(stage.asked),
        "recommended": None if chosen is None else _planned_dict(chosen),
        "layouts": [_planned_dict(planned) for planned in stage.found],
        "advice": stage.advice,
    }


def _planned_dict(planned: Planned) -> dict[str, Any]:
    return asdict(planned) | {"peak_bytes": planned.memory.peak_bytes, "step_seconds": planned.time.seconds}


# -----------------------------------------------------------------------------
# Sections


def _header(config: Config, subject: Subject, num_gpus: int) -> Iterator[str]:
    gpu, parameters = config.plan.gpu, subject.parameters
    trained = f", {parameters.adapters:,} trained in adapters" if parameters.adapters else ""
    yield f"plan of {config.name}: {num_gpus} x {gpu.name}, {gpu.dollars_per_hour:g} $ an hour each"
    reserved = f"{gpu.reserved_gib:g} are not for tensors, and an estimate may be {config.plan.margin:.0%} too low"
    yield f"  a layout fits up to {usable_bytes(config.plan) / GIB:.1f} of {gpu.memory_gib:g} GiB: {reserved}"
    yield f"  model: {parameters.total:,} parameters in {config.model.dtype}{trained}"


def _stage_lines(stage: StagePlan, plan: PlanConfig) -> Iterator[str]:
    work, chosen = stage.work, best(stage.found)
    row = stage.asked.layout.row_tokens
    yield ""
    mean = f"documents of {work.document_tokens:,.0f} on average"
    yield f"{TITLES[stage.stage]}: {work.tokens / 1e6:.2f}M tokens a step in rows of {row:,}, {mean}"
    yield f"  asked for: {stage.asked.layout.describe()}: {_verdict(stage.asked, plan)}"
    if chosen is None:
        yield f"  {stage.advice}"
        yield from _memory_lines([("asked for", stage.asked), *([("leanest", _leanest(stage))] if stage.found else [])])
        return
    yield f"  cheapest that fits: {chosen.layout.describe()}"
    yield f"    {chosen.layout.overrides()}"
    yield from _memory_lines([("asked for", stage.asked), ("cheapest", chosen)])
    yield from _layouts_lines(stage, plan)
    yield from _duration_lines(stage, plan)


def _leanest(stage: StagePlan) -> Planned:
    return min(stage.found, key=lambda planned: planned.memory.peak_bytes)


def _verdict(planned: Planned, plan: PlanConfig) -> str:
    peak, usable = planned.memory.peak_bytes / GIB, usable_bytes(plan) / GIB
    host = planned.memory.host_bytes / GIB
    if planned.fits:
        return f"fits, {peak:.1f} of {usable:.1f} GiB"
    if host > plan.gpu.host_memory_gib:
        return f"does not fit: {host:.1f} GiB of the CPU's memory, which has {plan.gpu.host_memory_gib:g}"
    return f"does not fit: {peak:.1f} GiB, {peak - usable:.1f} too many"


def _memory_lines(shown: Sequence[tuple[str, Planned]]) -> Iterator[str]:
    """Memory of one GPU at its peak, by part."""
    names = [part.name for part in fields(shown[0][1].memory.parts)]
    rows = [[name, *(_gib(getattr(planned.memory.parts, name)) for _, planned in shown)] for name in names]
    rows += [
        ["sum", *(_gib(planned.memory.peak_bytes) for _, planned in shown)],
        ["highest at", *(planned.memory.moment for _, planned in shown)],
        ["CPU's memory", *(_gib(planned.memory.host_bytes) for _, planned in shown)],
    ]
    yield ""
    yield from _columns(["GiB of a GPU", *(name for name, _ in shown)], rows)


def _layouts_lines(stage: StagePlan, plan: PlanConfig) -> Iterator[str]:
    rows = []
    for planned in stage.found[: plan.num_layouts]:
        time = planned.time
        rows.append(
            [
                planned.layout.describe(),
                _gib(planned.memory.peak_bytes),
                f"{time.seconds:.1f}",
                f"{stage.work.tokens / time.seconds:,.0f}",
                f"{_mfu(time, planned.layout.num_gpus, plan):.0%}",
                "" if planned.fits else "does not fit",
            ]
        )
    number = sum(planned.fits for planned in stage.found)
    yield ""
    yield f"  {number} of {len(stage.found)} layouts fit; the cheapest:"
    yield from _columns(["layout", "GiB", "s a step", "tokens/s", "MFU", ""], rows)


def _duration_lines(stage: StagePlan, plan: PlanConfig) -> Iterator[str]:
    yield ""
    for name, planned in (("asked for", stage.asked), ("cheapest", best(stage.found))):
        if planned is None or not planned.fits:
            continue
        time, tokens = planned.time, stage.work.tokens
        parts = {part.name: getattr(time, part.name) for part in fields(time)}
        shown = ", ".join(
            f"{key} {value:.2f}"
            for key, value in parts.items()
            if key not in ("micro_batches", "model_flops") and value
        )
        yield f"  {name}: {tokens / time.seconds:,.0f} tokens/s, a step {time.seconds:.1f} s ({shown})"
        if stage.stage == "sft":
            yield f"    {_bill(stage.num_steps, time.seconds, planned.layout.num_gpus, plan)}"


def _counts_lines(stage: StagePlan, subject: Subject, plan: PlanConfig) -> Iterator[str]:
    """The cheapest layout of these and of fewer GPUs."""
    rows, asked = [], stage.asked.layout
    if asked.num_gpus == 1:
        return
    powers = (2**power for power in range(asked.num_gpus.bit_length()))
    for number in sorted({*(power for power in powers if power < asked.num_gpus), asked.num_gpus}):
        layout = replace(asked, num_gpus=number)
        chosen = best(search(subject, layout, stage.work, plan))
        if chosen is None:
            rows.append([str(number), "nothing fits", "", ""])
        else:
            days = _days(stage.num_steps, chosen.time.seconds)
            cost = _dollars(stage.num_steps, chosen.time.seconds, number, plan)
            rows.append([str(number), chosen.layout.describe(), days, cost])
    yield ""
    yield "  by number of GPUs, the cheapest that fits:"
    yield from _columns(["GPUs", "layout", "days", "$"], rows)


def _split_lines(grpo: GRPOPlan, plan: PlanConfig) -> Iterator[str]:
    yield ""
    if not grpo.splits:
        yield "GRPO, rollouts and training: no split of these GPUs fits both"
        return
    if grpo.shared:
        yield "GRPO, rollouts and training in turns on the same GPUs (grpo.rollout.name=torch)"
    else:
        yield "GRPO, GPUs for rollouts (grpo.rollout.name=vllm_server) and for training, which take turns within a step"
    rows = [_split_row(split) for split in grpo.splits[:NUM_SPLITS]]
    header = ["rollouts", "training", "slots", "tokens/s a GPU", "s rollouts", "s training", "s a step", "trained with"]
    yield from _columns(header, rows)
    first = grpo.splits[0]
    gpus = first.rollout_gpus if grpo.shared else first.rollout_gpus + first.training_gpus
    yield f"  best: {_bill(grpo.training.num_steps, first.seconds, gpus, plan)}"


def _split_row(split: Split) -> list[str]:
    rate = split.rollouts.rate
    return [
        str(split.rollout_gpus),
        str(split.training_gpus),
        str(rate.slots),
        f"{rate.tokens_per_second:,.0f}",
        f"{split.rollouts.seconds:,.0f}",
        f"{split.training.time.seconds:,.0f}",
        f"{split.seconds:,.0f}",
        split.training.layout.describe(),
    ]


def _assumptions(plan: PlanConfig) -> Iterator[str]:
    yield ""
    yield "assumed (plan.*=...):"
    yield (
        f"  utilisation {plan.utilisation:g} of {plan.gpu.flops_per_second / 1e12:,.0f} TFLOP/s, overlap "
        f"{plan.overlap:g}, decode_utilisation {plan.decode_utilisation:g} of "
        f"{plan.gpu.memory_bytes_per_second / 1e12:g} TB/s,"
    )
    yield f"  a mean response {plan.response_share:g} of its limit, {plan.groups_drawn:g} groups drawn for each kept"
    if plan.gpu.backend == "cuda":
        yield "  the working memory of GPU kernels is read off their code, not measured (docs/plan.md)"


# -----------------------------------------------------------------------------
# Cells


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.2f}" if num_bytes else "-"


def _mfu(time: StepTime, num_gpus: int, plan: PlanConfig) -> float:
    return time.model_flops / (time.seconds * num_gpus * plan.gpu.flops_per_second)


def _bill(num_steps: float | None, seconds: float, num_gpus: int, plan: PlanConfig) -> str:
    if num_steps is None:
        return "days and cost are unknown: set plan.tokens or sft.data.expected_tokens"
    days, dollars = _days(num_steps, seconds), _dollars(num_steps, seconds, num_gpus, plan)
    return f"{num_steps:,.0f} steps of {seconds:,.1f} s: {days} days, {dollars} $ on {num_gpus} GPUs"


def _days(num_steps: float | None, seconds: float) -> str:
    return "-" if num_steps is None else f"{num_steps * seconds / SECONDS_A_DAY:,.1f}"


def _dollars(num_steps: float | None, seconds: float, num_gpus: int, plan: PlanConfig) -> str:
    if num_steps is None:
        return "-"
    return f"{num_steps * seconds / 3600 * num_gpus * plan.gpu.dollars_per_hour:,.0f}"


def _columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Aligned cells, the first column on the left and, but for words, the others on the right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(header))]
    for line in lines:
        cells = [
            cell.ljust(width)
            if index == 0 or any(word[:1].isalpha() for word in _column(rows, index))
            else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        yield ("    " + "  ".join(cells)).rstrip()


def _column(rows: Sequence[Sequence[str]], index: int) -> list[str]:
    """Of a column that holds words throughout, its cells; else none."""
    cells = [row[index] for row in rows if row[index]]
    return cells if all(cell[:1].isalpha() for cell in cells) else []
