"""The second half of a step: packed rollouts in, an update of the policy out."""

from __future__ import annotations

from collections.abc import Sequence

from falcon_h1r.checkpoint.stopping import rows_until_stopped
from falcon_h1r.config_grpo import GRPOConfig
from falcon_h1r.data.packing import PackedBatch
from falcon_h1r.distributed.engine import Engine
from falcon_h1r.grpo.losses import Denominators, grpo_loss, loss_denominators
from falcon_h1r.training_run import SKIPPED


class Learner:
    """Updates the policy of an engine."""

    def __init__(self, engine: Engine, config: GRPOConfig) -> None:
        self.engine, self.config = engine, config

    def update(self, rows: Sequence[PackedBatch]) -> dict[str, float]:
        """One batch: this rank's rows, of which all ranks have as many. Returns metrics, the same on every rank.

        Raises:
            StopRequested: on every rank, with gradients to discard.
        """
        engine, config, world = self.engine, self.config, self.engine.world
        denominators = Denominators(*world.sum_over_data(loss_denominators(rows)))  # before the first backward
        metrics = {"learning_rate": engine.learning_rate}
        sums: dict[str, float] = {}
        for row in rows_until_stopped(engine, rows):
            policy_logprobs, entropies = engine.logprobs(row, config.rollout.temperature)
            loss, stats = grpo_loss(policy_logprobs, row, denominators, config.loss)
            engine.backward(loss)
            for name, value in {**stats, "loss": loss.detach(), "entropy": entropies.sum()}.items():
                sums[name] = sums.get(name, 0.0) + value.item()
        outcome = engine.step()
        metrics["grad_norm"], metrics[SKIPPED] = outcome.grad_norm, float(not outcome.applied)
        return metrics | _averages(dict(zip(sums, world.sum_over_data(list(sums.values())), strict=True)))


def _averages(sums: dict[str, float]) -> dict[str, float]:
    tokens = sums["tokens"]
    return {
        "loss": sums["loss"],
        "tokens": tokens,
        "entropy": sums["entropy"] / tokens,
        "clip_share": sums["clipped"] / tokens,
        "sampler_kl": sums["sampler_kl"] / tokens,
        "importance_ratio": sums["importance_ratio"] / tokens,
    }
