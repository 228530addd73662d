"""What a checkpoint is made of, and whether it can be trained as it is: looked at before the first step.

Nothing here is about weights. Chat templates and tokenizers differ between checkpoints of one family, and a
second BOS or a missing stop token costs a run without an error. What would spoil training raises InputError;
what only deserves a look comes back with advice. The checks take any template: they read what it renders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from falcon_h1r.config import ModelConfig
from falcon_h1r.model.kernels import SMALLEST_CHUNK
from falcon_h1r.model.multipliers import (
    all_multipliers_are_one,
    check_learning_rate,
    describe_multipliers,
    describes_shape,
    multiplier_remark,
)
from falcon_h1r.types import THINK_END, THINK_START, InputError

if TYPE_CHECKING:
    from transformers import FalconH1Config, PreTrainedTokenizerBase

TURN_END = "<|im_end|>"
OUR_TEMPLATE = "configs/model/chatml.jinja"

QUESTION = "What is 2 + 2?"
COMPLETION = rf"{THINK_START}Two and two make 4.{THINK_END}The answer is \boxed{{4}}.{TURN_END}"

LARGE_LEARNING_RATE = 1e-4  # fine-tuning a model without muP multipliers rarely wants more


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One line of the inspection. `advice` says what to do, or to know, where `ok` is false."""

    name: str
    ok: bool
    value: str
    advice: str = ""


def inspect_checkpoint(
    model_config: ModelConfig,
    model_hf_config: FalconH1Config,
    tokenizer: PreTrainedTokenizerBase,
    system_prompt: str,
    learning_rate: float | None = None,
    longest_tokens: int | None = None,
    key: str = "optimizer.learning_rate",
) -> list[CheckResult]:
    """All checks, in the order in which one would read them.

    Args:
        learning_rate: the one that training is about to use, if any.
        longest_tokens: prompt and response together may become so long.
        key: names the learning rate in a message.

    Raises:
        InputError: where training would be spoilt, in one line with a way out.
    """
    prompt = _prompt_text(tokenizer, system_prompt)
    return [
        check_bos(tokenizer, prompt),
        check_stop_tokens(tokenizer),
        check_template(tokenizer, prompt, system_prompt),
        check_loss_boundary(tokenizer, prompt),
        check_thinking(tokenizer, prompt),
        check_vocabulary(tokenizer, model_hf_config.vocab_size),
        check_multipliers(model_hf_config, learning_rate, key),
        check_chunk_size(model_config, model_hf_config),
        check_context(model_hf_config.max_position_embeddings, longest_tokens),
        CheckResult("embeddings", True, "tied" if model_hf_config.tie_word_embeddings else "not tied"),
        CheckResult("dtype", True, f"{model_config.dtype}; A_log, D and dt_bias in float32 at least"),
    ]


def print_inspection(results: Sequence[CheckResult]) -> None:
    """One line a check, advice below it."""
    width = max(len(result.name) for result in results)
    for result in results:
        print(f"{'ok  ' if result.ok else 'LOOK'} {result.name:<{width}}  {result.value}")
        if result.advice and not result.ok:
            print(f"     {'':<{width}}  {result.advice}")


# -----------------------------------------------------------------------------
# Tokenizer and template


def check_bos(tokenizer: PreTrainedTokenizerBase, prompt: str) -> CheckResult:
    """Exactly one BOS, at the start, in a prompt encoded as ours are: without the tokenizer's additions."""
    bos = tokenizer.bos_token_id
    if bos is None:
        raise InputError("tokenizer: has no BOS token; set bos_token in its tokenizer_config.json")
    ids = _encode(tokenizer, prompt)
    if ids.count(bos) != 1 or ids[0] != bos:
        raise InputError(
            f"tokenizer: its chat template puts {ids.count(bos)} BOS tokens ({tokenizer.bos_token}) into a "
            f"prompt, where one belongs, at the start; model.chat_template={OUR_TEMPLATE} replaces it"
        )
    added = tokenizer(prompt, return_attention_mask=False)["input_ids"].count(bos)
    value = f"one ({tokenizer.bos_token}, id {bos})"
    advice = "add_special_tokens=true would put another before the template's: tell servers not to add it"
    return CheckResult("BOS", added == 1, value, advice if added != 1 else "")


def check_stop_tokens(tokenizer: PreTrainedTokenizerBase) -> CheckResult:
    """A response ends at EOS or at the end of its turn; each has to be one token."""
    eos, vocabulary = tokenizer.eos_token, tokenizer.get_vocab()
    if eos is None or eos not in vocabulary:
        raise InputError("tokenizer: has no EOS token; set eos_token in its tokenizer_config.json")
    for token in (eos, TURN_END):
        pieces = _encode(tokenizer, token)
        if token not in vocabulary or pieces != [vocabulary[token]]:
            raise InputError(
                f"tokenizer: {token} is {len(pieces)} tokens, not one, so that responses would not stop at "
                "it; add it to the tokenizer as a special token"
            )
    return CheckResult("stop tokens", True, f"{eos} (id {vocabulary[eos]}), {TURN_END} (id {vocabulary[TURN_END]})")


