"""The second half of a step: packed rollouts in, updates of the policy out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from falcon_h1r.checkpoint.stopping import rows_until_stopped
from falcon_h1r.config_grpo import GRPOConfig
from falcon_h1r.data.packing import PackedBatch
from falcon_h1r.distributed.engine import Engine, StepOutcome
from falcon_h1r.grpo.losses import Denominators, grpo_loss, loss_denominators
from falcon_h1r.grpo.reference import Reference
from falcon_h1r.training_run import SKIPPED

LAYER_NORMS_EVERY_STEPS = 10  # of the optimizer: gradient norms by layer go to the log

Sums = dict[str, Tensor]  # of one number each, in float64


class Learner:
    """Updates the policy of an engine, `updates_per_batch` times on each batch."""

    def __init__(self, engine: Engine, config: GRPOConfig, reference: Reference | None = None) -> None:
        """
        Args:
            reference: of the KL term; not asked where `kl_coefficient` is 0.
        """
        assert reference is not None or config.loss.kl_coefficient == 0
        self.engine, self.config, self.reference = engine, config, reference

    def skip(self) -> dict[str, float]:
        """A batch with nothing to learn from: the schedule moves on by its updates, the weights stay. No metrics."""
        for _ in range(self.config.updates_per_batch):
            self.engine.skip_step()
        return {}

    def update(self, rows: Sequence[PackedBatch], num_left_out: int = 0) -> dict[str, float]:
        """One batch: this rank's rows, of which all ranks have as many. Returns metrics, the same on every rank.

        Averages are over the batch's updates, `learning_rate` is the last one's. A run that is told to stop does so
        before the first update; a batch that was begun is learnt from to its end, for its rollouts are not saved.

        Args:
            num_left_out: rollouts of the batch, over all ranks, that are in no row because they carry no loss. They
                count among its rollouts all the same.

        Raises:
            StopRequested: on every rank, with gradients to discard.
        """
        engine, world = self.engine, self.engine.world
        rollouts, tokens, positive_tokens = world.sum_over_data(loss_denominators(rows))  # before the first backward
        denominators = Denominators(rollouts + num_left_out, tokens, positive_tokens)
        if denominators.tokens == 0:  # all masked: a gradient of zero would still decay weights and move by momentum
            self.skip()
            return {"tokens": 0.0}
        sums: Sums = {}
        outcomes: list[StepOutcome] = []
        prepared: list[PackedBatch] = []
        for update in range(self.config.updates_per_batch):
            learning_rate = engine.learning_rate
            if update == 0:
                prepared = [self._learn(row, denominators, sums) for row in rows_until_stopped(engine, rows)]
            else:
                for row in self._once_more(prepared):
                    self._learn(row, denominators, sums)
            outcomes.append(engine.step(by_layer=engine.steps_done % LAYER_NORMS_EVERY_STEPS == 0))
        totals = world.sum_over_data(torch.stack(list(sums.values())).tolist())
        return {
            "learning_rate": learning_rate,
            "grad_norm": sum(outcome.grad_norm for outcome in outcomes) / len(outcomes),
            SKIPPED: float(not all(outcome.applied for outcome in outcomes)),
            **_averages(dict(zip(sums, totals, strict=True)), len(outcomes)),
            **{f"grad_norm_{layer}": n for outcome in outcomes for layer, n in outcome.layer_grad_norms.items()},
        }

    def _learn(self, row: PackedBatch, denominators: Denominators, sums: Sums) -> PackedBatch:
        """Add a row's gradient and its sums. Returns the row with the logprobs that later updates need.

        Weights stay as they are until the first update is done, so that the first pass's logprobs are the old ones.
        """
        temperature, settings = self.config.rollout.temperature, self.config.loss
        if self.reference is not None and settings.kl_coefficient > 0 and row.reference_logprobs is None:
            row = replace(row, reference_logprobs=self.reference.logprobs(self.engine, row, temperature))
        policy_logprobs, entropies = self.engine.logprobs(row, temperature)
        if row.old_policy_logprobs is None:
            row = replace(row, old_policy_logprobs=policy_logprobs.detach())
        if settings.entropy_coefficient == 0:
            entropies = entropies.detach()
        loss, stats = grpo_loss(policy_logprobs, entropies, row, denominators, settings)
        self.engine.backward(loss)
        for name, value in stats.items():
            sums[name] = sums.get(name, value.new_zeros((), dtype=torch.float64)) + value
        return row

    def _once_more(self, rows: Iterable[PackedBatch]) -> Iterator[PackedBatch]:
        for row in rows:
            self.engine.world.watch.beat("training", self.engine.steps_done)
            yield row


def _averages(sums: dict[str, float], num_updates: int) -> dict[str, float]:
    """Metrics from sums over tokens, rows, ranks and updates."""
    tokens = sums["tokens"]
    shares = {"clipped_low": "clip_low_share", "clipped_high": "clip_high_share", "capped": "importance_capped_share"}
    shares |= {"unscored": "unscored_share"}
    metrics = {"tokens": tokens / num_updates}
    for name, total in sums.items():
        if name.endswith("loss"):
            metrics[name] = total / num_updates
        elif name != "tokens":
            metrics[shares.get(name, name)] = total / tokens
    return metrics
