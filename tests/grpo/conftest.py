"""A sampler whose responses are written down, and ranks that are threads: batches are filled without a model."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from falcon_h1r.config_grpo import GRPOConfig
from falcon_h1r.distributed.watch import Watch
from falcon_h1r.grpo.carried import CarriedRollouts
from falcon_h1r.grpo.collect import Collector, GroupBatch
from falcon_h1r.grpo.rewards import Scorer
from falcon_h1r.grpo.stream import ProblemStream
from falcon_h1r.model.sequence import SequenceGroup
from falcon_h1r.rollout.sampler import Prompt, RolloutKey, RolloutRequest, SamplingSettings, requests_for
from falcon_h1r.types import Problem, Rollout, StopReason, Verdict, content_hash
from falcon_h1r.verifier import Verifier

GOLD = "7"


@dataclass(frozen=True)
class Line:
    """What a sampler says to one request."""

    response_ids: list[int]
    is_right: bool
    stop_reason: StopReason = "stop"

    @property
    def text(self) -> str:
        return f"<think>hm</think>\\boxed{{{GOLD if self.is_right else 8}}}"


Script = Callable[[RolloutRequest], Line]


def draw(request: RolloutRequest, what: str, below: int) -> int:
    """A number by chance, a function of the request's seed, problem and sample."""
    key = f"{what}/{request.settings.seed}/{request.prompt.problem_uid}/{request.sample_index}"
    return int(content_hash(key), 16) % below


def by_chance(request: RolloutRequest) -> Line:
    """1 to 20 tokens; right as often as the problem's uid, "3/...", says of four times."""
    right = int(request.prompt.problem_uid.split("/")[0])
    length = 1 + draw(request, "length", 20)
    return Line([draw(request, f"token {i}", 50) for i in range(length)], draw(request, "right", 4) < right)


def first_right(request: RolloutRequest) -> Line:
    """Of problem "3/...", the first three samples are right; two tokens each."""
    return Line([1, 2], request.sample_index < int(request.prompt.problem_uid.split("/")[0]))


@dataclass
class _Slot:
    request: RolloutRequest
    line: Line
    count: int  # tokens drawn
    versions: list[tuple[int, int]] = field(default_factory=list)  # (first token, version)


