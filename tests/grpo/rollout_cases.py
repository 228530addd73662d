"""Rollouts of random tokens with everything that the objective reads, for tests of the update."""

from __future__ import annotations

import random

from torch import Tensor

from falcon_h1r.data.packing import Document, pack_row
from falcon_h1r.distributed.engine import Engine

Response = tuple[int, int, float]  # tokens of the prompt, of the response, and the advantage
# All of it exact in float32, as rows hold it, so that float64 may be asked for its own precision.
RESPONSES: list[Response] = [(4, 8, 1.25), (4, 16, -0.75), (7, 4, 0.875), (7, 8, -0.5), (2, 4, 0.625), (2, 1, -1.5)]
MAX_RESPONSE = 16


def rollout_documents(
    aggregation: str = "sequence", masked: tuple[int, ...] = (), responses: list[Response] = RESPONSES, seed: int = 0
) -> list[Document]:
    """Rollouts whose sampler's logprobs are uniform noise around those of a random model of 330 tokens."""
    rng = random.Random(seed)
    documents = []
    for index, (prompt, length, advantage) in enumerate(responses):
        weight = {"sequence": 1 / length, "token": 1.0, "constant": 1 / MAX_RESPONSE}[aggregation]
        blank = [0.0] * prompt
        documents.append(
            Document(
                input_ids=[rng.randrange(3, 300) for _ in range(prompt + length)],
                loss_weights=blank + [0.0 if index in masked else weight] * length,
                advantages=blank + [advantage] * length,
                positives=blank + [float(advantage > 0.5)] * length,
                sampler_logprobs=blank + [-rng.randrange(4 * 64, 7 * 64) / 64 for _ in range(length)],
                uid=str(index),
            )
        )
    return documents


def response_logprobs(engine: Engine, document: Document, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Logprobs and entropies of one document run by itself, of its response alone."""
    weighted = Document(document.input_ids, [0.0] + [1.0] * (len(document) - 1))
    logprobs, entropies = engine.logprobs(pack_row([weighted]), temperature)
    assert document.sampler_logprobs is not None
    prompt = len(document) - sum(logprob != 0 for logprob in document.sampler_logprobs)
    return logprobs[prompt:], entropies[prompt:]
