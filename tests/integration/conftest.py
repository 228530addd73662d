"""A few sums, and the config of SFT and GRPO on them: stages small enough to run whole."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from falcon_h1r.config import Config
from falcon_h1r.config_checks import check_config
from falcon_h1r.entry import CONFIGS


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    rows = [{"question": f"{n} + 1 = ?", "answer": f"One more than {n}. #### {n + 1}"} for n in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def coins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers that are a matter of luck, so that groups have contrast."""
    rng = random.Random(0)
    rows = [{"question": f"Toss {n}", "answer": f"I toss it. #### {rng.randrange(2)}"} for n in range(32)]
    path = tmp_path_factory.mktemp("data") / "coins.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def configured(sums: Path, *overrides: str) -> Config:
    """Three steps of SFT and one of GRPO."""
    ConfigStore.instance().store(name="schema", node=Config)
    settings = [
        *("data=gsm8k", f"sft.data.path={sums}", f"grpo.data.path={sums}", "system_prompt=Think."),
        *("sft.num_steps=3", "sft.batch_sequences=4", "sft.optimizer.learning_rate=1e-2"),
        *("grpo.num_steps=1", "grpo.problems_per_step=2", "grpo.group_size=4", "grpo.max_backfill_rounds=0"),
        "grpo.limits={prompt_tokens: 64, response_tokens: 12, row_tokens: 256}",
        *overrides,
    ]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = OmegaConf.to_object(compose("config", settings))
    assert isinstance(config, Config)
    check_config(config)
    return config
