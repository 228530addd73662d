"""On request the learning rate goes with the square root of the batch's tokens; without, nothing is touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from falcon_h1r.config import Config, ModelConfig
from falcon_h1r.config_sources import SourceConfig
from falcon_h1r.config_stage import OptimizerConfig
from falcon_h1r.distributed.batch_scaling import describe_scaling, scaled_to_batch
from falcon_h1r.distributed.world import World
from falcon_h1r.dry_run import describe
from falcon_h1r.types import InputError
from recipes.sft import sft
from tests.conftest import ONE_LAYER


def test_four_times_the_tokens_double_the_rate() -> None:
    settings = OptimizerConfig(learning_rate=1e-3, reference_batch_tokens=1_000, beta2=0.99)
    scaled = scaled_to_batch(settings, 4_000.0)
    assert scaled.learning_rate == pytest.approx(2e-3)
    assert (scaled.beta2, scaled.weight_decay) == (0.99, settings.weight_decay)
    assert settings.learning_rate == 1e-3, "the config stays what it was"
    assert scaled_to_batch(settings, 1_000.0).learning_rate == pytest.approx(1e-3)
    assert scaled_to_batch(settings, 250.0).learning_rate == pytest.approx(0.5e-3)


def test_given_tokens_come_before_expected_ones() -> None:
    settings = OptimizerConfig(learning_rate=1e-3, reference_batch_tokens=1_000, batch_tokens=9_000)
    assert scaled_to_batch(settings, 4_000.0).learning_rate == pytest.approx(3e-3)
    assert scaled_to_batch(settings).learning_rate == pytest.approx(3e-3)


def test_without_a_reference_nothing_is_scaled() -> None:
    settings = OptimizerConfig(learning_rate=1e-3)
    assert scaled_to_batch(settings, 4_000.0) is settings
    assert describe_scaling(settings, 4_000.0) == "learning rate 0.001"


def test_the_rate_is_told_with_its_origin() -> None:
    settings = OptimizerConfig(learning_rate=1e-3, reference_batch_tokens=1_000_000)
    assert describe_scaling(settings, 4e6) == "learning rate 0.001 x sqrt(4,000,000 / 1,000,000 tokens) = 0.002"
    assert describe_scaling(settings) == "learning rate 0.001 x sqrt(a batch's mean tokens / 1,000,000)"


def configured(tmp_path: Path) -> Config:
    path = tmp_path / "sums.jsonl"
    sums = [{"question": f"{n} + 1 = ?", "answer": f"One more than {n}. #### {n + 1}"} for n in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in sums))
    config = Config(model=ModelConfig(architecture=dict(ONE_LAYER)), system_prompt="Think.")
    config.sft.data = SourceConfig(path=str(path), answer_after="####")
    config.sft.batch_sequences, config.sft.num_steps = 4, 2
    config.sft.optimizer = OptimizerConfig(learning_rate=2e-4, reference_batch_tokens=50, schedule="constant")
    return config


def test_sft_trains_at_the_rate_that_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configured(tmp_path)
    sft(config, tmp_path / "run", World(0, 1, torch.device("cpu")))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = {row["learning_rate"] for row in rows if "learning_rate" in row}
    (printed,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("sft: learning rate")]
    (rate,) = rates
    assert rate > 2e-4
    assert printed.endswith(f"= {rate:.4g}")


@pytest.mark.parametrize("given", [True, False])
def test_a_scaled_rate_has_to_suit_the_multipliers_too(tmp_path: Path, given: bool) -> None:
    """The configured rate may be fine where its multiple is not, also where the data decides on that."""
    config = configured(tmp_path)
    if given:
        config.sft.optimizer.batch_tokens = round(50 * (1024e-6 / 2e-4) ** 2)
    else:
        config.model.architecture = {**ONE_LAYER, "hidden_size": 1024, "num_attention_heads": 8}
        config.sft.optimizer.reference_batch_tokens = 1
    with pytest.raises(InputError, match=r"^sft\.optimizer\.learning_rate=.*multipliers"):
        sft(config, tmp_path / "run", World(0, 1, torch.device("cpu")))


def test_a_dry_run_shows_it(tmp_path: Path) -> None:
    config = configured(tmp_path)
    assert "learning rate 0.0002 x sqrt(a batch's mean tokens / 50)" in describe(config, "sft")
    config.sft.data = SourceConfig(expected_samples=100, expected_tokens=5_000)
    assert "learning rate 0.0002 x sqrt(200 / 50 tokens) = 0.0004" in describe(config, "sft")
