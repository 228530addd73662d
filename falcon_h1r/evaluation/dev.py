"""Accuracy on development problems while a stage trains: the learning curve, never a reported result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from falcon_h1r.checkpoint.stopping import gather_unless_stopped
from falcon_h1r.config import Config
from falcon_h1r.config_stage import LimitsConfig
from falcon_h1r.data.sources import load_problems
from falcon_h1r.data.tokenisation import encode_prompts
from falcon_h1r.rollout.sampler import Prompt, Sampler, SamplingSettings
from falcon_h1r.rollout.torch_sampler import TorchSampler
from falcon_h1r.types import InputError, Problem
from falcon_h1r.verifier import Verifier

if TYPE_CHECKING:
    from transformers import FalconH1ForCausalLM, PreTrainedTokenizerBase

    from falcon_h1r.distributed.world import World


@contextmanager
def dev_evaluation(
    config: Config,
    model: FalconH1ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    world: World,
    stage: str,
) -> Iterator[Callable[[], dict[str, float]]]:
    """A function that measures the model as it then is: `dev_pass_at_1` and `dev_greedy`.

    Args:
        stage: whose limits hold, "sft" or "grpo".

    Without development problems it measures nothing and returns an empty dict. It raises StopRequested, on every rank,
    where the run is to stop meanwhile.
    """
    if config.dev.data.path is None:
        yield dict
        return
    limits: LimitsConfig = getattr(config, stage).limits
    problems = load_problems(config.dev.data)[: config.dev.num_problems]
    prompts = encode_prompts(tokenizer, problems, config.system_prompt)
    longest = max(map(len, prompts), default=0)
    if longest > limits.prompt_tokens:
        raise InputError(
            f"{config.dev.data.path}, {stage}.limits.prompt_tokens={limits.prompt_tokens}: a problem has {longest}"
        )
    asked = list(zip(problems, prompts, strict=True))
    samples = SamplingSettings(config.dev.num_samples, limits.response_tokens, seed=config.seed)
    greedy = SamplingSettings(1, limits.response_tokens, temperature=0.0, seed=config.seed)
    sampler = TorchSampler(model, tokenizer, config.evaluate.max_slots, watch=world.watch)
    with Verifier.from_config(config.verifier, after_think=True) as verifier:

        def measure() -> dict[str, float]:
            was_training = model.training
            model.eval()
            try:
                return {
                    "dev_pass_at_1": _share_right(sampler, verifier, asked, samples, world),
                    "dev_greedy": _share_right(sampler, verifier, asked, greedy, world),
                }
            finally:
                model.train(was_training)

        yield measure


def _share_right(
    sampler: Sampler,
    verifier: Verifier,
    asked: Sequence[tuple[Problem, list[int]]],
    settings: SamplingSettings,
    world: World,
) -> float:
    """Of all responses, each rank's to its share of the problems.

    Raises:
        StopRequested: on every rank.
    """
    own = world.share(asked)
    golds = {problem.uid: problem.answer for problem, _ in own}

    def right() -> list[bool]:
        rollouts = sampler.generate([Prompt(problem.uid, ids) for problem, ids in own], settings)
        with world.watch.long("judging"):
            texts = [rollout.text for rollout in rollouts]
            verdicts = verifier.score(texts, [golds[rollout.problem_uid] for rollout in rollouts])
        return [verdict.correct for verdict in verdicts]

    found = [each for of_rank in gather_unless_stopped(world, right) for each in of_rank]
    return sum(found) / len(found)
