"""What a run would do, without doing it: its arithmetic, the size of its model, the head of its data.

Needs neither a GPU nor the network nor the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from falcon_h1r.config import Config
from falcon_h1r.config_checks import not_built_yet
from falcon_h1r.config_evaluate import BenchmarkConfig, traces_of
from falcon_h1r.config_selection import asks_for_selection
from falcon_h1r.config_sources import SourceConfig
from falcon_h1r.config_stage import LimitsConfig
from falcon_h1r.distributed.batch_scaling import describe_scaling, scaled_to_batch
from falcon_h1r.dry_run.arithmetic import (
    RankPlan,
    check_context,
    count_adapter_parameters,
    count_parameters,
    decode_bytes,
    plan_grpo,
    plan_ranks,
    plan_sft,
    training_bytes,
)
from falcon_h1r.dry_run.selection import selection_rows
from falcon_h1r.model.multipliers import describe_multipliers

if TYPE_CHECKING:
    from transformers import FalconH1Config

HEAD_ROWS = 3  # of the data, shown
HEAD_CHARACTERS = 72
GIB = 1024**3

Row = tuple[str, str]
Section = tuple[str, list[Row]]


def describe(config: Config, stage: str) -> str:
    """The whole dry run of one stage, or of `pipeline`, as text.

    Raises:
        InputError: where the arithmetic is impossible, or a file that is named is not what it should be.
    """
    from falcon_h1r.model.load import planned_config

    shape, read_from = planned_config(config.model)
    ranks = plan_ranks(config, shape)
    sections = [("processes", list(_rank_rows(config, ranks)))]
    if stage != "evaluate" or _loads_the_model(config):
        sections.append(("model", list(_model_rows(config, ranks, shape, read_from))))
    if stage in ("curate", "pipeline"):
        sections.append(("curate", list(_curate_rows(config))))
    if stage in ("sft", "pipeline"):
        sections.append(("sft", list(_sft_rows(config, ranks, shape))))
    if stage == "select" or (stage == "pipeline" and asks_for_selection(config.grpo.selection)):
        sections.append(("select", list(_select_rows(config, ranks, shape))))
    if stage in ("grpo", "pipeline"):
        sections.append(("grpo", list(_grpo_rows(config, ranks, shape))))
    if stage in ("evaluate", "pipeline"):
        sections.append(("evaluate", list(_evaluate_rows(config, shape))))
    sections.append(("recorded, but not acted on by this version", [(key, "") for key in not_built_yet(config, stage)]))
    if config.dry_run_steps:
        from falcon_h1r.dry_run.steps import run_steps

        sections.append(("steps at a sliver of the width", run_steps(config, stage, shape)))
    return render(f"dry run of {stage}: {config.name}", sections)


def render(title: str, sections: Iterable[Section]) -> str:
    """Sections of names and values, values aligned."""
    filled = [(name, rows) for name, rows in sections if rows]
    width = max(len(name) for _, rows in filled for name, value in rows if value)
    lines = [title]
    for heading, rows in filled:
        lines += ["", heading, *(f"  {name:<{width}}  {value}".rstrip() for name, value in rows)]
    return "\n".join(lines)


# -----------------------------------------------------------------------------
# Processes and model


def _rank_rows(config: Config, ranks: RankPlan) -> Iterator[Row]:
    launch, engine = config.launch, config.engine
    origin = "as launched" if ranks.launched else f"{launch.num_nodes} nodes x {launch.num_processes} processes"
    yield "ranks", f"{ranks.num_ranks} ({origin})"
    yield "data ranks", f"{ranks.data_ranks} (sequence parallel {engine.sequence_parallel})"
    yield "engine", f"{engine.name}, ZeRO {engine.zero_stage}"
    offloaded = ", on the CPU" if engine.activation_offload else ""
    yield "activations", f"checkpointing {engine.activation_checkpointing}{offloaded}"


def _model_rows(config: Config, ranks: RankPlan, shape: FalconH1Config, read_from: str) -> Iterator[Row]:
    settings = config.model
    if settings.path is None:
        yield "checkpoint", "none: random weights"
    else:
        yield "checkpoint", f"{settings.path}, revision {settings.revision or 'not pinned'}"
    size = f"{shape.num_hidden_layers} layers of {shape.hidden_size}, vocabulary {shape.vocab_size:,}"
    yield "shape", f"{size} ({read_from})"
    parameters = count_parameters(shape)
    embeddings = "tied" if shape.tie_word_embeddings else "untied"
    billions = f"{parameters / 1e9:.2f}B ({parameters:,})" if parameters > 1e8 else f"{parameters:,}"
    yield "parameters", f"{billions}, embeddings {embeddings}"
    yield "multipliers", describe_multipliers(shape)
    yield "context", f"{shape.max_position_embeddings:,} tokens"
    yield "dtype", settings.dtype
    adapters = count_adapter_parameters(shape, settings.lora)
    if adapters:
        lora = settings.lora
        targets = f"rank {lora.rank}, alpha {lora.alpha:g}, on {', '.join(lora.target_modules)}"
        yield "adapters", f"{adapters:,} parameters ({adapters / parameters:.2%}): {targets}"
    memory = training_bytes(config, parameters, ranks.num_ranks, adapters) / GIB
    yield "training state", f"{memory:.1f} GiB a rank: weights, gradients, AdamW; activations come on top"
    state, cache = decode_bytes(shape, settings.dtype)
    yield "decoding state", f"{state / 2**20:.1f} MiB a sequence and {cache / 2**10:.1f} KiB a token"


# -----------------------------------------------------------------------------
# Stages


def _curate_rows(config: Config) -> Iterator[Row]:
    curate, weights = config.curate, config.curate.weights
    if not curate.sources:
        yield "source", f"{curate.synthetic.num_problems:,} synthetic problems"
        yield from _synthetic_head(config)
    for name, source in curate.sources.items():
        yield "source", name
        yield from _data_rows(source, traces=True)
    yield "teacher", curate.keep_teacher or "all"
    levels = f"easy {weights.easy}, medium {weights.medium}, hard {weights.hard_low} to {weights.hard_high}"
    yield "loss weights", f"{levels}; by {weights.measured_by}"
    for domain, share in curate.mix.domain_token_shares.items():
        samples = curate.mix.domain_samples.get(domain)
        yield domain, f"{share:.1%} of the tokens" + (f", {samples:,} samples" if samples else "")


def _sft_rows(config: Config, ranks: RankPlan, shape: FalconH1Config) -> Iterator[Row]:
    sft = config.sft
    check_context("sft", sft.limits, shape)
    head = list(_data_rows(sft.data, traces=True))
    counted = _count(sft.data, traces=True)
    plan = plan_sft(
        sft,
        ranks,
        sft.data.expected_samples if counted is None else counted,
        sft.data.expected_tokens if counted is None else None,
    )
    yield from head
    yield "limits", _limits(sft.limits) + f", longer ones: {sft.overlong}"
    if plan.num_samples is not None:
        yield "samples", f"{plan.num_samples:,}" + (" expected" if counted is None else "")
    if plan.steps_per_epoch is not None:
        yield "steps per epoch", f"{plan.steps_per_epoch:,.1f}"
    yield "steps", "unknown: the data's size is not" if plan.num_steps is None else f"{plan.num_steps:,}"
    average = f"{plan.tokens_per_step / 1e6:.2f}M on average, " if plan.tokens_per_step else ""
    batch = f"{sft.batch_sequences} sequences" if sft.batch_rows is None else f"{sft.batch_rows} rows"
    yield "batch", f"{batch}: {average}at most {plan.most_tokens_per_step:,} tokens"
    average = f"about {plan.micro_batches}, " if plan.micro_batches else ""
    rows = f"rows of {sft.limits.row_tokens:,} tokens a rank and step"
    yield "micro-batches", f"{average}at most {plan.most_micro_batches} {rows}"
    yield from _optimizer_rows(config, "sft", plan.num_steps, shape, plan.tokens_per_step)


def _select_rows(config: Config, ranks: RankPlan, shape: FalconH1Config) -> Iterator[Row]:
    yield from _data_rows(config.grpo.data, traces=False)
    yield from selection_rows(config, ranks, shape, _count(config.grpo.data, traces=False))


def _grpo_rows(config: Config, ranks: RankPlan, shape: FalconH1Config) -> Iterator[Row]:
    grpo = config.grpo
    check_context("grpo", grpo.limits, shape)
    plan = plan_grpo(grpo, ranks)
    yield from _data_rows(grpo.data, traces=False)
    yield "limits", _limits(grpo.limits)
    batches = grpo.num_steps // grpo.updates_per_batch
    each = "" if grpo.updates_per_batch == 1 else f" in {batches:,} batches"
    yield "steps", f"{grpo.num_steps:,}{each}, seeing {batches * grpo.problems_per_step:,} problems with contrast"
    yield "rollouts", f"{grpo.problems_per_step} problems x {grpo.group_size} = {plan.rollouts:,} a step"
    yield "begun", f"{plan.groups_at_once} groups at once, {plan.most_rollouts:,} rollouts at most"
    yield "tokens", f"at most {plan.most_response_tokens:,} a step, {plan.most_tokens:,} with prompts"
    rows = f"rows of {grpo.limits.row_tokens:,} tokens a rank and step"
    yield "micro-batches", f"at most {plan.most_micro_batches} {rows}"
    state, cache = decode_bytes(shape, "bfloat16")
    slots = grpo.rollout.max_slots * (state + cache * plan.longest_tokens) / GIB
    size = f"{grpo.rollout.max_slots} slots take {slots:.1f} GiB in bfloat16 when full"
    yield "sampler", f"{grpo.rollout.name}; {size}"
    yield from _optimizer_rows(config, "grpo", grpo.num_steps, shape)


def _evaluate_rows(config: Config, shape: FalconH1Config) -> Iterator[Row]:
    evaluate, limits = config.evaluate, config.evaluate.limits
    chosen = {name: each for name, each in evaluate.benchmarks.items() if not evaluate.only or name in evaluate.only}
    if lengths := [each.max_response_tokens for each in chosen.values() if each.bridge is None]:
        limits = replace(limits, response_tokens=max(lengths))
    if _loads_the_model(config):
        check_context("evaluate", limits, shape)
    elif evaluate.watch.run is not None:
        yield "models", f"each new checkpoint of {evaluate.watch.run}"
    else:
        yield "model", f"served at {', '.join(evaluate.endpoint.urls) or 'no address given'} ({evaluate.endpoint.api})"
    settings = f"temperature {evaluate.temperature}, top-p {evaluate.top_p}"
    if not evaluate.benchmarks:
        yield from _data_rows(evaluate.data, traces=False)
        settings += f", {evaluate.num_samples} samples a problem"
    yield "limits", _limits(limits) if not chosen else f"prompt {limits.prompt_tokens:,} tokens"
    yield "sampling", settings
    if (scaling := config.scaling).num_traces:
        kept = f"the threshold keeps {scaling.keep_share:.0%} of {scaling.warmup_traces} warm-up traces"
        yield "online DeepConf", f"up to {scaling.num_traces} traces a problem, {kept}"
    for name, benchmark in chosen.items():
        yield name, _benchmark(benchmark, scaling.num_traces)


def _loads_the_model(config: Config) -> bool:
    """Whether an evaluation is of the model at `model.path`."""
    return config.evaluate.engine == "torch" and config.evaluate.watch.run is None


def _benchmark(benchmark: BenchmarkConfig, num_traces: int) -> str:
    """How it is run, and what was published."""
    if benchmark.bridge is not None:
        row = "bridged: not run here"
    else:
        samples = "1 sample" if benchmark.num_samples == 1 else f"{benchmark.num_samples} samples"
        row = f"{samples} of at most {benchmark.max_response_tokens:,} tokens"
        if traces := traces_of(benchmark, num_traces):
            row += f", {traces} traces of DeepConf"
    if benchmark.reference_score is not None:
        row += f"; published {benchmark.reference_score}"
    if benchmark.reference_scaled_score is not None:
        row += f", with 512 traces {benchmark.reference_scaled_score}"
    return row


def _limits(limits: LimitsConfig) -> str:
    prompt, response = f"prompt {limits.prompt_tokens:,}", f"response {limits.response_tokens:,}"
    return f"{prompt}, {response}, row {limits.row_tokens:,} tokens"


def _optimizer_rows(
    config: Config, stage: str, num_steps: int | None, shape: FalconH1Config, batch_tokens: float | None = None
) -> Iterator[Row]:
    from falcon_h1r.model.training_plan import describe_groups, plan_training

    optimizer = config.sft.optimizer if stage == "sft" else config.grpo.optimizer
    warmup = optimizer.warmup_steps or (math.ceil(optimizer.warmup_share * num_steps) if num_steps else 0)
    steps = f"{warmup:,} steps" if warmup or num_steps else f"{optimizer.warmup_share:.0%}"
    rate = describe_scaling(optimizer, batch_tokens)
    if optimizer.batch_tokens or batch_tokens:
        optimizer = scaled_to_batch(optimizer, batch_tokens)
    yield "optimizer", f"{rate}, {optimizer.schedule} after a warm-up of {steps}"
    for line in describe_groups(plan_training(shape, config.model.lora, optimizer, f"{stage}.optimizer")):
        yield "trained", line


# -----------------------------------------------------------------------------
# Data


def _data_rows(source: SourceConfig, traces: bool) -> Iterator[Row]:
    """The first rows of a file, as they are read."""
    from falcon_h1r.data.sources import read_problems, read_traces

    yield "data", source.path or "no path given"
    if source.path is None:
        return
    if traces:
        for trace in islice(read_traces(source), HEAD_ROWS):
            yield "", f"{_cut(trace.problem.question)} -> {_cut(trace.reasoning)} {_cut(trace.response)}"
    else:
        for problem in islice(read_problems(source), HEAD_ROWS):
            yield "", f"{_cut(problem.question)} -> {_cut(problem.answer)}"


def _synthetic_head(config: Config) -> Iterator[Row]:
    from falcon_h1r.data.problems import generate_problems

    synthetic = config.curate.synthetic
    for problem in islice(generate_problems(config.seed, HEAD_ROWS, synthetic.families), HEAD_ROWS):
        yield "", f"{_cut(problem.question)} -> {_cut(problem.answer)}"


def _count(source: SourceConfig, traces: bool) -> int | None:
    from falcon_h1r.data.sources import read_problems, read_traces

    if source.path is None:
        return None
    return sum(1 for _ in (read_traces(source) if traces else read_problems(source)))


def _cut(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= HEAD_CHARACTERS else flat[: HEAD_CHARACTERS - 3] + "..."
