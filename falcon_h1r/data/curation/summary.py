"""Counts of a curated corpus, for summary.json and the report; and where the time went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from falcon_h1r.config import Config
from falcon_h1r.data.curation.facts import (
    ANSWERED,
    CORRECT,
    KEPT,
    VERDICTS,
    ChunkNotes,
    CorpusFacts,
    Facts,
    counted,
)
from falcon_h1r.data.curation.judge import CONTAMINATED, NOT_CORRECT, OTHER_TEACHER
from falcon_h1r.data.curation.mix import ENOUGH_OF_DOMAIN
from falcon_h1r.data.curation.reduce import DUPLICATE, ENOUGH_OF_PROBLEM, NO_WEIGHT, Reduced
from falcon_h1r.data.curation.render import UNREADABLE
from falcon_h1r.types import DIFFICULTIES

MAX_GOLDS_SHOWN = 20  # dropped.jsonl has them all
WEIGHT_BINS = 0.125
FEW_RATES = 17  # as of sixteen rollouts a problem
TARGET_TRACES, TARGET_TOKENS_EACH, TARGET_CORES = 3_110_000, 9_700, 64  # the 7B's cold start, on one node
BY_TRACE = ("verifying",)  # stages whose time goes with the traces rather than with their length


def summarise(corpus: CorpusFacts, reduced: Reduced, notes: Sequence[ChunkNotes], config: Config) -> dict[str, Any]:
    """The funnel from all traces to those kept, both sides by what they are, tokens, lengths, weights."""
    facts, order, tokenizer = corpus.facts, reduced.mix.order, config.curate.tokenizer or config.model.path
    sets = config.curate.decontamination
    golds = sorted({gold for note in notes for gold in note.unverifiable_golds})
    kept, dropped = facts[corpus.alive()], facts[~corpus.alive()]
    reasons = {name: count for name, count in _by(dropped, "reason", corpus).items() if name != KEPT}
    num_unreadable = sum(note.num_unreadable for note in notes)
    if num_unreadable:
        reasons[UNREADABLE] = num_unreadable
    written = facts[order]
    tokens = _tokens(written)
    return {
        "funnel": _funnel(len(facts) + num_unreadable, reasons),
        "dropped_by_reason": dict(sorted(reasons.items(), key=lambda item: -item[1])),
        "read": {"tokens": int(_tokens(facts).sum()), "problems": len(np.unique(facts["problem"]))},
        "written": {"rows": len(order), "tokens": int(tokens.sum()), "problems": len(np.unique(kept["problem"]))},
        **{
            f"{side}_by_{column}": _by(rows, column, corpus)
            for column in ("source", "teacher", "family", "domain")
            for side, rows in (("kept", kept), ("dropped", dropped))
        },
        "kept_by_difficulty": _by_difficulty(kept),
        "dropped_by_difficulty": _by_difficulty(dropped),
        "teacher": {"kept": reduced.teacher, "solved_problems": reduced.coverage},
        "difficulty": {
            "measured_by": config.curate.weights.measured_by,
            "problems_by_pass_rate": _pass_rates(facts, reduced.pass_rates),
        },
        "token_shares": _shares(written, tokens, corpus, reduced.mix.targets),
        "tokens_counted_by": tokenizer or f"estimate: {config.curate.characters_per_token:g} characters each",
        "lengths": {name: histogram(written[f"{name}_tokens"]) for name in ("prompt", "response")},
        "weights": {f"{weight:g}": int(count) for weight, count in _weights(written)},
        "mean_weight": round(float(written["weight"].mean()), 4) if len(written) else 0.0,
        "verdicts": _verdicts(facts),
        "unverifiable_golds": golds[:MAX_GOLDS_SHOWN],
        "num_unverifiable_golds": len(golds),
        "evaluation_sets": {
            "checked": [name for name in sets.sets if name not in sets.switched_off],
            "switched_off": list(sets.switched_off),
        },
    }


def _funnel(total: int, reasons: dict[str, int]) -> dict[str, int]:
    """What is left after each step; whatever reason no other step has, one trace shows without a verdict."""
    later = (OTHER_TEACHER, CONTAMINATED, *NOT_CORRECT, NO_WEIGHT, DUPLICATE, ENOUGH_OF_PROBLEM, ENOUGH_OF_DOMAIN)
    steps = {
        "of_the_teacher": (OTHER_TEACHER,),
        "complete": tuple(reason for reason in reasons if reason not in later),
        "uncontaminated": (CONTAMINATED,),
        "correct": NOT_CORRECT,
        "distinct": (DUPLICATE,),
        "kept": (NO_WEIGHT, ENOUGH_OF_PROBLEM, ENOUGH_OF_DOMAIN),
    }
    funnel = {"traces": total}
    for step, its_reasons in steps.items():
        total -= sum(reasons.get(reason, 0) for reason in its_reasons)
        funnel[step] = total
    return funnel


def _by(facts: Facts, column: str, corpus: CorpusFacts) -> dict[str, int]:
    return counted(corpus.names[column], facts[column], len(corpus.names[column]))


def _by_difficulty(facts: Facts) -> dict[str, int]:
    names = ("unknown", *DIFFICULTIES)
    counts = np.bincount(facts["difficulty"].astype(np.int64) + 1, minlength=len(names))
    return {name: int(count) for name, count in zip(names, counts, strict=True) if count}


def _pass_rates(facts: Facts, rates: NDArray[np.float32]) -> dict[str, int]:
    """Problems by their pass rate: by each that there is, or where there are many, in tenths."""
    _, first = np.unique(facts["problem"], return_index=True)
    of_problems = rates[first]
    known = of_problems[~np.isnan(of_problems)]
    digits = 3 if len(np.unique(known)) <= FEW_RATES else 1
    counts = Counter(f"{rate:.{digits}f}" for rate in known.tolist())
    unknown = int(np.isnan(of_problems).sum())
    return dict(sorted(counts.items())) | ({"unknown": unknown} if unknown else {})


def _shares(
    written: Facts, tokens: NDArray[np.int64], corpus: CorpusFacts, targets: dict[str, float]
) -> dict[str, dict[str, float]]:
    """By domain: tokens written, their share, and the share that was asked for."""
    total = max(1, int(tokens.sum()))
    shares = {}
    for place, domain in enumerate(corpus.names["domain"]):
        number = int(tokens[written["domain"] == place].sum())
        if number or domain in targets:
            shares[domain] = {"tokens": number, "share": round(number / total, 5)}
            if targets:
                shares[domain]["target"] = round(targets.get(domain, 0.0), 5)
    return shares


def histogram(tokens: NDArray[np.int32]) -> dict[str, Any]:
    """Counts in bins that double, `<=64`, `<=128`, ...; with median, 99th percentile, maximum and mean."""
    if not len(tokens):
        return {"bins": {}}
    exponents = np.ceil(np.log2(np.maximum(tokens, 1))).astype(np.int64)
    counts = np.bincount(exponents)
    bins = {str(1 << exponent): int(count) for exponent, count in enumerate(counts) if count}
    median, high = np.percentile(tokens, [50, 99])
    numbers = {"median": median, "p99": high, "max": tokens.max(), "mean": tokens.mean()}
    return {"bins": bins, **{name: round(float(number), 1) for name, number in numbers.items()}}


def _weights(written: Facts) -> list[tuple[float, int]]:
    """Counts by weight, to the nearest eighth."""
    steps, counts = np.unique(np.round(written["weight"] / WEIGHT_BINS), return_counts=True)
    return [(step * WEIGHT_BINS, int(count)) for step, count in zip(steps.tolist(), counts, strict=True)]


def _verdicts(facts: Facts) -> dict[str, Any]:
    """By verdict, and where the source gives one of its own: how often the two agree."""
    counts = {VERDICTS[place]: int((facts["verdict"] == place).sum()) for place in ANSWERED}
    both = (facts["given"] >= 0) & np.isin(facts["verdict"], ANSWERED)
    agree = both & ((facts["verdict"] == CORRECT) == (facts["given"] == 1))
    return counts | {"given_by_source": int(both.sum()), "agreeing": int(agree.sum())}


def _tokens(facts: Facts) -> NDArray[np.int64]:
    return facts["prompt_tokens"].astype(np.int64) + facts["response_tokens"]


def throughput(notes: Sequence[ChunkNotes], corpus: CorpusFacts) -> dict[str, Any]:
    """Seconds of one process by stage, and the hours that they mean for the 7B's cold start on 64 cores."""
    seconds = Counter[str]()
    for note in notes:
        seconds.update(note.seconds)
    num_traces = max(1, len(corpus.facts))
    num_tokens = max(1, int(_tokens(corpus.facts).sum()))
    by_trace, by_token = TARGET_TRACES / num_traces, TARGET_TRACES * TARGET_TOKENS_EACH / num_tokens
    stages = {
        stage: {
            "seconds": round(spent, 3),
            "traces_per_second": round(num_traces / max(spent, 1e-9), 1),
            "tokens_per_second": round(num_tokens / max(spent, 1e-9), 1),
            "target_hours": round(spent * (by_trace if stage in BY_TRACE else by_token) / TARGET_CORES / 3600, 4),
        }
        for stage, spent in seconds.items()
        if stage
    }
    target = {"traces": TARGET_TRACES, "tokens": TARGET_TRACES * TARGET_TOKENS_EACH, "cores": TARGET_CORES}
    return {"num_traces": num_traces, "num_tokens": num_tokens, "stages": stages, "target": target}
