"""What a rollout is worth: the verifier's verdict and the parts that a config adds to it or subtracts."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass

from falcon_h1r.config_grpo import GRPOConfig, RewardConfig
from falcon_h1r.distributed.watch import Watch
from falcon_h1r.types import THINK_END, THINK_START, Problem, Rollout, RolloutGroup, Verdict
from falcon_h1r.verifier import Verifier, count_boxed

LOOK_SECONDS = 1.0  # between two signs of life while verdicts are waited for


@dataclass(frozen=True, slots=True)
class Scorer:
    """Starts the verification of rollouts, and makes rewards of verdicts."""

    verifier: Verifier
    config: GRPOConfig

    def submit(self, problem: Problem, rollout: Rollout) -> Future[Verdict]:
        """Begin to verify: another process works on it while sampling goes on."""
        return self.verifier.submit(rollout.text, problem.answer)

    def score(self, problem: Problem, rollouts: Sequence[Rollout], verdicts: Sequence[Verdict]) -> RolloutGroup:
        """A whole group with its rewards and what they are summed from."""
        parts = [
            reward_parts(rollout, verdict, self.config.reward)
            for rollout, verdict in zip(rollouts, verdicts, strict=True)
        ]
        return RolloutGroup(problem, list(rollouts), [sum(each.values()) for each in parts], list(verdicts), parts)


def reward_parts(rollout: Rollout, verdict: Verdict, config: RewardConfig) -> dict[str, float]:
    """What a reward is the sum of: by name, penalties negative."""
    return {
        "correct": config.correct * verdict.correct,
        "format": -config.format_penalty * (not well_formed(rollout.text)),
        "several_boxes": -config.several_boxes_penalty * (count_boxed(rollout.text, after_think=True) > 1),
    }


def well_formed(text: str) -> bool:
    """One <think>...</think> at the start, then an answer."""
    return (
        text.startswith(THINK_START)
        and text.count(THINK_START) == 1
        and text.count(THINK_END) == 1
        and text.split(THINK_END)[1].strip() != ""
    )


def await_verdicts(futures: Sequence[Future[Verdict]], watch: Watch) -> list[Verdict]:
    """Their verdicts in order.

    Raises:
        StopRequested: where the run is to stop.
    """
    waiting = set(futures)
    while waiting:
        watch.beat("verifying")
        watch.check()
        waiting = wait(waiting, timeout=LOOK_SECONDS).not_done
    return [future.result() for future in futures]
