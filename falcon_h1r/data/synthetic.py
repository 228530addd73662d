"""The synthetic corpus: generated problems, split by hash, and every teacher's traces of those for SFT."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from falcon_h1r.config_data import CurateConfig, SyntheticConfig
from falcon_h1r.data.jsonl import write_jsonl
from falcon_h1r.data.problems import check_with_sympy, family_named, generate_problems, split_of
from falcon_h1r.data.teachers import Teacher, teacher_named, write_traces
from falcon_h1r.types import InputError, Problem, Trace, to_row

NEEDED_SPLITS = ("sft", "rl", "dev", "eval")  # what the stages read


def check_synthetic(config: CurateConfig) -> None:
    """Refuse unknown families and teachers, and splits that leave a stage without problems, before any work.

    Raises:
        InputError: naming the key.
    """
    synthetic = config.synthetic
    for family in synthetic.families or ():
        family_named(family)
    for name in synthetic.teachers:
        _teacher(name, synthetic)
    if config.keep_teacher is not None and config.keep_teacher not in synthetic.teachers:
        raise InputError(
            f"curate.keep_teacher={config.keep_teacher}: not one of curate.synthetic.teachers, "
            f"{', '.join(synthetic.teachers)}"
        )
    for name in NEEDED_SPLITS:
        if synthetic.split_fractions.get(name, 0.0) <= 0.0:
            raise InputError(f"curate.synthetic.split_fractions.{name}: has to be above 0")


@dataclass(frozen=True, slots=True)
class SyntheticCorpus:
    """Traces for SFT; problems for everything else. No problem is in two splits."""

    traces: list[Trace]
    splits: dict[str, list[Problem]]  # "rl", "dev", "eval"
    num_checked: int  # answers that sympy recomputed, all equal


def write_corpus(config: SyntheticConfig, seed: int, folder: Path, work: Path) -> Path:
    """Generate the corpus into files: problems by split into `folder`, traces into `work`, whose path is returned.

    The traces are written last: where they are, so is all else, and nothing is done.
    """
    path = work / "synthetic.jsonl"
    if not path.is_file():
        corpus = synthetic_corpus(config, seed)
        print(f"curate: {len(corpus.traces):,} traces, {corpus.num_checked:,} answers recomputed by sympy", flush=True)
        for name, problems in corpus.splits.items():
            write_jsonl(folder / f"{name}.jsonl", map(to_row, problems))
        work.mkdir(parents=True, exist_ok=True)
        write_jsonl(path, map(to_row, corpus.traces))
    return path


def synthetic_corpus(config: SyntheticConfig, seed: int) -> SyntheticCorpus:
    """Generate the corpus; the same config and seed give the same one.

    Raises:
        RuntimeError: if sympy disagrees with a sampled answer.
    """
    splits: dict[str, list[Problem]] = {name: [] for name in config.split_fractions}
    for problem in generate_problems(seed, config.num_problems, config.families, config.difficulty_shares):
        splits[split_of(problem, config.split_fractions)].append(problem)
    num_checked = check_sample(splits, config.sympy_check_share, seed)
    teachers = [_teacher(name, config) for name in config.teachers]
    learnt = splits.pop("sft", [])
    traces = [trace for teacher in teachers for trace in write_traces(learnt, teacher, seed)]
    return SyntheticCorpus(traces, splits, num_checked)


def check_sample(splits: dict[str, list[Problem]], share: float, seed: int) -> int:
    """Recompute the answers of a share of the problems with sympy; returns how many."""
    rng = random.Random(f"{seed}/sympy")
    sample = [problem for problems in splits.values() for problem in problems if rng.random() < share]
    for problem in sample:
        if not check_with_sympy(problem):
            raise RuntimeError(f"sympy disagrees with the answer of {problem}")
    return len(sample)


def _teacher(name: str, config: SyntheticConfig) -> Teacher:
    settings: dict[str, dict[str, Any]] = {
        "terse": {"leap_rates": config.leap_rates},
        "careless": {"slip_rate": config.slip_rate},
    }
    return teacher_named(name, **settings.get(name, {}))
