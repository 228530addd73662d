"""vLLM servers on GPUs of their own as the sampler: rank i samples at server i, rank 0 sends all of them the weights.

See `falcon_h1r.rollout.sampler.Sampler` for the contract. Ranks beyond the servers have no free slots: they get no
requests, and what the others draw is shared out for training afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from falcon_h1r.config_grpo import VLLMConfig
from falcon_h1r.data.tokenisation import stop_token_ids
from falcon_h1r.distributed.engine import Engine
from falcon_h1r.distributed.watch import StopRequested, Watch
from falcon_h1r.distributed.world import World
from falcon_h1r.rollout.http_server import LostAnswer, ModelServer
from falcon_h1r.rollout.sampler import Prompt, RolloutKey, RolloutRequest, SamplingSettings, draw_all
from falcon_h1r.rollout.sync_check import SamplerOutOfSync, SyncCheck, check_sync
from falcon_h1r.rollout.vllm_draft import Draft
from falcon_h1r.rollout.vllm_streams import Streams
from falcon_h1r.rollout.vllm_weights import WeightSender, send_policy
from falcon_h1r.types import InputError, Rollout, StopReason

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ASK_SECONDS = 2.0  # between two looks whether a server is up
GENERATE_TOKENS = 1024  # of each rollout in one advance, where nobody else waits
ADVICE = (
    "Its server holds mamba.A_log, mamba.D and mamba.dt_bias as sent: did it lose others, or does it serve another "
    "model? See docs/vllm.md"
)


class VLLMServerSampler:
    """Rollouts of one server, or of none. An aborted rollout keeps what its server has sent of it."""

    def __init__(
        self,
        streams: Streams | None,
        sender: WeightSender | None,
        tokenizer: PreTrainedTokenizerBase,
        world: World,
        check: SyncCheck,
        dtype: torch.dtype | None = None,
        on_finished: Callable[[int], None] | None = None,
    ) -> None:
        """
        Args:
            streams: of this rank's server; None: it has none.
            sender: on rank 0.
            check: made after every sync.
            dtype: in which weights are sent; None: that which the policy computes in.
            on_finished: told the number of tokens of each finished rollout, for a progress bar.
        """
        self.policy_version = -1  # the first sync makes it 0
        self.sync_gap: float | None = None  # mean |sampler - trainer| logprob after the last sync, of the worst rank
        self._streams, self._sender = streams, sender
        self._tokenizer, self._world = tokenizer, world
        self._check, self._dtype, self._on_finished = check, dtype, on_finished
        self._stop_ids = frozenset(stop_token_ids(tokenizer))
        self._kept: list[Rollout] = []  # ended while `generate` waited for others

    @property
    def free_slots(self) -> int:
        """See `Sampler.free_slots`."""
        return max(0, self._streams.max_flights - len(self._streams)) if self._streams is not None else 0

    def submit(self, requests: Iterable[RolloutRequest]) -> None:
        """See `Sampler.submit`.

        Raises:
            InputError: where a request has settings that vLLM cannot sample with.
        """
        drafts = [Draft.begin(request) for request in requests]
        if not drafts:
            return
        assert self._streams is not None, "a rank without a server has no free slots"
        self._streams.submit(drafts)

    def advance(self, num_tokens: int) -> list[Rollout]:
        """See `Sampler.advance`. The server goes on drawing when it has returned.

        Raises:
            StopRequested: all connections are dropped first.
            LostAnswer: where the server fails for longer than repeated requests can bridge.
            InputError: where it refuses a request.
        """
        kept, self._kept = self._kept, []
        if self._streams is None:
            return kept
        try:
            self._look_up()
            ended = self._streams.advance(num_tokens, self._look_up)
        except StopRequested:
            self._streams.clear()
            raise
        return kept + [self._finished(draft, reason) for draft, reason in ended]

    def abort(self, keys: Collection[RolloutKey] | None = None) -> list[Rollout]:
        """See `Sampler.abort`. The last few dozen tokens that a server has drawn but not sent are lost."""
        drafts = self._streams.take_out(keys) if self._streams is not None else []
        return [self._rollout(draft, "abort") for draft in drafts]

    def generate(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> list[Rollout]:
        """See `Sampler.generate`. What else is under way goes on, and is returned by the next `advance`."""
        rollouts, self._kept = draw_all(self, prompts, settings, GENERATE_TOKENS)
        return rollouts

    def load_weights(self, policy: Engine) -> None:
        """See `Sampler.load_weights`. What is under way stops, and goes on from its tokens under the new policy.

        Raises:
            SamplerOutOfSync: on every rank, where a server does not hold the weights it was sent, as far as it can be
                asked, or its logprobs are not the trainer's.
            LostAnswer, InputError: on rank 0, where a server fails to take the weights, or refuses.
        """
        interrupted = self._streams.take_out() if self._streams is not None else []
        self._world.barrier()  # a server pauses when its rank has let go of it
        self.policy_version += 1
        with self._world.watch.long("sending weights"):
            complaint = send_policy(policy, self._sender, self._dtype)
        if complaint := self._world.broadcast(complaint):
            raise SamplerOutOfSync(f"policy {self.policy_version}: {complaint}")
        if self._streams is not None:
            self._streams.policy_version = self.policy_version
            self._streams.submit(interrupted)
        self.sync_gap = check_sync(policy, self, self._check)

    def _look_up(self) -> None:
        self._world.watch.beat("sampling")
        self._world.watch.check()

    def _finished(self, draft: Draft, reason: StopReason) -> Rollout:
        if self._on_finished is not None:
            self._on_finished(len(draft.tokens))
        return self._rollout(draft, reason)

    def _rollout(self, draft: Draft, reason: StopReason) -> Rollout:
        return draft.rollout(reason, self._tokenizer, self._stop_ids, self.policy_version)


def open_servers(settings: VLLMConfig, model_tokens: int, world: World) -> list[ModelServer]:
    """The servers, up and fit to be sampled from; every rank has to call it.

    Rank 0 looks at all of them, for it sends them weights; the others take its word.

    Args:
        model_tokens: of prompt and response together, at most.

    Raises:
        InputError: on every rank, naming the server that is not up within `start_seconds`, or how it has to be started.
    """
    servers = [ModelServer(address, settings.silent_seconds) for address in settings.servers]

    def look() -> None:
        deadline = time.monotonic() + settings.start_seconds
        for server in servers:
            wait_until_up(server, deadline, settings.start_seconds, world.watch)
            check_server(server, model_tokens)

    world.on_main(look)
    return servers


def wait_until_up(server: ModelServer, deadline: float, start_seconds: float, watch: Watch) -> None:
    """
    Raises:
        InputError: where the server is not up at the deadline.
        StopRequested: where the run is to stop.
    """
    while True:
        watch.beat("waiting for vLLM")
        watch.check()
        try:
            server.get("/health", seconds=5.0)
            return
        except LostAnswer as lost:
            left = deadline - time.monotonic()
            if left <= 0:
                raise InputError(
                    f"grpo.rollout.vllm.servers: {server.address} is not up after {start_seconds:g} s ({lost}); "
                    "start it with launch/vllm_serve.sh"
                ) from lost
            time.sleep(min(ASK_SECONDS, left))


def check_server(server: ModelServer, model_tokens: int) -> None:
    """Refuse a server whose options would spoil rollouts or weights, before it is asked for any.

    Raises:
        InputError: naming the option.
    """
    where = f"grpo.rollout.vllm.servers: {server.address}"
    try:
        config = server.get("/server_info?config_format=json")["vllm_config"]
        mode, longest = config["model_config"]["logprobs_mode"], config["model_config"]["max_model_len"]
        transfer = config["weight_transfer_config"]
    except InputError:
        raise InputError(f"{where} takes no weights: start it with VLLM_SERVER_DEV_MODE=1") from None
    except (LostAnswer, KeyError, TypeError) as error:
        raise InputError(f"{where} does not say how it was started ({type(error).__name__}: {error})") from error
    if transfer is None or transfer.get("backend") != "nccl":
        raise InputError(f'{where} takes no weights: start it with --weight-transfer-config {{"backend":"nccl"}}')
    if mode != "processed_logprobs":
        raise InputError(f"{where} has logprobs_mode={mode}: start it with --logprobs-mode processed_logprobs")
    if longest < model_tokens:
        raise InputError(
            f"{where} has max_model_len={longest}, but grpo.limits allow {model_tokens} tokens of prompt and response"
        )


def served_model(server: ModelServer) -> str:
    """The server's name for its model.

    Raises:
        LostAnswer, InputError: where it does not say.
    """
    name: str = server.get("/v1/models")["data"][0]["id"]
    return name
