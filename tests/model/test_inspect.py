"""What a checkpoint has to have before it is trained, on a good one and on one for each way of being bad."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoTokenizer, FalconH1Config

from falcon_h1r.checkpoint import publish_model
from falcon_h1r.config import FALCON_SYSTEM_PROMPT, ModelConfig
from falcon_h1r.data.tokenisation import (
    BOS,
    CHAT_TEMPLATE,
    completion_text,
    encode_traces,
    prompt_text,
    train_tokenizer,
)
from falcon_h1r.model import inspect
from falcon_h1r.model.inspect import CheckResult, inspect_checkpoint, print_inspection
from falcon_h1r.model.load import load_policy, random_policy
from falcon_h1r.types import InputError, Problem, Trace
from tests.conftest import ONE_LAYER

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURE: dict[str, Any] = {
    **ONE_LAYER,
    "mamba_chunk_size": 64,
    "max_position_embeddings": 512,
    "embedding_multiplier": 5.65685,
    "lm_head_multiplier": 0.25,
    "ssm_multipliers": [0.35, 0.25, 0.18, 0.5, 0.35],
}
SETTINGS = ModelConfig(architecture=ARCHITECTURE)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny published model with a tokenizer of our own."""
    tokenizer = train_tokenizer(["What is 2 + 2? Two and two make 4."] * 4, 400)
    model = random_policy(SETTINGS, tokenizer, seed=0)
    return publish_model(model, tokenizer, tmp_path_factory.mktemp("published") / "model")


@pytest.fixture
def tokenizer(checkpoint: Path) -> Any:
    """A fresh copy: tests spoil theirs."""
    return AutoTokenizer.from_pretrained(checkpoint)


@pytest.fixture
def shape(checkpoint: Path) -> FalconH1Config:
    return FalconH1Config.from_pretrained(checkpoint)


def inspected(tokenizer: Any, shape: FalconH1Config, **rest: Any) -> dict[str, CheckResult]:
    results = inspect_checkpoint(SETTINGS, shape, tokenizer, FALCON_SYSTEM_PROMPT, **rest)
    return {result.name: result for result in results}


def test_a_published_model_passes_every_check(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = load_policy(ModelConfig(path=str(checkpoint)), torch.device("cpu"))
    results = inspect_checkpoint(SETTINGS, model.config, tokenizer, FALCON_SYSTEM_PROMPT, learning_rate=1e-3)
    assert [result.name for result in results if not result.ok] == []
    print_inspection(results)
    printed = capsys.readouterr().out
    assert all(result.name in printed for result in results)
    assert "LOOK" not in printed


def test_the_inspection_reports_what_the_checkpoint_is(tokenizer: Any, shape: FalconH1Config) -> None:
    found = inspected(tokenizer, shape)
    assert BOS in found["BOS"].value
    assert "<|im_end|>" in found["stop tokens"].value and "<|end_of_text|>" in found["stop tokens"].value
    assert found["thinking"].value == "<think> 1 token, </think> 1 token"
    assert found["vocabulary"].value == f"{len(tokenizer)} tokens, 0 rows of padding"
    assert "embedding 5.657" in found["multipliers"].value
    assert "ssm [0.35, 0.25, 0.18, 0.5, 0.35]" in found["multipliers"].value
    assert found["chunk size"].value == "64"
    assert found["context"].value == "512 tokens"


def test_the_inspected_sample_is_what_training_writes(tokenizer: Any) -> None:
    """The inspection spells the format out, a floor below the tokenisation: the two have to agree."""
    problem = Problem.from_question(inspect.QUESTION, "4")
    trace = Trace(problem, "teacher", "Two and two make 4.", r"The answer is \boxed{4}.")
    prompt = inspect._prompt_text(tokenizer, FALCON_SYSTEM_PROMPT)
    assert prompt == prompt_text(tokenizer, inspect.QUESTION, FALCON_SYSTEM_PROMPT)
    assert completion_text(trace) == inspect.COMPLETION
    (document,) = encode_traces(tokenizer, [trace], FALCON_SYSTEM_PROMPT)
    whole = tokenizer(prompt + inspect.COMPLETION, add_special_tokens=False)["input_ids"]
    assert document.input_ids == whole
    assert document.loss_weights.index(1.0) == len(tokenizer(prompt, add_special_tokens=False)["input_ids"])


def test_the_template_file_is_our_template(tokenizer: Any) -> None:
    tokenizer.chat_template = (ROOT / "configs" / "model" / "chatml.jinja").read_text()
    from_file = prompt_text(tokenizer, "2 + 2?", "Think.")
    tokenizer.chat_template = CHAT_TEMPLATE
    assert from_file == prompt_text(tokenizer, "2 + 2?", "Think.")


# -----------------------------------------------------------------------------
# What would spoil training is refused


def without_template(tokenizer: Any) -> None:
    tokenizer.chat_template = None


def with_a_second_bos(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ bos_token }}" + CHAT_TEMPLATE


