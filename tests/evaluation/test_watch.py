"""Watching a run: every whole checkpoint once, its weights exact, and nothing that rotation does is a crash."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from falcon_h1r.checkpoint import publish_model
from falcon_h1r.checkpoint.best import BestMark, read_best
from falcon_h1r.checkpoint.files import partial_folder, step_folder
from falcon_h1r.checkpoint.models import publish_policy
from falcon_h1r.checkpoint.saver import Saver
from falcon_h1r.checkpoint.state import generator_states
from falcon_h1r.checkpoint.stored import StoredState
from falcon_h1r.checkpoint.stored_model import publish_stored
from falcon_h1r.config import Config, LoRAConfig, ModelConfig
from falcon_h1r.config_run import CheckpointConfig
from falcon_h1r.distributed.engines import open_engine
from falcon_h1r.distributed.watch import StopRequested, Watch
from falcon_h1r.distributed.world import World
from falcon_h1r.evaluation import watch as watching
from falcon_h1r.evaluation.watch import WatchedRun, as_the_run_has_it, numbers_in, watch
from falcon_h1r.model.load import load_model
from falcon_h1r.model.lora import add_adapters
from falcon_h1r.sft.loop import train_sft
from falcon_h1r.training_run import CHECKPOINTS, TrainingRun, open_tracker
from falcon_h1r.types import InputError
from tests.checkpoint.conftest import make_config
from tests.checkpoint.test_saver import fragments, shared_state
from tests.conftest import TINY_ARCHITECTURE

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def train_run(tiny_model: Any, tokenizer: Any, random_documents: Any, tmp_path: Path) -> Callable[..., Path]:
    """Trains an SFT run in a folder of its own, with a checkpoint of every second step and a model in the end."""
    documents = random_documents([20, 7, 13, 4, 31, 9, 16, 25])

    def run(num_steps: int, world: World = ALONE, **changes: Any) -> Path:
        folder = tmp_path / "runs" / "mine"
        config = make_config()
        settings = ModelConfig(path=str(folder / "base"), dtype="float32", architecture=dict(TINY_ARCHITECTURE))
        config.model = replace(settings, **changes)
        if world.is_main:
            publish_model(tiny_model.float(), tokenizer, folder / "base")
            OmegaConf.save(OmegaConf.create(asdict(config)), folder / "config.yaml")
        world.barrier()
        model = load_model(config.model, world.device, to_train=not config.model.lora.rank)
        if config.model.lora.rank:
            add_adapters(model, config.model.lora, 0)
        engine = open_engine(model, config.sft.optimizer, num_steps, world, config.engine)
        with (
            open_tracker(config, "sft", folder, world.is_main, "mine") as tracker,
            TrainingRun(config, "sft", folder, engine, tracker, dict) as training,
        ):
            train_sft(training, documents, config.sft, seed=0)
        publish_policy(engine, tokenizer, folder / "model")
        return folder

    return run


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A run as its folder shows it: checkpoints of one weight after steps 2, 4 and 6, and perhaps a model."""

    def publish(checkpoint: Path, settings: ModelConfig, folder: Path, seed: int) -> Path:
        with StoredState(checkpoint) as stored:
            return write_model(folder, stored.read("weight", "weight", 0, 4))

    monkeypatch.setattr(watching, "publish_stored", publish)

    def make(finish: bool = True, **checkpoint: Any) -> Path:
        folder = tmp_path / "runs" / "mine"
        config = Config(model=ModelConfig(path="base"), checkpoint=CheckpointConfig(keep=100, **checkpoint))
        saving = Saver(folder / CHECKPOINTS, config.checkpoint, ALONE)
        for step in (2, 4, 6):
            saving.start(fragments(ALONE, float(step)), generator_states(), shared_state(step))
            saving.wait()
        (folder / "config.yaml").touch()
        monkeypatch.setattr(watching, "_read_config", lambda path: config)
        (folder / "metrics.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in range(1, 7)))
        if finish:
            write_model(folder / "model", torch.full((4,), 6.0))
        return folder

    return make


def write_model(folder: Path, weight: torch.Tensor) -> Path:
    folder.mkdir(parents=True)
    save_file({"weight": weight}, folder / "model.safetensors")
    return folder


class Evaluation:
    """Stands for recipes/evaluate.py: what it was called with, and a number for each step."""

    def __init__(self, values: Mapping[int, float] | None = None) -> None:
        self.values = dict(values or {})
        self.steps: list[int] = []
        self.weights: dict[int, dict[str, torch.Tensor]] = {}

    def __call__(self, model: Path, folder: Path) -> dict[str, Any]:
        step = int(folder.name.removeprefix("step_"))
        self.steps.append(step)
        self.weights[step] = load_file(model / "model.safetensors")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "summary.json").write_text("{}")
        return {"pass_at_1": self.values.get(step, 0.5), "engine": "torch", "benchmarks": {"tiny": {"n": 7}}}


