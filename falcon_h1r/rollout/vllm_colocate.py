"""vLLM inside the trainer's processes: an engine on each rank's GPU, asleep while it trains. The one file with vllm.

See `falcon_h1r.rollout.sampler.Sampler` for the contract. The engine is stepped one token of all its rollouts at a
time, as `LLM.generate` does inside, so that rollouts join, end and are aborted between two steps.

It sleeps whenever it has nothing to do: its weights wait in the host's memory, and the memory of its caches is free. It
wakes for a request or for new weights. An engine is its rank's alone (tensor parallel 1): the ranks of a larger one
would have to step together on the same requests, while those of this project sample at their own pace.

vLLM has to be installed in the trainer's own environment, with the torch and transformers that it pins
(constraints-vllm.txt).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import FalconH1ForCausalLM

from falcon_h1r.config import Config
from falcon_h1r.data.tokenisation import stop_token_ids
from falcon_h1r.distributed.engine import Engine
from falcon_h1r.distributed.watch import StopRequested
from falcon_h1r.distributed.world import World
from falcon_h1r.model.precision import compute_dtype
from falcon_h1r.rollout.sampler import Prompt, RolloutKey, RolloutRequest, SamplingSettings, draw_all
from falcon_h1r.rollout.sync_check import SamplerOutOfSync, SyncCheck, check_sync
from falcon_h1r.rollout.vllm_draft import Draft, best_logprobs, check_logprobs, checked_end, sampling_arguments
from falcon_h1r.rollout.vllm_vectors import Vectors, described, kept_vectors, missing_vectors
from falcon_h1r.rollout.vllm_worker import held_vectors
from falcon_h1r.rollout.weight_names import as_announced, plain_weights, sent_weights
from falcon_h1r.types import InputError, Rollout, StopReason

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WEIGHTS, CACHES = "weights", "kv_cache"  # what wakes up by itself
ADVICE = "Its engine holds mamba.A_log, mamba.D and mamba.dt_bias as given: did it lose others? See docs/vllm.md"


def import_vllm() -> Any:
    """
    Raises:
        InputError: where it is not installed.
    """
    try:
        import vllm
        import vllm.sampling_params
    except ImportError as error:
        raise InputError(
            f"grpo.rollout.name=vllm_colocate: vLLM cannot be imported ({error}): it has to be in this trainer's "
            "environment; rollout=vllm_server keeps it in one of its own"
        ) from error
    return vllm


def engine_arguments(config: Config, model_tokens: int, model: FalconH1ForCausalLM) -> dict[str, Any]:
    """How the engine of a rank is made. It starts with random weights, for the first sync brings the policy's.

    Raises:
        InputError: where the model is no checkpoint, from which vLLM could read its shape and tokenizer.
    """
    rollout = config.grpo.rollout
    if config.model.path is None:
        raise InputError("model.path is not set: vllm_colocate reads the model's shape and tokenizer there")
    dtype = rollout.dtype or str(compute_dtype(model)).removeprefix("torch.")
    return {
        "model": config.model.path,
        "revision": config.model.revision,
        "load_format": "dummy",
        "dtype": dtype,
        "mamba_ssm_cache_dtype": "float32",
        "max_model_len": model_tokens,
        "max_num_seqs": rollout.max_slots,
        "gpu_memory_utilization": rollout.vllm.memory_share,
        "tensor_parallel_size": 1,
        "distributed_executor_backend": "external_launcher",
        "enable_sleep_mode": True,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "seed": config.seed,
    }


class VLLMColocatedSampler:
    """Rollouts of the engine on this rank's GPU."""

    def __init__(
        self,
        llm: Any,
        vllm: Any,
        tokenizer: PreTrainedTokenizerBase,
        world: World,
        check: SyncCheck,
        max_slots: int,
        dtype: torch.dtype | None = None,
        on_finished: Callable[[int], None] | None = None,
    ) -> None:
        """
        Args:
            llm: an awake `vllm.LLM`; it is put to sleep.
            vllm: the module it comes from.
            check: made after every sync.
            dtype: in which weights are handed over; None: that which the policy computes in.
        """
        self.policy_version = -1  # the first sync makes it 0
        self.sync_gap: float | None = None  # mean |sampler - trainer| logprob after the last sync: the worst rank's
        self._llm, self._vllm, self._tokenizer, self._world = llm, vllm, tokenizer, world
        self._check, self._max_slots, self._dtype, self._on_finished = check, max_slots, dtype, on_finished
        self._stop_ids = frozenset(stop_token_ids(tokenizer))
        self._waiting: deque[Draft] = deque()
        self._running: dict[str, Draft] = {}  # by the engine's id of the request
        self._kept: list[Rollout] = []  # ended while `generate` waited for others
        self._num_requests = 0
        self._awake = {WEIGHTS, CACHES}
        self._sleep()

    @property
    def free_slots(self) -> int:
        """See `Sampler.free_slots`."""
        return max(0, self._max_slots - len(self._running) - len(self._waiting))

    def submit(self, requests: Iterable[RolloutRequest]) -> None:
        """See `Sampler.submit`.

        Raises:
            InputError: where a request has settings that vLLM cannot sample with.
        """
        self._waiting.extend([Draft.begin(request) for request in requests])

    def advance(self, num_tokens: int) -> list[Rollout]:
        """See `Sampler.advance`.

        Raises:
            StopRequested: all requests are taken out first.
        """
        ended, self._kept = self._kept, []
        for _ in range(num_tokens):
            ended += self._start_waiting()
            if not self._running:
                break
            try:
                self._world.watch.beat("sampling")
                self._world.watch.check()
            except StopRequested:
                self._take_out(None)
                raise
            for output in self._llm.llm_engine.step():
                ended += self._take_in(output)
        if not self._running and not self._waiting:
            self._sleep()
        return ended

    def abort(self, keys: Collection[RolloutKey] | None = None) -> list[Rollout]:
        """See `Sampler.abort`."""
        return [self._rollout(draft, "abort") for draft in self._take_out(keys)]

    def generate(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> list[Rollout]:
        """See `Sampler.generate`. What else is under way goes on, and is returned by the next `advance`."""
        rollouts, self._kept = draw_all(self, prompts, settings, num_tokens=1)
        return rollouts

    def load_weights(self, policy: Engine) -> None:
        """See `Sampler.load_weights`. What is under way goes on from its tokens under the new policy.

        Raises:
            SamplerOutOfSync: on every rank, where an engine does not hold the SSM's vectors that it was given, or its
                logprobs are not the trainer's.
        """
        interrupted = self._take_out(None)
        self._wake(WEIGHTS)
        dtype = self._dtype or compute_dtype(policy.model)
        # The engine's own module, as TRL reaches it.
        module = self._llm.llm_engine.model_executor.driver_worker.model_runner.model
        device = self._world.device
        vectors: Vectors = {}
        with self._world.watch.long("loading weights"):
            weights = plain_weights(policy, keep=True)
            announced = as_announced(sent_weights(policy.model.config, dtype), weights)
            for name, tensor in kept_vectors(announced, vectors):
                module.load_weights([(name, tensor.to(device))])
        self._llm.reset_prefix_cache()
        self.policy_version += 1
        self._waiting.extend(interrupted)
        missing = missing_vectors(vectors, [held_vectors(module)])
        complaints = self._world.gather(described(missing, f"rank {self._world.rank}") if missing else None)
        if complaint := next(filter(None, complaints), None):
            raise SamplerOutOfSync(f"policy {self.policy_version}: {complaint}")
        self.sync_gap = check_sync(policy, self, self._check)

    # -------------------------------------------------------------------------
    # The engine

    def _start_waiting(self) -> list[Rollout]:
        """Hand waiting requests to the engine while there is room; those with nothing left to draw have ended."""
        ended = []
        while self._waiting and len(self._running) < self._max_slots:
            draft = self._waiting.popleft()
            if draft.tokens_left <= 0:
                ended.append(self._rollout(draft, "length"))
                continue
            self._wake(WEIGHTS)
            self._wake(CACHES)
            draft.draw_with(self.policy_version)
            arguments = sampling_arguments(draft, self._stop_ids)
            kind = self._vllm.sampling_params.RequestOutputKind.DELTA
            name = f"rollout-{self._num_requests}"
            self._num_requests += 1
            self._llm.llm_engine.add_request(
                name,
                {"type": "token", "prompt_token_ids": draft.input_ids},
                self._vllm.SamplingParams(**arguments, output_kind=kind),
            )
            self._running[name] = draft
        return ended

    def _take_in(self, output: Any) -> list[Rollout]:
        """What one step gave one request; its rollout where that was the last."""
        draft = self._running.get(output.request_id)
        if draft is None:  # aborted, its last step was on its way
            return []
        (piece,) = output.outputs
        num_top = draft.request.settings.num_top_logprobs
        logprobs, tops = read_positions(list(piece.token_ids), piece.logprobs or [], num_top)
        draft.add(list(piece.token_ids), logprobs, tops)
        if not output.finished:
            return []
        del self._running[output.request_id]
        reason = checked_end(draft, piece.finish_reason)
        if self._on_finished is not None:
            self._on_finished(len(draft.tokens))
        return [self._rollout(draft, reason)]

    def _take_out(self, keys: Collection[RolloutKey] | None) -> list[Draft]:
        chosen = {name: d for name, d in self._running.items() if keys is None or d.request.key in keys}
        if chosen:
            self._llm.llm_engine.abort_request(list(chosen))
        for name in chosen:
            del self._running[name]
        waiting = [draft for draft in self._waiting if keys is None or draft.request.key in keys]
        self._waiting = deque(d for d in self._waiting if keys is not None and d.request.key not in keys)
        if not self._running and not self._waiting:
            self._sleep()
        return [*chosen.values(), *waiting]

    def _wake(self, what: str) -> None:
        if what not in self._awake:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # what the trainer holds back is needed now
            self._llm.wake_up(tags=[what])
            self._awake.add(what)

    def _sleep(self) -> None:
        """Level 1: the weights go to the host, for rollouts that are asked for before the next sync."""
        if self._awake:
            self._llm.sleep(level=1)
            self._awake = set()

    def _rollout(self, draft: Draft, reason: StopReason) -> Rollout:
        return draft.rollout(reason, self._tokenizer, self._stop_ids, self.policy_version)


def read_positions(
    tokens: Sequence[int], positions: Sequence[dict[int, Any]], num_top: int
) -> tuple[list[float], list[list[float]]]:
    """The logprob of each token drawn, and the best `num_top` there, from {token: logprob, ...} of each position.

    Raises:
        LostAnswer: where something is missing.
    """
    logprobs = [at[token].logprob for token, at in zip(tokens, positions, strict=False) if token in at]
    check_logprobs(logprobs, len(tokens))
    if not num_top:
        return logprobs, []
    return logprobs, [best_logprobs([each.logprob for each in at.values()], num_top) for at in positions]
