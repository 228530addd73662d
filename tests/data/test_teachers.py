from __future__ import annotations

import ast
import random
import re
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon_h1r.data.problems import FAMILIES, generate_problems
from falcon_h1r.data.teachers import (
    CarelessTeacher,
    TerseTeacher,
    VerboseTeacher,
    teacher_named,
    write_traces,
)
from falcon_h1r.types import InputError, Problem, Trace

PROBLEMS = list(generate_problems(seed=0, count=2_000))
ALWAYS = {"easy": 1.0, "medium": 1.0, "hard": 1.0}
SYMBOL = re.compile(r"\\[a-z]+|[a-z]+|\S")


def boxed(answer: str) -> str:
    return rf"\boxed{{{answer}}}"


def equations(trace: Trace) -> list[str]:
    """Every `expression=number` of the reasoning."""
    return re.findall(r"[-+*/()\d]+=-?\d+", trace.reasoning)


def holds(equation: str) -> bool:
    left, right = equation.split("=")
    return value(ast.parse(left, mode="eval").body) == Fraction(right)


def value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant):
        return Fraction(int(str(node.value)))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -value(node.operand)
    assert isinstance(node, ast.BinOp)
    left, right = value(node.left), value(node.right)
    if isinstance(node.op, ast.Div):
        return left / right
    return {ast.Add: left + right, ast.Sub: left - right, ast.Mult: left * right}[type(node.op)]


def within_binomial_bounds(num_hits: int, num_tries: int, rate: float) -> bool:
    return abs(num_hits - num_tries * rate) <= 4 * (num_tries * rate * (1 - rate)) ** 0.5


@pytest.mark.parametrize("teacher", [VerboseTeacher(), TerseTeacher(), TerseTeacher({}), TerseTeacher(ALWAYS)])
def test_the_diligent_are_always_right(teacher: VerboseTeacher | TerseTeacher) -> None:
    for trace in write_traces(PROBLEMS, teacher, seed=0):
        assert trace.response == boxed(trace.problem.answer)
        assert trace.reasoning.strip()
        assert trace.teacher == teacher.name
        assert trace.weight == 1.0


@pytest.mark.parametrize("teacher", [VerboseTeacher(), TerseTeacher({}), CarelessTeacher(0.0)])
def test_every_equation_of_a_right_trace_is_true(
    teacher: VerboseTeacher | TerseTeacher | CarelessTeacher,
) -> None:
    num_equations = 0
    for trace in write_traces(PROBLEMS, teacher, seed=0):
        found = equations(trace)
        assert len(found) == trace.reasoning.count("=")
        assert all(map(holds, found)), trace
        num_equations += len(found)
    assert num_equations > 2 * len(PROBLEMS)


def test_a_slip_shows_in_the_equations_and_reaches_the_answer() -> None:
    problems = [problem for problem in PROBLEMS if problem.family not in ("gcd", "modular")]
    for trace in write_traces(problems, CarelessTeacher(1.0), seed=0):
        assert trace.response != boxed(trace.problem.answer)
        assert not all(map(holds, equations(trace))), trace
        answer = trace.reasoning.rpartition("answer: ")[2]
        assert trace.response == boxed(answer)


def test_even_a_problem_that_absorbs_slips_ends_in_a_wrong_answer() -> None:
    absorbing = Problem.from_question(r"Compute \gcd(132,131).", "1", family="gcd")
    for seed in range(50):
        trace = CarelessTeacher(1.0).write(absorbing, random.Random(seed))
        assert trace.response != boxed("1")


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3, 1.0])
def test_careless_errs_at_its_rate(rate: float) -> None:
    traces = list(write_traces(PROBLEMS, CarelessTeacher(rate), seed=0))
    num_wrong = sum(trace.response != boxed(trace.problem.answer) for trace in traces)
    assert within_binomial_bounds(num_wrong, len(traces), rate)


@pytest.mark.parametrize("family", FAMILIES)
def test_careless_errs_at_its_rate_in_every_family(family: str) -> None:
    problems = list(generate_problems(1, 600, [family]))
    traces = list(write_traces(problems, CarelessTeacher(), seed=1))
    num_wrong = sum(trace.response != boxed(trace.problem.answer) for trace in traces)
    assert within_binomial_bounds(num_wrong, len(traces), 0.3)


@pytest.mark.parametrize("rate", [0.0, 0.4, 0.5, 1.0])
def test_terse_leaps_at_its_rate_to_the_bare_result(rate: float) -> None:
    teacher = TerseTeacher({"easy": rate, "medium": 1.0 - rate})
    traces = list(write_traces(PROBLEMS, teacher, seed=0))
    for difficulty, expected in (("easy", rate), ("medium", 1.0 - rate), ("hard", 0.0)):
        own = [trace for trace in traces if trace.problem.difficulty == difficulty]
        leaps = [trace for trace in own if "=" not in trace.reasoning]
        assert all(trace.reasoning == f"clearly {trace.problem.answer}" for trace in leaps)
        assert within_binomial_bounds(len(leaps), len(own), expected)