def without_bos(tokenizer: Any) -> None:
    tokenizer.chat_template = CHAT_TEMPLATE.replace("{{ bos_token }}", "")


def with_a_lost_system_prompt(tokenizer: Any) -> None:
    tokenizer.chat_template = CHAT_TEMPLATE.replace("in messages", "in messages if message.role != 'system'")


def with_thinking_opened(tokenizer: Any) -> None:
    tokenizer.chat_template = CHAT_TEMPLATE.replace("assistant\n", "assistant\n<think>\n")


def with_a_template_that_fails(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ raise_exception('only tools') }}"


def without_bos_token(tokenizer: Any) -> None:
    tokenizer.bos_token = None


def without_eos_token(tokenizer: Any) -> None:
    tokenizer.eos_token = None


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (without_template, "no chat template"),
        (with_a_second_bos, "puts 2 BOS tokens"),
        (without_bos, "puts 0 BOS tokens"),
        (with_a_lost_system_prompt, "drops or changes the system prompt"),
        (with_thinking_opened, "ends the prompt with <think>"),
        (with_a_template_that_fails, "fails on a plain conversation"),
        (without_bos_token, "no BOS token"),
        (without_eos_token, "no EOS token"),
    ],
)
def test_a_tokenizer_that_would_spoil_training_is_refused_in_one_line(
    tokenizer: Any, shape: FalconH1Config, spoil: Callable[[Any], None], complaint: str
) -> None:
    spoil(tokenizer)
    with pytest.raises(InputError, match=complaint) as refusal:
        inspected(tokenizer, shape)
    assert "\n" not in str(refusal.value)


def test_a_missing_turn_end_is_refused(shape: FalconH1Config) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_only = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    bytes_only.add_special_tokens([BOS, "<|end_of_text|>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_only, bos_token=BOS, eos_token="<|end_of_text|>", chat_template=CHAT_TEMPLATE
    )
    with pytest.raises(InputError, match=r"<\|im_end\|> is 10 tokens, not one"):
        inspected(tokenizer, shape)


def test_more_tokens_than_embedding_rows_are_refused(tokenizer: Any, shape: FalconH1Config) -> None:
    shape.vocab_size = len(tokenizer) - 1
    with pytest.raises(InputError, match=f"{len(tokenizer)} tokens, but the model's embedding has"):
        inspected(tokenizer, shape)


def test_limits_beyond_the_context_are_refused(tokenizer: Any, shape: FalconH1Config) -> None:
    inspected(tokenizer, shape, longest_tokens=512)
    with pytest.raises(InputError, match="513 is beyond the model's context of 512"):
        inspected(tokenizer, shape, longest_tokens=513)


# -----------------------------------------------------------------------------
# What deserves a look is reported, not refused


def test_padding_rows_are_counted(tokenizer: Any, shape: FalconH1Config) -> None:
    shape.vocab_size = len(tokenizer) + 3
    assert inspected(tokenizer, shape)["vocabulary"].value.endswith("3 rows of padding")


def test_a_bos_that_the_tokenizer_would_double_is_reported(tokenizer: Any, shape: FalconH1Config) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.bos_token_id)]
    )
    result = inspected(tokenizer, shape)["BOS"]
    assert not result.ok and "another" in result.advice


