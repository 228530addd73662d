"""The loss of the cold start, as a pure function."""

from __future__ import annotations

from torch import Tensor

from falcon_h1r.data.packing import PackedBatch


def weighted_cross_entropy(logprobs: Tensor, batch: PackedBatch, denominator: float) -> Tensor:
    """This row's part of the step's loss: -sum_t w_t * log p(t | prefix) / denominator.

    `w_t` is the difficulty weight times the loss mask m_t. The denominator is one sum over *all* rows of the optimizer
    step on all ranks, so that the parts add up to one loss and the gradient does not depend on how tokens fell to rows
    and ranks (balanced data-parallel token normalisation, Falcon-H1R report, arXiv 2601.02346, section 2.3):

        sft.denominator=weights   sum_t w_t: the weighted mean
        sft.denominator=tokens    sum_t m_t, as the report has it: the weighted mean times the step's mean weight

    Args:
        logprobs: (T), 0 where the weight is 0.
    """
    return -(batch.loss_weights.to(logprobs.dtype) * logprobs).sum() / denominator
