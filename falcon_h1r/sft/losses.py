"""The loss of the cold start, as a pure function."""

from __future__ import annotations

from torch import Tensor

from falcon_h1r.data.packing import PackedBatch


def weighted_cross_entropy(logprobs: Tensor, batch: PackedBatch, denominator: float) -> Tensor:
    """This row's part of the step's loss: -sum_t w_t * log p(t | prefix) / denominator.

    `w_t` is the difficulty weight times the loss mask, `denominator` the sum of w over *all* rows of the optimizer
    step on all ranks. Then the parts add up to the weighted mean over the global batch, and the gradient does not
    depend on how tokens fell to rows and ranks (balanced data-parallel token normalisation, Falcon-H1R report,
    arXiv 2601.02346, section 2.3; there the mask alone is in the denominator, which differs by a factor that the
    weights' mean makes and Adam all but ignores).

    Args:
        logprobs: (T), 0 where the weight is 0.
    """
    return -(batch.loss_weights.to(logprobs.dtype) * logprobs).sum() / denominator
