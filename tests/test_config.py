"""Settings: the presets say what the recipe says, and a mistake ends in one line that names the key."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from falcon_h1r import entry
from falcon_h1r.config import FALCON_SYSTEM_PROMPT, Config
from falcon_h1r.config_checks import check_config, not_built_yet
from falcon_h1r.config_errors import config_keys, refuse_unknown_keys
from falcon_h1r.types import InputError

PRESETS = ("falcon_h1r_7b", "falcon_h1r_7b_8xh100", "falcon_h1_0_5b", "quickstart")
STAGES = ("curate", "sft", "select", "grpo", "evaluate", "pipeline", "export")

Refusal = Callable[..., str]


@cache
def composed(*overrides: str) -> Config:
    """The config that a recipe gets for these overrides."""
    entry.store_schema()
    with initialize_config_dir(str(entry.CONFIGS), version_base="1.3"):
        tree = compose("config", list(overrides))
    refuse_unknown_keys(tree)
    config = OmegaConf.to_object(tree)
    assert isinstance(config, Config)
    check_config(config)
    return config


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refusal:
    """What a recipe started with these arguments prints before it exits with the status of a usage error."""

    def run(*arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["sft.py", *arguments])
        GlobalHydra.instance().clear()
        with pytest.raises(SystemExit) as stop:
            entry.run_recipe("sft", lambda *_: pytest.fail("the recipe ran"), lambda _: pytest.fail("no error"))
        assert stop.value.code == entry.USAGE_ERROR
        printed = capsys.readouterr()
        assert printed.out == ""
        lines = printed.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), printed.err
        return lines[0].removeprefix("error: ")

    return run


@pytest.fixture
def preset_folder(tmp_path: Path) -> Callable[[str], tuple[str, str]]:
    """Writes an experiment of one's own; gives the arguments that choose it."""

    def write(text: str) -> tuple[str, str]:
        folder = tmp_path / "own" / "experiment"
        folder.mkdir(parents=True)
        (folder / "mine.yaml").write_text("# @package _global_\n" + text)
        return f"--config-dir={folder.parent}", "experiment=mine"

    return write


# -----------------------------------------------------------------------------
# Mistakes on the command line


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sft.num_stepz=3", "sft.num_stepz: no such key (did you mean sft.num_steps?)"),
        ("sft.learning_rate=3", "sft.learning_rate: no such key (did you mean sft.optimizer.learning_rate?)"),
        ("foo=1", "foo: no such key"),
        ("+foo=1", "foo: no such key"),
        ("+sft.optimizer.lr=1", "sft.optimizer.lr: no such key"),
        ("++sft.foo=2", "sft.foo: no such key"),
        ("+sft={foo: 2}", "sft.foo: no such key"),
        ("+sft.data.path.foo=1", "sft.data.path.foo: no such key"),
        ("sft.num_steps=abc", "sft.num_steps=abc: has to be a whole number or null"),
        ("sft={num_steps: abc}", "sft.num_steps=abc: has to be a whole number or null"),
        ("sft.data.limit=1.5", "sft.data.limit=1.5: has to be a whole number or null"),
        ("grpo.loss.clip_low=null", "grpo.loss.clip_low=null: has to be a number"),
        ("dry_run=maybe", "dry_run=maybe: has to be true or false"),
        (
            "curate.synthetic.families=addition",
            "curate.synthetic.families=addition: has to be a list or null",
        ),
        ("sft=3", "sft=3: has to be a section: {name: value, ...}"),
        (
            "sft.optimizer.groups=[lm_head]",
            "sft.optimizer.groups=[lm_head]: has to be a list of sections: [{name: value, ...}, ...]",
        ),
        (
            "sft.optimizer.groups=[{patern: lm_head}]",
            "sft.optimizer.groups: Key 'patern' not in 'ParameterGroupConfig'",
        ),
        ("sft.limits=[1,2]", "sft.limits=[1,2]: has to be a section: {name: value, ...}"),
        ("sft.num_steps==", "sft.num_steps==: not of the form key=value"),
        ("sft.num_steps", "sft.num_steps: not of the form key=value"),
        ("sft={a", "sft={a: not of the form key=value"),
        ("seed=1,2", "seed=1,2: several values, where one is expected"),
        ("--multirun", "--multirun: nothing to vary; list values: seed=0,1,2"),
        ("sft.num_steps=${foo}", "sft.num_steps: Interpolation key 'foo' not found"),
        ("model=nope", "model=nope: no such model (there are: benchmark, falcon_h1_0_5b, falcon_h1_7b, tiny)"),
        ("data=nope", "data=nope: no such data (there are: gsm8k, jsonl, synthetic)"),
        ("--config-name=nope", "--config-name=nope: no such file"),
        (
            "evaluate.benchmarks.mine.num_samples=2",
            "evaluate.benchmarks.mine: no entry of that name; '+evaluate.benchmarks={mine: ...}' adds one",
        ),
    ],
)
def test_a_mistaken_override_is_told_in_one_line(refusal: Refusal, override: str, message: str) -> None:
    assert refusal(override) == message


