"""Properties of the verdict on generated expressions."""

from hypothesis import given, settings
from hypothesis import strategies as st

from falcon_h1r.verifier import canonical_answer, verify

# No deadline: the machine may be busy. The examples are fixed, so a failure repeats.
checked = settings(max_examples=40, deadline=None, derandomize=True)

integers = st.integers(-99, 99).map(str)
decimals = st.integers(-9999, 9999).map(lambda n: f"{n / 100:.2f}")
names = st.sampled_from(["x", "y", r"\pi", "a_1", r"\theta"])
leaves = st.one_of(st.integers(0, 99).map(str), names)


def _grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pair = st.tuples(inner, inner)
    return st.one_of(
        pair.map(lambda p: rf"\frac{{{p[0]}}}{{{p[1]}}}"),
        pair.map(lambda p: f"{p[0]} + {p[1]}"),
        pair.map(lambda p: rf"\left({p[0]}\right)\left({p[1]}\right)"),
        inner.map(lambda e: rf"\sqrt{{{e}}}"),
        inner.map(lambda e: f"\\left({e}\\right)^{{2}}"),
        inner.map(lambda e: rf"\sin\left({e}\right)"),
    )


expressions = st.recursive(leaves, _grown, max_leaves=6)
answers = st.one_of(
    integers,
    decimals,
    expressions,
    st.lists(expressions, min_size=2, max_size=3).map(", ".join),
    st.tuples(expressions, expressions).map(lambda p: rf"\left({p[0]}, {p[1]}\right)"),
)


def box(answer: str) -> str:
    return f"\\boxed{{{answer}}}"


@checked
@given(answers)
def test_every_answer_equals_itself(answer: str) -> None:
    assert verify(box(answer), answer).correct


@checked
@given(answers, answers)
def test_the_verdict_is_symmetric(a: str, b: str) -> None:
    assert verify(box(a), b).correct == verify(box(b), a).correct


@checked
@given(answers, answers)
def test_typography_never_changes_a_verdict(a: str, b: str) -> None:
    plain = verify(box(a), b).status
    rewritten = "$ " + a.replace(r"\frac", r"\dfrac").replace(r"\left", "").replace(r"\right", "") + r" \, $."
    assert verify(box(rewritten), b).status == plain
    assert verify(box(a.replace(" ", "  ")), b).status == plain


@checked
@given(expressions, st.integers(1, 9))
def test_adding_and_subtracting_the_same_changes_nothing(expression: str, n: int) -> None:
    verdict = verify(box(f"{expression} + {n} - {n}"), expression)
    assert verdict.correct or "no value" in verdict.reason or (verdict.reason == "not equal" and "0}" in expression)


@checked
@given(st.integers(-500, 500), st.integers(1, 500), st.integers(1, 20))
def test_a_fraction_and_its_multiples_share_one_key(top: int, bottom: int, factor: int) -> None:
    reduced = canonical_answer(box(rf"\frac{{{top}}}{{{bottom}}}"))
    assert canonical_answer(box(f"{top * factor}/{bottom * factor}")) == reduced


@checked
@given(st.lists(integers, min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_lists_are_equal_in_any_order(items: list[str], random: object) -> None:
    shuffled = list(items)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert verify(box(", ".join(shuffled)), ", ".join(items)).correct


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.text(max_size=60), st.text(max_size=60))
def test_no_text_raises(prediction: str, gold: str) -> None:
    verify(box(prediction), gold)
    canonical_answer(box(prediction))


FRAGMENTS = st.sampled_from(
    (
        r"\frac { } ( ) ^ _ \sqrt ! 9 99999 \pi e i x | \pm \mp , ; / - + \cdot \infty \cup [ ] \{ \} "
        r"% ^\circ \sin \log_ \begin{pmatrix} & \\ \end{pmatrix} \text{ and or = < \le \in \sum_{k=1}^{9} "
        r"\int_0^1 dx ² 1e9 . : \overline{3} \max '"
    ).split()
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(FRAGMENTS, max_size=14), st.lists(FRAGMENTS, max_size=8))
def test_no_debris_of_latex_raises(prediction: list[str], gold: list[str]) -> None:
    verify(box(" ".join(prediction)), " ".join(gold))
    canonical_answer(box("".join(prediction)))
