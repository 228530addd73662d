"""From hidden states to the logprobs of the tokens that followed, with Falcon-H1's `lm_head_multiplier` (without it,
logits would be 76.8 times too large on the 7B) and a sampling temperature.
"""

from __future__ import annotations

from torch import Tensor
from transformers import FalconH1ForCausalLM

from falcon_h1r.data.packing import PackedBatch
from falcon_h1r.model.hybrid import PLAIN, ForwardPlan
from falcon_h1r.model.linear_logprobs import linear_logprobs


def packed_logprobs(
    model: FalconH1ForCausalLM,
    hidden: Tensor,
    batch: PackedBatch,
    temperature: float = 1.0,
    plan: ForwardPlan = PLAIN,
) -> tuple[Tensor, Tensor]:
    """Logprob of each weighted token of a packed row given its prefix, and the entropy it was drawn from.

    With sequence parallelism each rank computes what its hidden states predict: the tokens one further on, so that a
    document that crosses a shard's border loses nothing there. All of them get the whole row's results.

    A row without weighted tokens stays attached to the graph, so that its backward meets every parameter.

    Args:
        hidden: (t, E), final hidden states of this rank's tokens.
        batch: the whole row; only tokens whose `loss_weights` differ from 0 are computed.
        temperature: the logits are divided by it.

    Returns:
        logprobs (T) and entropies (T), both with gradient, float32 at least; 0 where the weight is 0. Entropies that no
        loss depends on cost no backward.
    """
    predicted = plan.sequence.local(batch.loss_weights.roll(-1)) != 0  # by each hidden state; a row's first never is
    index = predicted.nonzero().squeeze(1)
    targets = plan.sequence.local(batch.input_ids.roll(-1))[index]
    logprobs, entropies = plan.around(model.lm_head, token_logprobs)(model, hidden[index], targets, temperature)
    empty = logprobs.new_zeros(len(hidden))
    by_predictor = empty.index_copy(0, index, logprobs), empty.index_copy(0, index, entropies)
    row_logprobs, row_entropies = (plan.sequence.gather_same(part).roll(1) for part in by_predictor)
    return row_logprobs, row_entropies


def token_logprobs(
    model: FalconH1ForCausalLM, hidden: Tensor, targets: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Logprob of each target under the distribution that its hidden state predicts, and that distribution's entropy.

    Args:
        hidden: (n, E), final hidden states, each of the token before its target.
        targets: (n).
        temperature: the logits are divided by it.

    Returns:
        logprobs (n) and entropies (n), both with gradient, float32 at least.
    """
    scale = model.model.lm_head_multiplier / temperature
    found = linear_logprobs(hidden, model.lm_head.weight.to(hidden.dtype), targets, scale)
    return found.logprobs, found.entropies
