"""Confidence against literal loops, by hand, and one token at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon_h1r.scaling.confidence import (
    PARTIAL_WINDOWS,
    group_confidence,
    next_group,
    running_sums,
    summarise,
    token_confidence,
)
from falcon_h1r.scaling.traces import SCORES
from tests.scaling import literal

PARTIAL = pytest.mark.parametrize("partial_window", PARTIAL_WINDOWS)
CONFIDENCES = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=60)
WINDOWS = st.integers(1, 70)


def random_confidences(measure: str, num_tokens: int, seed: int) -> np.ndarray:
    """Of the kind the measure gives: positive means of tails, or logprobs."""
    generator = np.random.default_rng(seed)
    if measure == "sampled":
        return -generator.exponential(0.3, num_tokens)
    logprobs = -np.sort(generator.gamma(3, 4, (num_tokens, 20)), axis=1)
    return token_confidence(logprobs.astype(np.float32))


# ------------------------------------------------------------------------------------------------------------
# Tokens


def test_a_tokens_confidence_is_minus_the_mean_of_its_logprobs() -> None:
    # ln 1/2, ln 1/4, ln 1/8: -(1 + 2 + 3) ln 2 / 3 = -2 ln 2.  Twice ln 1/2 and ln 1/16: -(1 + 1 + 4) ln 2 / 3.
    top_logprobs = np.log([[1 / 2, 1 / 4, 1 / 8], [1 / 2, 1 / 2, 1 / 16]])
    assert token_confidence(top_logprobs) == pytest.approx([2 * math.log(2), 2 * math.log(2)], abs=1e-12)


def test_token_confidence_equals_the_literal_mean_in_float64_also_for_float32() -> None:
    top_logprobs = (-np.random.default_rng(0).gamma(2, 4, (50, 20))).astype(np.float32)
    expected = [literal.token_confidence([float(value) for value in row]) for row in top_logprobs]
    assert token_confidence(top_logprobs) == pytest.approx(expected, abs=1e-12)
    assert token_confidence(top_logprobs).dtype == np.float64


def test_a_token_alone_has_the_bits_it_has_within_its_trace() -> None:
    top_logprobs = -np.random.default_rng(1).gamma(2, 4, (200, 20))
    together = token_confidence(top_logprobs)
    assert [token_confidence(top_logprobs[row : row + 1])[0] for row in range(200)] == together.tolist()
    assert token_confidence(np.asfortranarray(top_logprobs)).tolist() == together.tolist()


@pytest.mark.parametrize("nothing", [-np.inf, -9999.0])
def test_a_row_that_gives_fewer_is_the_mean_over_what_it_gives(nothing: float) -> None:
    assert token_confidence(np.array([[-1.0, -3.0, nothing, nothing]])).tolist() == [2.0]


@pytest.mark.parametrize("row", [[-1.0, np.nan], [-1.0, np.inf], [-np.inf, -np.inf]])
def test_a_row_without_a_confidence_is_refused(row: list[float]) -> None:
    with pytest.raises(ValueError, match="top logprobs of token 1"):
        token_confidence(np.array([[-1.0, -2.0], row]))


@pytest.mark.parametrize("shape", [(3,), (3, 0)])
def test_logprobs_without_candidates_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="top logprobs"):
        token_confidence(np.zeros(shape))


# ------------------------------------------------------------------------------------------------------------
# Groups


@PARTIAL
@settings(max_examples=60)
@given(confidences=CONFIDENCES, window=WINDOWS)
def test_groups_equal_the_literal_means(partial_window: str, confidences: list[float], window: int) -> None:
    expected = literal.groups(confidences, window, partial_window)
    found = group_confidence(np.array(confidences), window, partial_window)
    assert found == pytest.approx([math.nan if group is None else group for group in expected], abs=1e-9, nan_ok=True)


def test_a_loop_over_tokens_has_the_bits_of_the_whole_trace() -> None:
    confidences, window = random_confidences("top_k", 500, 0), 16
    whole = group_confidence(confidences, window, "mean")
    sum_now, sums = 0.0, [0.0]
    for token, confidence in enumerate(confidences):
        sum_now += float(confidence)
        sums.append(sum_now)
        num = min(token + 1, window)
        before = sums[token + 1 - num]
        group = next_group(np.array([sum_now]), np.array([before]), np.array([num]))
        assert float(group[0]) == whole[token]
    assert sums == running_sums(confidences).tolist()


def test_groups_of_a_long_trace_stay_within_1e_9_of_exact_means() -> None:
    confidences, window = random_confidences("top_k", 48_000, 1), 2048
    found = group_confidence(confidences, window, "mean")
    for token in (0, 1, 2047, 2048, 20_000, 47_999):
        assert found[token] == pytest.approx(
            literal.mean(list(confidences[max(0, token - 2047) : token + 1])), abs=1e-9
        )


@pytest.mark.parametrize("window, partial_window", [(0, "mean"), (4, "never")])
def test_a_window_that_means_nothing_is_refused(window: int, partial_window: str) -> None:
    with pytest.raises(ValueError, match="window"):
        group_confidence(np.ones(3), window, partial_window)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_confidence_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="confidence of token 1"):
        summarise(np.array([1.0, value, 1.0]), 2, "mean")


# ------------------------------------------------------------------------------------------------------------
# Traces


@PARTIAL
@pytest.mark.parametrize("measure", ["top_k", "sampled"])
@pytest.mark.parametrize("num_tokens", [1, 7, 8, 9, 30, 300])
def test_scores_equal_the_literal_ones(partial_window: str, measure: str, num_tokens: int) -> None:
    confidences = random_confidences(measure, num_tokens, num_tokens)
    summary = summarise(confidences, 8, partial_window)
    expected = literal.scores(confidences.tolist(), 8, partial_window)
    assert {score: getattr(summary, score) for score in SCORES} == pytest.approx(expected, abs=1e-9)


def test_scores_by_hand() -> None:
    # Window 2, the mean so far first: groups 4, 3, 4, 7, 5, 1.5. Six groups: the lowest tenth is one.
    summary = summarise(np.array([4.0, 2.0, 6.0, 8.0, 2.0, 1.0]), 2, "mean")
    assert (summary.mean, summary.tail, summary.lowest_group, summary.bottom_10) == (23 / 6, 1.5, 1.5, 1.5)
    assert summary.minima == ((0, 4.0), (1, 3.0), (5, 1.5))


def test_waiting_for_a_whole_window_leaves_the_first_tokens_out() -> None:
    # Groups of three from the third token on: 4, 16/3, 16/3, 11/3.
    summary = summarise(np.array([1.0, 3.0, 8.0, 5.0, 3.0, 3.0]), 3, "wait")
    assert summary.minima == ((2, 4.0), (5, 11 / 3))
    assert summary.lowest_group == 11 / 3


def test_the_bottom_tenth_is_rounded_down_to_whole_groups() -> None:
    confidences = np.arange(29.0)[::-1]  # window 1: groups are tokens; a tenth of 29 is two
    assert summarise(confidences, 1, "mean").bottom_10 == 0.5
    assert summarise(np.arange(30.0), 1, "mean").bottom_10 == 1.0
    assert summarise(np.arange(9.0), 1, "mean").bottom_10 == 0.0


def test_a_trace_shorter_than_the_window_is_one_group_that_nothing_stops() -> None:
    summary = summarise(np.array([1.0, 2.0, 6.0]), 4, "wait")
    assert (summary.mean, summary.tail, summary.lowest_group, summary.bottom_10) == (3.0, 3.0, 3.0, 3.0)
    assert summary.tokens_until_below(math.inf) is None


def test_a_trace_of_exactly_one_window_has_one_group_that_can_stop_it() -> None:
    assert summarise(np.array([1.0, 2.0, 6.0]), 3, "wait").minima == ((2, 3.0),)


@PARTIAL
def test_a_trace_of_no_tokens_has_no_scores_and_is_not_stopped(partial_window: str) -> None:
    summary = summarise(np.zeros(0), 4, partial_window)
    assert all(math.isnan(getattr(summary, score)) for score in SCORES)
    assert summary.minima == ()


# ------------------------------------------------------------------------------------------------------------
# Stops


@PARTIAL
@settings(max_examples=60)
@given(confidences=st.lists(st.integers(-8, 8), min_size=1, max_size=40), window=WINDOWS, threshold=st.integers(-8, 8))
def test_the_records_say_where_any_threshold_stops(
    partial_window: str, confidences: list[int], window: int, threshold: int
) -> None:
    # Whole numbers: sums are exact, so that a group equal to the threshold is equal on both sides.
    values = [float(value) for value in confidences]
    expected = literal.tokens_until_stop(values, window, partial_window, threshold)
    assert summarise(np.array(values), window, partial_window).tokens_until_below(threshold) == expected


@PARTIAL
@settings(max_examples=60)
@given(confidences=CONFIDENCES, later=CONFIDENCES, window=WINDOWS, threshold=st.floats(-20, 20))
def test_no_stop_uses_a_later_token(
    partial_window: str, confidences: list[float], later: list[float], window: int, threshold: float
) -> None:
    stop = summarise(np.array(confidences), window, partial_window).tokens_until_below(threshold)
    longer = summarise(np.array(confidences + later), window, partial_window).tokens_until_below(threshold)
    if stop is None:
        assert longer is None or longer > len(confidences)
    else:
        assert longer == stop
        cut = summarise(np.array(confidences[:stop]), window, partial_window)
        assert cut.tokens_until_below(threshold) == stop
        assert (
            summarise(np.array(confidences[: stop - 1]), window, partial_window).tokens_until_below(threshold) is None
        )


def test_only_what_is_lower_than_all_before_is_a_record() -> None:
    assert summarise(np.array([4.0, 4.0, 5.0, 2.0, 2.0, 4.0]), 1, "mean").minima == ((0, 4.0), (3, 2.0))


def test_a_group_equal_to_the_threshold_goes_on() -> None:
    summary = summarise(np.array([3.0, 2.0, 1.0]), 1, "mean")
    assert summary.tokens_until_below(2.0) == 3
    assert summary.tokens_until_below(1.0) is None


def test_what_is_not_of_one_trace_is_refused_and_lists_are_arrays() -> None:
    """Two traces at once would be summed as one."""
    assert token_confidence([[-1.0, -2.0]]).tolist() == [1.5]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(tokens\), not of shape \(2, 3\)"):
        group_confidence(np.ones((2, 3)), 2, "mean")
