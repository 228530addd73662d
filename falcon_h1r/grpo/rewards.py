"""What a rollout is worth: the verifier's verdict and the parts that a config adds to it or subtracts.

docs/rewards.md has the table of the parts and the reasons.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from falcon_h1r.config_grpo import GRPOConfig
from falcon_h1r.data.tokenisation import prompt_text
from falcon_h1r.distributed.watch import Watch
from falcon_h1r.grpo.text_signals import OF_THE_CUT, other_script_share, think_fault
from falcon_h1r.types import THINK_START, Problem, Rollout, RolloutGroup, Verdict
from falcon_h1r.verifier import Verifier, count_boxed
from falcon_h1r.verifier.code import CodeVerifier, check_tests

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from falcon_h1r.config import Config

LOOK_SECONDS = 1.0  # between two signs of life while verdicts are waited for
CODE = "code"  # the domain whose answers are programs
PYTHON = (None, "python", "python3", "py")  # what CodeVerifier runs, as sources name it
# Stages of undecided verdicts that say nothing of the response: a worker was killed, a sandbox could not be had.
# The other ones (deadline, memory, budget) are what the answer cost.
FAULTS = ("worker", "closed", "error", "sandbox")


@contextmanager
def open_scorer(config: Config, tokenizer: PreTrainedTokenizerBase | None = None) -> Iterator[Scorer]:
    """The scorer of a run's config, with its verifiers; sandboxes only where `grpo.selection.domains` names code.

    Args:
        tokenizer: whose chat template may open the thinking; None: it does not.

    Raises:
        InputError: where programs are to be judged and cannot be confined here.
    """
    opened = tokenizer is not None and thinking_opened(tokenizer)
    with ExitStack() as stack:
        verifier = stack.enter_context(Verifier.from_config(config.verifier, after_think=True))
        code = None
        if CODE in config.grpo.selection.domains:
            code = CodeVerifier.from_config(config.verifier.code, config.seed, after_think=True)
            stack.enter_context(code)
        yield Scorer(verifier, config.grpo, code, opened)


def check_judges(config: Config) -> None:
    """Refuse, before anything is loaded, a run whose programs could not be judged.

    Raises:
        InputError: as `open_scorer` does.
    """
    if CODE in config.grpo.selection.domains:
        CodeVerifier.from_config(config.verifier.code, config.seed).close()


def thinking_opened(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a prompt of this tokenizer's chat template ends in <think>, so that responses begin inside."""
    return prompt_text(tokenizer, "?", "").rstrip().endswith(THINK_START)


@dataclass(frozen=True, slots=True)
class Scorer:
    """Starts the verification of rollouts, and makes rewards of verdicts.

    A problem with tests is judged by running programs, any other by its answer.

    Args:
        code: for problems with tests; None: they cannot be judged.
        thinking_opened: prompts end in <think>.
    """

    verifier: Verifier
    config: GRPOConfig
    code: CodeVerifier | None = None
    thinking_opened: bool = False

    def check_problem(self, problem: Problem) -> bool:
        """Whether answers to a problem can be judged; what cannot would be scored wrong whatever is answered."""
        if not problem.verifiable:
            return False
        if wants_program(problem):
            return self.code is not None and problem.language in PYTHON and not check_tests(problem.tests)
        return self.verifier.check_gold(problem.answer)

    def submit(self, problem: Problem, rollout: Rollout) -> Future[Verdict]:
        """Begin to verify: another process works on it while sampling goes on. The future holds no exception.

        Raises:
            ValueError: after the verifiers were closed.
        """
        if not wants_program(problem):
            return self.verifier.submit(rollout.text, problem.answer)
        if self.code is not None:
            return self.code.submit(rollout.text, problem.tests)
        settled: Future[Verdict] = Future()
        settled.set_result(Verdict("unverifiable_gold", "tests", "grpo.selection.domains does not name code"))
        return settled

    def score(self, problem: Problem, rollouts: Sequence[Rollout], verdicts: Sequence[Verdict]) -> RolloutGroup:
        """A whole group with its rewards and what they are summed from."""
        parts = [
            reward_parts(problem, rollout, verdict, self.config, self.thinking_opened)
            for rollout, verdict in zip(rollouts, verdicts, strict=True)
        ]
        parts = settle_unjudged(parts, verdicts)
        return RolloutGroup(problem, list(rollouts), [sum(each.values()) for each in parts], list(verdicts), parts)