def test_an_unknown_experiment_names_those_there_are(refusal: Refusal) -> None:
    message = refusal("experiment=nope")
    assert message.startswith("experiment=nope: no such experiment (there are: ")
    assert all(preset in message for preset in PRESETS)


def test_no_traceback_reaches_the_shell(tmp_path: Path) -> None:
    code = "from falcon_h1r.entry import run_recipe; run_recipe('sft', lambda *_: None, lambda _: None)"
    run = subprocess.run(
        [sys.executable, "-c", code, "grpo.group_size=1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (run.returncode, run.stdout) == (entry.USAGE_ERROR, "")
    assert run.stderr.startswith("error: grpo.group_size=1: ") and run.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir()), "a refused run leaves nothing behind"


def test_what_is_free_form_takes_any_key() -> None:
    config = composed("+evaluate.benchmarks={mine: {num_samples: 2}}", "+model.architecture.head_dim=8")
    assert config.evaluate.benchmarks["mine"].num_samples == 2
    assert config.model.architecture["head_dim"] == 8


# -----------------------------------------------------------------------------
# Mistakes in a file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "sft: {num_stepz: 3}",
            "sft.num_stepz: no such key (did you mean sft.num_steps?) (in experiment/mine.yaml)",
        ),
        ("foo: 3", "foo: no such key (in experiment/mine.yaml)"),
        (
            "sft: {num_steps: abc}",
            "sft.num_steps=abc: has to be a whole number or null (in experiment/mine.yaml)",
        ),
        (
            "evaluate: {benchmarks: {a: {b: 1}}}",
            "evaluate.benchmarks.a.b: no such key (in experiment/mine.yaml)",
        ),
        (
            "defaults: [override /model: nope]",
            "model=nope: no such model (there are: benchmark, falcon_h1_0_5b, falcon_h1_7b, tiny)",
        ),
    ],
)
def test_a_mistake_in_a_preset_names_the_file(
    refusal: Refusal, preset_folder: Callable[[str], tuple[str, str]], text: str, message: str
) -> None:
    assert refusal(*preset_folder(text)) == message


@pytest.mark.parametrize("text", ["sft: {num_steps: [3\ngrpo: 2", "seed: 1\nseed: 2", "a: b: c"])
def test_a_preset_that_is_no_yaml_names_file_and_line(
    refusal: Refusal, preset_folder: Callable[[str], tuple[str, str]], text: str
) -> None:
    message = refusal(*preset_folder(text))
    assert "own/experiment/mine.yaml, line " in message
    assert "not YAML (" in message


