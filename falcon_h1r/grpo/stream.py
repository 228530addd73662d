"""The problems of RL: which can be used, and the endless order in which they are drawn."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from falcon_h1r.config import Config
from falcon_h1r.data.tokenisation import encode_prompts
from falcon_h1r.rollout.sampler import Prompt
from falcon_h1r.types import InputError, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ProblemStream:
    """RL problems in an endless shuffled order that depends on the seed alone; equal on every rank.

    Passed over are problems that are in use, and for `skip_solved_steps` steps those whose whole group was right: at
    the next policy too, such a group would hardly have contrast. Where nothing else is left, the one solved longest
    ago is drawn.
    """

    def __init__(
        self, problems: Sequence[Problem], prompts: Sequence[list[int]], seed: int, skip_solved_steps: int = 0
    ) -> None:
        """
        Args:
            prompts: token ids of each problem's prompt.
        """
        assert len(problems) == len(prompts) > 0
        self._problems, self._prompts, self._seed = problems, prompts, seed
        self._index = {problem.uid: index for index, problem in enumerate(problems)}
        self._skip_solved_steps = skip_solved_steps
        self.step = 0  # batches begun
        self.num_drawn = 0  # groups, over the whole run: the next one's number
        self._position = 0
        self._order: tuple[int, list[int]] = (-1, [])  # (epoch, its permutation)
        self._solved: dict[str, int] = {}  # problem -> the step in which its group was right, longest ago first
        self._again: list[str] = []  # to be drawn before others
        self._held: dict[str, Any] | None = None

    def __getitem__(self, uid: str) -> tuple[Problem, Prompt]:
        """A problem by its uid, with its prompt.

        Raises:
            InputError: where there is none.
        """
        if (index := self._index.get(uid)) is None:
            raise InputError(f"grpo.data: no problem {uid}, of which the checkpoint carries rollouts")
        return self._problems[index], Prompt(uid, self._prompts[index])

    # -------------------------------------------------------------------------
    # Drawing

    def begin_step(self) -> None:
        """Count a step, and forget what was solved too long ago to matter."""
        self.step += 1
        self._solved = {uid: step for uid, step in self._solved.items() if step + self._skip_solved_steps >= self.step}

    def draw(self, in_use: Collection[str] = ()) -> str | None:
        """The uid of the next problem; None where all are in use.

        Args:
            in_use: uids of problems of which the caller has a group.
        """
        uid = self._next_uid(set(in_use))
        self.num_drawn += uid is not None
        return uid

    def mark_solved(self, uid: str) -> None:
        """Its whole group was right in this step."""
        if self._skip_solved_steps:
            self._solved.pop(uid, None)
            self._solved[uid] = self.step

    def draw_again(self, uid: str) -> None:
        """It is drawn before others."""
        if uid not in self._again:
            self._again.append(uid)

    @property
    def num_solved(self) -> int:
        """Problems that are passed over."""
        return len(self._solved)

    def was_solved(self, uid: str) -> bool:
        """Whether it is among those that are passed over, if there is anything else to draw."""
        return uid in self._solved

    def _next_uid(self, in_use: set[str]) -> str | None:
        again = next((uid for uid in self._again if uid not in in_use), None)
        if again is not None:
            self._again.remove(again)
            return again
        passed_over = in_use | self._solved.keys()
        if all(uid in passed_over for uid in self._index):
            return next((uid for uid in self._solved if uid not in in_use), None)
        while (uid := self._advance()) in passed_over:
            pass
        return uid

    def _advance(self) -> str:
        """The next place in the order, whatever stands there."""
        epoch, index = divmod(self._position, len(self._problems))
        if epoch != self._order[0]:
            order = list(range(len(self._problems)))
            random.Random(f"{self._seed}/{epoch}").shuffle(order)
            self._order = (epoch, order)
        self._position += 1
        return self._problems[self._order[1][index]].uid

    # -------------------------------------------------------------------------
    # State

    def hold(self) -> None:
        """Until `release`, `state_dict` tells the state of this moment, however many problems are drawn meanwhile."""
        self._held = self._state()

    def release(self) -> None:
        """See `hold`."""
        self._held = None

    def state_dict(self) -> dict[str, Any]:
        """The position, what it counts in, and what is passed over or put first."""
        return self._held or self._state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position. Older states tell nothing else.

        Raises:
            InputError: where it counts in other problems.
        """
        if state["num_problems"] != len(self._problems):
            raise InputError(
                f"grpo.data: {len(self._problems)} usable problems, where the checkpoint counts {state['num_problems']}"
            )
        self._position = state["position"]
        self.step, self.num_drawn = state.get("step", 0), state.get("num_drawn", self._position)
        self._solved, self._again = dict(state.get("solved", ())), list(state.get("again", ()))

    def _state(self) -> dict[str, Any]:
        return {
            "position": self._position,
            "num_problems": len(self._problems),
            "step": self.step,
            "num_drawn": self.num_drawn,
            "solved": list(self._solved.items()),
            "again": list(self._again),
        }


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
    return ProblemStream(kept, kept_prompts, config.seed, config.grpo.skip_solved_steps), counts
