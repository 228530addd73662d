"""What each stage makes of one pair, in words: for a person who doubts a verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from falcon_h1r.verifier.equivalence import judged, readings
from falcon_h1r.verifier.extract import count_boxed, extract_answer
from falcon_h1r.verifier.reading.notation import string_forms
from falcon_h1r.verifier.tree.node import BudgetExceeded, Node, Undefined
from falcon_h1r.verifier.values.exact import ExactEvaluator


def explain(
    prediction_text: str, gold: str, after_think: bool = False, fallbacks: Sequence[str] = ()
) -> Iterator[tuple[str, str]]:
    """(stage, finding) in the order of the stages, the verdict last."""
    answer = extract_answer(prediction_text, after_think, fallbacks)
    num_boxes = count_boxed(prediction_text, after_think)
    boxes = "no box" if num_boxes == 0 else "1 box" if num_boxes == 1 else f"{num_boxes} boxes, the last decides"
    yield "extract", f"{boxes}; the answer is {'missing' if answer is None else repr(answer)}"
    if answer is not None and answer.strip():
        yield "string", _compared(answer.strip(), gold.strip())
        yield "normalised", _compared(*(string_forms(text)[1] for text in (answer, gold)))
        yield "parse", f"{_trees(answer)}   against   {_trees(gold)}"
    status, stage, reason = judged(answer, gold)
    yield "verdict", f"{status}, decided by {stage}: {reason}"


def _compared(a: str, b: str) -> str:
    return f"{a!r} equals {b!r}" if a == b else f"{a!r} is not {b!r}"


def _trees(answer: str) -> str:
    """The readings of an answer by their canonical keys."""
    try:
        trees = readings(answer)
    except BudgetExceeded as error:
        return f"beyond the budget ({error})"
    return " or ".join(_key(tree) for tree in trees) or "no notation that is read"


def _key(tree: Node) -> str:
    try:
        return ExactEvaluator().key(tree)
    except (BudgetExceeded, Undefined) as error:
        return f"no value ({error})"