# -----------------------------------------------------------------------------
# Impossible values


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("grpo.group_size=1", "grpo.group_size=1"),
        ("sft.limits.row_tokens=10", "sft.limits.row_tokens=10"),
        ("grpo.limits.response_tokens=9000", "grpo.limits.row_tokens=2048"),
        ("evaluate.limits.prompt_tokens=0", "evaluate.limits.prompt_tokens=0"),
        ("evaluate.engine=vllm", "evaluate.engine=vllm: not one of torch, endpoint"),
        ("evaluate.work.claim_traces=0", "evaluate.work.claim_traces=0: has to be at least 1"),
        ("+evaluate.benchmarks={a/b: {num_samples: 1}}", "evaluate.benchmarks.a/b: has to be the name of a folder"),
        ("scaling.measure=entropy", "scaling.measure=entropy: not one of top_k, sampled"),
        ("scaling.partial_window=skip", "scaling.partial_window=skip: not one of mean, wait"),
        ("scaling.wave_traces=0", "scaling.wave_traces=0: has to be at least 1"),
        ("scaling.keep_shares=[0.1,2]", "scaling.keep_shares=2.0: a share lies between 0 and 1"),
        ("grpo.rollout.temperature=0", "grpo.rollout.temperature=0"),
        ("grpo.rollout.top_p=0.9", "grpo.rollout.top_p=0.9"),
        ("grpo.loss.aggregation=mean", "grpo.loss.aggregation=mean"),
        ("sft.optimizer.warmup_share=1.5", "sft.optimizer.warmup_share=1.5"),
        ("sft.num_epochs=0", "sft.num_epochs=0"),
        ("sft.optimizer.batch_tokens=100", "sft.optimizer.batch_tokens=100: does nothing without reference"),
        ("sft.optimizer.reference_batch_tokens=0", "sft.optimizer.reference_batch_tokens=0"),
        ("grpo.optimizer.reference_batch_tokens=9", "grpo.optimizer.batch_tokens is not set"),
        ("sft.optimizer.groups=[{learning_rate_multiplier: 2}]", "sft.optimizer.groups[0].pattern: empty"),
        ("grpo.optimizer.groups=[{pattern: a},{pattern: '('}]", "grpo.optimizer.groups[1].pattern=(: not a regular"),
        (
            "sft.optimizer.groups=[{pattern: a, weight_decay_multiplier: -1}]",
            "sft.optimizer.groups[0].weight_decay_multiplier=-1.0: has to be at least 0",
        ),
        ("model.dtype=float16", "model.dtype=float16"),
        ("model.lora.rank=-1", "model.lora.rank=-1"),
        ("model.lora.dropout=0.1", "model.lora.dropout=0.1: has to be 0"),
        ("model.lora.alpha=0", "model.lora.alpha=0.0"),
        ("model.lora={rank: 4, target_modules: []}", "model.lora.target_modules: empty"),
        ("model.lora.target_modules=[q_proj,conv1d]", "model.lora.target_modules=conv1d: the convolution, which reads"),
        ("model.lora.target_modules=[out_proj]", "model.lora.target_modules=out_proj: fused kernels, which read"),
        ("model.lora.target_modules=[lm_head]", "model.lora.target_modules=lm_head: the loss, which reads"),
        ("model.lora.target_modules=[embed_tokens]", "model.lora.target_modules=embed_tokens: not one of q_proj"),
        ("launch.num_nodes=0", "launch.num_nodes=0"),
        ("engine.zero_stage=4", "engine.zero_stage=4: has to be at most 3"),
        ("engine.zero_stage=2", "engine.zero_stage=2: needs engine.name=deepspeed, not torch"),
        ("engine.optimizer_offload=true", "engine.optimizer_offload=true: needs engine.name=deepspeed, not torch"),
        ("engine={name: deepspeed, optimizer_offload: true}", "engine.optimizer_offload=true: needs engine.zero_stage"),
        ("engine.zero_json=pyproject.toml", "engine.zero_json=pyproject.toml: needs engine.name=deepspeed, not torch"),
        ("engine={name: deepspeed, zero_json: none.json}", "engine.zero_json=none.json: not a file of JSON settings"),
        ("checkpoint.every_steps=-1", "checkpoint.every_steps=-1: has to be at least 0"),
        ("checkpoint.every_minutes=-1", "checkpoint.every_minutes=-1.0: has to be at least 0"),
        ("checkpoint.keep=0", "checkpoint.keep=0: has to be at least 1"),
        ("supervision.lost_seconds=0", "supervision.lost_seconds=0.0: has to be at least 1"),
        ("supervision.wait_seconds=-5", "supervision.wait_seconds=-5.0: has to be at least 1"),
        ("supervision.silent_seconds=20", "supervision.silent_seconds=20.0: below lost_seconds=30.0"),
        ("supervision.lost_seconds=nan", "supervision.lost_seconds=nan: has to be a number"),
        ("supervision.wait_seconds=inf", "supervision.wait_seconds=inf: has to be at most 1e+08"),
        ("supervision.collective_seconds=1e12", "supervision.collective_seconds=1000000000000.0: has to be at most"),
        ("checkpoint.every_minutes=nan", "checkpoint.every_minutes=nan: has to be a number"),
        ("sft.optimizer.learning_rate=nan", "sft.optimizer.learning_rate=nan: has to be a number"),
        ("supervision.max_skipped_steps=-1", "supervision.max_skipped_steps=-1: has to be at least 1"),
        ("scaling.trace_score=best", "scaling.trace_score=best"),
        ("scaling.keep_share=10", "scaling.keep_share=10"),
        ("verifier.code.num_workers=0", "verifier.code.num_workers=0"),
        ("verifier.code.max_tests=0", "verifier.code.max_tests=0"),
        ("verifier.code.cpu_seconds=0", "verifier.code.cpu_seconds=0"),
        ("verifier.code.deadline_seconds=2", "verifier.code.deadline_seconds=2"),
        ("verifier.code.memory_limit_gib=0.01", "verifier.code.memory_limit_gib=0.01"),
        ("grpo.selection.domains=[]", "grpo.selection.domains: empty"),
        ("grpo.selection.domains=[maths]", "grpo.selection.domains=maths: not one of math, code"),
        ("grpo.selection.num_rollouts=-1", "grpo.selection.num_rollouts=-1"),
        ("grpo.selection.temperature=0", "grpo.selection.temperature=0.0: greedy"),
        ("grpo.selection.top_p=0", "grpo.selection.top_p=0.0"),
        ("grpo.selection.max_response_tokens=0", "grpo.selection.max_response_tokens=0"),
        ("grpo.selection.drop_consistent_wrong=1", "grpo.selection.drop_consistent_wrong=1"),
        ("grpo.selection.keep_unsolved_share=2", "grpo.selection.keep_unsolved_share=2.0"),
        ("verifier.code.sandbox_url=localhost", "verifier.code.sandbox_url=localhost"),
        ("grpo.rollout.stop_strings=['end','']", "grpo.rollout.stop_strings: one is empty"),
        ("grpo.rollout.overlap=true", "grpo.rollout.overlap=true: the sampler would draw with the weights"),
        ("grpo.rollout.max_partial_steps=2", "grpo.rollout.max_partial_steps=2: a step that begins no more groups"),
        ("grpo.surplus_cache_groups=4", "grpo.surplus_cache_groups=4: a step that begins no more groups"),
        ("grpo.surplus_cache_refresh=true", "grpo.surplus_cache_refresh=true: needs grpo.surplus_cache_groups"),
        ("grpo.loss.importance_cap=0", "grpo.loss.importance_cap=0.0: has to be above 0"),
        ("grpo.loss.cispo_cap=-1", "grpo.loss.cispo_cap=-1.0: has to be above 0"),
    ],
)
def test_an_impossible_value_is_refused_by_its_key(refusal: Refusal, override: str, key: str) -> None:
    assert refusal(override).startswith(key)