class ScriptedSampler:
    """Keeps all that `Sampler` promises: one token of every running rollout a decode step, slots freed and taken."""

    def __init__(
        self,
        script: Script = by_chance,
        num_slots: int = 8,
        logprobs: Callable[[Sequence[int], Sequence[int]], list[float]] | None = None,
        shares_weights: bool = True,
        watch: Watch | None = None,
    ) -> None:
        self.script, self.num_slots, self.shares_weights = script, num_slots, shares_weights
        self.policy_version = 0
        self.num_syncs = self.num_steps = self.num_tokens = 0
        self.begun: list[RolloutKey] = []
        self._logprobs = logprobs or (lambda prompt, response: [-0.5 - token / 100 for token in response])
        self._running: list[_Slot] = []
        self._waiting: deque[RolloutRequest] = deque()
        self._watch = watch or Watch()

    @property
    def free_slots(self) -> int:
        return max(0, self.num_slots - len(self._running) - len(self._waiting))

    def submit(self, requests: Iterable[RolloutRequest]) -> None:
        for request in requests:
            assert request.key not in {r.key for r in [*self._waiting, *(slot.request for slot in self._running)]}
            self.begun.append(request.key)
            self._waiting.append(request)

    def advance(self, num_tokens: int) -> list[Rollout]:
        ended: list[Rollout] = []
        for _ in range(num_tokens):
            while self._waiting and len(self._running) < self.num_slots:
                self._admit(self._waiting.popleft())
            ended += self._retire()  # an empty response takes no token
            if not self._running:
                continue
            self._watch.beat("sampling")
            self._watch.check()
            self.num_steps += 1
            self.num_tokens += len(self._running)
            for slot in self._running:
                slot.count += 1
            ended += self._retire()
        return ended

    def abort(self, keys: Collection[RolloutKey] | None = None) -> list[Rollout]:
        taken = [slot for slot in self._running if keys is None or slot.request.key in keys]
        self._running = [slot for slot in self._running if slot not in taken]
        waiting = [request for request in self._waiting if keys is None or request.key in keys]
        self._waiting = deque(request for request in self._waiting if request not in waiting)
        unbegun = [
            Rollout(r.prompt.problem_uid, r.sample_index, r.prompt.input_ids, [], [], "abort", self.policy_version, "")
            for r in waiting
        ]
        return [self._rollout(slot, "abort") for slot in taken] + unbegun

    def generate(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> list[Rollout]:
        requests = requests_for(prompts, settings)
        self.submit(requests)
        found: dict[RolloutKey, Rollout] = {}
        while len(found) < len(requests):
            found.update({(r.problem_uid, r.sample_index): r for r in self.advance(1000)})
        return [found[request.key] for request in requests]

    def load_weights(self, policy: Any) -> None:
        self.policy_version += 1
        self.num_syncs += 1

    def _admit(self, request: RolloutRequest) -> None:
        line, partial = self.script(request), request.partial
        if partial is None:
            self._running.append(_Slot(request, line, 0, [(0, self.policy_version)]))
            return
        drawn = len(partial.response_ids)
        assert partial.response_ids == line.response_ids[:drawn], "a rollout that goes on has other random numbers"
        versions = [(0, partial.policy_version), *partial.later_versions]
        if versions[-1][1] != self.policy_version:
            versions.append((drawn, self.policy_version))
        self._running.append(_Slot(request, line, drawn, versions))

    def _retire(self) -> list[Rollout]:
        done = [slot for slot in self._running if slot.count >= len(slot.line.response_ids)]
        self._running = [slot for slot in self._running if slot not in done]
        return [self._rollout(slot, slot.line.stop_reason) for slot in done]

    def _rollout(self, slot: _Slot, reason: StopReason) -> Rollout:
        prompt, ids = slot.request.prompt, slot.line.response_ids[: slot.count]
        return Rollout(
            problem_uid=prompt.problem_uid,
            sample_index=slot.request.sample_index,
            prompt_ids=prompt.input_ids,
            response_ids=ids,
            sampler_logprobs=self._logprobs(prompt.input_ids, ids),
            stop_reason=reason,
            policy_version=slot.versions[0][1],
            text="" if reason == "abort" else slot.line.text,
            later_versions=tuple(slot.versions[1:]),
        )


class QuickVerifier:
    """Says at once whether the text holds the gold: for tests of what verdicts lead to."""

    def submit(self, prediction: str, gold: str) -> Future[Verdict]:
        verdict: Future[Verdict] = Future()
        verdict.set_result(Verdict("correct" if f"{{{gold}}}" in prediction else "wrong", "string", ""))
        return verdict


def stream_of(num_right: Sequence[int], seed: int = 0, skip_solved_steps: int = 0) -> ProblemStream:
    """Problems named "<number>/<index>"; scripts read the number."""
    problems = [Problem(f"{right}/{index}", f"question {index}", GOLD) for index, right in enumerate(num_right)]
    return ProblemStream(problems, [[5, 6, index % 50] for index in range(len(problems))], seed, skip_solved_steps)


class ThreadWorld:
    """A rank among threads: what `collect` and `redistribute` ask of a World."""

    def __init__(self, rank: int, size: int, board: list[Any], barrier: threading.Barrier, degree: int = 1) -> None:
        self.rank, self.size, self.watch = rank, size, Watch()
        self.sequence = SequenceGroup(rank % degree, degree, None)
        self.data_rank, self.data_size = rank // degree, size // degree
        self.num_meetings = 0
        self._board, self._barrier = board, barrier

    def gather(self, value: Any) -> list[Any]:
        self.num_meetings += 1
        self._board[self.rank] = value
        self._barrier.wait(timeout=30)
        told = list(self._board)
        self._barrier.wait(timeout=30)
        return told

    def exchange(self, values: Sequence[Any]) -> list[Any]:
        return [sent[self.rank] for sent in self.gather(list(values))]


def in_threads(size: int, work: Callable[[Any], Any], degree: int = 1) -> list[Any]:
    """What `work` returns on every rank, given its world; what one raises, if not for others, is raised."""
    board, barrier = [None] * size, threading.Barrier(size)
    outcomes: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            outcomes[rank] = work(ThreadWorld(rank, size, board, barrier, degree))
        except BaseException as error:
            outcomes[rank] = error
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for outcome in outcomes:
        if isinstance(outcome, BaseException) and not isinstance(outcome, threading.BrokenBarrierError):
            raise outcome
    return outcomes


@dataclass
class Ranks:
    """Ranks that collect batches together, in threads of one process."""

    collectors: list[Collector]
    num_meetings: int = 0

    def collect(self) -> list[GroupBatch]:
        """A step: every rank's batch."""

        def collect(world: Any) -> tuple[GroupBatch, int]:
            return self.collectors[world.rank].collect(world), world.num_meetings

        batches, meetings = zip(*in_threads(len(self.collectors), collect), strict=True)
        self.num_meetings = meetings[0]
        return list(batches)

    @property
    def samplers(self) -> list[ScriptedSampler]:
        return [collector.sampler for collector in self.collectors]  # type: ignore[misc]

    def sync(self) -> None:
        for sampler in self.samplers:
            sampler.load_weights(None)


def make_ranks(
    num_ranks: int,
    config: GRPOConfig,
    num_right: Sequence[int],
    script: Script = by_chance,
    num_slots: int | Sequence[int] = 8,
    verifier: Any = None,
    seed: int = 0,
) -> Ranks:
    """Equal ranks with a stream, a sampler and a cache of their own each."""
    slots = [num_slots] * num_ranks if isinstance(num_slots, int) else num_slots
    scorer = Scorer(verifier or QuickVerifier(), config)
    return Ranks(
        [
            Collector(
                stream_of(num_right, seed, config.skip_solved_steps),
                ScriptedSampler(script, slots[rank]),
                scorer,
                CarriedRollouts(),
                config,
                seed,
            )
            for rank in range(num_ranks)
        ]
    )


def chosen_uids(batch: GroupBatch) -> list[str]:
    return [each.facts.problem_uid for each in batch.chosen]


def configured(config: GRPOConfig, **rollout: Any) -> GRPOConfig:
    """The same with other settings of `rollout`."""
    return replace(config, rollout=replace(config.rollout, **rollout))


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(after_think=True) as verifier:
        yield verifier
