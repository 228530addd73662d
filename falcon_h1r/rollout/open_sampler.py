"""The sampler that the config asks for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from falcon_h1r.config import Config
from falcon_h1r.config_checks_vllm import require_servers
from falcon_h1r.config_grpo import RolloutConfig
from falcon_h1r.data.tokenisation import stop_token_ids
from falcon_h1r.distributed.engine import Engine
from falcon_h1r.model.load import DTYPES
from falcon_h1r.rollout.sampler import Sampler
from falcon_h1r.rollout.sync_check import SyncCheck
from falcon_h1r.rollout.torch_sampler import TorchSampler

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from falcon_h1r.rollout.vllm_weights import Link

OnFinished = Callable[[int], None]


def open_sampler(
    config: Config,
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    on_finished: OnFinished | None = None,
    open_link: Callable[[], Link] | None = None,
    vllm: Any = None,
) -> Sampler:
    """What GRPO samples with, holding the engine's weights; every rank has to call it.

    Args:
        on_finished: told the number of tokens of each finished rollout, for a progress bar.
        open_link: how weights reach a server's workers; None: over NCCL.
        vllm: the module, for an engine on this GPU; None: it is imported.

    Raises:
        InputError: where servers are not named, not up or not fit, or vLLM is not installed for an engine on this GPU.
        SamplerOutOfSync: where vLLM does not compute the trainer's logprobs.
    """
    rollout, watch = config.grpo.rollout, engine.world.watch
    if rollout.name == "vllm_server":
        return _open_server_sampler(config, engine, tokenizer, on_finished, open_link)
    if rollout.name == "vllm_colocate":
        return _open_colocated_sampler(config, engine, tokenizer, on_finished, vllm)
    dtype = DTYPES[rollout.dtype] if rollout.dtype is not None else None
    return TorchSampler(engine.model, tokenizer, rollout.max_slots, on_finished, watch, rollout.prefill_tokens, dtype)


def _open_server_sampler(
    config: Config,
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    on_finished: OnFinished | None,
    open_link: Callable[[], Link] | None,
) -> Sampler:
    from falcon_h1r.rollout.vllm_server import ADVICE, VLLMServerSampler, open_servers, served_model
    from falcon_h1r.rollout.vllm_streams import Streams
    from falcon_h1r.rollout.vllm_weights import NCCLLink, WeightSender

    rollout, world = config.grpo.rollout, engine.world
    require_servers(rollout, world.size)
    servers = open_servers(rollout.vllm, _model_tokens(config), world)
    streams = None
    if world.rank < len(servers):
        server = servers[world.rank]
        streams = Streams(server, served_model(server), stop_token_ids(tokenizer), rollout.max_slots)
    sender = None
    if world.is_main:
        with world.watch.long("meeting vLLM's workers"):
            sender = WeightSender(servers, open_link or partial(NCCLLink, world.device), world.device)
    check = _sync_check(rollout, tokenizer, ADVICE)
    sampler = VLLMServerSampler(streams, sender, tokenizer, world, check, sent_dtype(rollout), on_finished)
    sampler.load_weights(engine)
    return sampler


def _open_colocated_sampler(
    config: Config, engine: Engine, tokenizer: PreTrainedTokenizerBase, on_finished: OnFinished | None, vllm: Any
) -> Sampler:
    from falcon_h1r.rollout.vllm_colocate import ADVICE, VLLMColocatedSampler, engine_arguments, import_vllm

    rollout = config.grpo.rollout
    vllm = vllm or import_vllm()
    arguments = engine_arguments(config, _model_tokens(config), engine.model)
    with engine.world.watch.long("starting vLLM"):
        llm = vllm.LLM(**arguments)
    check = _sync_check(rollout, tokenizer, ADVICE)
    sampler = VLLMColocatedSampler(
        llm, vllm, tokenizer, engine.world, check, rollout.max_slots, sent_dtype(rollout), on_finished
    )
    sampler.load_weights(engine)
    return sampler


def sent_dtype(rollout: RolloutConfig) -> torch.dtype | None:
    """In which weights are handed to vLLM; None: that which the policy computes in."""
    dtype: torch.dtype | None = getattr(torch, rollout.dtype) if rollout.dtype is not None else None
    return dtype


def _model_tokens(config: Config) -> int:
    """Of prompt and response together, at most."""
    return config.grpo.limits.prompt_tokens + config.grpo.limits.response_tokens


def _sync_check(rollout: RolloutConfig, tokenizer: PreTrainedTokenizerBase, advice: str) -> SyncCheck:
    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    return SyncCheck.of_probes(encode, rollout.temperature, rollout.vllm.max_sync_gap, advice)
