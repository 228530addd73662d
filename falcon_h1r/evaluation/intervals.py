"""95% intervals by a bootstrap over *problems*, pure functions of arrays and a seed.

The n samples of one problem rise and fall together, so resampling samples would claim far more certainty than there
is: this is a cluster bootstrap. Intervals speak of new problems for the models at hand, not of models trained anew
with another seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

TAIL = 0.025  # on either side of a 95% interval
NUM_RESAMPLES = 4000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95% interval, estimated on n problems."""

    value: float
    low: float
    high: float
    n: int


def point(estimate: Estimate) -> dict[str, float]:
    """The estimate as it stands in a summary."""
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def estimate_mean(
    values: FloatArray,  # (N)
    seed: int,
    bounds: tuple[float, float] = (0.0, 1.0),
    clusters: IntArray | None = None,  # (N): observations with one number are resampled together
) -> Estimate:
    """The mean of values with its 95% interval over clusters; see `estimate_means`."""
    return estimate_means(values[:, None], seed, bounds, clusters)[0]


def estimate_means(
    values: FloatArray,  # (N, M)
    seed: int,
    bounds: tuple[float, float] = (0.0, 1.0),
    clusters: IntArray | None = None,  # (N)
) -> list[Estimate]:  # (M)
    """Means of M quantities on the same N observations, within bounds, each with its 95% interval over clusters.

    By default each observation is a cluster of its own. All M are resampled together, so what two of them have in
    common moves both. The percentile interval is too narrow for few clusters, as it takes the spread in the sample
    for the population's, and the normal for Student's t. So its tails are taken further out, at
    Phi(-t_{m-1} sqrt(m / (m - 1))) of m clusters instead of 2.5% (the expanded percentile interval,
    Hesterberg 2015, arXiv:1411.5279).

    The bootstrap knows only what was seen: of 200 wrong answers it would make an accuracy of exactly 0. So the
    interval is never narrower than what a kind of problem not seen among the m clusters could do. Such a kind
    has a share below b = 1 - 0.025^(1/m), or m draws would miss it in fewer than 2.5% of all cases; at worst it
    lies at a bound and moves the value by b towards it. For accuracies of 0 and 1 that is Clopper and Pearson's
    interval; with a hundred problems of mixed results it is well inside the bootstrap's.
    """
    if values.size == 0:
        raise ValueError("no problems to estimate from")
    sums, sizes = values.astype(np.float64), np.ones(len(values))
    if clusters is not None:
        members = np.unique(clusters, return_inverse=True)[1]
        sizes = np.bincount(members).astype(np.float64)
        sums = np.stack([np.bincount(members, weights=column) for column in values.T], axis=1)
    means, num_clusters = sums.sum(axis=0) / sizes.sum(), len(sizes)
    tail = _tail_of_percentiles(num_clusters)
    lows, highs = np.quantile(_resampled_means(sums, sizes, seed), [tail, 1 - tail], axis=0)
    unseen = 1 - TAIL ** (1 / num_clusters)
    lows = np.minimum(lows, means - unseen * (means - bounds[0]))
    highs = np.maximum(highs, means + unseen * (bounds[1] - means))
    return [
        Estimate(float(mean), float(low), float(high), num_clusters)
        for mean, low, high in zip(means, lows, highs, strict=True)
    ]


def _tail_of_percentiles(num_clusters: int) -> float:
    """Where the percentile interval is cut off, so that it is as wide as Student's; 2.5% of very many clusters."""
    freedom = max(1, num_clusters - 1)
    normal = NormalDist()
    z = normal.inv_cdf(1 - TAIL)
    # Student's quantile by Cornish and Fisher: to three digits from five degrees of freedom on. Below that either
    # is beyond the outermost resample.
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return normal.cdf(-t * math.sqrt((freedom + 1) / freedom))


def _resampled_means(sums: FloatArray, sizes: FloatArray, seed: int) -> FloatArray:  # (m, M), (m) -> (R, M)
    """R = NUM_RESAMPLES means over clusters drawn with replacement, in chunks of bounded memory."""
    generator = np.random.default_rng(seed)
    num_clusters = len(sizes)
    rows_per_chunk = max(1, 4_000_000 // num_clusters)
    chunks = []
    for start in range(0, NUM_RESAMPLES, rows_per_chunk):
        num_rows = min(rows_per_chunk, NUM_RESAMPLES - start)
        drawn = generator.integers(0, num_clusters, (num_rows, num_clusters))
        drawn += num_clusters * np.arange(num_rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.float64)
        chunks.append(times @ sums / (times @ sizes)[:, None])
    return np.concatenate(chunks)


def paired_difference(a: FloatArray, b: FloatArray, seed: int, problems: IntArray | None = None) -> Estimate:
    """The mean of a - b on the same problems, in [-1, 1], with its interval.

    A problem's pair is resampled as one, so that problems hard for both widen nothing. To pool training
    seeds, concatenate their pairs and number the problems: pairs of one problem are resampled together. The
    interval then holds for these trained models together.
    """
    if a.shape != b.shape:
        raise ValueError(f"a paired difference needs the same problems on both sides: {a.shape}, {b.shape}")
    return estimate_mean(a.astype(np.float64) - b, seed, bounds=(-1.0, 1.0), clusters=problems)
