"""OpenAI's streaming protocol as servers speak it: what a trace is asked for with, and what a piece of it says.

    request   POST URL/chat/completions {"messages", "logprobs": true, "top_logprobs": k, ...}, or
              POST URL/completions {"prompt", "logprobs": k, ...}, both with "stream": true
    pieces    choices[0].delta.{content, reasoning_content or reasoning}, or choices[0].text, with
              choices[0].logprobs of the piece's tokens, and `usage` at the end

What OpenAI's names leave open (top-k, min-p, the order of truncation) is said in the words of the server where it is
vLLM or llama.cpp, whose own defaults would change what is drawn; any other is sent OpenAI's names only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from falcon_h1r.rollout.http_server import LostAnswer
from falcon_h1r.rollout.vllm_draft import LEAST_LOGPROB, check_logprobs
from falcon_h1r.scaling.engine import TraceRequest
from falcon_h1r.types import InputError, content_hash

PATHS = {"chat": "/chat/completions", "completions": "/completions"}
TOKEN_ID = "token_id:"  # before a token's id, where vLLM writes ids in place of texts
# By the name that a server's list of models gives as their owner. vLLM has the arguments of its own sampler in both
# APIs. llama.cpp truncates before the temperature unless told otherwise, and takes reasoning apart, whose tags'
# tokens then come without logprobs.
DIALECTS: dict[str, dict[str, Any]] = {
    "vllm": {"min_p": 0.0, "repetition_penalty": 1.0, "skip_special_tokens": False, "return_tokens_as_token_ids": True},
    "llamacpp": {"min_p": 0.0, "samplers": ["temperature", "top_k", "top_p"], "reasoning_format": "none"},
}


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What one server calls its model, and what it understands."""

    name: str
    dialect: str  # of `DIALECTS`; anything else: OpenAI's names alone
    ignore_stop_tokens: bool = False  # asked of a server whose dialect is known: others have no word for it


@dataclass(frozen=True, slots=True)
class Prompt:
    """What `completions` is asked to go on from."""

    text: str
    input_ids: list[int]


@dataclass(frozen=True, slots=True)
class Token:
    """One token drawn."""

    text: str  # empty where the server gives its id instead
    token_id: int | None
    logprob: float
    top_logprobs: list[float]  # best first; empty where none are asked for


@dataclass(frozen=True, slots=True)
class Piece:
    """What one event of an answer says."""

    text: str = ""
    reasoning: str = ""  # from a server that takes it apart
    tokens: Sequence[Token] = ()
    finish_reason: str | None = None
    num_tokens: int | None = None  # of the whole answer, as the server counts


def trace_seed(request: TraceRequest) -> int:
    """In [0, 2^31): some servers read no more."""
    return int(content_hash(f"{request.settings.seed}/{request.problem.uid}/{request.sample_index}"), 16) % 2**31


def trace_payload(request: TraceRequest, served: ServedModel, prompt: Prompt | None, num_top: int) -> dict[str, Any]:
    """What a server is sent for one trace.

    Args:
        prompt: for `completions`; None: `chat`.
        num_top: best logprobs at each token; 0: no logprobs at all.

    Raises:
        InputError: where the settings cannot be said to this server.
    """
    settings, words = request.settings, dict(DIALECTS.get(served.dialect, {}))
    if words:
        words["top_k"] = settings.top_k
        if served.ignore_stop_tokens:
            words["ignore_eos"] = True
    elif settings.top_k:
        raise InputError(f"top_k={settings.top_k}: OpenAI's protocol has no word for it; 0 draws from all tokens")
    payload: dict[str, Any] = {
        "model": served.name,
        "max_tokens": settings.max_response_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "seed": trace_seed(request),
        "stream": True,
        "stream_options": {"include_usage": True},
        **words,
    }
    if prompt is None:
        messages = [{"role": "user", "content": request.question}]
        if request.system_prompt:
            messages.insert(0, {"role": "system", "content": request.system_prompt})
        return payload | {"messages": messages} | ({"logprobs": True, "top_logprobs": num_top} if num_top else {})
    # Ids where they are understood: a server that reads text may put a BOS of its own before the template's.
    payload["prompt"] = prompt.input_ids if words else prompt.text
    return payload | ({"logprobs": num_top} if num_top else {})


def read_piece(event: dict[str, Any], num_top: int) -> Piece:
    """
    Raises:
        LostAnswer: where it is none.
        InputError: where it has fewer than `num_top` logprobs at a token.
    """
    try:
        usage = event.get("usage") or {}
        num_tokens = usage.get("completion_tokens")
        if not event.get("choices"):
            return Piece(num_tokens=num_tokens)
        choice = event["choices"][0]
        delta = choice.get("delta") or {}
        return Piece(
            text=str(choice.get("text") or delta.get("content") or ""),
            reasoning=str(delta.get("reasoning_content") or delta.get("reasoning") or ""),
            tokens=read_tokens(choice.get("logprobs"), num_top) if num_top else (),
            finish_reason=choice.get("finish_reason"),
            num_tokens=num_tokens,
        )
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise LostAnswer(f"a piece that cannot be read ({type(error).__name__}: {error})") from error


def read_tokens(said: dict[str, Any] | None, num_top: int) -> list[Token]:
    """Tokens with logprobs, in either of the two forms that there are: a list of tokens, or lists side by side."""
    if not said:
        return []
    if said.get("content") is not None:
        entries = said["content"]
        texts = [str(entry["token"]) for entry in entries]
        ids = [entry.get("id") for entry in entries]
        logprobs = [entry["logprob"] for entry in entries]
        tops = [[best["logprob"] for best in entry.get("top_logprobs") or ()] for entry in entries]
    else:
        texts = [str(text) for text in said.get("tokens") or ()]
        ids = [None] * len(texts)
        logprobs = list(said.get("token_logprobs") or ())
        tops = [list((best or {}).values()) for best in said.get("top_logprobs") or [{}] * len(texts)]
    check_logprobs(logprobs, len(texts))
    if len(tops) != len(texts):
        raise LostAnswer(f"the best logprobs of {len(tops)} positions for {len(texts)} tokens")
    return [_token(*token, num_top) for token in zip(texts, ids, logprobs, tops, strict=True)]


def _token(text: str, token_id: int | None, logprob: float, best: list[float], num_top: int) -> Token:
    if len(best) < num_top:
        raise InputError(f"it gives {len(best)} logprobs at a token instead of the best {num_top} (scaling.top_k)")
    if text.startswith(TOKEN_ID) and text.removeprefix(TOKEN_ID).isdecimal():
        text, token_id = "", int(text.removeprefix(TOKEN_ID))
    # vLLM adds the token drawn, which may not be among the best.
    best = sorted((float(each) for each in best), reverse=True)[:num_top]
    if not all(map(math.isfinite, best)) or max(best, default=0.0) <= LEAST_LOGPROB:
        raise LostAnswer(f"the best logprobs of a position are {best}")
    return Token(text, token_id, float(logprob), best)
