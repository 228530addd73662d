"""The whole way in one process, twice: every file is there, loads elsewhere, and repeats token for token."""

from __future__ import annotations

import json
import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from transformers import AutoTokenizer, FalconH1ForCausalLM

from falcon_h1r import entry
from falcon_h1r.config import Config
from falcon_h1r.distributed.watch import StopRequested, Watch
from falcon_h1r.distributed.world import World
from falcon_h1r.entry import CONFIGS
from falcon_h1r.tracking import strip_times
from recipes.pipeline import pipeline

SMALL = [
    "experiment=quickstart_smoke",
    "curate.synthetic.num_problems=400",
    "curate.synthetic.teachers=[terse,careless]",
    "sft.num_steps=6",
    "sft.batch_sequences=8",
    "sft.dev_every_steps=3",
    "grpo.num_steps=2",
    "grpo.problems_per_step=4",
    "grpo.group_size=4",
    "grpo.limits.response_tokens=16",
    "dev.num_problems=4",
    "evaluate.num_problems=6",
    "evaluate.num_samples=2",
    "evaluate.limits.response_tokens=16",
]


def run_pipeline(folder: Path, overrides: list[str], watch: Watch | None = None) -> Path:
    entry.store_schema()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = OmegaConf.to_object(compose("config", SMALL + overrides))
    assert isinstance(config, Config)
    config.run_dir = str(folder)
    folder.mkdir(exist_ok=config.resume)
    pipeline(config, folder, World(0, 1, torch.device("cpu"), watch=watch or Watch()))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_pipeline(tmp_path_factory.mktemp("pipeline") / "run", [])


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_stage_leaves_what_the_contract_names(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    for model in ("base", "sft", "grpo"):
        assert {"pass_at_1", "greedy", "pass_at_1_interval", "tokens_generated"} <= set(summary[model])
        assert (run / "evaluate" / model / "samples.jsonl").is_file()
    assert {"curate", "base", "sft", "grpo", "evaluate", "total"} <= set(summary["wall_seconds"])
    assert 0 < summary["peak_memory_gib"] < 4
    assert "<html" in (run / "report.html").read_text()
    assert len(rows(run / "sft" / "metrics.jsonl")) == 6
    assert len(rows(run / "grpo" / "metrics.jsonl")) == 2
    assert rows(run / "grpo" / "samples.jsonl")


def test_the_splits_share_no_problem(run: Path) -> None:
    uids = {name: {row["uid"] for row in rows(run / "curate" / f"{name}.jsonl")} for name in ("rl", "dev", "eval")}
    uids["sft"] = {row["problem"]["uid"] for row in rows(run / "curate" / "traces.jsonl")}
    assert all(uids.values())
    assert sum(map(len, uids.values())) == len(set().union(*uids.values()))


def test_curation_keeps_one_teacher_and_says_why_it_dropped_the_rest(run: Path) -> None:
    kept = rows(run / "curate" / "traces.jsonl")
    dropped = rows(run / "curate" / "dropped.jsonl")
    assert {row["teacher"] for row in kept} == {"terse"}
    assert {row["weight"] for row in kept if row["problem"]["difficulty"] == "easy"} <= {0.5}
    assert all(1.25 <= row["weight"] <= 1.75 for row in kept if row["problem"]["difficulty"] == "hard")
    assert {row["reason"] for row in dropped} == {"other_teacher"}
    assert len(kept) == len(dropped)


@pytest.mark.parametrize("stage", ["base", "sft", "grpo"])
def test_a_handed_over_model_loads_with_plain_transformers(run: Path, stage: str) -> None:
    model = FalconH1ForCausalLM.from_pretrained(run / stage / "model")
    tokenizer = AutoTokenizer.from_pretrained(run / stage / "model")
    assert tokenizer.chat_template is not None
    assert model.generation_config.eos_token_id == [2, 4]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Compute 1+1."}], add_generation_prompt=True, return_tensors="pt"
    )
    output = model.generate(**prompt, max_new_tokens=4, do_sample=False)
    assert output.shape[1] > prompt["input_ids"].shape[1]


