"""`rollout=...` and vLLM's settings: what composes, and what is refused in one line that names its key."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from falcon_h1r import entry
from falcon_h1r.config_checks_grpo import check_grpo
from falcon_h1r.config_checks_vllm import require_servers
from falcon_h1r.config_grpo import GRPOConfig, VLLMConfig
from falcon_h1r.types import InputError

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
ADDRESSES = "grpo.rollout.vllm.servers=[http://a:8000,http://b:8000]"


def composed(*overrides: str) -> GRPOConfig:
    entry.store_schema()
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
    rollout = composed("experiment=falcon_h1r_7b", f"rollout={name}", ADDRESSES).rollout  # the experiment's gives way
    assert (rollout.name, rollout.vllm.servers) == (name, ["http://a:8000", "http://b:8000"])


def test_nothing_is_chosen_by_default() -> None:
    assert composed().rollout == GRPOConfig().rollout
    assert composed("experiment=falcon_h1r_7b").rollout.name == "vllm_server"


def test_servers_are_needed_by_a_run_of_the_server_sampler_only() -> None:
    two = ["http://a:8000", "http://b:8000"]
    require_servers(grpo_with(servers=two).rollout, num_ranks=2)
    require_servers(grpo_with("torch").rollout)
    with pytest.raises(InputError, match="grpo.rollout.vllm.servers: not set"):
        require_servers(grpo_with().rollout)
    with pytest.raises(InputError, match="2 of them, but 1 ranks"):
        require_servers(grpo_with(servers=two).rollout, num_ranks=1)


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


# -----------------------------------------------------------------------------
# launch/vllm_serve.sh


def served(tmp_path: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """What the script does with a Python that says what it is given."""
    python = tmp_path / "python"
    python.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "dev=$VLLM_SERVER_DEV_MODE" "$@"\n')
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python), **settings}
    script = str(ROOT / "launch" / "vllm_serve.sh")
    return subprocess.run([script, *arguments], capture_output=True, text=True, env=environment)


def test_a_server_is_started_with_what_trl_imposes_and_the_trainer_insists_on(tmp_path: Path) -> None:
    from trl.scripts.vllm_serve import ScriptArguments, build_command

    lines = served(tmp_path, "a/model", "--max-num-seqs", "8", PORT="8001", TENSOR_PARALLEL="2").stdout.splitlines()
    assert lines[:5] == ["dev=1", "-m", "vllm.entrypoints.cli.main", "serve", "a/model"]
    ours = dict(zip(lines[5:-2:2], lines[6:-2:2], strict=True))
    theirs = build_command(ScriptArguments(model="a/model", port=8001, tensor_parallel_size=2))
    imposed = theirs[theirs.index("--weight-transfer-config") :]
    assert dict(zip(imposed[::2], imposed[1::2], strict=True)).items() <= ours.items()
    for option in ("--host", "--port", "--tensor-parallel-size"):
        assert ours[option] == theirs[theirs.index(option) + 1]
    assert ours["--load-format"] == "dummy" and ours["--mamba-ssm-cache-dtype"] == "float32"
    assert lines[-2:] == ["--max-num-seqs", "8"]  # the user's come last, and count


@pytest.mark.parametrize(
    ("arguments", "settings", "said"),
    [((), {}, "usage:"), (("--port", "1"), {}, "usage:"), (("m",), {"PYTHON": "no/such"}, "PYTHON=no/such: no such")],
)
def test_a_server_that_cannot_be_started_says_why(tmp_path: Path, arguments, settings: dict[str, str], said) -> None:
    result = served(tmp_path, *arguments, **settings)
    assert result.returncode == 2 and said in result.stderr and len(result.stderr.splitlines()) == 1