def check_template(tokenizer: PreTrainedTokenizerBase, prompt: str, system_prompt: str) -> CheckResult:
    """The prompt holds what it was given, and a whole conversation begins with it and ends the turn."""
    for name, text in (("system prompt", system_prompt), ("question", QUESTION)):
        if text.strip() not in prompt:
            raise InputError(
                f"tokenizer: its chat template drops or changes the {name}; "
                f"model.chat_template={OUR_TEMPLATE} replaces it"
            )
    answer = COMPLETION.removesuffix(TURN_END)
    conversation = _render(tokenizer, [*_messages(system_prompt), {"role": "assistant", "content": answer}])
    if not conversation.startswith(prompt):
        differs = "a whole conversation does not begin with the prompt: other programs render it differently"
        return CheckResult("chat template", False, "prompt is no prefix", differs)
    if not conversation[len(prompt) :].startswith(COMPLETION):
        changes = "it changes the assistant's turn (thinking removed, or another end); training writes its own"
        return CheckResult("chat template", False, "round trip fails", changes)
    return CheckResult("chat template", True, "keeps system prompt, question and thinking; prompt is a prefix")


def check_loss_boundary(tokenizer: PreTrainedTokenizerBase, prompt: str) -> CheckResult:
    """Whether the first token with loss is the same if prompt and completion are tokenised in one piece."""
    apart = _encode(tokenizer, prompt) + _encode(tokenizer, COMPLETION)
    if apart == _encode(tokenizer, prompt + COMPLETION):
        return CheckResult("loss boundary", True, f"token {len(_encode(tokenizer, prompt))}, on a token border")
    advice = "training and sampling tokenise apart, and agree; programs that tokenise conversations whole do not"
    return CheckResult("loss boundary", False, "inside a token", advice)


def check_thinking(tokenizer: PreTrainedTokenizerBase, prompt: str) -> CheckResult:
    """How many tokens the tags take. A prompt that opens the thinking itself would have it opened twice."""
    if prompt.rstrip().endswith(THINK_START):
        raise InputError(
            f"tokenizer: its chat template ends the prompt with {THINK_START}, with which completions begin; "
            f"model.chat_template={OUR_TEMPLATE} replaces it"
        )
    counts = {tag: len(_encode(tokenizer, tag)) for tag in (THINK_START, THINK_END)}
    return CheckResult("thinking", True, ", ".join(f"{tag} {_number(count, 'token')}" for tag, count in counts.items()))


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> CheckResult:
    """Every token needs a row of the embedding; rows beyond them are padding."""
    num_tokens = max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1)
    if num_tokens > vocab_size:
        raise InputError(
            f"tokenizer: {num_tokens} tokens, but the model's embedding has {vocab_size} rows; "
            "it belongs to another checkpoint, or tokens were added without resizing the model"
        )
    padding = vocab_size - num_tokens
    return CheckResult("vocabulary", True, f"{num_tokens} tokens, {_number(padding, 'row')} of padding")


# -----------------------------------------------------------------------------
# Model


def check_multipliers(config: FalconH1Config, learning_rate: float | None, key: str) -> CheckResult:
    """The muP multipliers, which a large learning rate counts on."""
    shown, remark = describe_multipliers(config), multiplier_remark(config)
    if learning_rate is not None:
        check_learning_rate(config, learning_rate, key)
        if all_multipliers_are_one(config) and learning_rate > LARGE_LEARNING_RATE:
            remark += f"; a learning rate of {learning_rate:g} is not tamed by muP: is it meant?"
    return CheckResult("multipliers", not remark, shown, remark)


def check_chunk_size(model_config: ModelConfig, config: FalconH1Config) -> CheckResult:
    """Of the SSM scan in the fused kernels; ours takes any."""
    size, recorded = config.mamba_chunk_size, model_config.architecture.get("mamba_chunk_size")
    fits = size >= SMALLEST_CHUNK and size & (size - 1) == 0
    differs = recorded not in (None, size) and describes_shape(config, model_config.architecture)
    shown = f"{size} (model.architecture: {recorded}; the results are the same)" if differs else str(size)
    return CheckResult("chunk size", fits, shown, f"the fused scan takes powers of two from {SMALLEST_CHUNK} on")


def check_context(context_tokens: int, longest_tokens: int | None) -> CheckResult:
    """The length the model was made for, against the longest that training may reach."""
    if longest_tokens is not None and longest_tokens > context_tokens:
        raise InputError(
            f"limits: prompt_tokens + response_tokens = {longest_tokens} is beyond the model's context "
            f"of {context_tokens}"
        )
    return CheckResult("context", True, f"{context_tokens} tokens")


def _messages(system_prompt: str) -> list[dict[str, str]]:
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": QUESTION}]


def _prompt_text(tokenizer: PreTrainedTokenizerBase, system_prompt: str) -> str:
    if not tokenizer.chat_template:
        raise InputError(
            f"tokenizer: has no chat template; model.chat_template={OUR_TEMPLATE} gives it Falcon-H1's format"
        )
    return _render(tokenizer, _messages(system_prompt), add_generation_prompt=True)


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], add_generation_prompt: bool = False
) -> str:
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, tokenize=False)
    except TemplateError as error:
        raise InputError(
            f"tokenizer: its chat template fails on a plain conversation ({error}); "
            f"model.chat_template={OUR_TEMPLATE} replaces it"
        ) from None
    return str(text)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, return_attention_mask=False)["input_ids"])


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
