"""RL selection: problems and the SFT model in, the problems that GRPO can learn from out.

    python recipes/selection.py experiment=falcon_h1r_7b model.path=runs/sft/model \
        grpo.data.path=problems.jsonl sft.data.path=traces.jsonl
    python recipes/selection.py data=gsm8k model.path=runs/sft/model grpo.data.path=train.jsonl \
        grpo.selection.num_rollouts=8 grpo.selection.max_response_tokens=768
    python recipes/selection.py ... run_dir=runs/select resume=true      goes on where a kill left it

Writes rl.jsonl (kept), dropped.jsonl (with the reason of each), pass_rates.jsonl (of every problem that was sampled)
and summary.json. docs/selection.md has the rules.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from falcon_h1r.config import Config
from falcon_h1r.config_checks import check_model_path, require
from falcon_h1r.data.sources import check_problems, load_problems, read_traces
from falcon_h1r.entry import run_name, run_recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from falcon_h1r.distributed.world import World
    from falcon_h1r.grpo.rewards import Scorer
    from falcon_h1r.grpo.selection.screening import Drop
    from falcon_h1r.types import Problem


def check(config: Config) -> None:
    """What the user may have got wrong, found before a model is loaded."""
    from falcon_h1r.grpo.rewards import check_judges

    selection = config.grpo.selection
    require("grpo.data.path", config.grpo.data.path)
    check_problems(config.grpo.data)
    check_judges(config)
    if selection.num_rollouts:
        require("model.path", config.model.path)
        check_model_path(config.model)
    if selection.disjoint_from_sft:
        require("sft.data.path", config.sft.data.path)
        list(islice(read_traces(config.sft.data), 1))  # all of it is read, and refused, while problems are screened


def select(config: Config, folder: Path, world: World) -> Path:
    """Run the stage, or what is left of it; returns its folder.

    Raises:
        StopRequested: on every rank; the blocks of rollouts that were whole are kept.
    """
    from falcon_h1r.checkpoint.stopping import gather_unless_stopped
    from falcon_h1r.grpo.rewards import open_scorer
    from falcon_h1r.grpo.selection.handover import SUMMARY_FILE
    from falcon_h1r.grpo.selection.outcome import one_line, write_selection
    from falcon_h1r.grpo.selection.screening import screen_problems

    if config.resume and world.on_main((folder / SUMMARY_FILE).is_file):
        return folder
    world.on_main(lambda: folder.mkdir(parents=True, exist_ok=True))
    problems, grpo = load_problems(config.grpo.data), config.grpo
    with open_scorer(config) as scorer:

        def screen() -> dict[int, Drop]:
            if not world.is_main:  # the SFT data is read once, not once a rank
                return {}
            return screen_problems(problems, grpo.selection, config.sft.data, scorer.check_problem, world.watch)

        drops = gather_unless_stopped(world, screen)[0]
        if grpo.selection.num_rollouts:
            measure(config, problems, drops, scorer, folder, world)
    summary = world.on_main(lambda: write_selection(folder, problems, drops, grpo, config.seed))
    if world.is_main:
        print(f"select: {one_line(summary)}", flush=True)
    return folder


def measure(
    config: Config, problems: Sequence[Problem], drops: dict[int, Drop], scorer: Scorer, folder: Path, world: World
) -> None:
    """Have the model at `model.path` try every problem that is left: rows of pass_rates.jsonl.

    Adds to `drops` the problems whose prompts are too long.
    """
    from falcon_h1r.checkpoint import open_policy
    from falcon_h1r.data.tokenisation import encode_prompts
    from falcon_h1r.grpo.selection.handover import RATES_FILE
    from falcon_h1r.grpo.selection.rates_file import PassRateFile
    from falcon_h1r.grpo.selection.sampling import measure_pass_rates
    from falcon_h1r.grpo.selection.screening import drop_long_prompts
    from falcon_h1r.training_run import open_tracker

    model, tokenizer = open_policy(config, list, folder, world, "select")
    with world.watch.long("tokenising"):
        prompts = encode_prompts(tokenizer, problems, config.system_prompt)
    drop_long_prompts(prompts, config.grpo.limits.prompt_tokens, drops)
    left = [index for index in range(len(problems)) if index not in drops]
    problems, prompts = [problems[index] for index in left], [prompts[index] for index in left]
    rates = PassRateFile(folder / RATES_FILE)
    with open_tracker(config, "select", folder, world.is_main, run_name(config)) as tracker:
        measure_pass_rates(config, model, tokenizer, scorer, problems, prompts, rates, tracker, world)


if __name__ == "__main__":
    run_recipe("select", select, check)
