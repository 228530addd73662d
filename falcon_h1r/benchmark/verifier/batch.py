"""A batch as GRPO scores it: groups of long traces whose answers repeat, through `Verifier.score`.

Made of the pairs' golds. Every problem has a pass rate of its own, uniform in (0, 1). A right rollout writes the gold
as it stands, or in another notation where a pair labelled true has one; a wrong one takes one of the problem's few
wrong answers: those of pairs labelled false, and golds of other problems. Adversarial pairs take no part: they are no
model's rollouts.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from falcon_h1r.benchmark.verifier.pairs import Pair
from falcon_h1r.types import THINK_END, THINK_START
from falcon_h1r.verifier import Verifier, extract_boxed

NUM_WORKERS = 2
OTHER_NOTATION_SHARE = 0.4  # of right rollouts, where there is another
WRONG_ANSWERS = 3  # of a problem, at most
TRACE_CHARS = (2_000, 8_000)
LONGEST_GOLD_CHARS = 200

SENTENCES = (
    "Let me set this up carefully before computing anything. ",
    "We have $a_{n+1} = \\frac{a_n + 2}{3}$, so the sequence converges to its fixed point. ",
    "Wait, that does not look right, let me check the sign of the second term again. ",
    "Substituting back gives \\[ x^2 - 5x + 6 = (x - 2)(x - 3), \\] which has two real roots. ",
    "The number of ways is $\\binom{8}{3} = 56$, and half of them are even. ",
    "By symmetry it is enough to look at the case $0 \\le x \\le \\frac{\\pi}{2}$. ",
    "So far so good. Now suppose that $p$ divides $n^2 + 1$ for some odd prime $p$. ",
    "Hmm, alternatively one could use the law of cosines: $c^2 = a^2 + b^2 - 2ab\\cos\\gamma$.\n\n",
    "Then the total is $12 \\cdot 7 + 35 = 119$, and dividing by 7 leaves 17.\n\n",
    "A first guess would be \\boxed{12}, but it fails for $n = 4$. ",
)


@dataclass(frozen=True, slots=True)
class GRPOBatch:
    """Responses and their golds, group by group."""

    responses: list[str]
    golds: list[str]
    answers: list[str]  # what stands in the responses' last boxes

    @property
    def repeated_share(self) -> float:
        """Of verdicts, those on an answer and a gold that came before."""
        return 1 - len(set(zip(self.answers, self.golds, strict=True))) / len(self.golds)


def make_batch(pairs: Sequence[Pair], num_problems: int, num_rollouts: int, seed: int) -> GRPOBatch:
    """The same batch for the same pairs and seed."""
    rng = random.Random(seed)
    usable = [pair for pair in pairs if not (pair.is_adversarial or pair.any_verdict)]
    notations: dict[str, list[str]] = {}
    mistakes: dict[str, list[str]] = {}
    for pair in usable:
        answer = extract_boxed(pair.prediction)
        if pair.gold.strip() and len(pair.gold) <= LONGEST_GOLD_CHARS:
            notations.setdefault(pair.gold, [])
            mistakes.setdefault(pair.gold, [])
            if answer and answer != pair.gold and len(answer) <= LONGEST_GOLD_CHARS:
                (notations if pair.expected else mistakes)[pair.gold].append(answer)
    golds = list(notations)
    responses, batch_golds, answers = [], [], []
    for problem in range(num_problems if golds else 0):
        if problem % len(golds) == 0:
            rng.shuffle(golds)
        gold = golds[problem % len(golds)]
        wrong = [*mistakes[gold], *rng.sample(golds, min(WRONG_ANSWERS, len(golds)))]
        wrong = [answer for answer in wrong if answer != gold][:WRONG_ANSWERS] or [f"{gold} + 1"]
        pass_rate = rng.random()
        for _ in range(num_rollouts):
            if rng.random() >= pass_rate:
                answer = rng.choice(wrong)
            elif notations[gold] and rng.random() < OTHER_NOTATION_SHARE:
                answer = rng.choice(notations[gold])
            else:
                answer = gold
            responses.append(_trace(answer, rng))
            batch_golds.append(gold)
            answers.append(answer)
    return GRPOBatch(responses, batch_golds, answers)


def _trace(answer: str, rng: random.Random) -> str:
    """2 to 8 kB of thinking, and the answer in a box behind it."""
    length = rng.randint(*TRACE_CHARS)
    sentences = rng.choices(SENTENCES, k=1 + length // min(map(len, SENTENCES)))
    thought = "".join(sentences)[:length]
    return f"{THINK_START}\n{thought}\n{THINK_END}\n\nThe answer is $\\boxed{{{answer}}}$."


def measure_batch(batch: GRPOBatch, deadline_seconds: float, repeats: int) -> dict[str, Any]:
    """Seconds of `score` with an empty cache and no worker started, several times; what the verdicts were."""
    seconds, kills = [], 0
    for _ in range(repeats):
        with Verifier(NUM_WORKERS, deadline_seconds, after_think=True) as verifier:
            began = time.perf_counter()
            verdicts = verifier.score(batch.responses, batch.golds)
            seconds.append(time.perf_counter() - began)
            kills += verifier.num_deadline_kills
    num_verdicts = len(verdicts)
    return {
        "num_verdicts": num_verdicts,
        "num_golds": len(set(batch.golds)),
        "mean_chars": sum(map(len, batch.responses)) / num_verdicts,
        "num_workers": NUM_WORKERS,
        "repeats": repeats,
        "seconds": median(seconds),
        "longest_seconds": max(seconds),
        "repeated_share": batch.repeated_share,
        # A verdict from the cache, or one waited for together, is the very object that was given before.
        "cached_share": 1 - len(set(map(id, verdicts))) / num_verdicts,
        "statuses": dict(Counter(verdict.status for verdict in verdicts)),
        "deadline_kills": kills,
    }
