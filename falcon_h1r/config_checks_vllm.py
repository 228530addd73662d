"""What is refused of vLLM's settings, and what a run needs of them. Imports no torch."""

from __future__ import annotations

from urllib.parse import urlsplit

from falcon_h1r.config_grpo import RolloutConfig
from falcon_h1r.config_rules import at_least
from falcon_h1r.types import InputError

KEY = "grpo.rollout.vllm"


def check_vllm(rollout: RolloutConfig) -> None:
    """Refuse what cannot be meant, whichever engine samples; addresses may still be missing, as in a preset.

    Raises:
        InputError: naming the key.
    """
    vllm = rollout.vllm
    for address in vllm.servers:
        _check_address(address)
    if len(set(vllm.servers)) < len(vllm.servers):
        raise InputError(f"{KEY}.servers: an address stands there twice")
    for name in ("start_seconds", "silent_seconds"):
        at_least(f"{KEY}.{name}", getattr(vllm, name), 0.0)
    at_least(f"{KEY}.tensor_parallel", vllm.tensor_parallel, 1)
    if not 0.0 < vllm.memory_share < 1.0:
        raise InputError(f"{KEY}.memory_share={vllm.memory_share}: a share of a GPU's memory lies between 0 and 1")
    if vllm.max_sync_gap <= 0.0:
        raise InputError(f"{KEY}.max_sync_gap={vllm.max_sync_gap}: no two engines compute the same logprobs")
    if rollout.name == "vllm_colocate":
        _check_colocated(rollout)


def require_servers(rollout: RolloutConfig, num_ranks: int | None = None) -> None:
    """Refuse a run with `rollout=vllm_server` that names no server, or more servers than there are ranks.

    Raises:
        InputError: naming the key.
    """
    if rollout.name != "vllm_server":
        return
    servers = rollout.vllm.servers
    if not servers:
        raise InputError(f"{KEY}.servers: not set; rollout=vllm_server needs addresses, as in [http://node-7:8000]")
    if num_ranks is not None and len(servers) > num_ranks:
        raise InputError(
            f"{KEY}.servers: {len(servers)} of them, but {num_ranks} ranks: each rank samples at one server at most"
        )


def _check_address(address: str) -> None:
    parts = urlsplit(address)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme not in ("http", "https") or not parts.hostname or port is None or parts.path not in ("", "/"):
        raise InputError(f"{KEY}.servers={address}: an address reads http://HOST:PORT")


def _check_colocated(rollout: RolloutConfig) -> None:
    if rollout.vllm.tensor_parallel > 1:
        raise InputError(
            f"{KEY}.tensor_parallel={rollout.vllm.tensor_parallel}: not built for vllm_colocate, whose engines each "
            "live on one rank; a model that needs more GPUs samples at servers: rollout=vllm_server"
        )
    if rollout.overlap:
        raise InputError(
            "grpo.rollout.overlap=true: vllm_colocate sleeps while its GPU trains; overlap needs vllm_server"
        )
