"""suite=ablations: what it starts, where it goes on, and what its page holds against what."""

from __future__ import annotations

from pathlib import Path

from falcon_h1r.benchmark.ablations import BASE, SECTIONS, TrainedModel, commands, render
from falcon_h1r.entry_sweep import plan_sweep

ROOT = Path(__file__).resolve().parents[2]


def test_every_setting_of_the_page_is_a_file_that_can_be_swept_over() -> None:
    files = {path.stem for path in (ROOT / "configs" / "ablation").glob("*.yaml")}
    assert files == {name for settings in SECTIONS.values() for name in settings}


def test_a_seed_is_a_pipeline_a_sweep_from_its_cold_start_and_an_evaluation_of_each() -> None:
    (pipeline, done), (sweep, _), *evaluations = commands(
        Path("runs/a"), 1, ["seed=1", "resume=true"], ["reject", "group_4"]
    )
    assert pipeline == ["pipeline.py", "seed=1", "resume=true", "run_dir=runs/a/seed_1"]
    assert done == Path("runs/a/seed_1/summary.json")
    runs = plan_sweep(sweep[1:])
    assert [run.name for run in runs] == ["ablation=reject", "ablation=group_4"]
    assert all("model.path=runs/a/seed_1/sft/model" in run.overrides for run in runs)
    assert [done for _, done in evaluations] == [
        Path(f"runs/a/seed_1_evaluate/{name}/summary.json") for name in ("reject", "group_4")
    ]
    assert "model.path='runs/a/seed_1_grpo/ablation=group_4/model'" in evaluations[1][0]


def test_differences_are_taken_to_the_base_of_the_same_seed() -> None:
    def trained(num_right: int) -> TrainedModel:
        rows = [
            {
                "problem_uid": str(problem),
                "greedy": greedy,
                "sample_index": sample,
                "status": "correct" if problem < num_right else "wrong",
                "answer_key": "7",
            }
            for problem in range(10)
            for greedy, samples in ((False, 8), (True, 1))
            for sample in range(samples)
        ]
        step = dict.fromkeys(("response_tokens_mean", "zero_variance_share", "entropy"), 0.5)
        return TrainedModel(rows, [{**step, "sampled_tokens": 1e6, "sampling_seconds": 2.0, "training_seconds": 1.0}])

    models = {(BASE, 0): trained(2), (BASE, 1): trained(4), ("reject", 0): trained(3), ("reject", 1): trained(5)}
    page = render(models, [0, 1], "experiment=quickstart")
    assert "## Groups without contrast" in page and "## Temperature" not in page
    (difference,) = [line for line in page.splitlines() if line.startswith("| reject - base")]
    assert difference.count("+10.0 (") == 4
    assert "30.0, 50.0" in page and "| 1.00M | 0.5 | 50% | 0.500 | 3 |" in page
