"""Benchmarks: figures for docs/benchmarks, each page reproduced by one command.

    python recipes/benchmark.py benchmark.runs=[runs/quickstart,runs/quickstart-2,runs/quickstart-3]
    python recipes/benchmark.py suite=model
    python recipes/benchmark.py suite=model benchmark.parts=[scan] benchmark.resume=true
    python recipes/benchmark.py suite=model_gpu
    python recipes/benchmark.py suite=verifier benchmark.peer_python=PYTHON
    python recipes/benchmark.py suite=distributed
    python recipes/benchmark.py suite=plan
    python recipes/benchmark.py suite=checkpoint
    python recipes/benchmark.py suite=curation
    python recipes/benchmark.py suite=packing
    python recipes/benchmark.py suite=rollouts
    python recipes/benchmark.py suite=throughput
    python recipes/benchmark.py suite=intervals
    python recipes/benchmark.py suite=scaling benchmark.runs=[runs/quickstart]

The first pools finished quickstart runs of several seeds. The second measures scan, model, long rows and loss against
transformers, case by case: parts can be measured apart, and with `resume` what the page has stays. The next judges
labelled pairs by our verifier and by Math-Verify, which PYTHON has. The next compares one step's gradient in every
layout of ranks and ZeRO stages, or holds the plan's memory to measured peaks. Then come what saving costs, what
curation takes and survives, how full rows and how even ranks are over an epoch of the recipe's size, and how fast
rollouts are drawn beside transformers' generate (suite=rollouts_gpu: the 7B on a GPU). suite=throughput draws
given lengths at given batch sizes, on any model and engine. suite=intervals
simulates benchmarks whose truth is known. The last is DeepConf's table: accuracy, tokens and time.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from falcon_h1r.config import Config
from falcon_h1r.config_checks import require
from falcon_h1r.entry import run_recipe
from falcon_h1r.types import InputError

if TYPE_CHECKING:
    from falcon_h1r.distributed.world import World


def check(config: Config) -> None:
    """What the user may have got wrong. Each kind imports what is its own: torch is not needed for every mistake."""
    if config.launch.num_processes > 1:
        raise InputError(f"launch.num_processes={config.launch.num_processes}: benchmarks run in one process")
    if config.benchmark.kind == "quickstart":
        if not config.benchmark.runs:
            raise InputError("benchmark.runs is empty: name the run folders to pool")
        from falcon_h1r.evaluation.pooled import read_summaries

        read_summaries(config.benchmark.runs)
    elif config.benchmark.kind == "verifier":
        from falcon_h1r.benchmark.verifier.suite import check_verifier_suite

        check_verifier_suite(config.benchmark)
    elif config.benchmark.kind == "grpo_step":
        require("model.path", config.model.path)
        require("grpo.data.path", config.grpo.data.path)
    elif config.benchmark.kind == "scaling":
        from falcon_h1r.benchmark.scaling import check_scaling_suite

        check_scaling_suite(config)
    elif config.benchmark.kind == "throughput":
        from falcon_h1r.benchmark.throughput import check_throughput_suite

        check_throughput_suite(config)
    elif config.benchmark.kind == "plan":
        from falcon_h1r.planning.suite import measured_runs

        measured_runs(config.benchmark, config.model.architecture)


def benchmark(config: Config, folder: Path, world: World) -> None:
    """Measure or collect, and write the page."""
    from falcon_h1r.benchmark.ablations import run_ablations_suite
    from falcon_h1r.benchmark.checkpoint import run_checkpoint_suite
    from falcon_h1r.benchmark.curation import run_curation_suite
    from falcon_h1r.benchmark.grpo_step import run_grpo_step_suite
    from falcon_h1r.benchmark.intervals import run_intervals_suite
    from falcon_h1r.benchmark.layouts_page import run_layouts_suite
    from falcon_h1r.benchmark.long_tail import run_long_tail_suite
    from falcon_h1r.benchmark.packing import run_packing_suite
    from falcon_h1r.benchmark.rollouts import run_rollouts_suite
    from falcon_h1r.benchmark.scaling import run_scaling_suite
    from falcon_h1r.benchmark.suite import run_suite
    from falcon_h1r.benchmark.throughput import run_throughput_suite
    from falcon_h1r.benchmark.verifier.suite import run_verifier_suite
    from falcon_h1r.evaluation.pooled import pooled_page
    from falcon_h1r.planning.suite import run_plan_suite

    page = Path(config.benchmark.page)
    page.parent.mkdir(parents=True, exist_ok=True)
    if config.benchmark.kind == "model":
        run_suite(config, folder, world.device)
    elif config.benchmark.kind == "verifier":
        run_verifier_suite(config, folder)
    elif config.benchmark.kind == "checkpoint":
        run_checkpoint_suite(config, folder, world)
    elif config.benchmark.kind == "curation":
        run_curation_suite(config, folder)
    elif config.benchmark.kind == "ablations":
        run_ablations_suite(config, folder)
    elif config.benchmark.kind == "long_tail":
        run_long_tail_suite(config, folder, world)
    elif config.benchmark.kind == "grpo_step":
        run_grpo_step_suite(config, folder, world)
    elif config.benchmark.kind == "distributed":
        run_layouts_suite(config, folder)
    elif config.benchmark.kind == "packing":
        run_packing_suite(config, folder)
    elif config.benchmark.kind == "rollouts":
        run_rollouts_suite(config, folder, world)
    elif config.benchmark.kind == "scaling":
        run_scaling_suite(config, folder, world)
    elif config.benchmark.kind == "intervals":
        run_intervals_suite(config, folder, world)
    elif config.benchmark.kind == "throughput":
        run_throughput_suite(config, folder, world)
    elif config.benchmark.kind == "plan":
        run_plan_suite(config, folder, world.device)
    else:
        page.write_text(pooled_page(config.benchmark.runs))
    print(page.read_text())


if __name__ == "__main__":
    run_recipe("benchmark", benchmark, check)
