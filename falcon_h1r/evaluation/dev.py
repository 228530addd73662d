"""Accuracy on development problems while a stage trains: the learning curve, never a reported result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from falcon_h1r.config import Config
from falcon_h1r.config_evaluate import EvaluateConfig
from falcon_h1r.config_stage import LimitsConfig
from falcon_h1r.data.sources import load_problems
from falcon_h1r.data.tokenisation import encode_prompts
from falcon_h1r.evaluation.evaluate import check_prompt_lengths, dev_metrics, evaluate_policy
from falcon_h1r.rollout.torch_sampler import TorchSampler
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
    settings = EvaluateConfig(limits=limits, num_samples=config.dev.num_samples)
    prompts = encode_prompts(tokenizer, problems, config.system_prompt)
    check_prompt_lengths(problems, prompts, limits.prompt_tokens, f"{config.dev.data.path}, {stage}.limits")
    sampler = TorchSampler(model, tokenizer, config.evaluate.max_slots, watch=world.watch)
    with Verifier.from_config(config.verifier, after_think=True) as verifier:

        def measure() -> dict[str, float]:
            was_training = model.training
            model.eval()
            try:
                rows = evaluate_policy(
                    sampler, tokenizer, verifier, problems, settings, config.system_prompt, config.seed, world
                )
            finally:
                model.train(was_training)
            return dev_metrics(rows)

        yield measure