def test_a_template_that_removes_thinking_is_reported(tokenizer: Any, shape: FalconH1Config) -> None:
    answer = "(message['content'].split('</think>')[-1] if message['role'] == 'assistant' else message['content'])"
    tokenizer.chat_template = CHAT_TEMPLATE.replace("message['content']", answer)
    result = inspected(tokenizer, shape)["chat template"]
    assert not result.ok and "changes the assistant's turn" in result.advice


def test_a_template_that_also_cuts_the_system_prompt_at_its_tags_is_refused(
    tokenizer: Any, shape: FalconH1Config
) -> None:
    """The report's system prompt speaks of <think>: cutting every message at the tag halves it."""
    tokenizer.chat_template = CHAT_TEMPLATE.replace("message['content']", "message['content'].split('</think>')[-1]")
    with pytest.raises(InputError, match="system prompt"):
        inspected(tokenizer, shape)


def test_a_template_that_renders_conversations_otherwise_is_reported(tokenizer: Any, shape: FalconH1Config) -> None:
    tokenizer.chat_template = CHAT_TEMPLATE.replace(
        "{% for", "{% if not add_generation_prompt %}{{ '\n' }}{% endif %}{% for", 1
    )
    result = inspected(tokenizer, shape)["chat template"]
    assert not result.ok and "does not begin with the prompt" in result.advice


def test_a_boundary_inside_a_token_is_reported(tokenizer: Any, shape: FalconH1Config) -> None:
    tokenizer.add_tokens([AddedToken("assistant\n<think>", normalized=False)])
    result = inspected(tokenizer, FalconH1Config(vocab_size=1000))["loss boundary"]
    assert not result.ok and result.value == "inside a token"


@pytest.mark.parametrize(("learning_rate", "asked"), [(1e-3, True), (1e-5, False), (None, False)])
def test_multipliers_of_1_are_reported_and_a_large_learning_rate_with_them(
    tokenizer: Any, learning_rate: float | None, asked: bool
) -> None:
    plain = FalconH1Config(vocab_size=1000, hidden_size=512, num_attention_heads=8)
    result = inspected(tokenizer, plain, learning_rate=learning_rate)["multipliers"]
    assert not result.ok and result.advice.startswith("all are 1")
    assert ("is it meant?" in result.advice) is asked


def test_a_head_multiplier_of_1_among_others_is_reported(tokenizer: Any, shape: FalconH1Config) -> None:
    shape.lm_head_multiplier = 1.0
    result = inspected(tokenizer, shape)["multipliers"]
    assert not result.ok and "folded into the head" in result.advice


@pytest.mark.parametrize(
    ("hidden_size", "learning_rate", "refused"),
    [
        (64, 1024e-6, True),
        (64, 1.03e-3, True),
        (64, 1e-3, False),
        (64, 8e-3, False),
        (1024, 6e-4, True),
        (1024, 4e-4, False),
        (1024, 1e-2, True),
    ],
)
def test_a_learning_rate_that_counts_on_multipliers_is_refused_where_all_are_1(
    tokenizer: Any, hidden_size: int, learning_rate: float, refused: bool
) -> None:
    plain = FalconH1Config(vocab_size=1000, hidden_size=hidden_size, num_attention_heads=8)
    if not refused:
        inspected(tokenizer, plain, learning_rate=learning_rate)
        return
    with pytest.raises(InputError, match="only with muP multipliers") as refusal:
        inspected(tokenizer, plain, learning_rate=learning_rate, key="sft.optimizer.learning_rate")
    assert str(refusal.value).startswith(f"sft.optimizer.learning_rate={learning_rate:g}: ")
    plain.key_multiplier = 0.5
    inspected(tokenizer, plain, learning_rate=learning_rate)


def test_a_chunk_that_the_fused_scan_cannot_take_is_reported(tokenizer: Any, shape: FalconH1Config) -> None:
    for size in (96, 8):
        shape.mamba_chunk_size = size
        assert not inspected(tokenizer, shape)["chunk size"].ok


def test_another_chunk_size_than_the_presets_is_told(tokenizer: Any, shape: FalconH1Config) -> None:
    shape.mamba_chunk_size = 128
    result = inspected(tokenizer, shape)["chunk size"]
    assert result.ok and result.value == "128 (model.architecture: 64; the results are the same)"