def watching_config(run: Path, **changes: Any) -> Config:
    config = Config()
    config.evaluate.watch = replace(config.evaluate.watch, run=str(run), poll_seconds=0.0, **changes)
    return config


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "watch" / "metrics.jsonl").read_text().splitlines()]


def same_weights(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


# -----------------------------------------------------------------------------
# Settings


def test_checkpoints_are_scored_with_the_prompt_and_dtype_that_they_are_trained_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = Config(system_prompt="Think.", model=ModelConfig(path="base", dtype="bfloat16"))
    run = WatchedRun(tmp_path, theirs, "mine", theirs.model)
    config = as_the_run_has_it(watching_config(tmp_path), run)
    assert (config.system_prompt, config.model.dtype, config.model.path) == ("Think.", "bfloat16", None)
    assert config.evaluate == watching_config(tmp_path).evaluate
    said = capsys.readouterr().out
    assert "watch: model.dtype=bfloat16" in said and "watch: system_prompt='Think.', as in" in said
    assert as_the_run_has_it(config, run) == config and not capsys.readouterr().out


# -----------------------------------------------------------------------------
# Weights


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="float32"),
        pytest.param({"dtype": "bfloat16"}, id="bfloat16", marks=pytest.mark.slow),
        pytest.param({"lora": LoRAConfig(rank=2)}, id="lora", marks=pytest.mark.slow),
    ],
)
def test_a_checkpoints_model_is_the_one_that_would_be_handed_over(
    train_run: Callable[..., Path], changes: dict[str, Any]
) -> None:
    run = train_run(num_steps=4, **changes)
    settings = WatchedRun.open(run).model
    published = publish_stored(step_folder(run / CHECKPOINTS, 4), settings, run / "again")
    handed_over = load_file(run / "model" / "model.safetensors")
    assert same_weights(load_file(published / "model.safetensors"), handed_over)
    earlier = publish_stored(step_folder(run / CHECKPOINTS, 2), settings, run / "earlier")
    assert not same_weights(load_file(earlier / "model.safetensors"), handed_over)
    assert (published / "chat_template.jinja").exists() == (run / "model" / "chat_template.jinja").exists()


@pytest.mark.slow
def test_a_checkpoint_that_two_ranks_have_sharded_is_read_whole(
    train_run: Callable[..., Path], run_on_ranks: Any, tmp_path: Path
) -> None:
    run_on_ranks(2, lambda world: str(train_run(num_steps=2, world=world)))
    run = tmp_path / "runs" / "mine"
    assert len(list(step_folder(run / CHECKPOINTS, 2).glob("rank_*.safetensors"))) == 2
    published = publish_stored(step_folder(run / CHECKPOINTS, 2), WatchedRun.open(run).model, tmp_path / "again")
    assert same_weights(load_file(published / "model.safetensors"), load_file(run / "model" / "model.safetensors"))


@pytest.mark.slow
def test_another_models_checkpoint_is_refused(train_run: Callable[..., Path], tmp_path: Path) -> None:
    run = train_run(num_steps=2, lora=LoRAConfig(rank=2))
    with pytest.raises(InputError, match="it holds another model's state"):
        plain = replace(WatchedRun.open(run).model, lora=LoRAConfig())
        publish_stored(step_folder(run / CHECKPOINTS, 2), plain, tmp_path / "again")


# -----------------------------------------------------------------------------
# The job


