"""TRL's GRPOTrainer on the same model, problems, batch and reward, step by step beside ours."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from falcon_h1r.config import Config
from falcon_h1r.types import Problem
from falcon_h1r.verifier import Verifier

if TYPE_CHECKING:
    from transformers import FalconH1ForCausalLM, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class PeerStep:
    """One of its steps: sampling, reward and update."""

    seconds: float
    response_tokens: int
    pass_at_1: float


def run_peer(
    model: FalconH1ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    verifier: Verifier,
    config: Config,
    device_batch: int,
    num_steps: int,
    between: Callable[[], None] = lambda: None,
) -> list[PeerStep]:
    """Its steps, on a copy of the model.

    Args:
        device_batch: rollouts of one of its forward and backward passes; it accumulates over the rest of the batch.
        between: called after every step, so that another takes turns with it.
    """
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOTrainer

    steps: list[PeerStep] = []
    scored: list[tuple[int, float]] = []  # of the step under way: tokens and reward of each completion
    started = 0.0

    def reward(completions: Sequence[Any], gold: Sequence[str], completion_ids: Sequence[Any], **_: Any) -> list[float]:
        texts = [completion[0]["content"] for completion in completions]
        rewards = [float(verdict.correct) for verdict in verifier.score(texts, list(gold))]
        scored.extend(zip(map(len, completion_ids), rewards, strict=True))
        return rewards

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            nonlocal started
            scored.clear()
            started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds = time.perf_counter() - started
            tokens, rewards = zip(*scored, strict=True)
            steps.append(PeerStep(seconds, sum(tokens), sum(rewards) / len(rewards)))
            between()

    rows = [
        {
            "prompt": [
                {"role": "system", "content": config.system_prompt},
                {"role": "user", "content": problem.question},
            ],
            "gold": problem.answer,
        }
        for problem in problems
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = peer_arguments(config, device_batch, num_steps, folder)
        trainer = GRPOTrainer(
            model=copy.deepcopy(model),
            reward_funcs=reward,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        trainer.train()
    return steps


def peer_arguments(config: Config, device_batch: int, num_steps: int, folder: str) -> Any:
    """Its GRPOConfig: ours, as far as it has the same."""
    from trl import GRPOConfig

    grpo = config.grpo
    batch = grpo.problems_per_step * grpo.group_size
    return GRPOConfig(
        output_dir=folder,
        per_device_train_batch_size=device_batch,
        gradient_accumulation_steps=batch // device_batch,
        num_generations=grpo.group_size,
        max_completion_length=grpo.limits.response_tokens,
        temperature=grpo.rollout.temperature,
        beta=0.0,
        epsilon=grpo.loss.clip_low,
        epsilon_high=grpo.loss.clip_high,
        loss_type="grpo",
        learning_rate=grpo.optimizer.learning_rate,
        lr_scheduler_type="constant",
        max_steps=num_steps,
        seed=config.seed,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
