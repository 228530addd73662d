"""`rollout=...` and vLLM's settings: what composes, and what is refused in one line that names its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from falcon_h1r.config import Config
from falcon_h1r.config_checks_grpo import check_grpo
from falcon_h1r.config_checks_vllm import require_servers
from falcon_h1r.config_grpo import GRPOConfig, VLLMConfig
from falcon_h1r.types import InputError

CONFIGS = Path(__file__).parents[2] / "configs"
ADDRESSES = "grpo.rollout.vllm.servers=[http://a:8000,http://b:8000]"


def composed(*overrides: str) -> GRPOConfig:
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(str(CONFIGS), version_base=None):
        grpo = OmegaConf.to_object(compose("config", overrides=list(overrides))).grpo
    check_grpo(grpo)
    return grpo


def grpo_with(name: str = "vllm_server", overlap: bool = False, **settings: Any) -> GRPOConfig:
    grpo = GRPOConfig()
    grpo.rollout.name, grpo.rollout.overlap, grpo.rollout.vllm = name, overlap, VLLMConfig(**settings)
    return grpo


@pytest.mark.parametrize("name", ["torch", "vllm_server", "vllm_colocate"])
def test_each_sampler_can_be_chosen_by_its_name(name: str) -> None:
    assert composed(f"rollout={name}").rollout.name == name
    assert composed("experiment=falcon_h1r_7b", f"rollout={name}").rollout.name == name  # the experiment's gives way


def test_nothing_is_chosen_by_default() -> None:
    assert composed().rollout == GRPOConfig().rollout
    assert composed("experiment=falcon_h1r_7b").rollout.name == "vllm_server"


def test_servers_are_needed_by_a_run_of_the_server_sampler_only() -> None:
    require_servers(composed("rollout=vllm_server", ADDRESSES).rollout, num_ranks=2)
    require_servers(composed("rollout=torch").rollout)
    with pytest.raises(InputError, match="grpo.rollout.vllm.servers: not set"):
        require_servers(composed("rollout=vllm_server").rollout)
    with pytest.raises(InputError, match="2 of them, but 1 ranks"):
        require_servers(composed("rollout=vllm_server", ADDRESSES).rollout, num_ranks=1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"servers": ["node-7:8000"]}, "servers=node-7:8000: an address reads http://HOST:PORT"),
        ({"servers": ["http://node-7"]}, "servers=http://node-7: an address"),
        ({"servers": ["http://node-7:x"]}, "an address reads"),
        ({"servers": ["http://node-7:8000/v1"]}, "an address reads"),
        ({"servers": ["http://a:1", "http://a:1"]}, "stands there twice"),
        ({"start_seconds": -1.0}, "start_seconds=-1.0"),
        ({"silent_seconds": -1.0}, "silent_seconds=-1.0"),
        ({"tensor_parallel": 0}, "tensor_parallel=0"),
        ({"memory_share": 1.0}, "memory_share=1.0"),
        ({"max_sync_gap": 0.0}, "max_sync_gap=0.0"),
        ({"name": "vllm_colocate", "tensor_parallel": 2}, "tensor_parallel=2: not built for vllm_colocate"),
        ({"name": "vllm_colocate", "overlap": True}, "overlap=true: vllm_colocate sleeps"),
    ],
)
def test_a_mistake_is_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_grpo(grpo_with(**settings))
