"""How sure the model was, token by token and window by window (DeepConf, arXiv 2508.15260).

    C_t = -(1/k) sum_j log p_t(j)   over the k best tokens of position t: measure `top_k`
    C_t = log p_t(token drawn)      measure `sampled`: what the engine gives with the token; nothing to compute
    G_t = mean of C over the last `window_tokens` tokens up to t: the group that ends at t

and the scores of a trace: the mean of C, of its last window, of the lowest tenth of its groups, and its lowest
group. Higher is surer throughout. The paper's code rounds C and G to three digits; nothing is rounded here.

Everything is float64, and every sum runs in one fixed order, so that a computation that sees one token at a time
inside a running batch gives the same bits as one that has the whole trace.

Shapes: T tokens of a trace, k best tokens of a position.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from falcon_h1r.scaling.traces import ConfidenceSummary

FloatArray = NDArray[np.float64]

PARTIAL_WINDOWS = ("mean", "wait")  # before the first whole window: the mean so far, or no group at all
LEAST_LOGPROB = -9999.0  # what servers write for minus infinity, which JSON cannot: at or below it, nothing is given
BOTTOM_SHARE = 10  # one in so many groups, rounded down, is among the lowest


def token_confidence(top_logprobs: NDArray[np.float32] | FloatArray) -> FloatArray:  # (T, k) -> (T)
    """C_t = -(1/k) sum_j log p_t(j), over the k best tokens of each position.

    A row may give fewer than k: minus infinity stands where there is nothing (a vocabulary smaller than k, a
    server's short answer), and the mean is over what is given. Such a row reads as less sure than a full one,
    for the tail is what makes a peaked position's mean large: compare positions of one k only.

    The columns are added one after another: numpy's own sum over the last axis picks its order by the layout, and
    a position must come out the same alone as within a trace.

    Raises:
        ValueError: where these are no rows, or one holds NaN or infinity, or gives nothing.
    """
    logprobs = np.asarray(top_logprobs, dtype=np.float64)
    if logprobs.ndim != 2:
        raise ValueError(f"top logprobs are (tokens, k), not of shape {logprobs.shape}")
    given = logprobs > LEAST_LOGPROB
    unusable = np.isnan(logprobs).any(axis=1) | np.isposinf(logprobs).any(axis=1) | ~given.any(axis=1)
    if unusable.any():
        row = int(unusable.argmax())
        raise ValueError(f"no confidence from the top logprobs of token {row}: {logprobs[row].tolist()}")
    logprobs = np.where(given, logprobs, 0.0)
    total = np.zeros(len(logprobs))
    for column in logprobs.T:
        total += column
    confidences: FloatArray = -(total / given.sum(axis=1))
    return confidences


def running_sums(confidences: FloatArray) -> FloatArray:  # (T) -> (T + 1)
    """Sums of the first 0, 1, ..., T confidences, added in order: what a loop over tokens would hold.

    Raises:
        ValueError: where these are not of one trace, or one is no finite number, for all sums after it would be lost.
    """
    if np.ndim(confidences) != 1:
        raise ValueError(f"the confidences of a trace are (tokens), not of shape {np.shape(confidences)}")
    lost = ~np.isfinite(confidences)
    if lost.any():
        token = int(lost.argmax())
        raise ValueError(f"the confidence of token {token} is {confidences[token]}: it has to be finite")
    return np.concatenate([np.zeros(1), np.cumsum(confidences, dtype=np.float64)])


def next_group(sum_now: FloatArray, sum_before_window: FloatArray, num_tokens: NDArray[np.int64]) -> FloatArray:
    """The group that ends here, of each row: all (rows).

    `sum_now` is the running sum up to this token and `sum_before_window` that of all tokens before the window,
    both as `running_sums` has them; `num_tokens` is how many lie in the window.
    """
    return (sum_now - sum_before_window) / num_tokens


def group_confidence(confidences: FloatArray, window_tokens: int, partial_window: str) -> FloatArray:  # (T) -> (T)
    """G_t: the mean over the last min(t + 1, window) tokens, stride 1. Under "wait", NaN before the first whole window.

    A difference of running sums, so of rounding errors that grow with the sum: about 1e-11 in a window of 2,048
    at 48k tokens.

    Raises:
        ValueError: for a window of no tokens, an unknown `partial_window`, or confidences that are not finite.
    """
    if window_tokens < 1:
        raise ValueError(f"window_tokens={window_tokens}: has to be at least 1")
    if partial_window not in PARTIAL_WINDOWS:
        raise ValueError(f"partial_window={partial_window}: has to be one of {', '.join(PARTIAL_WINDOWS)}")
    sums = running_sums(confidences)
    ends = np.arange(1, len(sums))
    starts = np.maximum(ends - window_tokens, 0)
    groups = next_group(sums[ends], sums[starts], ends - starts)
    if partial_window == "wait":
        groups[: window_tokens - 1] = np.nan
    return groups


def summarise(confidences: FloatArray, window_tokens: int, partial_window: str) -> ConfidenceSummary:  # (T)
    """A trace's scores, and the records of its group confidence that a stop can depend on.

    The bottom tenth of G groups are the lowest max(1, G // 10). Under "wait" a trace shorter than the window has
    one group, all of it, for its scores; it has no record, so nothing stops it. A trace of no tokens has NaN for
    every score: it was neither sure nor unsure, and whoever compares scores leaves it out.

    Raises:
        ValueError: as `group_confidence`.
    """
    groups = group_confidence(confidences, window_tokens, partial_window)
    if len(groups) == 0:
        return ConfidenceSummary(np.nan, np.nan, np.nan, np.nan, ())
    first = int(np.isnan(groups).argmin())  # of the groups there are; 0 where all are NaN, too
    minima = () if np.isnan(groups[first]) else _records(groups[first:], first)
    sums = running_sums(confidences)
    mean = float(sums[-1] / len(groups))
    start = max(len(groups) - window_tokens, 0)
    tail = float((sums[-1] - sums[start]) / (len(groups) - start))
    whole = groups[first:] if minima else np.array([mean])
    count = max(1, len(whole) // BOTTOM_SHARE)
    bottom = np.partition(whole, count - 1)[:count]
    return ConfidenceSummary(mean, float(bottom.mean()), float(bottom.min()), tail, minima)


def _records(groups: FloatArray, first_token: int) -> tuple[tuple[int, float], ...]:
    """(token, group confidence) wherever it is strictly lower than at all tokens before."""
    lowest_before = np.concatenate([[np.inf], np.minimum.accumulate(groups)[:-1]])
    tokens = np.flatnonzero(groups < lowest_before)
    return tuple((int(token) + first_token, float(groups[token])) for token in tokens)
