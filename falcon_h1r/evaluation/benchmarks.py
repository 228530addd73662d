"""The benchmarks of a run: from `evaluate.benchmarks`, or from `evaluate.data`, to tasks.

What needs a model that judges, or an agent's harness, is bridged: it is listed with the command that runs it against
the endpoint which serves the model, and never counted as run here. docs/benchmarks_protocol.md has the protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from falcon_h1r.config import Config
from falcon_h1r.config_evaluate import BenchmarkConfig, EvaluateConfig, traces_of
from falcon_h1r.config_rules import at_least, one_of
from falcon_h1r.config_sources import SourceConfig
from falcon_h1r.data.sources import load_problems, shorten
from falcon_h1r.evaluation.instructions import describe_undecidable
from falcon_h1r.evaluation.scorers import SCORERS, open_scorer
from falcon_h1r.evaluation.tasks import Task
from falcon_h1r.rollout.sampler import SamplingSettings
from falcon_h1r.types import InputError, Problem
from falcon_h1r.verifier import check_gold

ENDINGS = (".jsonl", ".jsonl.gz", ".parquet", ".json")
DEFAULT_URL, DEFAULT_MODEL = "http://localhost:8000/v1", "MODEL"  # of a bridge, where evaluate.endpoint says none


def tasks_of(config: Config) -> list[Task]:
    """What there is to run, problems loaded; bridged benchmarks left out (see `bridge_lines`).

    Raises:
        InputError: naming the key of what is missing or wrong, or where all that is asked for is bridged.
    """
    evaluate = config.evaluate
    if not evaluate.benchmarks and not evaluate.only:
        return [_own_task(config)]
    chosen = _chosen(evaluate)
    runnable = {name: benchmark for name, benchmark in chosen.items() if benchmark.bridge is None}
    if not runnable:
        raise InputError(f"evaluate.only: nothing of it is run here; {'; '.join(bridge_lines(config))}")
    for name, benchmark in runnable.items():
        _check(f"evaluate.benchmarks.{name}", benchmark)
    return [_task(config, name, benchmark) for name, benchmark in runnable.items()]


def check_tasks(config: Config) -> None:
    """What may be wrong with a run's benchmarks, found before a model is loaded; sandboxes included.

    Raises:
        InputError: as `tasks_of` and `open_scorer` do.
    """
    for scorer in {task.scorer for task in tasks_of(config)}:
        open_scorer(scorer, config.verifier).close()


def bridge_lines(config: Config) -> list[str]:
    """One line for each benchmark that is asked for and not run here: its name, and the command that runs it."""
    return [f"{name} is bridged: {command}" for name, command in bridges(config.evaluate).items()]


def bridges(evaluate: EvaluateConfig) -> dict[str, str]:
    """The commands of the benchmarks that are asked for and not run here."""
    endpoint = evaluate.endpoint
    url = endpoint.urls[0] if endpoint.urls else DEFAULT_URL
    return {
        name: benchmark.bridge.replace("{url}", url).replace("{model}", endpoint.model or DEFAULT_MODEL)
        for name, benchmark in _chosen(evaluate).items()
        if benchmark.bridge is not None
    }


def _chosen(evaluate: EvaluateConfig) -> dict[str, BenchmarkConfig]:
    """The benchmarks that `evaluate.only` names, in the config's order; all, where it names none."""
    for name in evaluate.only:
        if name not in evaluate.benchmarks:
            there_are = ", ".join(evaluate.benchmarks) or "none"
            raise InputError(f"evaluate.only={name}: no such benchmark (there are: {there_are})")
    return {
        name: benchmark for name, benchmark in evaluate.benchmarks.items() if not evaluate.only or name in evaluate.only
    }


def _check(key: str, benchmark: BenchmarkConfig) -> None:
    one_of(f"{key}.scorer", benchmark.scorer, SCORERS)
    at_least(f"{key}.num_samples", benchmark.num_samples, 0 if benchmark.greedy or benchmark.num_traces else 1)
    at_least(f"{key}.max_response_tokens", benchmark.max_response_tokens, 1)
    if benchmark.num_problems is not None:
        at_least(f"{key}.num_problems", benchmark.num_problems, 1)
    if benchmark.num_traces is not None:
        at_least(f"{key}.num_traces", benchmark.num_traces, 0)
    if "{question}" not in benchmark.prompt:
        raise InputError(f"{key}.prompt: has to say where the problem goes, {{question}}")
    if benchmark.data.path is None:
        raise InputError(f"{key}.data.path is not set: a file of its problems, or a dataset's name with format=hub")
    if benchmark.leave_out_families and benchmark.data.family_field is None:
        raise InputError(f"{key}.leave_out_families: says nothing without data.family_field")


# -----------------------------------------------------------------------------
# Tasks


