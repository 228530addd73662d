"""From problems and traces to token ids: the chat format, the loss mask, and a tokenizer of our own to start from.

The format is Falcon-H1's: BOS, then ChatML turns, then an assistant's turn that thinks aloud before it answers:

    <|begin_of_text|><|im_start|>system\n...<|im_end|>\n<|im_start|>user\n...<|im_end|>\n<|im_start|>assistant\n
    <think>...</think>\boxed{...}<|im_end|>

The first line is the prompt, which carries no loss; the second is what the model learns to write.

A trace with `turns` is a conversation. Reasoning of the assistant's earlier turns is left out, as a chat leaves it out,
and the last turn alone carries loss. Where tools are called, reasoning goes on over the turns: all of it is kept, and
every turn of the assistant's carries loss. `sft.conversations` switches either off.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from falcon_h1r.config import ConversationConfig
from falcon_h1r.data.packing import Document
from falcon_h1r.types import THINK_END, THINK_START, InputError, Problem, Trace, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BOS, EOS, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
TOOL_CALL = "<tool_call>"
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
    return thinking_text(trace.reasoning, trace.response) + TURN_END


def thinking_text(reasoning: str, response: str) -> str:
    return f"{THINK_START}{reasoning}{THINK_END}{response}"


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


@dataclass(frozen=True, slots=True)
class EncodedTrace:
    """A trace in tokens, as the store keeps it."""

    input_ids: list[int]
    loss_spans: list[tuple[int, int]]  # first and last but one of each turn that carries loss, its end included
    answer_end: int  # so many tokens hold the answer, if there is one, or the whole response
    weight: float
    uid: str

    def document(self) -> Document:
        """For SFT: the trace's weight on every token of the loss spans."""
        return Document(self.input_ids, spread_weights(len(self.input_ids), self.loss_spans, self.weight), uid=self.uid)


def spread_weights(length: int, loss_spans: Iterable[tuple[int, int]], weight: float) -> list[float]:
    """A weight of each token: `weight` within the spans, else 0."""
    weights = [0.0] * length
    for start, end in loss_spans:
        weights[start:end] = [weight] * (min(end, length) - start)
    return weights


def encode_traces(
    tokenizer: PreTrainedTokenizerBase,
    traces: Sequence[Trace],
    system_prompt: str,
    conversations: ConversationConfig | None = None,
) -> list[Document]:
    """Documents for SFT: loss on the assistant's turn only, its end included, times the trace's weight.

    Raises:
        InputError: where the chat template cannot render a conversation, or not so that more messages only add text.
    """
    return [encoded.document() for encoded in encode(tokenizer, traces, system_prompt, conversations)]


def encode(
    tokenizer: PreTrainedTokenizerBase,
    traces: Sequence[Trace],
    system_prompt: str,
    conversations: ConversationConfig | None = None,
) -> list[EncodedTrace]:
    """Traces in tokens. Texts without and with loss are tokenised apart, as prompt and response are in sampling.

    Raises:
        InputError: as encode_traces.
    """
    rules = conversations or ConversationConfig()
    texts_of = [_texts(tokenizer, trace, system_prompt, rules) for trace in traces]
    if not texts_of:
        return []
    batch = tokenizer([t for texts in texts_of for t in texts], add_special_tokens=False, return_attention_mask=False)
    encoded, first = [], 0
    for trace, texts in zip(traces, texts_of, strict=True):
        last = first + len(texts) - 1
        ids: list[int] = []
        spans = []
        for place in range(first, last + 1, 2):
            ids += batch["input_ids"][place]
            spans.append((len(ids), len(ids) + len(batch["input_ids"][place + 1])))
            ids += batch["input_ids"][place + 1]
        answer_end = spans[-1][0] + _tokens_upto(batch, last, _answer_end(trace))
        encoded.append(EncodedTrace(ids, spans, answer_end, trace.weight, trace.problem.uid))
        first = last + 1
    return encoded


def _texts(
    tokenizer: PreTrainedTokenizerBase, trace: Trace, system_prompt: str, rules: ConversationConfig
) -> list[str]:
    """A trace's text in parts, in turn without and with loss."""
    if not trace.turns:
        return [prompt_text(tokenizer, trace.problem.question, system_prompt), completion_text(trace)]
    return conversation_parts(tokenizer, trace, system_prompt, rules)


def conversation_parts(
    tokenizer: PreTrainedTokenizerBase, trace: Trace, system_prompt: str, rules: ConversationConfig
) -> list[str]:
    """The same of a conversation. What precedes a turn of the assistant's is as the chat template renders it.

    The system prompt is left out where the conversation has one of its own.

    Raises:
        InputError: where the rendering of more messages does not begin with what was written before.
    """
    turns = (*trace.turns, Turn("assistant", trace.response, trace.reasoning))
    agentic = rules.tool_calls_keep_thinking and calls_tools(turns)
    messages: list[dict[str, str]] = []
    parts, written = list[str](), ""
    if system_prompt and all(turn.role != "system" for turn in turns):
        messages.append({"role": "system", "content": system_prompt})
    for number, turn in enumerate(turns, start=1):
        text = turn.content
        if turn.role == "assistant":
            is_last = number == len(turns)
            if is_last or agentic or not rules.strip_earlier_thinking:
                text = thinking_text(turn.reasoning, turn.content)
            before = _rendered(tokenizer, messages, trace)
            if not before.startswith(written):
                raise InputError(
                    f"chat template: turn {number} of conversation {_name(trace)} does not continue what was written "
                    "before it; model.chat_template=configs/model/chatml.jinja replaces the template"
                )
            if is_last or agentic:
                parts += [before[len("".join(parts)) :], text + TURN_END]
            written = before + text + TURN_END
        messages.append({"role": turn.role, "content": text})
    return parts


def calls_tools(turns: Sequence[Turn]) -> bool:
    """Whether a tool answers in a conversation, or is asked to."""
    return any(turn.role == "tool" or (turn.role == "assistant" and TOOL_CALL in turn.content) for turn in turns)


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], trace: Trace) -> str:
    from jinja2 import TemplateError

    if not messages:
        raise InputError(f"conversation {_name(trace)} begins with the assistant's turn, and there is no system prompt")
    try:
        return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    except TemplateError as error:
        raise InputError(f"chat template: refuses conversation {_name(trace)} ({error})") from None


def _name(trace: Trace) -> str:
    return trace.origin or trace.problem.uid


def _answer_end(trace: Trace) -> int:
    """Where the last box of the response, or without one the response, ends: characters of completion_text."""
    response, depth = trace.response, 0
    before = len(completion_text(trace)) - len(TURN_END) - len(response)
    for place in range(max(0, response.rfind(r"\boxed{")), len(response)):
        depth += {"{": 1, "}": -1}.get(response[place], 0)
        if depth == 0 and response[place] == "}" and r"\boxed{" in response:
            return before + place + 1
    return before + len(response.rstrip())


def _tokens_upto(batch: Any, index: int, num_characters: int) -> int:
    """How many tokens of a text hold its first characters; all but the end of the turn where that is not known."""
    token = batch.char_to_token(index, num_characters - 1) if batch.is_fast and num_characters else None
    return len(batch["input_ids"][index]) - 1 if token is None else token + 1


def stop_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """EOS and the end of a turn: a response ends at either."""
    ids = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(TURN_END)}
    return sorted(token for token in ids if token is not None and token != tokenizer.unk_token_id)


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"] if texts else []
