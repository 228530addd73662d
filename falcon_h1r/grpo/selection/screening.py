"""What is dropped before anything is sampled: other domains, repeats, problems of the SFT data, unreadable golds.

Questions are compared by a key that ignores case, whitespace and punctuation, but not what mathematics is written with:
`3 - 4` is not `3 + 4`, and `1.5` not `15`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from falcon_h1r.config_grpo import SelectionConfig
from falcon_h1r.config_sources import SourceConfig
from falcon_h1r.data.sources import read_traces
from falcon_h1r.distributed.watch import Watch
from falcon_h1r.types import Problem, content_hash

OTHER_DOMAIN, REPEATED, IN_SFT, UNVERIFIABLE_GOLD = "other_domain", "repeated", "in_sft", "unverifiable_gold"
PROMPT_TOO_LONG = "prompt_too_long"

_NOISE = re.compile(
    r"(?<=[^\W\d_]{2})-(?=[^\W\d_]{2})"  # a hyphen between words; elsewhere it is a minus
    r"|\*\*"  # bold type; a single one is a product
    r"|(?<![\d)])(?<!\b[^\W\d_])!"  # no factorial, which follows a number, a parenthesis or a single letter
)
_TOKEN = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+|[^\w\s]")  # numbers with their point, words, single signs
_KEPT_SIGNS = frozenset("-*/^%!()")  # and those that Unicode counts as mathematical: + = < > | and the like


@dataclass(frozen=True, slots=True)
class Drop:
    """Why a problem is not used."""

    reason: str
    detail: str = ""


def question_key(question: str) -> int:
    """64 bits that two questions share if they differ in case, whitespace and punctuation only."""
    text = unicodedata.normalize("NFC", question).casefold().replace("\N{MINUS SIGN}", "-")
    tokens = _TOKEN.findall(_NOISE.sub(" ", text))
    return int(content_hash(" ".join(filter(_counts, tokens))), 16)


def _counts(token: str) -> bool:
    return token[0].isalnum() or token in _KEPT_SIGNS or unicodedata.category(token) == "Sm"


def keys_in_sft(source: SourceConfig, wanted: Collection[int], watch: Watch) -> set[int]:
    """Those of the wanted questions that the SFT data asks. The file is streamed; only keys are held.

    Raises:
        InputError: for a file or row that cannot be read, naming it.
        StopRequested: where the run is to stop.
    """
    found: set[int] = set()
    for trace in read_traces(source):
        watch.beat("reading the SFT data")
        watch.check()
        if (key := question_key(trace.problem.question)) in wanted:
            found.add(key)
    return found


def screen_problems(
    problems: Sequence[Problem],
    selection: SelectionConfig,
    sft: SourceConfig,
    check_problem: Callable[[Problem], bool],
    watch: Watch,
) -> dict[int, Drop]:
    """What is dropped, by position in `problems`. Each distinct gold, and each problem with tests, is asked about once.

    Golds are asked about where `drop_unverifiable` says so, and wherever rollouts are to be judged by them.

    Args:
        check_problem: whether answers to a problem can be judged (`Scorer.check_problem`).

    Raises:
        InputError: as `keys_in_sft` does.
        StopRequested: where the run is to stop.
    """
    keys = [question_key(problem.question) for problem in problems]
    in_sft = keys_in_sft(sft, set(keys), watch) if selection.disjoint_from_sft else set()
    asks_gold = selection.drop_unverifiable or selection.num_rollouts > 0
    drops: dict[int, Drop] = {}
    first: dict[int | str, str] = {}  # by key of the question, and by uid: the uid that had it first
    judged: dict[tuple[object, ...], bool] = {}
    for index, (problem, key) in enumerate(zip(problems, keys, strict=True)):
        watch.beat("screening")
        watch.check()
        earlier = first.get(key, first.get(problem.uid))
        if problem.domain not in selection.domains:
            drops[index] = Drop(OTHER_DOMAIN, problem.domain)
            continue
        if earlier is not None:
            drops[index] = Drop(REPEATED, f"as problem {earlier}")
            continue
        first[key] = first[problem.uid] = problem.uid
        if key in in_sft:
            drops[index] = Drop(IN_SFT)
        elif asks_gold:
            gold = (problem.domain, problem.answer, problem.tests, problem.language)
            if problem.verifiable and gold not in judged:
                judged[gold] = check_problem(problem)
            if not (problem.verifiable and judged[gold]):
                drops[index] = Drop(UNVERIFIABLE_GOLD, problem.answer)
    return drops


def drop_long_prompts(prompts: Sequence[list[int]], limit: int, drops: dict[int, Drop]) -> None:
    """Add to `drops`, by position, the problems whose prompts are beyond the limit: a prompt is never cut.

    Args:
        prompts: token ids of each problem's prompt.
    """
    for index, prompt in enumerate(prompts):
        if index not in drops and len(prompt) > limit:
            drops[index] = Drop(PROMPT_TOO_LONG, f"{len(prompt)} tokens")
