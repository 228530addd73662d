"""An engine without a model: what a trace says follows from its seed. And a judge that compares numbers."""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from falcon_h1r.config_evaluate import ScalingConfig
from falcon_h1r.evaluation.tasks import Judged, Task
from falcon_h1r.rollout.sampler import RolloutKey, SamplingSettings
from falcon_h1r.scaling.confidence import summarise
from falcon_h1r.scaling.engine import ConfidenceSettings, DrawnTrace, TraceRequest
from falcon_h1r.types import Problem, Verdict

WINDOW = 4
CONFIDENCE = ConfidenceSettings(window_tokens=WINDOW)
SCALING = ScalingConfig(warmup_traces=3, wave_traces=2, keep_share=0.5, window_tokens=WINDOW, consensus_share=0.8)


def scripted_task(num_problems: int = 5, num_samples: int = 5, num_traces: int = 9, greedy: bool = True) -> Task:
    problems = [Problem(f"p{n}", f"{n} + 1 = ?", str(n + 1), "sum", "easy") for n in range(num_problems)]
    settings = SamplingSettings(num_samples=num_samples, max_response_tokens=12, seed=7)
    return Task("sums", problems, settings, "math", greedy=greedy, num_traces=num_traces)


def scripted_trace(request: TraceRequest) -> DrawnTrace:
    """To its end, or to where its own stop ends it."""
    settings, gold = request.settings, request.problem.answer
    rng = random.Random(f"{request.key}/{settings.seed}/{settings.temperature}")
    num_tokens = rng.randint(2, settings.max_response_tokens)
    answer = gold if rng.random() < 0.6 else rng.choice(["0", "none", "99"])
    confidences = {name: np.array([rng.uniform(0, 20) for _ in range(num_tokens)]) for name in CONFIDENCE.measures}
    reason = "length" if num_tokens == settings.max_response_tokens else "stop"
    if request.stop is not None:
        summary = summarise(confidences[request.stop.measure], WINDOW, "mean")
        if (cut := summary.tokens_until_below(request.stop.below)) is not None:
            confidences = {name: values[:cut] for name, values in confidences.items()}
            num_tokens, reason = cut, "confidence"
    return DrawnTrace(*request.key, f"tokens {num_tokens}, answer {answer}", num_tokens, reason, confidences)


class ScriptedEngine:
    """One token of every trace a step, `slots` of them at once."""

    description = "scripted"

    def __init__(self, slots: int = 7, seconds: float = 0.0) -> None:
        self.confidence: ConfidenceSettings | None = CONFIDENCE
        self.slots, self.seconds = slots, seconds
        self.running: dict[RolloutKey, tuple[TraceRequest, DrawnTrace, int]] = {}
        self.waiting: list[TraceRequest] = []
        self.ended: list[TraceRequest] = []
        self.most_running = 0

    @property
    def free_slots(self) -> int:
        return max(0, self.slots - len(self.running) - len(self.waiting))

    def submit(self, requests: Iterable[TraceRequest]) -> None:
        for request in requests:
            if request.key in self.running or request.key in {other.key for other in self.waiting}:
                raise ValueError(f"{request.key} is there")
            self.waiting.append(request)
        self._begin()

    def _begin(self) -> None:
        while self.waiting and len(self.running) < self.slots:
            request = self.waiting.pop(0)
            trace = scripted_trace(request)
            self.running[request.key] = (request, trace, trace.num_tokens)
        self.most_running = max(self.most_running, len(self.running))

    def advance(self) -> list[DrawnTrace]:
        time.sleep(self.seconds)
        if not self.running:
            return []
        steps = min(left for _, _, left in self.running.values())
        found = []
        for key, (request, trace, left) in list(self.running.items()):
            self.running[key] = (request, trace, left - steps)
            if left == steps:
                del self.running[key]
                found.append(trace)
                self.ended.append(request)
        self._begin()
        return found

    def abort(self, keys: Collection[RolloutKey] | None = None) -> list[DrawnTrace]:
        gone = set(keys if keys is not None else [*self.running, *(request.key for request in self.waiting)])
        self.running = {key: value for key, value in self.running.items() if key not in gone}
        self.waiting = [request for request in self.waiting if request.key not in gone]
        return []

    def close(self) -> None: ...


class ScriptedScorer:
    """The answer stands at the end."""

    def __init__(self) -> None:
        self.num_judged = 0

    def judge(self, responses: Sequence[str], problems: Sequence[Problem]) -> list[Judged]:
        assert 0 < len(responses) == len(problems)
        self.num_judged += len(responses)
        return [self._judged(response.split()[-1], p) for response, p in zip(responses, problems, strict=True)]

    def _judged(self, answer: str, problem: Problem) -> Judged:
        if answer == "none":
            return Judged(Verdict("wrong", "answer", "no answer"), None, None)
        return Judged(Verdict("correct" if answer == problem.answer else "wrong", "number", "scripted"), answer, answer)

    def close(self) -> None: ...
