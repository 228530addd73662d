"""A user's DeepSpeed file adds to our settings and cannot change what the config decides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from falcon_h1r.config_run import EngineConfig
from falcon_h1r.config_stage import OptimizerConfig
from falcon_h1r.distributed.deepspeed_settings import deepspeed_config
from falcon_h1r.types import InputError

LAUNCH = Path(__file__).parents[2] / "launch"


def settings_with(path: Path, stage: int = 3) -> dict:
    engine = EngineConfig(name="deepspeed", zero_stage=stage, zero_json=str(path))
    return deepspeed_config(engine, OptimizerConfig(clip_grad_norm=0.5), on_gpu=False)


@pytest.mark.parametrize("file", sorted(LAUNCH.glob("zero*.json")), ids=lambda file: file.name)
def test_the_files_beside_the_launchers_add_to_our_settings(file: Path) -> None:
    stage = int(file.stem.removeprefix("zero"))
    settings, theirs = settings_with(file, stage), json.loads(file.read_text())
    assert settings["zero_optimization"].items() >= theirs["zero_optimization"].items()
    assert settings["zero_optimization"]["stage"] == stage
    assert settings["managed_gradient_accumulation"] is False and settings["gradient_clipping"] == 0.5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"bf16": {"enabled": True}}, "bf16 is decided by this config's own keys"),
        ({"gradient_clipping": 3.0}, "gradient_clipping is decided"),
        ({"train_batch_size": 8}, "train_batch_size is decided"),
        ({"zero_optimization": {"stage": 1}}, "zero_optimization.stage is decided"),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "zero_optimization.offload_optimizer is"),
        ("stage 3", "not a file of JSON settings"),
    ],
)
def test_what_the_config_decides_is_refused(tmp_path: Path, content: object, said: str) -> None:
    path = tmp_path / "zero.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"engine.zero_json={path}: .*{said}"):
        settings_with(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="engine.zero_json=.*not a file of JSON"):
        settings_with(tmp_path / "none.json")