def test_settings_that_nothing_acts_on_are_refused_by_a_run_and_pass_a_dry_one() -> None:
    config = composed("grpo.rollout.name=vllm_server")
    with pytest.raises(InputError, match="not acted on by this version .*: grpo.rollout.name=vllm_server"):
        entry._refuse_unbuilt(config, "select")
    entry._refuse_unbuilt(composed("grpo.rollout.name=vllm_server", "dry_run=true"), "select")
    entry._refuse_unbuilt(config, "pipeline")  # in which nothing is selected
    entry._refuse_unbuilt(config, "grpo")


def test_all_of_grpo_is_built() -> None:
    for experiment in ("falcon_h1r_7b", "falcon_h1r_7b_8xh100", "falcon_h1_0_5b"):
        assert not_built_yet(composed(f"experiment={experiment}"), "grpo") == []


def test_several_nodes_need_a_launcher() -> None:
    config = Config()
    config.launch.num_nodes = 2
    with pytest.raises(InputError, match=r"launch\.num_nodes=2"):
        entry._launch(config)


# -----------------------------------------------------------------------------
# Presets


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_composes_and_passes_the_checks(preset: str) -> None:
    assert composed(f"experiment={preset}").name == preset


def test_the_defaults_need_nothing_that_is_not_built() -> None:
    assert [not_built_yet(Config(), stage) for stage in STAGES] == [[]] * len(STAGES)


@pytest.mark.parametrize("stage", ["curate", "sft", "select", "grpo", "evaluate", "pipeline"])
def test_what_one_gpu_or_two_cores_need_is_built(stage: str) -> None:
    for preset in ("quickstart", "falcon_h1_0_5b"):
        assert not_built_yet(composed(f"experiment={preset}"), stage) == []


def test_a_preset_leaves_the_choice_of_model_to_the_command_line() -> None:
    assert composed("experiment=falcon_h1r_7b", "model=tiny").model.path is None