@pytest.mark.slow
def test_two_runs_of_one_seed_are_equal_token_for_token(run: Path, tmp_path: Path) -> None:
    again = run_pipeline(tmp_path / "again", [])
    for stage in ("sft", "grpo"):
        first, second = (
            [strip_times(row) for row in rows(folder / stage / "metrics.jsonl")] for folder in (run, again)
        )
        assert first == second
    for file in ("grpo/samples.jsonl", "evaluate/base/samples.jsonl", "evaluate/grpo/samples.jsonl"):
        assert (run / file).read_bytes() == (again / file).read_bytes()


@pytest.mark.slow
def test_a_selection_stands_between_sft_and_grpo(run: Path, tmp_path: Path) -> None:
    assert not (run / "select").exists()
    settings = "{num_rollouts: 2, max_response_tokens: 16, disjoint_from_sft: true, keep_unsolved_share: 0.9}"
    folder = run_pipeline(tmp_path / "selected", [f"grpo.selection={settings}"])
    kept, dropped = rows(folder / "select" / "rl.jsonl"), rows(folder / "select" / "dropped.jsonl")
    candidates = {row["uid"] for row in rows(folder / "curate" / "rl.jsonl")}
    assert {row["uid"] for row in kept} | {row["uid"] for row in dropped} == candidates
    assert dropped and {row["pass_rate"] for row in kept + dropped} == {0.0}
    assert {row["problem_uid"] for row in rows(folder / "grpo" / "samples.jsonl")} <= {row["uid"] for row in kept}
    assert "select" in json.loads((folder / "summary.json").read_text())["wall_seconds"]
    assert (folder / "sft" / "model" / "model.safetensors").read_bytes() == (
        run / "sft" / "model" / "model.safetensors"
    ).read_bytes()


@pytest.mark.slow
def test_another_seed_is_another_run(run: Path, tmp_path: Path) -> None:
    other = run_pipeline(tmp_path / "other", ["seed=1"])
    assert (run / "curate/eval.jsonl").read_bytes() != (other / "curate/eval.jsonl").read_bytes()
    assert (run / "sft/metrics.jsonl").read_bytes() != (other / "sft/metrics.jsonl").read_bytes()


class StopAfter(Watch):
    """Hears of the stop after so many signs of life in a phase."""

    def __init__(self, phase: str, count: int) -> None:
        self.phases: list[str] = []
        self._after = phase, count

    def beat(self, phase: str, step: int | None = None) -> None:
        self.phases.append(phase)

    def long(self, phase: str, seconds: float = math.inf) -> AbstractContextManager[None]:
        self.beat(phase)
        return nullcontext()

    @property
    def stop_requested(self) -> bool:
        phase, count = self._after
        return self.phases.count(phase) >= count


def test_a_pipeline_stopped_in_every_stage_repeats_none_that_has_ended(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    # The fourth micro-batch is SFT's; only GRPO waits for verdicts so; the evaluation follows GRPO's publishing.
    for count, (phase, beats) in enumerate([("training", 4), ("verifying", 2), ("publishing", 1)]):
        with pytest.raises(StopRequested):
            run_pipeline(folder, ["resume=true"], StopAfter(phase, beats))
        assert [(folder / stage / "model").is_dir() for stage in ("sft", "grpo")] == [count > 0, count > 1]
    ended = [folder / name for name in ("curate/summary.json", "base/model", "sft/model", "grpo/model")]
    times = [path.stat().st_mtime_ns for path in ended]
    for _ in range(2):  # the second time, everything has ended
        run_pipeline(folder, ["resume=true"])
        assert [path.stat().st_mtime_ns for path in ended] == times
        for file in ("grpo/samples.jsonl", "evaluate/base/samples.jsonl", "evaluate/grpo/samples.jsonl"):
            assert (run / file).read_bytes() == (folder / file).read_bytes()
        for stage in ("sft", "grpo"):
            first, second = (list(map(strip_times, rows(path / stage / "metrics.jsonl"))) for path in (run, folder))
            assert first == second
        summaries = [json.loads((path / "summary.json").read_text()) for path in (run, folder)]
        assert summaries[0]["grpo"] == summaries[1]["grpo"]
        assert summaries[0]["wall_seconds"].keys() == summaries[1]["wall_seconds"].keys()
        assert summaries[1]["wall_seconds"]["sft"] > 0.1  # of the tries that trained
