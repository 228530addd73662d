"""Copies of evaluation problems, found however they are spaced, cased, typeset or embedded."""

from __future__ import annotations

import functools
import json
import pickle
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon_h1r.config_data import DecontaminationConfig
from falcon_h1r.config_sources import SourceConfig
from falcon_h1r.data.decontamination import WHOLE_BELOW, EvaluationIndex, Match, overlap_slowly, texts_of
from falcon_h1r.data.ngrams import (
    _BLOCK,
    codes_of,
    normalise,
    normalise_with_positions,
    window_hashes,
    window_hashes_slowly,
)
from falcon_h1r.types import InputError, Problem, Trace, Turn

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data (GSM8K, AIME)")

TRAIN = (
    r"A train leaves Boston at $\left(3, 15\right)$ o'clock and travels $\frac{2}{3}$ of the way at 60 mph. "
    "How long does it take, in minutes, if the whole way is 90 miles?"
)
SUMS = "Compute $85 + 47$."
ROOT = r"What is $\sqrt{53}$ in simplest radical form?"
EVALUATION = {"trains": [Problem("t", TRAIN, "0")], "small": [Problem("s", SUMS, "132"), Problem("r", ROOT, "")]}
CONFIG = DecontaminationConfig()
INDEX = EvaluationIndex(EVALUATION, CONFIG)


def questions(name: str, field: str) -> list[str]:
    with open(DATA / name, encoding="utf-8") as file:
        return [json.loads(line)[field] for line in file]


# -----------------------------------------------------------------------------
# Normalisation and hashes


@pytest.mark.parametrize(
    "same",
    [
        r"Let $\left(x, y\right)$ be \frac{1}{2}.",
        "let (x,y) be 1/2",
        r"LET\left(X,Y\right)BE\dfrac12",
        "Let $( x ,\n\ty)$ be ½",
        r"Let \textbf{(x, y)} be \displaystyle{1 \over 2}".replace(r"\over ", "/"),
        "Ｌｅｔ (𝑥, 𝑦) bé 1⁄2",
        "<p>Let&nbsp;(<i>x</i>,<br />y)</P> be 1&#x2F;2",
    ],
)
def test_spelling_does_not_count(same: str) -> None:
    assert normalise(same) == "letxybe12"


def test_other_letters_stay() -> None:
    assert normalise("Straße, Ωmega, 数 42") == "strasse" + "ωmega" + "数42"


PIECES = st.text() | st.sampled_from(
    [*"\\{}$abcXYZ019éß数½Ⅷ", r"\left", r"\frac", r"\LE", r"\le", "qslant", "<br", "/>", "&lt"]
)


@given(st.lists(PIECES).map("".join))
def test_the_fast_normalisation_is_the_slow_one(text: str) -> None:
    letters, positions = normalise_with_positions(text)
    assert normalise(text) == letters
    assert len(positions) == len(letters) and positions == sorted(positions)
    assert normalise(letters) == letters


@given(st.text("abé数", max_size=80), st.integers(1, 50))
def test_hashes_are_those_of_the_formula(text: str, width: int) -> None:
    codes = codes_of(text)
    assert window_hashes(codes, width).tolist() == window_hashes_slowly(codes, width)


def test_hashes_do_not_depend_on_where_blocks_are_cut() -> None:
    codes = np.random.default_rng(0).integers(1, 1 << 20, 2 * _BLOCK + 100).astype(np.uint32)
    hashes = window_hashes(codes, 40)
    assert len(hashes) == len(codes) - 39
    for start in (0, _BLOCK - 41, _BLOCK - 1, _BLOCK, 2 * _BLOCK - 20, len(hashes) - 1):
        assert [int(hashes[start])] == window_hashes_slowly(codes[start : start + 40], 40)


# -----------------------------------------------------------------------------
# Matches


def squeezed(text: str) -> str:
    return re.sub(r"\s", "", text)


def spaced(text: str) -> str:
    return " ".join(re.findall(r"\\[A-Za-z]+|.", squeezed(text)))  # a command stays whole


COPIES: dict[str, Callable[[str], str]] = {
    "verbatim": str,
    "without white space": squeezed,
    "white space everywhere": spaced,
    "lines broken": lambda text: text.replace(" ", " \n\t "),
    "upper case": str.upper,
    "small letters": str.lower,
    "without punctuation": lambda text: re.sub(r"[,.?!'$]", "", text),
    "from a page": lambda text: "<p>" + text.replace(". ", ".<br/>").replace(" ", "&nbsp;") + "</p>",
    "embedded": lambda text: f"{'Some words before it. ' * 100}{text}{' And words after it.' * 100}",
}


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_is_found_however_it_is_written(copy: str) -> None:
    match = INDEX.find([COPIES[copy](TRAIN)])
    assert match is not None
    assert (match.set_name, match.uid, match.overlap, match.question) == ("trains", "t", 1.0, TRAIN)
    assert normalise(match.text) == normalise(TRAIN)


