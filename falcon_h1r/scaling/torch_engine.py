"""Traces from the torch sampler of this process: rows of its running batch are stopped where their confidence falls."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from falcon_h1r.data.tokenisation import encode_prompts
from falcon_h1r.distributed.watch import Watch
from falcon_h1r.rollout.sampler import Prompt, RolloutKey, RolloutRequest
from falcon_h1r.rollout.torch_sampler import TorchSampler
from falcon_h1r.scaling.engine import ConfidenceSettings, DrawnTrace, TraceRequest
from falcon_h1r.scaling.stopping import ConfidenceStops
from falcon_h1r.types import Rollout

if TYPE_CHECKING:
    from transformers import FalconH1ForCausalLM, PreTrainedTokenizerBase


class TorchEngine:
    """See `falcon_h1r.scaling.engine.TraceEngine`."""

    def __init__(
        self,
        model: FalconH1ForCausalLM,
        tokenizer: PreTrainedTokenizerBase,
        max_slots: int,
        confidence: ConfidenceSettings | None = None,
        watch: Watch | None = None,
        use_graphs: bool = False,
        name: str = "a model in memory",
    ) -> None:
        """
        Args:
            name: of the model, for `description`.
            use_graphs: see `TorchSampler`.
        """
        self.tokenizer, self.confidence = tokenizer, confidence
        self._stops = None if confidence is None else ConfidenceStops(confidence)
        self.sampler = TorchSampler(
            model, tokenizer, max_slots, watch=watch, use_graphs=use_graphs, overseer=self._stops
        )
        dtype = str(model.dtype).removeprefix("torch.")
        self.description = f"torch sampler, {name}, {dtype}"
        self._prompts: dict[tuple[str, str, str], Prompt] = {}

    @property
    def free_slots(self) -> int:
        return self.sampler.free_slots

    def submit(self, requests: Iterable[TraceRequest]) -> None:
        """See `TraceEngine.submit`.

        Raises:
            ValueError: where a key is there already, or a request with a stop comes to an engine that does not measure
                what it stops by.
        """
        wanted, stops = [], {}
        for request in requests:
            if request.stop is not None:
                if self._stops is None or request.stop.measure not in self._stops.settings.measures:
                    raise ValueError(f"{request.key}: this engine does not measure {request.stop.measure!r}")
                stops[request.key] = request.stop
            wanted.append(RolloutRequest(self._prompt_of(request), request.sample_index, request.settings))
        self.sampler.submit(wanted)
        if self._stops is not None:
            self._stops.stops.update(stops)

    def _prompt_of(self, request: TraceRequest) -> Prompt:
        known = request.problem.uid, request.question, request.system_prompt
        if known not in self._prompts:
            asked = replace(request.problem, question=request.question)
            (ids,) = encode_prompts(self.tokenizer, [asked], request.system_prompt)
            self._prompts[known] = Prompt(request.problem.uid, ids)
        return self._prompts[known]

    @torch.no_grad()
    def advance(self) -> list[DrawnTrace]:
        """See `TraceEngine.advance`."""
        while not self.sampler.is_idle:
            if rollouts := self.sampler.advance(self.sampler.burst_steps):
                return self._drawn(rollouts)
        return []

    def abort(self, keys: Collection[RolloutKey] | None = None) -> list[DrawnTrace]:
        """See `TraceEngine.abort`."""
        return self._drawn(self.sampler.abort(keys))

    def _drawn(self, rollouts: list[Rollout]) -> list[DrawnTrace]:
        return [
            DrawnTrace(
                problem_uid=rollout.problem_uid,
                sample_index=rollout.sample_index,
                text=rollout.text,
                num_tokens=len(rollout.response_ids),
                stop_reason=rollout.stop_reason,
                confidences=self._confidences(rollout),
                response_ids=rollout.response_ids,
                top_logprobs=rollout.top_logprobs,
            )
            for rollout in rollouts
        ]

    def _confidences(self, rollout: Rollout) -> dict[str, NDArray[np.float64]]:
        if self._stops is None:
            return {}
        key = rollout.problem_uid, rollout.sample_index
        self._stops.stops.pop(key, None)
        found = {
            "top_k": self._stops.top_k_confidences.pop(key, np.zeros(0)),
            "sampled": np.array(rollout.sampler_logprobs, np.float64),
        }
        return {measure: found[measure] for measure in self._stops.settings.measures}

    def close(self) -> None:
        """Nothing is held beyond this object."""
