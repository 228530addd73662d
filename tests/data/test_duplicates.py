"""Near-duplicates: shingles, signatures, and the reduction over files against its definition."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon_h1r.config_data import DuplicatesConfig
from falcon_h1r.data.duplicates import (
    Signatures,
    find_duplicates,
    find_duplicates_slowly,
    signature,
    signature_of_text,
    signature_slowly,
)
from falcon_h1r.data.shingles import shingle_hashes, shingles_slowly
from falcon_h1r.types import InputError, Problem, Trace, Turn

CONFIG = DuplicatesConfig(of="trace")
SMALL = DuplicatesConfig(of="trace", num_hashes=12, num_bands=4, threshold=0.75)
DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def write(folder: Path, rows: Signatures, cuts: list[int]) -> list[Path]:
    """The rows as files, cut before each of `cuts`."""
    folder.mkdir(exist_ok=True)
    paths = []
    for number, part in enumerate(np.split(rows, cuts)):
        paths.append(folder / f"{number}.npy")
        np.save(paths[-1], part)
    return paths


def jaccard(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> float:
    return len(one & other) / len(one | other)


def edited(words: list[str], share: float, rng: random.Random) -> list[str]:
    """The words, each replaced with probability `share`."""
    return [f"edit{rng.random()}" if rng.random() < share else word for word in words]


# -----------------------------------------------------------------------------
# Shingles


@pytest.mark.parametrize(
    ("text", "shingles"),
    [
        ("", []),
        ("?!", []),
        ("One two", [("one", "two")]),
        ("One, two; THREE four.", [("one", "two", "three"), ("two", "three", "four")]),
        ("x^2+3", [("x", "^", "2"), ("^", "2", "+"), ("2", "+", "3")]),
        (r"$\frac{1}{2} ≤ É$", [("frac", "1", "2"), ("1", "2", "≤"), ("2", "≤", "é")]),
        ("数学 abc", [("数", "学", "abc")]),
    ],
)
def test_shingles_are_words_in_a_row_and_of_a_short_text_all_of_them(
    text: str, shingles: list[tuple[str, ...]]
) -> None:
    assert shingles_slowly(text, 3) == shingles


@given(st.lists(st.text() | st.sampled_from("ab 1+-数é≤\n.𝑥")).map("".join), st.integers(1, 5))
def test_hashes_are_equal_where_shingles_are(text: str, width: int) -> None:
    shingles, hashes = shingles_slowly(text, width), shingle_hashes(text, width).tolist()
    assert len(hashes) == max(1, len(shingles))
    assert len(set(zip(shingles, hashes, strict=False))) == len(set(shingles))
    assert len(set(hashes)) == max(1, len(set(shingles)))
    assert all(0 <= value < 1 << 32 for value in hashes)


# -----------------------------------------------------------------------------
# Signatures


def test_the_share_of_equal_hashes_estimates_the_jaccard_similarity() -> None:
    rng = random.Random(0)
    config = DuplicatesConfig(num_hashes=1200, num_bands=20)
    for share in (0.0, 0.02, 0.05, 0.1, 0.3, 1.0):
        words = [rng.choice("abcdefgh") * rng.randint(1, 9) for _ in range(2000)]
        one, other = (" ".join(words), " ".join(edited(words, share, rng)))
        exact = jaccard(set(shingles_slowly(one, 5)), set(shingles_slowly(other, 5)))
        estimate = np.mean(signature_of_text(one, config) == signature_of_text(other, config))
        assert estimate == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 1200) ** 0.5)


def test_a_signature_does_not_depend_on_case_spaces_and_punctuation_but_on_signs() -> None:
    first = signature_of_text("Compute 85 + 47, please!", CONFIG)
    assert first.dtype == np.uint32 and first.shape == (CONFIG.num_hashes,)
    assert np.array_equal(first, signature_of_text("compute\n85+47 PLEASE", CONFIG))
    assert not np.array_equal(first, signature_of_text("Compute 85 - 47, please!", CONFIG))
    assert np.array_equal(signature_of_text("", CONFIG), signature_of_text("...", CONFIG))


@settings(max_examples=30)
@given(st.integers(0, 1200))
def test_a_signature_is_that_of_the_formula(count: int) -> None:
    text = " ".join(f"word{number}" for number in range(count))
    config = DuplicatesConfig(num_hashes=6, num_bands=2)
    assert signature_of_text(text, config).tolist() == signature_slowly(text, config)


def test_signatures_are_the_same_in_every_release() -> None:
    # Those that an earlier release wrote are compared with today's.
    assert signature_of_text("How many apples are there in all?", CONFIG)[:3].tolist() == [
        397499835,
        1817848440,
        1977084431,
    ]


def test_what_is_compared_is_the_question_or_all_that_a_trace_says() -> None:
    turns = (Turn("user", "Hello there, who are you?"), Turn("assistant", "Hi", reasoning="greet them"))
    trace = Trace(Problem("u", "What is it?", "2"), "a", "I think", "Two", turns=turns)
    of_question = DuplicatesConfig(of="question")
    assert np.array_equal(signature(trace, of_question), signature_of_text("What is it?", of_question))
    everything = "What is it? Hello there, who are you? greet them Hi I think Two"
    assert np.array_equal(signature(trace, CONFIG), signature_of_text(everything, CONFIG))


# -----------------------------------------------------------------------------
# The reduction


def chain(config: DuplicatesConfig) -> Signatures:
    """A like B like C, A unlike C; D like none."""
    rows = np.zeros((4, config.num_hashes), np.uint32)
    rows[1, -2:], rows[2, -4:], rows[3] = 1, 1, 9
    return rows


def test_of_a_chain_the_ends_stay(tmp_path: Path) -> None:
    rows, alive = chain(SMALL), np.ones(4, np.bool_)  # 10 of 12 hashes equal: 0.83; A and C: 8 of 12
    paths = write(tmp_path, rows, [])
    assert find_duplicates(paths, alive, SMALL).tolist() == [-1, 0, -1, -1]
    assert find_duplicates(paths, np.array([False, True, True, True]), SMALL).tolist() == [-1, -1, 1, -1]


def test_candidates_are_confirmed_by_the_whole_signature(tmp_path: Path) -> None:
    rows = np.arange(24, dtype=np.uint32).reshape(2, 12)
    rows[1, :8] = rows[0, :8]  # two of the four bands, and 8 of 12 hashes
    assert find_duplicates(write(tmp_path, rows, []), np.ones(2, np.bool_), SMALL).tolist() == [-1, -1]
    rows[1, 8] = rows[0, 8]
    assert find_duplicates(write(tmp_path, rows, []), np.ones(2, np.bool_), SMALL).tolist() == [-1, 0]


def test_a_problems_first_trace_speaks_for_all_of_them(tmp_path: Path) -> None:
    same, other = np.zeros(12, np.uint32), np.arange(12, dtype=np.uint32)
    rows = np.stack([other, same, same, same, same, other, same])
    groups = np.array([-5, 7, 7, 8, 7, 9, 8])
    alive = np.array([True, True, True, True, False, True, True])
    paths = write(tmp_path, rows, [3])
    assert find_duplicates(paths, alive, SMALL, groups).tolist() == [-1, -1, -1, 1, -1, 0, 1]
    alive[1] = False
    assert find_duplicates(paths, alive, SMALL, groups).tolist() == [-1, -1, -1, 2, -1, 0, 2]


@settings(max_examples=40)
@given(st.data())
def test_the_reduction_is_that_of_the_definition_however_files_are_cut(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    count = data.draw(st.integers(0, 80))
    centres = rng.integers(0, 4, (3, SMALL.num_hashes)).astype(np.uint32)
    rows = centres[rng.integers(0, 3, count)]
    noise = rng.random(rows.shape) < data.draw(st.sampled_from([0.05, 0.15, 0.3]))
    rows[noise] = rng.integers(0, 5, noise.sum())
    alive = rng.random(count) < 0.9
    groups = rng.integers(-20, 20, count) if data.draw(st.booleans()) else None
    expected = find_duplicates_slowly(rows, alive, SMALL, groups)
    folder = tmp_path_factory.mktemp("signatures")
    for cuts in ([], sorted(rng.integers(0, count + 1, 4).tolist())):
        found = find_duplicates(write(folder, rows, cuts), alive, SMALL, groups)
        assert found.tolist() == expected.tolist()
    assert (found[found >= 0] < np.flatnonzero(found >= 0)).all() or groups is not None
    assert (found[found[found >= 0]] == -1).all()  # none is dropped for one that is itself dropped


def test_wrong_files_are_named(tmp_path: Path) -> None:
    rows = np.zeros((3, 12), np.uint32)
    (good,) = write(tmp_path, rows, [])
    with pytest.raises(ValueError, match="signatures of 3 traces, and 2 traces"):
        find_duplicates([good], np.ones(2, np.bool_), SMALL)
    with pytest.raises(InputError, match=r"0\.npy: uint32 \(3, 12\) are no signatures of 120 hashes"):
        find_duplicates([good], np.ones(3, np.bool_), CONFIG)
    cut = tmp_path / "cut.npy"
    cut.write_bytes(good.read_bytes()[:-20])
    for path in (cut, tmp_path / "empty.npy"):
        path.touch()
        with pytest.raises(InputError, match=f"{path.name}: no signatures"):
            find_duplicates([path], np.ones(3, np.bool_), SMALL)


def planted(count: int, rng: random.Random) -> list[list[str]]:
    """Texts of 30 to 400 words, and of each third one an edit of some similarity."""
    vocabulary = [f"word{number}" for number in range(3000)]
    texts = []
    for number in range(count):
        texts.append(rng.choices(vocabulary, k=rng.randint(30, 400)))
        if number % 3 == 0:
            texts.append(edited(texts[-1], rng.choice([0.0, 0.005, 0.01, 0.02, 0.03, 0.05]), rng))
    rng.shuffle(texts)
    return texts


@pytest.mark.parametrize("count", [150, pytest.param(4000, marks=pytest.mark.slow)])
def test_near_duplicates_are_found_as_exact_similarities_say(tmp_path: Path, count: int) -> None:
    texts = planted(count, random.Random(0))
    rows = np.stack([signature_of_text(" ".join(words), CONFIG) for words in texts])
    found = find_duplicates(write(tmp_path, rows, [70, 71]), np.ones(len(rows), np.bool_), CONFIG)
    shingles = [set(shingles_slowly(" ".join(words), 5)) for words in texts]
    owners: dict[tuple[str, ...], list[int]] = {}
    best = [0.0] * len(texts)  # similarity to the likest earlier text
    for number, mine in enumerate(shingles):
        earlier = {other for shingle in mine for other in owners.get(shingle, ())}
        best[number] = max((jaccard(mine, shingles[other]) for other in earlier), default=0.0)
        for shingle in mine:
            owners.setdefault(shingle, []).append(number)
    exact, dropped = np.array(best), found >= 0
    margin = 0.11  # three standard deviations of an estimate by 120 hashes at 0.8
    clear, unlike = exact >= 0.8 + margin, exact < 0.8 - margin
    print(
        f"{len(texts)} texts: recall {dropped[exact >= 0.8].mean():.3f} at J >= 0.8, {dropped[clear].mean():.4f} at "
        f"J >= 0.91; precision {np.mean(exact[dropped] >= 0.8):.3f}, J of what is dropped >= {exact[dropped].min():.2f}"
    )
    assert clear.sum() > count / 20 and unlike.sum() > count / 2
    assert dropped[clear].all() and not dropped[unlike].any()


@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data (GSM8K)")
def test_gsm8ks_test_questions_are_near_duplicates_of_copies_and_few_of_each_other(tmp_path: Path) -> None:
    with open(DATA / "gsm8k_test.jsonl", encoding="utf-8") as file:
        texts = [json.loads(line)["question"] for line in file]
    copies = [text.upper().replace(" ", "  ") for text in texts[:300]]
    rows = np.stack([signature_of_text(text, CONFIG) for text in texts + copies])
    found = find_duplicates(write(tmp_path, rows, [700]), np.ones(len(rows), np.bool_), CONFIG)
    first = np.where(found < 0, np.arange(len(found)), found)
    assert (first[len(texts) :] == first[: len(copies)]).all()
    assert (found[: len(texts)] >= 0).sum() <= 3
