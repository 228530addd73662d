"""Curation: traces in, what SFT and GRPO read out.

    python recipes/curate.py experiment=quickstart
    python recipes/curate.py curate.source.path=traces.jsonl curate.source.reasoning_field=solution
    python recipes/curate.py curate.source.path=code.jsonl curate.source.tests_field=input_output ...

Writes traces.jsonl (SFT), rl.jsonl, dev.jsonl, eval.jsonl (problems), dropped.jsonl (with the reason of each) and
summary.json. A file of traces gives traces.jsonl and dropped.jsonl; without one, problems are generated.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from falcon_h1r.config import Config
from falcon_h1r.data.sources import check_traces
from falcon_h1r.entry import run_recipe

if TYPE_CHECKING:
    from falcon_h1r.distributed.world import World
    from falcon_h1r.types import Problem
    from falcon_h1r.verifier.code import CodeVerifier


def check(config: Config) -> None:
    """What the user may have got wrong, found before any work."""
    from falcon_h1r.data.synthetic import check_synthetic

    if config.curate.source.path is not None:
        check_traces(config.curate.source)
    else:
        check_synthetic(config.curate)


def curate(config: Config, folder: Path, world: World) -> Path:
    """Run the stage on the main rank; the others wait. With `resume`, one that has ended is left as it is."""
    if not (config.resume and world.on_main((folder / "summary.json").is_file)):
        world.on_main(lambda: _curate(config, folder))
    return folder


def _curate(config: Config, folder: Path) -> None:
    from falcon_h1r.checkpoint.files import replace_text
    from falcon_h1r.data.curation import curate_traces
    from falcon_h1r.data.jsonl import write_jsonl
    from falcon_h1r.data.sources import load_traces
    from falcon_h1r.data.synthetic import synthetic_corpus
    from falcon_h1r.types import to_row
    from falcon_h1r.verifier import Verifier

    splits: dict[str, list[Problem]] = {}
    if config.curate.source.path is None:
        corpus = synthetic_corpus(config.curate.synthetic, config.seed)
        traces, splits = corpus.traces, corpus.splits
        print(f"curate: {len(traces):,} traces, {corpus.num_checked:,} answers recomputed by sympy", flush=True)
    else:
        traces = load_traces(config.curate.source)
    with ExitStack() as stack:
        verifier = stack.enter_context(Verifier.from_config(config.verifier))
        score_code = None
        if any(trace.problem.tests is not None for trace in traces):
            score_code = stack.enter_context(_code_verifier(config)).score
        curated = curate_traces(traces, config.curate, verifier.score, score_code, verifier.check_gold)
    summary = curated.summary()
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "traces.jsonl", map(to_row, curated.kept))
    write_jsonl(folder / "dropped.jsonl", curated.dropped_rows())
    for name, problems in splits.items():
        write_jsonl(folder / f"{name}.jsonl", map(to_row, problems))
    replace_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")  # last: the stage has ended
    print("curate: " + " -> ".join(f"{count:,} {step}" for step, count in summary["funnel"].items()), flush=True)


def _code_verifier(config: Config) -> CodeVerifier:
    from falcon_h1r.types import InputError
    from falcon_h1r.verifier.code import CodeVerifier
    from falcon_h1r.verifier.workers.sandbox import SandboxUnavailable

    code = config.verifier.code
    try:
        return CodeVerifier(
            num_workers=code.num_workers,
            cpu_seconds=code.cpu_seconds,
            deadline_seconds=code.deadline_seconds,
            memory_limit_bytes=int(code.memory_limit_gib * 2**30),
            max_tests=code.max_tests,
            seed=config.seed,
            sandbox_url=code.sandbox_url,
        )
    except SandboxUnavailable as error:
        raise InputError(f"verifier.code: {error}") from None


if __name__ == "__main__":
    run_recipe("curate", curate, check)
