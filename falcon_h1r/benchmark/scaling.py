"""suite=scaling: what DeepConf saves on GRPO's models of finished pipeline runs, and what it costs in accuracy.

For every run and seed the samples are drawn once, to their ends, with confidence; every budget, keep share, measure and
warm-up is then replayed on them. One setting is also run as it would be used: all traces to their ends, and online, in
turns, by the clock.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from falcon_h1r.benchmark.figures import command_line
from falcon_h1r.benchmark.hardware import environment
from falcon_h1r.benchmark.scaling_page import render
from falcon_h1r.config import Config
from falcon_h1r.config_evaluate import ScalingConfig
from falcon_h1r.distributed.world import World
from falcon_h1r.evaluation.benchmarks import tasks_of
from falcon_h1r.evaluation.engines import open_engine, what_draws_and_judges
from falcon_h1r.evaluation.evaluate import evaluate_tasks, finish_task, light_rows
from falcon_h1r.evaluation.merge import SAMPLES_FILE
from falcon_h1r.evaluation.rows import confidence_of
from falcon_h1r.evaluation.scaling_curves import scaling_summary
from falcon_h1r.evaluation.tasks import Task
from falcon_h1r.scaling.engine import DrawnTrace, TraceEngine, TraceRequest
from falcon_h1r.scaling.online import OnlineSettings, OnlineVote
from falcon_h1r.scaling.traces import ScoredTrace
from falcon_h1r.tracking import Tracker
from falcon_h1r.types import InputError, Problem
from falcon_h1r.verifier import canonical_answer

MODEL, PROBLEMS = Path("grpo/model"), Path("curate/eval.jsonl")  # in a pipeline's run folder


@dataclass(slots=True)
class Timed:
    """One way of drawing, round by round."""

    seconds: list[float] = field(default_factory=list)
    tokens: int = 0

    @property
    def median_seconds(self) -> float:
        return median(self.seconds)


def check_scaling_suite(config: Config) -> None:
    """
    Raises:
        InputError: where a run has no model or no held-out problems.
    """
    if not config.benchmark.runs:
        raise InputError("benchmark.runs is empty: name the pipeline's run folders")
    for run in config.benchmark.runs:
        for part in (MODEL / "config.json", PROBLEMS):
            if not (Path(run) / part).is_file():
                raise InputError(f"benchmark.runs: {run} holds no {part}, so it is no finished pipeline run")


def run_scaling_suite(config: Config, folder: Path, world: World) -> None:
    """Measure, and write the page with its figures."""
    settings = config.benchmark
    figures: dict[str, Any] = {"sets": [], "command": command_line(), "environment": environment(world.device)}
    with Tracker(folder, "benchmark", config.tracking, world.is_main, asdict(config)) as tracker:
        for number, run in enumerate(settings.runs):
            for seed in settings.seeds:
                of_seed = config_of(config, run, seed)
                into = folder / f"run_{number}" / f"seed_{seed}"
                samples = drawn_samples(of_seed, into, world, tracker)
                for warmup in settings.scaling_warmups:
                    scaling = replace(config.scaling, warmup_traces=warmup, wave_traces=warmup)
                    found = scaling_summary(samples, [], scaling, 0, seed)
                    figures["sets"].append({"run": number, "seed": seed, "warmup": warmup, **found})
        figures["timed"] = timed(config_of(config, settings.runs[0], settings.seeds[0]), folder, world, tracker)
    page = Path(settings.page)
    page.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    page.write_text(render(config, figures))


def config_of(config: Config, run: str, seed: int) -> Config:
    """The evaluation of one run's model on its held-out problems."""
    data = replace(config.evaluate.data, path=str(Path(run) / PROBLEMS), curated=True)
    return replace(
        config,
        seed=seed,
        model=replace(config.model, path=str(Path(run) / MODEL), local_files_only=True),
        evaluate=replace(config.evaluate, data=data),
    )


def drawn_samples(config: Config, folder: Path, world: World, tracker: Tracker) -> list[dict[str, Any]]:
    """The rows of one evaluation; what an interrupted one has drawn is not drawn again."""
    (task,) = tasks_of(config)
    folder.mkdir(parents=True, exist_ok=True)
    with closing(open_engine(config, [task], folder, world)) as engine:

        def ended(of_task: Path, task: Task) -> None:
            finish_task(config, of_task, task, engine.description)

        evaluate_tasks(config, {folder: task}, engine, what_draws_and_judges(config, engine), world, tracker, ended)
    return list(light_rows(folder / SAMPLES_FILE))


# -----------------------------------------------------------------------------
# By the clock


def timed(config: Config, folder: Path, world: World, tracker: Tracker) -> dict[str, Any]:
    """All traces to their ends, and online DeepConf as `scaling` says, in turns."""
    (task,) = tasks_of(config)
    whole, online = Timed(), Timed()
    with (
        closing(open_engine(config, [task], folder, world)) as engine,
        tracker.progress(config.benchmark.repeats, "benchmark", "rounds") as progress,
    ):
        for _ in range(config.benchmark.repeats):
            for way, scaling in ((whole, None), (online, config.scaling)):
                started = time.perf_counter()
                way.tokens = draw(engine, task, scaling)
                way.seconds.append(time.perf_counter() - started)
            progress.advance(1)
    return {
        "tokens": {"whole": whole.tokens, "online": online.tokens},
        "seconds": {"whole": whole.seconds, "online": online.seconds},
        "tokens_saved": 1 - online.tokens / whole.tokens,
        "seconds_saved": 1 - online.median_seconds / whole.median_seconds,
    }


def draw(engine: TraceEngine, task: Task, scaling: ScalingConfig | None) -> int:
    """Tokens drawn for the vote on every problem. None: every trace to its end, in one wave."""
    budget = task.settings.num_samples
    settings = OnlineSettings.of(scaling or ScalingConfig(warmup_traces=budget), budget)
    votes = {problem.uid: OnlineVote(settings) for problem in task.problems}
    problems = {problem.uid: problem for problem in task.problems}
    for problem in task.problems:
        engine.submit(_wave(task, problem, votes[problem.uid]))
    num_tokens = 0
    while traces := engine.advance():
        for trace in traces:
            vote = votes[trace.problem_uid]
            waited_for = set(vote.next_wave())
            vote.ended(_scored(engine, trace))
            num_tokens += trace.num_tokens
            if waited_for == {trace.sample_index}:  # the last of its wave
                engine.submit(_wave(task, problems[trace.problem_uid], vote))
    for vote in votes.values():
        vote.result()
    return num_tokens


def _wave(task: Task, problem: Problem, vote: OnlineVote) -> Sequence[TraceRequest]:
    return [
        TraceRequest(problem, index, task.settings, task.system_prompt, task.prompt, vote.stop)
        for index in vote.next_wave()
    ]


def _scored(engine: TraceEngine, trace: DrawnTrace) -> ScoredTrace:
    was_stopped = trace.stop_reason == "confidence"
    answer = None if was_stopped else canonical_answer(trace.text, True, ())
    confidence = confidence_of(trace, engine.confidence)
    return ScoredTrace(trace.sample_index, answer, trace.num_tokens, was_stopped, confidence)