@pytest.mark.parametrize("part", ["question", "reasoning", "response", "turn", "turn's reasoning"])
def test_every_part_of_a_trace_is_searched(part: str) -> None:
    def text(name: str) -> str:
        return f"Words. {TRAIN} Words." if name == part else "Words."

    turns = (Turn("user", text("turn")), Turn("assistant", "Words.", text("turn's reasoning")))
    trace = Trace(Problem("p", text("question"), "0"), "a", text("reasoning"), text("response"), turns=turns)
    match = INDEX.find(trace)
    assert match is not None and (match.uid, match.overlap) == ("t", 1.0)
    assert match.text == TRAIN[: -len("?")]
    assert match.describe() == f"trains t: 100% of it, {TRAIN[:-1][:200]!r}"
    assert match == INDEX.find(texts_of(trace))


def test_a_part_of_a_problem_counts_from_the_overlap_asked_for() -> None:
    length = len(normalise(TRAIN))
    ngrams = length - CONFIG.ngram_characters + 1
    _, positions = normalise_with_positions(TRAIN)
    for found in (1, ngrams // 2, ngrams):
        text = TRAIN[: positions[CONFIG.ngram_characters + found - 2] + 1]
        for min_overlap in (0.01, 0.5, 1.0):
            match = EvaluationIndex(EVALUATION, DecontaminationConfig(min_overlap=min_overlap)).find([text])
            assert (match is not None) == (found / ngrams >= min_overlap)
            assert match is None or (match.overlap == found / ngrams and match.text == text)


def test_pieces_add_up_over_the_parts_and_no_ngram_crosses_a_border() -> None:
    middle = len(TRAIN) // 2
    whole, halves = normalise(TRAIN), [TRAIN[:middle], TRAIN[middle:]]
    match = EvaluationIndex(EVALUATION, DecontaminationConfig(min_overlap=0.1)).find(halves)
    assert match is not None
    lost = CONFIG.ngram_characters - 1
    assert match.overlap == 1 - lost / (len(whole) - lost)
    assert match.text in halves[0] or match.text in halves[1]


def test_a_short_problem_is_found_whole_and_a_tiny_one_only_alone() -> None:
    assert len(normalise(SUMS)) < 20 < len(normalise(ROOT)) < WHOLE_BELOW
    match = INDEX.find([f"First: {ROOT.lower()} I think it is."])
    assert match == Match("small", "r", 1.0, ROOT.lower().rstrip("?"), ROOT)
    assert INDEX.find([ROOT.replace("radical form", "radical")]) is None
    assert INDEX.find([f"First: {SUMS}"]) is None
    assert INDEX.find(["Words.", " compute 85+47"]) == Match("small", "s", 1.0, "compute 85+47", SUMS)


def test_the_best_match_is_told() -> None:
    near = TRAIN.replace("90 miles", "120 kilometres")
    index = EvaluationIndex({"a": [Problem("near", near, "0")], "b": [Problem("t", TRAIN, "0")]}, CONFIG)
    match = index.find([TRAIN])
    assert match is not None and (match.uid, match.overlap) == ("t", 1.0)


def test_equal_hashes_prove_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def constant(codes: np.ndarray, width: int) -> np.ndarray:
        return np.full(max(0, len(codes) - width + 1), 7, np.uint64)

    monkeypatch.setattr("falcon_h1r.data.decontamination.window_hashes", constant)
    index = EvaluationIndex(EVALUATION, CONFIG)
    assert index.find(["Words without any meaning, as many as it takes. " * 3]) is None
    match = index.find([f"Words. {TRAIN}"])
    assert match is not None and match.overlap == 1.0


def test_nothing_is_found_in_nothing() -> None:
    assert INDEX.find([]) is INDEX.find([""]) is INDEX.find(["?!", "x"]) is None
    assert EvaluationIndex({}, CONFIG).find([TRAIN]) is None
    assert len(INDEX) == 3


WORDS = st.lists(st.sampled_from("alpha beta gamma 12 x² épée".split()), max_size=12).map(" ".join)


@settings(max_examples=40)
@given(st.lists(WORDS.filter(bool), min_size=1, max_size=4), st.lists(WORDS, max_size=3), st.integers(8, 30))
def test_overlaps_are_those_of_the_definition(problems: list[str], texts: list[str], width: int) -> None:
    config = DecontaminationConfig(ngram_characters=width, min_overlap=1e-9)
    index = EvaluationIndex({"set": [Problem(str(n), text, "0") for n, text in enumerate(problems)]}, config)
    overlaps = [overlap_slowly(problem, texts, width) for problem in problems]
    match = index.find(texts)
    assert (0.0 if match is None else match.overlap) == max(overlaps)
    assert match is None or overlaps[int(match.uid)] == max(overlaps)


def test_a_question_without_a_letter_is_a_mistake() -> None:
    with pytest.raises(InputError, match=r"evaluation set odd, problem x: its question has no letter or digit"):
        EvaluationIndex({"odd": [Problem("x", "∫ = ?", "0")]}, CONFIG)


def test_sets_are_read_from_the_config_but_for_those_switched_off(tmp_path: Path) -> None:
    path = tmp_path / "trains.jsonl"
    path.write_text(json.dumps({"question": TRAIN, "answer": "0"}) + "\n")
    sets = {"trains": SourceConfig(path=str(path)), "off": SourceConfig(path=str(tmp_path / "none.jsonl"))}
    index = EvaluationIndex.from_config(DecontaminationConfig(sets=sets, switched_off=["off"]))
    match = pickle.loads(pickle.dumps(index)).find([TRAIN])
    assert match is not None and match.set_name == "trains"
    with pytest.raises(InputError, match="none.jsonl"):
        EvaluationIndex.from_config(DecontaminationConfig(sets=sets))


def test_no_torch_is_imported() -> None:
    import subprocess

    code = "import sys, falcon_h1r.data.decontamination, falcon_h1r.data.duplicates, falcon_h1r.data.filters\n"
    subprocess.run([sys.executable, "-c", f"{code}assert 'torch' not in sys.modules"], check=True)


# -----------------------------------------------------------------------------
# Real problems


@functools.cache
def real_problems() -> tuple[dict[str, list[str]], EvaluationIndex]:
    sets = {"aime24": questions("aime24.jsonl", "problem"), "gsm8k": questions("gsm8k_test.jsonl", "question")}
    problems = {name: [Problem.from_question(text, "0") for text in texts] for name, texts in sets.items()}
    return sets, EvaluationIndex(problems, CONFIG)


@needs_data
@pytest.mark.parametrize("step", [40, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("copy", [*COPIES, "inside the reasoning"])
def test_every_copy_of_aime24_and_gsm8k_is_found(copy: str, step: int) -> None:
    sets, index = real_problems()
    assert [len(texts) for texts in sets.values()] == [30, 1319]
    rng = random.Random(0)
    filler = [row for row in questions("gsm8k_train.jsonl", "answer") if rng.random() < 0.2]
    for texts in sets.values():
        for text in texts[::step]:
            before, after = rng.choices(filler, k=2)
            if copy == "inside the reasoning":
                reasoning = f"{before} So the problem is: {text.lower()} Let me think. {after}"
                match = index.find(Trace(Problem("p", "Another question", "0"), "a", reasoning, after))
            else:
                match = index.find([COPIES[copy](text)])
            assert match is not None and match.overlap == 1.0, text
            assert normalise(match.question) == normalise(text)


@needs_data
@pytest.mark.slow
def test_matches_of_gsm8ks_training_questions_are_few_and_listed(capsys: pytest.CaptureFixture[str]) -> None:
    names = {"gsm8k_test": "question", "aime24": "problem", "amc23": "problem"}
    sets = {
        name: [Problem.from_question(text, "0") for text in questions(f"{name}.jsonl", field)]
        for name, field in names.items()
    }
    training = questions("gsm8k_train.jsonl", "question")
    found: dict[float, int] = {}
    for min_overlap in (0.3, 0.5, 0.8):
        index = EvaluationIndex(sets, DecontaminationConfig(min_overlap=min_overlap))
        matches = [(text, match) for text in training if (match := index.find([text])) is not None]
        found[min_overlap] = len(matches)
        with capsys.disabled():
            print(f"\nmin_overlap {min_overlap}: {len(matches)} of {len(training)}")
            for text, match in matches:
                print(f"  {match.set_name} {match.overlap:.2f}\n    asked   {match.question}\n    trained {text}")
    assert found == {0.3: 5, 0.5: 3, 0.8: 0}


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize(("width", "lost_by_a_letter", "lost_by_a_word"), [(20, 7, 4), (40, 258, 140)])
def test_shorter_n_grams_lose_fewer_copies_with_one_change(
    width: int, lost_by_a_letter: int, lost_by_a_word: int
) -> None:
    """The figures of docs/filters.md."""
    names = {"gsm8k_test": "question", "aime24": "problem", "amc23": "problem"}
    texts = [text for name, field in names.items() for text in questions(f"{name}.jsonl", field)]
    sets = {"all": [Problem.from_question(text, "0") for text in texts]}
    index = EvaluationIndex(sets, DecontaminationConfig(ngram_characters=width))
    rng = random.Random(0)
    letters = words = 0
    for text in texts:
        at = next(at for at in range(len(text) // 2, len(text)) if text[at].isalpha())
        letters += index.find([text[:at] + "x" + text[at + 1 :]]) is None
        said = text.split(" ")
        said[rng.randrange(len(said))] = "other"
        words += index.find([" ".join(said)]) is None
    assert (len(texts), letters, words) == (1389, lost_by_a_letter, lost_by_a_word)