def test_the_report_is_told_in_the_7b_preset() -> None:
    """Sections 2 to 5 of the recipe, figure by figure."""
    config = composed("experiment=falcon_h1r_7b")
    sft, grpo = config.sft, config.grpo
    assert config.system_prompt == FALCON_SYSTEM_PROMPT
    assert config.launch.num_nodes * config.launch.num_processes == 256
    assert config.engine.sequence_parallel == 2
    assert config.curate.traces_per_problem == 12
    assert sum(config.curate.mix.domain_samples.values()) == sft.data.expected_samples == 3_110_000
    assert sft.data.expected_tokens == round((17.1 + 9 + 2.1 + 1.9) * 1e9)
    assert (sft.batch_sequences, sft.num_epochs, sft.limits.row_tokens) == (512, 3, 36 * 1024)
    assert sft.limits.prompt_tokens + sft.limits.response_tokens == 36 * 1024
    optimizer = sft.optimizer
    assert (optimizer.learning_rate, optimizer.schedule, optimizer.warmup_share) == (1024e-6, "linear", 0.04)
    assert (optimizer.weight_decay, optimizer.clip_grad_norm, config.model.dtype) == (0.01, 1.0, "bfloat16")
    weights = config.curate.weights
    assert (weights.easy, weights.medium, weights.hard_low, weights.hard_high) == (0.5, 1.0, 1.25, 1.75)
    assert (grpo.group_size, grpo.problems_per_step, grpo.updates_per_batch) == (16, 128, 1)
    assert (grpo.rollout.temperature, grpo.limits.response_tokens) == (0.85, 48 * 1024)
    assert (grpo.optimizer.learning_rate, grpo.optimizer.warmup_steps) == (2e-6, 10)
    loss = grpo.loss
    assert (loss.clip_low, loss.clip_high, loss.importance_cap, loss.aggregation) == (
        0.2,
        0.28,
        2.0,
        "sequence",
    )
    assert loss.kl_coefficient == loss.entropy_coefficient == 0.0
    selection = grpo.selection
    assert (selection.num_rollouts, selection.temperature, selection.top_p) == (8, 0.6, 0.95)
    assert (selection.drop_consistent_wrong, selection.domains) == (4, ["math"])
    scaling = config.scaling
    assert (scaling.num_traces, scaling.warmup_traces, scaling.window_tokens, scaling.top_k) == (
        512,
        16,
        2048,
        20,
    )
    assert (scaling.consensus_share, scaling.keep_share) == (0.95, 0.1)


def test_a_whole_reference_beside_sharded_weights_is_refused(refusal: Refusal) -> None:
    sharded = ("engine.name=deepspeed", "engine.zero_stage=3", "grpo.loss.kl_coefficient=0.1")
    assert refusal(*sharded).startswith("grpo.loss.kl_coefficient=0.1: every rank holds its reference model whole")
    composed(*sharded, "model.lora.rank=4")  # whose reference is the model without its adapters


def test_published_scores_stand_beside_their_benchmarks() -> None:
    benchmarks = composed("experiment=falcon_h1r_7b").evaluate.benchmarks
    assert {name: benchmark.reference_score for name, benchmark in benchmarks.items()} == {
        "aime24": 88.1,
        "aime25": 83.1,
        "hmmt25": 64.9,
        "amo_bench": 36.3,
        "math500": 97.4,
        "livecodebench_v6": 68.6,
        "scicode": 28.3,
        "terminal_bench_hard": 4.9,
        "gpqa_diamond": 61.3,
        "mmlu_pro": 72.1,
        "hle": 11.1,
        "ifbench": 53.4,
    }
    assert [name for name, benchmark in benchmarks.items() if benchmark.num_samples == 16] == [
        "aime24",
        "aime25",
        "hmmt25",
        "amo_bench",
    ]


def test_one_node_keeps_the_optimisation_of_sft() -> None:
    cluster, node = (composed(f"experiment={name}") for name in PRESETS[:2])
    assert node.launch.num_nodes * node.launch.num_processes == 8
    assert (node.sft, node.model, node.curate) == (cluster.sft, cluster.model, cluster.curate)
    assert node.grpo.num_steps * node.grpo.problems_per_step == cluster.grpo.num_steps * cluster.grpo.problems_per_step


def test_no_key_is_listed_twice() -> None:
    keys = config_keys()
    assert len(set(keys)) == len(keys)