def wants_program(problem: Problem) -> bool:
    return problem.domain == CODE or problem.tests is not None


# -----------------------------------------------------------------------------
# Rewards


def reward_parts(
    problem: Problem, rollout: Rollout, verdict: Verdict, config: GRPOConfig, thinking_opened: bool = False
) -> dict[str, float]:
    """What a reward is the sum of, by name: `correct`, and the penalties that the config gives a weight, negative."""
    reward, text = config.reward, rollout.text
    parts = {"correct": reward.correct * verdict.correct}
    if reward.format_penalty:
        parts["format"] = 0.0 - reward.format_penalty * (not well_formed(text, thinking_opened, is_cut(rollout)))
    if reward.several_boxes_penalty:
        has_several = not wants_program(problem) and count_boxed(text, after_think=True) > 1
        parts["several_boxes"] = 0.0 - reward.several_boxes_penalty * has_several
    if reward.language_mixing_penalty:
        parts["language_mixing"] = 0.0 - reward.language_mixing_penalty * other_script_share(text, problem.question)
    if reward.overlong_penalty:
        share = overlong_share(len(rollout.response_ids), config.limits.response_tokens, reward.overlong_buffer_tokens)
        parts["overlong"] = 0.0 - reward.overlong_penalty * share
    if reward.truncated_penalty:
        parts["truncated"] = 0.0 - reward.truncated_penalty * (rollout.stop_reason == "length")
    return parts


def settle_unjudged(parts: Sequence[dict[str, float]], verdicts: Sequence[Verdict]) -> list[dict[str, float]]:
    """The parts of a group where not every verdict is a judgement of its response.

    A gold that cannot be judged makes the group worth nothing: all rewards are 0, and no gradient comes of penalties
    alone. A fault of the verifier's own says nothing of the response, which takes the mean of its siblings'
    `correct`: an advantage of zero, but for penalties. What missed a deadline or a budget is wrong, for an answer that
    cannot be checked in time is not one to be learnt.
    """
    if any(verdict.status == "unverifiable_gold" for verdict in verdicts):
        return [dict.fromkeys(each, 0.0) for each in parts]
    judged = [each["correct"] for each, verdict in zip(parts, verdicts, strict=True) if not is_fault(verdict)]
    mean = min(max(fmean(judged), min(judged)), max(judged)) if judged else 0.0  # rounding is no contrast
    return [
        {**each, "correct": mean} if is_fault(verdict) else each for each, verdict in zip(parts, verdicts, strict=True)
    ]


def is_fault(verdict: Verdict) -> bool:
    """Whether a verdict is missing for a reason that is not the response's."""
    return verdict.status == "undecided" and verdict.stage in FAULTS


def is_cut(rollout: Rollout) -> bool:
    return rollout.stop_reason != "stop"


def well_formed(text: str, opened: bool = False, cut: bool = False) -> bool:
    """Whether <think>...</think> and an answer stand as they should (see `think_fault`).

    A response that was cut off is not blamed for what it had no time for: its length is priced by parts of its own.
    """
    fault = think_fault(text, opened)
    return fault is None or (cut and fault in OF_THE_CUT)


def overlong_share(response_tokens: int, limit: int, buffer_tokens: int) -> float:
    """How far into the last tokens before the limit a response reaches, from 0 to 1.

        0                                      for |y| <= limit - buffer
        (|y| - (limit - buffer)) / buffer      up to the limit
        1                                      from there on

    The negative of DAPO's soft overlong punishment (arXiv 2503.14476, equation 13), whose L_max is our limit and
    L_cache our buffer. 0 without a buffer.
    """
    if buffer_tokens <= 0:
        return 0.0
    return min(1.0, max(0.0, (response_tokens - (limit - buffer_tokens)) / buffer_tokens))


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
