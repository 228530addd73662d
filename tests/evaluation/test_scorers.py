"""Scorers: which answer counts, what is right, and what cannot be said."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from falcon_h1r.config import CodeVerifierConfig, VerifierConfig
from falcon_h1r.data.choices import with_choices
from falcon_h1r.evaluation.scorer_choice import choices_in, chosen_letter
from falcon_h1r.evaluation.scorer_code import humaneval_row
from falcon_h1r.evaluation.scorers import open_scorer
from falcon_h1r.evaluation.tasks import Judged, TaskScorer
from falcon_h1r.types import InputError, Problem
from falcon_h1r.verifier.workers.sandbox import sandbox_support

THOUGHT = "<think>\nperhaps \\boxed{A}, or the answer is (B)\n</think>\n"
ANIMALS = Problem.from_question(with_choices("Which barks?", ["cat", "dog", "cow, or A. calf"]), "B")

Judge = Callable[[str, Problem], Judged]


@pytest.fixture(scope="module")
def scorers() -> Iterator[dict[str, TaskScorer]]:
    config = VerifierConfig(code=CodeVerifierConfig(num_workers=1, max_tests=1))
    found = {name: open_scorer(name, config) for name in ("math", "choice", "instructions")}
    if not sandbox_support().missing():
        found["code"] = open_scorer("code", config)
    yield found
    for scorer in found.values():
        scorer.close()


@pytest.fixture
def judge(scorers: dict[str, TaskScorer], request: pytest.FixtureRequest) -> Judge:
    def judged(name: str, response: str, problem: Problem) -> Judged:
        if name not in scorers:
            pytest.skip("programs cannot be confined here")
        (found,) = scorers[name].judge([response], [problem])
        return found

    return judged  # type: ignore[return-value]


def test_an_unknown_scorer_is_refused() -> None:
    with pytest.raises(InputError, match="scorer=oracle: not one of math, choice, code, instructions"):
        open_scorer("oracle", VerifierConfig())


# -----------------------------------------------------------------------------
# Maths


@pytest.mark.parametrize(
    ("response", "status", "prediction", "key"),
    [
        (THOUGHT + r"It is \boxed{\frac{2}{4}}.", "correct", r"\frac{2}{4}", "1/2"),
        (THOUGHT + r"It is \boxed{0.6}.", "wrong", "0.6", "3/5"),
        (THOUGHT + "It is one half.", "wrong", None, None),
        (r"<think>\boxed{1/2}", "wrong", None, None),  # never stopped thinking
    ],
)
def test_answers_of_maths_are_equal_by_value(
    judge: Any, response: str, status: str, prediction: str | None, key: str | None
) -> None:
    found = judge("math", response, Problem.from_question("Half?", "1/2"))
    assert (found.verdict.status, found.prediction, found.answer_key) == (status, prediction, key)


def test_responses_keep_their_order(scorers: dict[str, TaskScorer]) -> None:
    problems = [Problem.from_question(f"{n}?", str(n)) for n in range(6)]
    responses = [rf"<think></think>\boxed{{{n if n % 2 else n + 1}}}" for n in range(6)]
    found = scorers["math"].judge(responses, problems)
    assert [one.verdict.correct for one in found] == [False, True] * 3


# -----------------------------------------------------------------------------
# Choices


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        (r"\boxed{B}", "B"),
        (r"\boxed{b}", "B"),
        (r"\boxed{(B)}", "B"),
        (r"\boxed{\text{B}}", "B"),
        (r"\boxed{\textbf{(B) dog}}", "B"),
        (r"\boxed{B. dog}", "B"),
        (r"\boxed{dog}", "B"),
        (r"first \boxed{A}, then \boxed{B}", "B"),
        (r"\boxed{A} though the answer is B", "A"),  # the box decides
        (r"\boxed{D}", None),  # there is no such choice
        (r"\boxed{bird}", None),
        (r"\boxed{A cat or a dog}", None),
        ("Answer: B", "B"),
        ("**Answer:** B", "B"),
        ("The answer is (B), since A does not bark.", "B"),
        ("the final answer is **B**", "B"),
        ("Answer: A\n\nNo. Answer: B", "B"),
        ("The answer is a dog.", None),
        ("I rule out (A), and so it is (B).", "B"),
        ("B", "B"),
        ("**B.**", "B"),
        ("Because a dog barks.", None),
        ("", None),
    ],
)
def test_the_letter_that_a_response_settles_on(answer: str, letter: str | None) -> None:
    assert chosen_letter(THOUGHT + answer, choices_in(ANIMALS.question))[0] == letter


def test_thinking_is_no_answer(judge: Any) -> None:
    found = judge("choice", "<think>\\boxed{B}", ANIMALS)
    assert (found.verdict.status, found.prediction, found.answer_key) == ("wrong", None, None)


def test_the_letter_is_what_votes_are_counted_by(judge: Any) -> None:
    right, by_text = (judge("choice", THOUGHT + answer, ANIMALS) for answer in (r"\boxed{(B)}", r"\boxed{Dog}"))
    assert right.verdict.correct and by_text.verdict.correct
    assert right.answer_key == by_text.answer_key == "B"
    wrong = judge("choice", THOUGHT + "Answer: C", ANIMALS)
    assert (wrong.verdict.status, wrong.answer_key, wrong.verdict.reason) == ("wrong", "C", "C, not B")


def test_choices_within_the_question_and_a_gold_in_brackets(judge: Any) -> None:
    question = "Ann is left of Bob.\nOptions:\n(A) Ann is leftmost\n(B) Bob is leftmost"
    assert choices_in(question) == {"A": "Ann is leftmost", "B": "Bob is leftmost"}
    assert judge("choice", THOUGHT + r"\boxed{A}", Problem.from_question(question, "(A)")).verdict.correct


def test_a_gold_that_is_no_choice_cannot_be_judged_against(judge: Any) -> None:
    found = judge("choice", THOUGHT + r"\boxed{A}", Problem.from_question(ANIMALS.question, "perhaps"))
    assert found.verdict.status == "unverifiable_gold"


# -----------------------------------------------------------------------------
# Programs


def problem_with(tests: Any) -> Problem:
    return Problem.from_question("Program?", "", tests=json.dumps(tests), domain="code")


DOUBLE = problem_with({"inputs": ["1\n", "2\n", "3\n"], "outputs": ["2\n", "4\n", "6\n"]})
METHOD = problem_with(
    {
        "public_test_cases": json.dumps([{"input": "[1, 2]\n3", "output": "6", "testtype": "functional"}]),
        "private_test_cases": json.dumps([{"input": "[]\n1", "output": "1", "testtype": "functional"}]),
        "metadata": json.dumps({"func_name": "total"}),
    }
)
EVAL_ROW = {
    "prompt": (
        "from typing import List\n\n\ndef base(x):\n    return x + 1\n\n\n"
        'def after(values: List[int]) -> List[int]:\n    """ Each by one more.\n    ```\n'
        '    >>> after([1])\n    [2]\n    """\n'
    ),
    "test": (
        "def check(candidate):\n    assert candidate([1, 2]) == [2, 3]\n    assert candidate([]) == []\n"
        "    assert all(x > 0 for x in candidate([0]))\n"
    ),
    "entry_point": "after",
}
HUMANEVAL = problem_with(EVAL_ROW)


def fenced(program: str) -> str:
    return f"{THOUGHT}```python\n{program}\n```"


@pytest.mark.parametrize(
    ("problem", "program", "status"),
    [
        (DOUBLE, "print(2 * int(input()))", "correct"),
        (DOUBLE, "x = int(input())\nprint(2 * x if x < 3 else 0)", "wrong"),  # max_tests does not hold
        (METHOD, "class Solution:\n    def total(self, a, b):\n        return sum(a) + b", "correct"),
        (METHOD, "class Solution:\n    def total(self, a, b):\n        return sum(a) + 3", "wrong"),
        (HUMANEVAL, "def after(values: List[int]) -> List[int]:\n    return [base(x) for x in values]", "correct"),
        (HUMANEVAL, "def after(values):\n    print('passed')\n    return [x + 1 for x in values]", "correct"),
        (HUMANEVAL, "def after(values):\n    return [x + 1 for x in values] or None", "wrong"),
        (HUMANEVAL, "print('passed')", "wrong"),
        (HUMANEVAL, "import sys\nsys.exit(0)", "wrong"),
        (HUMANEVAL, "def after(values:", "wrong"),
    ],
)
def test_programs_are_right_where_all_tests_pass(judge: Any, problem: Problem, program: str, status: str) -> None:
    found = judge("code", fenced(program), problem)
    assert found.verdict.status == status, found.verdict
    assert (found.prediction, found.answer_key) == (f"{program}\n", None)


def test_a_response_without_a_program_is_wrong(judge: Any) -> None:
    for response in ("<think>\n```python\nprint(2 * int(input()))\n```", THOUGHT + "I cannot."):
        found = judge("code", response, DOUBLE)
        assert (found.verdict.status, found.verdict.stage, found.prediction) == ("wrong", "extract", None)


def test_tests_that_cannot_be_read_are_no_fault_of_the_program(judge: Any) -> None:
    assert judge("code", fenced("print(1)"), problem_with({"inputs": []})).verdict.status == "unverifiable_gold"


def test_humanevals_rows_are_told_from_others() -> None:
    assert humaneval_row(HUMANEVAL.tests) == EVAL_ROW
    assert humaneval_row(DOUBLE.tests) is None
    assert humaneval_row("[") is None and humaneval_row(None) is None


# -----------------------------------------------------------------------------
# Instructions


def test_every_instruction_counts(judge: Any) -> None:
    names = ["punctuation:no_comma", "keywords:existence"]
    problem = problem_with({"instruction_id_list": names, "kwargs": [{}, {"keywords": ["dog"], "num_words": None}]})
    assert judge("instructions", THOUGHT + "A dog barks.", problem).verdict.correct
    wrong = judge("instructions", THOUGHT + "A dog, it barks.", problem)
    assert (wrong.verdict.status, wrong.verdict.reason) == ("wrong", "not followed: punctuation:no_comma")
    assert judge("instructions", "<think>A dog barks.", problem).verdict.status == "wrong"
    assert judge("instructions", THOUGHT, problem).verdict.status == "wrong"


def test_what_no_rule_decides_is_undecided_unless_another_is_broken(judge: Any) -> None:
    names = ["punctuation:no_comma", "language:response_language"]
    problem = problem_with({"instruction_id_list": names, "kwargs": [None, {"language": "de"}]})
    undecided = judge("instructions", THOUGHT + "Der Hund bellt.", problem)
    assert (undecided.verdict.status, undecided.verdict.reason) == (
        "undecided",
        "no rule decides language:response_language",
    )
    assert judge("instructions", THOUGHT + "Der Hund, er bellt.", problem).verdict.status == "wrong"


def test_two_instructions_of_one_name_both_count(judge: Any) -> None:
    names = ["keywords:existence"] * 2
    problem = problem_with({"instruction_id_list": names, "kwargs": [{"keywords": ["cow"]}, {"keywords": ["dog"]}]})
    assert judge("instructions", THOUGHT + "A dog barks.", problem).verdict.status == "wrong"


def test_a_problem_without_instructions_cannot_be_judged(judge: Any) -> None:
    assert judge("instructions", THOUGHT + "Yes.", DOUBLE).verdict.status == "unverifiable_gold"
