"""The problems of RL: which can be used, and the endless order in which they are drawn."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from falcon_h1r.config import Config
from falcon_h1r.data.tokenisation import encode_prompts
from falcon_h1r.rollout.sampler import Prompt
from falcon_h1r.types import InputError, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ProblemStream:
    """RL problems in an endless shuffled order that depends on the seed alone; equal on every rank."""

    def __init__(self, problems: Sequence[Problem], prompts: Sequence[list[int]], seed: int) -> None:
        """
        Args:
            prompts: token ids of each problem's prompt.
        """
        assert len(problems) == len(prompts) > 0
        self._problems, self._prompts, self._seed = problems, prompts, seed
        self._position = 0
        self._order: tuple[int, list[int]] = (-1, [])  # (epoch, its permutation)

    def take(self, count: int) -> list[tuple[Problem, Prompt]]:
        """The next `count` problems with their prompts, all different: across an epoch's border a repeat is skipped."""
        assert count <= len(self._problems)
        taken: dict[str, tuple[Problem, Prompt]] = {}
        while len(taken) < count:
            problem, prompt = self._next()
            taken.setdefault(problem.uid, (problem, prompt))
        return list(taken.values())

    def state_dict(self) -> dict[str, Any]:
        """The position, and what it counts in."""
        return {"position": self._position, "num_problems": len(self._problems)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position.

        Raises:
            InputError: where it counts in other problems.
        """
        if state["num_problems"] != len(self._problems):
            raise InputError(
                f"grpo.data: {len(self._problems)} usable problems, where the checkpoint counts {state['num_problems']}"
            )
        self._position = state["position"]

    def _next(self) -> tuple[Problem, Prompt]:
        epoch, index = divmod(self._position, len(self._problems))
        if epoch != self._order[0]:
            order = list(range(len(self._problems)))
            random.Random(f"{self._seed}/{epoch}").shuffle(order)
            self._order = (epoch, order)
        self._position += 1
        problem = self._problems[self._order[1][index]]
        return problem, Prompt(problem.uid, self._prompts[self._order[1][index]])


def open_stream(
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    config: Config,
    check_problem: Callable[[Problem], bool],
) -> tuple[ProblemStream, dict[str, int]]:
    """The stream of problems that can be used, and the counts of those that cannot.

    A gold that the verifier cannot read would be scored wrong whatever is answered, and a prompt beyond the limit
    would be cut: both are left out and counted, and so are domains that `grpo.selection` does not name.

    Args:
        check_problem: whether answers to it can be judged (`Scorer.check_problem`).

    Raises:
        InputError: where nothing is left.
    """
    prompts = encode_prompts(tokenizer, problems, config.system_prompt)
    usable: dict[str, tuple[Problem, list[int]]] = {}
    counts = {"other_domain": 0, "repeated": 0, "unverifiable_gold": 0, "prompt_too_long": 0}
    for problem, prompt in zip(problems, prompts, strict=True):
        if problem.domain not in config.grpo.selection.domains:
            counts["other_domain"] += 1
        elif problem.uid in usable:
            counts["repeated"] += 1
        elif len(prompt) > config.grpo.limits.prompt_tokens:
            counts["prompt_too_long"] += 1
        elif not check_problem(problem):
            counts["unverifiable_gold"] += 1
        else:
            usable[problem.uid] = problem, prompt
    if len(usable) < config.grpo.problems_per_step:
        raise InputError(
            f"{config.grpo.data.path}: {len(usable)} usable problems are fewer than "
            f"grpo.problems_per_step={config.grpo.problems_per_step} ({counts['prompt_too_long']} prompts beyond "
            f"grpo.limits.prompt_tokens={config.grpo.limits.prompt_tokens}, {counts['unverifiable_gold']} golds that "
            f"cannot be verified, {counts['other_domain']} of other domains than grpo.selection.domains)"
        )
    kept, kept_prompts = zip(*usable.values(), strict=True)
    return ProblemStream(kept, kept_prompts, config.seed), counts