def _own_task(config: Config) -> Task:
    """Of `evaluate.data`: maths, asked as it stands."""
    evaluate = config.evaluate
    if evaluate.data.path is None:
        raise InputError("evaluate.data.path is not set: this recipe needs it, or benchmarks (+evaluation=h1r)")
    problems, notes = _distinct(load_problems(evaluate.data)[: evaluate.num_problems], "evaluate.data")
    return Task(
        name=Path(evaluate.data.path).name.partition(".")[0],
        problems=problems,
        settings=_settings(config, evaluate.num_samples, evaluate.limits.response_tokens),
        scorer="math",
        system_prompt=config.system_prompt,
        greedy=evaluate.greedy,
        num_traces=config.scaling.num_traces,
        notes=notes,
    )


def _task(config: Config, name: str, benchmark: BenchmarkConfig) -> Task:
    key = f"evaluate.benchmarks.{name}"
    try:
        problems = load_problems(as_local(benchmark.data))
    except InputError as error:
        raise InputError(f"{key}.data.path: {error}") from None
    kept = [problem for problem in problems if problem.family not in benchmark.leave_out_families]
    notes: list[str] = []
    if len(kept) < len(problems):
        left_out = ", ".join(benchmark.leave_out_families)
        notes.append(f"{len(problems) - len(kept)} of {len(problems)} problems left out, by family ({left_out})")
    kept, repeats = _distinct(kept, key)
    num_all, kept = len(kept), kept[: benchmark.num_problems]
    if len(kept) < num_all:
        notes.append(f"the first {len(kept)} of {num_all} problems alone: no score of the benchmark")
    if not kept:
        raise InputError(f"{key}.data.path={benchmark.data.path}: no problems in it")
    notes += [*repeats, *_notes_of_scorer(key, benchmark.scorer, kept)]
    return Task(
        name=name,
        problems=kept,
        settings=_settings(config, benchmark.num_samples, benchmark.max_response_tokens),
        scorer=benchmark.scorer,
        prompt=benchmark.prompt,
        system_prompt=config.system_prompt,
        greedy=benchmark.greedy,
        num_traces=traces_of(benchmark, config.scaling.num_traces),
        notes=tuple(notes),
        reference_score=benchmark.reference_score,
        reference_scaled_score=benchmark.reference_scaled_score,
        reference_scaled_tokens=benchmark.reference_scaled_tokens,
    )


def as_local(source: SourceConfig) -> SourceConfig:
    """A source whose path was replaced by a file's, as the files that it then is: the rest of its settings stay."""
    assert source.path is not None
    is_local = source.path.startswith((".", "/", "~")) or source.path.endswith(ENDINGS) or Path(source.path).exists()
    if source.format != "hub" or not is_local:
        return source
    path = str(Path(source.path).expanduser())
    return replace(source, path=path, format=None, subset=None, revision=None)


def _settings(config: Config, num_samples: int, max_response_tokens: int) -> SamplingSettings:
    return SamplingSettings(
        num_samples=num_samples,
        max_response_tokens=max_response_tokens,
        temperature=config.evaluate.temperature,
        top_p=config.evaluate.top_p,
        seed=config.seed,
    )


def _distinct(problems: Sequence[Problem], key: str) -> tuple[list[Problem], tuple[str, ...]]:
    """Each problem once: one that stands there twice would count twice.

    Raises:
        InputError: where two of one question, or of one uid, differ in what is right.
    """
    kept: dict[str, Problem] = {}
    for number, problem in enumerate(problems, start=1):
        first = kept.setdefault(problem.uid, problem)
        if (first.question, first.answer, first.tests) != (problem.question, problem.answer, problem.tests):
            shown = shorten(problem.question)
            raise InputError(f"{key}: problem {number} has the uid {problem.uid} of another that differs ({shown!r})")
    num_repeats = len(problems) - len(kept)
    return list(kept.values()), (f"{num_repeats} of {len(problems)} problems left out, repeats of others",) * bool(
        num_repeats
    )


def _notes_of_scorer(key: str, scorer: str, problems: Sequence[Problem]) -> list[str]:
    """What the scorer cannot judge, in a line.

    Raises:
        InputError: where a problem has nothing that the scorer could judge by.
    """
    if scorer in ("code", "instructions"):
        for problem in problems:
            if problem.tests is None:
                raise InputError(
                    f"{key}.scorer={scorer}: problem {problem.uid} has no tests; data.tests_field says where"
                )
        undecidable = describe_undecidable(problems) if scorer == "instructions" else None
        return [] if undecidable is None else [undecidable]
    if not all(problem.verifiable for problem in problems):
        raise InputError(f"{key}.data: no answers to judge by; answer_field says where they are")
    if scorer == "math" and (unread := sum(not check_gold(problem.answer) for problem in problems)):
        return [f"{unread} of {len(problems)} golds cannot be judged against: these problems count as not right"]
    return []