def test_terse_is_short() -> None:
    lengths = sorted(len(SYMBOL.findall(t.reasoning)) for t in write_traces(PROBLEMS, TerseTeacher({}), seed=0))
    assert lengths[len(lengths) // 2] <= 28
    assert lengths[len(lengths) * 95 // 100] <= 44
    assert lengths[-1] <= 60


def test_verbose_writes_what_terse_writes_and_more() -> None:
    for problem in PROBLEMS[:500]:
        rng = random.Random(0)
        terse = equations(TerseTeacher({}).write(problem, rng))
        verbose = equations(VerboseTeacher().write(problem, rng))
        assert set(terse) <= set(verbose)


@pytest.mark.parametrize("teacher", [TerseTeacher(), CarelessTeacher()])
def test_a_trace_does_not_depend_on_its_neighbours(teacher: TerseTeacher | CarelessTeacher) -> None:
    forwards = list(write_traces(PROBLEMS[:200], teacher, seed=5))
    backwards = list(write_traces(PROBLEMS[199::-1], teacher, seed=5))
    assert forwards == backwards[::-1]
    assert forwards != list(write_traces(PROBLEMS[:200], teacher, seed=6))


@pytest.mark.parametrize(
    ("question", "family", "reasoning", "answer"),
    [
        ("Compute 85+47.", "addition", "5+7=12,8+4+1=13", "132"),
        ("Compute 85-47.", "addition", "15-7=8,8-4-1=3", "38"),
        (r"Compute 46\times 7.", "multiplication", "6*7=42,4*7+4=32", "322"),
        (r"Compute 46\times 37.", "multiplication", "6*7=42,4*7+4=32,6*3=18,4*3+1=13,1380+322=1702", "1702"),
        (r"Compute (7+5)\times 4-9.", "expression", "7+5=12,12*4=48,48-9=39", "39"),
        ("Solve 3x+5=26 for x.", "linear_equation", "26-5=21,21/3=7", "7"),
        ("Solve 7x-4=3x+12 for x.", "linear_equation", "7-3=4,12+4=16,16/4=4", "4"),
        ("Solve 6x+5=-16 for x.", "linear_equation", "-16-5=-21,-21/3=-7,6/3=2", r"-\frac{7}{2}"),
        (
            r"Compute \frac{3}{4}+\frac{1}{6}.",
            "fraction",
            "4*3=12,3*3=9,6*2=12,1*2=2,9+2=11",
            r"\frac{11}{12}",
        ),
        (r"Compute (17\times 4+9) \bmod 7.", "modular", "17*4=68,68+9=77,77-70=7,7-7=0", "0"),
        (r"Compute \gcd(84,36).", "gcd", "84-72=12,36-36=0", "12"),
    ],
)
def test_the_notation_of_each_family(question: str, family: str, reasoning: str, answer: str) -> None:
    trace = TerseTeacher({}).write(Problem.from_question(question, answer, family=family), random.Random(0))
    assert trace.reasoning == reasoning
    assert trace.response == boxed(answer)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=60)
def test_any_corpus_is_right_and_true(seed: int) -> None:
    for trace in write_traces(generate_problems(seed, 20), TerseTeacher({}), seed):
        assert trace.response == boxed(trace.problem.answer)
        assert all(map(holds, equations(trace)))


def test_a_teacher_is_found_by_name_with_its_settings() -> None:
    assert teacher_named("terse", leap_rates=ALWAYS) == TerseTeacher(ALWAYS)
    assert teacher_named("careless") == CarelessTeacher(0.3)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("socrates", {}, r"unknown teacher 'socrates' \(there are: verbose, terse, careless\)"),
        ("verbose", {"leap_rate": 0.5}, "teacher 'verbose' has no setting leap_rate"),
        ("terse", {"leap_rates": {"easy": 1.5}}, "leap_rates.easy=1.5 has to be a share between 0 and 1"),
        ("careless", {"slip_rate": -0.1}, "slip_rate=-0.1 has to be"),
    ],
)
def test_mistakes_about_teachers_are_told(name: str, settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        teacher_named(name, **settings)


def test_only_synthetic_problems_can_be_worked() -> None:
    with pytest.raises(InputError, match="unknown problem family 'gsm8k'"):
        VerboseTeacher().write(Problem.from_question("How many?", "4", family="gsm8k"), random.Random(0))
