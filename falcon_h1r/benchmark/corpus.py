"""A corpus to measure curation on: as many rows as wanted, written once, from a seed alone.

Problems are generated, so that golds are exact; what is said around the working is drawn from a few hundred words, to a
log-normal length. A share of the rows has each of the faults that curation looks for.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from falcon_h1r.data.problems import generate_problems
from falcon_h1r.data.teachers import CarelessTeacher, Teacher, TerseTeacher, VerboseTeacher
from falcon_h1r.types import Problem

NUM_TRACES = 4  # of a problem
MEDIAN_WORDS, SPREAD, MOST_WORDS = 250, 0.8, 8000
DOMAINS = {"math": 0.6, "science": 0.25, "other": 0.15}
FAULTS = {"": 0.86, "no_box": 0.03, "empty_reasoning": 0.02, "copied": 0.04, "evaluation": 0.01, "broken_gold": 0.04}
EVALUATION = (
    "A lighthouse keeper counts the ships that pass between two consecutive tides and writes a number of three digits "
    "into the book; the next night there are seven more. How many ships has the keeper counted in both nights if {}?"
)


def write_corpus(path: Path, num_rows: int, seed: int) -> None:
    """JSONL rows: question, answer, reasoning, teacher, domain, difficulty."""
    if path.is_file():
        return
    beside = path.with_suffix(".partial")
    with open(beside, "w", encoding="utf-8") as file:
        for row in corpus_rows(num_rows, seed):
            file.write(json.dumps(row) + "\n")
    beside.replace(path)


def corpus_rows(num_rows: int, seed: int) -> Iterator[dict[str, Any]]:
    """One at a time; the rows of a shorter corpus are the first of a longer one."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghilmnoprstu", k=rng.randrange(2, 10))) for _ in range(400)]
    teachers: list[Teacher] = [VerboseTeacher(), TerseTeacher(), CarelessTeacher(0.3)]
    last: dict[str, Any] = {}
    for number, problem in enumerate(generate_problems(seed, -(-num_rows // NUM_TRACES))):
        domain = rng.choices(list(DOMAINS), list(DOMAINS.values()))[0]
        for trace in range(min(NUM_TRACES, num_rows - number * NUM_TRACES)):
            row = _row(problem, teachers[trace % len(teachers)], domain, words, rng)
            fault = rng.choices(list(FAULTS), list(FAULTS.values()))[0]
            if fault == "copied" and last:
                row = {**last, "reasoning": last["reasoning"].replace("the", "a", 1)}
            elif fault == "evaluation":
                row["question"] = f"{row['question']} {EVALUATION.format(f'{rng.randrange(50)} sank')}"
            elif fault == "no_box":
                row["reasoning"] = row["reasoning"].partition("\\boxed")[0]
            elif fault == "empty_reasoning":
                row["reasoning"] = "</think>" + row["reasoning"].rpartition("\n")[2]
            elif fault == "broken_gold":
                row["answer"] = "\\frac{" + row["answer"]
            last = row
            yield row


def evaluation_rows() -> list[dict[str, str]]:
    """The problems that a share of the corpus copies."""
    return [{"question": EVALUATION.format(f"{number} sank"), "answer": "7"} for number in range(50)]


def _row(problem: Problem, teacher: Teacher, domain: str, words: list[str], rng: random.Random) -> dict[str, Any]:
    trace = teacher.write(problem, rng)
    number = min(MOST_WORDS, int(rng.lognormvariate(0, SPREAD) * MEDIAN_WORDS))
    said = " ".join(rng.choices(words, k=number))
    return {
        "question": problem.question,
        "answer": problem.answer,
        "reasoning": f"{said}.\n{trace.reasoning}\nso {trace.response}",
        "teacher": teacher.name,
        "domain": domain,
        "difficulty": problem.difficulty,
    }
