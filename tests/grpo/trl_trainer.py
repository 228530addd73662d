"""TRL's GRPOTrainer on rollouts that are given: all of its own code between sampling and the gradient.

Only its generation is replaced. Padding, masks, advantages, old, reference and sampler logprobs, denominators and the
loss are TRL's, on a real Falcon-H1 in float64.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from torch import Tensor
from transformers import FalconH1ForCausalLM, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sampled:
    """One rollout with its reward."""

    prompt: list[int]
    response: list[int]
    logprobs: list[float]  # the sampler's
    reward: float


def trl_trainer(
    model: FalconH1ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    rollouts: list[Sampled],
    folder: str,
    group_size: int,
    corrected: bool = False,
    **settings: Any,
) -> Any:
    """A trainer of a copy of the model that will "sample" these rollouts.

    Args:
        corrected: weigh tokens by TRL's importance sampling correction, which it has for vLLM alone.
    """
    from trl import GRPOConfig, GRPOTrainer

    settings = {"per_device_train_batch_size": len(rollouts), "temperature": 1.0, **settings}
    arguments = GRPOConfig(folder, num_generations=group_size, bf16=False, use_cpu=True, report_to=[], **settings)
    trainer = GRPOTrainer(
        copy.deepcopy(model),
        reward_funcs=lambda **_: [rollout.reward for rollout in rollouts],
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["a", "b"]}),
        processing_class=tokenizer,
    )
    if corrected:
        trainer.use_vllm, trainer.vllm_importance_sampling_correction = True, True

    def generate(_: Any) -> tuple[Any, ...]:
        ids = [rollout.prompt for rollout in rollouts], [rollout.response for rollout in rollouts]
        return (*ids, None, ["text"] * len(rollouts), [rollout.logprobs for rollout in rollouts], {}, None, None)

    trainer._generate = generate
    trainer.model.train()
    return trainer


def trl_inputs(trainer: Any, num_rollouts: int) -> dict[str, Any]:
    """The rollouts scored and padded, with the logprobs of the model as it is now."""
    found: dict[str, Any] = trainer._generate_and_score_completions([{"prompt": "text"}] * num_rollouts)
    return found


def trl_gradients(trainer: Any, inputs: dict[str, Any], num_micro_batches: int = 1) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of one optimizer step, accumulated over micro-batches as TRL cuts them."""
    from trl.trainer.utils import split_tensor_dict

    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    trainer.model.zero_grad()
    total = 0.0
    for part in split_tensor_dict(inputs, num_micro_batches):
        loss = trainer._compute_loss(trainer.model, part)
        loss.backward()
        total += loss.item()
    return total, {name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters()}
