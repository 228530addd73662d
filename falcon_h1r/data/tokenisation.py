"""From problems and traces to token ids: the chat format, the loss mask, and a tokenizer of our own to start from.

The format is Falcon-H1's: BOS, then ChatML turns, then an assistant's turn that thinks aloud before it answers:

    <|begin_of_text|><|im_start|>system\n...<|im_end|>\n<|im_start|>user\n...<|im_end|>\n<|im_start|>assistant\n
    <think>...</think>\boxed{...}<|im_end|>

The first line is the prompt, which carries no loss; the second is what the model learns to write.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from falcon_h1r.data.packing import Document
from falcon_h1r.types import THINK_END, THINK_START, InputError, Problem, Trace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BOS, EOS, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = [PAD, BOS, EOS, TURN_START, TURN_END]

# Common commands of school mathematics, each one token: better maths for slightly longer texts (Falcon-H1 report).
LATEX_COMMANDS = [
    r"\boxed", r"\frac", r"\dfrac", r"\sqrt", r"\times", r"\cdot", r"\div", r"\pm", r"\bmod", r"\mod", r"\equiv",
    r"\pmod", r"\le", r"\ge", r"\leq", r"\geq", r"\neq", r"\left", r"\right", r"\text", r"\pi", r"\theta", r"\alpha",
    r"\beta", r"\sin", r"\cos", r"\tan", r"\log", r"\ln", r"\sum", r"\prod", r"\int", r"\lim", r"\infty", r"\binom",
    r"\gcd", r"\lfloor", r"\rfloor", r"\cup", r"\cap", r"\in", r"\begin", r"\end", r"\circ", r"\angle", r"\ldots",
]  # fmt: skip

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """Byte-level BPE in the manner of Falcon-H1: digits and punctuation stand alone, LaTeX commands are whole.

    Args:
        texts: what the merges are learnt from.
        vocab_size: at least 256 bytes plus the special tokens and commands; a soft upper limit.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    whole = [AddedToken(token, normalized=False) for token in [THINK_START, THINK_END, *LATEX_COMMANDS]]
    smallest = 256 + len(SPECIAL_TOKENS) + len(whole)
    if vocab_size < smallest:
        raise InputError(
            f"model.tokenizer_vocab_size={vocab_size} is below the {smallest} that bytes and commands need"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d|[^\w\s]|\n"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(whole),
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(whole)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens=[TURN_START, TURN_END],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def prompt_text(tokenizer: PreTrainedTokenizerBase, question: str, system_prompt: str) -> str:
    """The conversation up to where the assistant begins to write."""
    messages = [{"role": "user", "content": question}]
    if system_prompt:
        messages.insert(0, {"role": "system", "content": system_prompt})
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def completion_text(trace: Trace) -> str:
    """What the assistant writes: the reasoning between its tags, the response, the end of the turn."""
    return f"{THINK_START}{trace.reasoning}{THINK_END}{trace.response}{TURN_END}"


def conversation_texts(traces: Sequence[Trace], system_prompt: str) -> list[str]:
    """What a tokenizer of our own is trained on: roles, system prompt, questions and solutions."""
    questions = question_texts([trace.problem for trace in traces], system_prompt)
    return [text + completion_text(trace) for trace, text in zip(traces, questions, strict=True)]


def question_texts(problems: Sequence[Problem], system_prompt: str) -> list[str]:
    """The same where there are only problems."""
    return [f"system\n{system_prompt}\nuser\n{problem.question}\nassistant\n" for problem in problems]


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], system_prompt: str
) -> list[list[int]]:
    """Prompt ids of each problem; BOS comes from the template, once."""
    return _encode(tokenizer, [prompt_text(tokenizer, problem.question, system_prompt) for problem in problems])


def encode_traces(tokenizer: PreTrainedTokenizerBase, traces: Sequence[Trace], system_prompt: str) -> list[Document]:
    """Documents for SFT: loss on the assistant's turn only, its end included, times the trace's weight."""
    prompts = encode_prompts(tokenizer, [trace.problem for trace in traces], system_prompt)
    completions = _encode(tokenizer, [completion_text(trace) for trace in traces])
    return [
        Document(
            input_ids=prompt + completion,
            loss_weights=[0.0] * len(prompt) + [trace.weight] * len(completion),
            uid=trace.problem.uid,
        )
        for trace, prompt, completion in zip(traces, prompts, completions, strict=True)
    ]


def stop_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """EOS and the end of a turn: a response ends at either."""
    ids = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(TURN_END)}
    return sorted(token for token in ids if token is not None and token != tokenizer.unk_token_id)


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"] if texts else []