def test_every_checkpoint_is_scored_once_and_the_job_ends_with_the_run(
    make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, evaluation = make_run(), Evaluation({2: 0.25})
    watch(watching_config(run), ALONE, evaluation)
    assert WatchedRun.open(run).group == "mine"  # as the training has it on W&B
    assert evaluation.steps == [2, 4, 6]  # the model that was handed over is that of step 6
    assert [(row["stage"], row["step"], row["pass_at_1"], row["tiny.n"]) for row in rows_of(run)] == [
        ("watch", 2, 0.25, 7),
        ("watch", 4, 0.5, 7),
        ("watch", 6, 0.5, 7),
    ]
    assert same_weights(evaluation.weights[6], load_file(run / "model" / "model.safetensors"))
    asked, *found = sorted(path.name for path in (run / "watch").iterdir())
    assert asked.startswith("asked-") and found == [
        "metrics.jsonl",
        "step_000002",
        "step_000004",
        "step_000006",
    ]
    assert not list((run / "watch").glob("*/model"))
    assert "has ended, and all of it is scored" in capsys.readouterr().out
    again = Evaluation()
    watch(watching_config(run), ALONE, again)
    assert again.steps == []


def test_a_final_model_without_a_checkpoint_is_scored_too(make_run: Callable[..., Path]) -> None:
    run, evaluation = make_run(), Evaluation()
    shutil.rmtree(run / CHECKPOINTS)
    watch(watching_config(run), ALONE, evaluation)
    assert evaluation.steps == [6]
    assert (run / "model").is_dir()


def test_without_anything_new_the_job_ends(make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    run, evaluation = make_run(finish=False), Evaluation()
    watch(watching_config(run, idle_minutes=0.0), ALONE, evaluation)
    assert evaluation.steps == [2, 4, 6]
    assert "nothing new for 0 minutes" in capsys.readouterr().out


def test_what_comes_while_it_waits_is_scored(make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run, evaluation = make_run(finish=False), Evaluation()
    late = step_folder(run / CHECKPOINTS, 6)
    aside = partial_folder(late)
    late.rename(aside)  # not whole yet: it has no name
    waits: list[int] = []

    def come_on(world: World, seconds: float) -> None:
        waits.append(len(evaluation.steps))
        if len(waits) == 2:
            aside.rename(late)
        if len(waits) == 3:
            write_model(run / "model", torch.zeros(4))

    monkeypatch.setattr(watching, "_wait", come_on)
    watch(watching_config(run), ALONE, evaluation)
    assert evaluation.steps == [2, 4, 6]
    assert waits == [2, 2, 3]


def test_one_that_is_rotated_away_while_it_is_read_is_passed_over(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, evaluation = make_run(), Evaluation()
    publish = watching.publish_stored

    def rotated(checkpoint: Path, *arguments: Any) -> Path:
        if checkpoint.name == "step_000004":
            shutil.rmtree(checkpoint)
        return publish(checkpoint, *arguments)

    monkeypatch.setattr(watching, "publish_stored", rotated)
    watch(watching_config(run), ALONE, evaluation)
    assert evaluation.steps == [2, 6]
    assert "watch: step 4 is passed over: the run has rotated it away" in capsys.readouterr().out


def test_one_that_is_broken_is_passed_over(make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    run, evaluation = make_run(), Evaluation()
    path = step_folder(run / CHECKPOINTS, 4) / "rank_00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    watch(watching_config(run), ALONE, evaluation)
    assert evaluation.steps == [2, 6]
    assert "its content is not what was written" in capsys.readouterr().out


def test_killed_in_an_evaluation_it_goes_on_with_the_weights_it_had(make_run: Callable[..., Path]) -> None:
    run = make_run(finish=False)

    def killed(model: Path, folder: Path) -> dict[str, Any]:
        if folder.name == "step_000004":
            raise KeyboardInterrupt
        return {"pass_at_1": 0.5}

    with pytest.raises(KeyboardInterrupt):
        watch(watching_config(run), ALONE, killed)
    assert [row["step"] for row in rows_of(run)] == [2]
    (run / "watch" / "metrics.jsonl").open("a").write('{"step": 4, "pa')  # a kill cuts a line, too
    for name in ("rank_00000.safetensors", "state.json"):  # the run has gone on meanwhile, the folder is about to go
        (step_folder(run / CHECKPOINTS, 4) / name).unlink()
    evaluation = Evaluation()
    watch(watching_config(run, idle_minutes=0.0), ALONE, evaluation)
    assert evaluation.steps == [4, 6]
    assert [row["step"] for row in rows_of(run)] == [2, 4, 6]


def test_told_to_stop_it_leaves_and_a_second_job_is_kept_out(make_run: Callable[..., Path]) -> None:
    run = make_run(finish=False)

    class Stopping(Watch):
        @property
        def stop_requested(self) -> bool:
            return True

    with pytest.raises(StopRequested):
        watch(watching_config(run), replace(ALONE, watch=Stopping()), Evaluation())

    def another(model: Path, folder: Path) -> dict[str, Any]:
        watch(watching_config(run), ALONE, Evaluation())
        return {}

    shutil.rmtree(run / "watch")
    with pytest.raises(InputError, match="another job watches this run"):
        watch(watching_config(run), ALONE, another)


# -----------------------------------------------------------------------------
# The best


def test_the_best_by_the_runs_own_setting_is_marked_and_its_weights_stay(make_run: Callable[..., Path]) -> None:
    run = make_run(keep_best="watch_pass_at_1")
    evaluation = Evaluation({2: 0.1, 4: 0.7, 6: 0.7})
    watch(watching_config(run), ALONE, evaluation)
    assert read_best(run / CHECKPOINTS, "watch_pass_at_1") == BestMark("watch_pass_at_1", 4, 0.7)
    best = load_file(run / "watch" / "best_model" / "model.safetensors")
    assert same_weights(best, evaluation.weights[4])


def test_a_restart_scores_with_the_settings_of_the_first(make_run: Callable[..., Path]) -> None:
    """Another number of problems would choose another best; slots and patience are free."""
    run = make_run(finish=False)
    config = watching_config(run, idle_minutes=0.0)
    watch(config, ALONE, Evaluation())
    config.evaluate.num_problems = 7
    with pytest.raises(InputError, match=r"evaluate\.num_problems=7: .* begun with 256"):
        watch(config, ALONE, Evaluation())
    config.evaluate.num_problems, config.evaluate.max_slots = 256, 3
    watch(config, ALONE, Evaluation())
    assert [row["step"] for row in rows_of(run)] == [2, 4, 6]


def test_a_metric_that_the_evaluation_lacks_is_named(make_run: Callable[..., Path]) -> None:
    run = make_run(keep_best="watch_pass_at_9")
    with pytest.raises(InputError, match=r"keep_best=watch_pass_at_9 .*no such metric \(there are: pass_at_1, tiny"):
        watch(watching_config(run), ALONE, Evaluation())


# -----------------------------------------------------------------------------
# The run's folder


def test_the_folder_of_a_run_is_told_from_others(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        WatchedRun.open(tmp_path / "missing")
    (tmp_path / "run" / "grpo").mkdir(parents=True)
    with pytest.raises(InputError, match="no config.yaml in it or above it"):
        WatchedRun.open(tmp_path / "run" / "grpo")
    with pytest.raises(InputError, match=r"a pipeline's folder; name a stage's, .*run/grpo"):
        WatchedRun.open(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text("seed: x\n")
    with pytest.raises(InputError, match=r"config.yaml: not the settings of a run"):
        WatchedRun.open(tmp_path / "run" / "grpo")


@pytest.mark.parametrize(
    ("stage", "path", "expected"),
    [("sft", None, "base/model"), ("sft", "given", None), ("grpo", None, "sft/model"), ("grpo", "given", "sft/model")],
)
def test_a_pipelines_stages_start_from_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, path: str | None, expected: str | None
) -> None:
    config = Config(model=ModelConfig(path=path, revision="abc"))
    (tmp_path / "run" / stage).mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").touch()
    monkeypatch.setattr(watching, "_read_config", lambda path: config)
    run = WatchedRun.open(tmp_path / "run" / stage)
    assert run.group == "run"
    assert run.model.path == (str(tmp_path / "run" / expected) if expected else "given")
    assert run.model.revision == (None if expected else "abc")


def test_a_summarys_numbers_by_name() -> None:
    one = {"pass_at_1": 0.5, "n": 3, "engine": "torch", "ok": True, "pass_at_1_interval": [0.1, 0.9]}
    several = {"engine": "torch", "groups": [{"ours": 1.0}], "benchmarks": {"aime24": {**one, "reference_score": 88.1}}}
    assert numbers_in(one) == {"pass_at_1": 0.5, "n": 3}
    assert numbers_in(several) == {"aime24.pass_at_1": 0.5, "aime24.n": 3}
