"""Functions of lists: intervals, medians, matrices; ties, copies, and results that share nothing with their input."""

from __future__ import annotations

from collections import Counter

from tests.verifier.code.programs.family import Family


def _merged(k: int, intervals: list[list[int]]) -> list[list[int]]:
    found: list[list[int]] = []
    for low, high in sorted(intervals):
        if found and low - found[-1][1] <= k:
            found[-1][1] = max(found[-1][1], high)
        else:
            found.append([low, high])
    return found


def _median(k: int, numbers: list[int]) -> float:
    ranked = sorted(n + k for n in numbers)
    half = len(ranked) // 2
    return float(ranked[half]) if len(ranked) % 2 else (ranked[half - 1] + ranked[half]) / 2


def _at_most(k: int, numbers: list[int]) -> list[int]:
    seen: Counter[int] = Counter()
    kept = []
    for n in numbers:
        seen[n] += 1
        if seen[n] <= k:
            kept.append(n)
    return kept


def _divisible(k: int, numbers: list[int]) -> int:
    return sum(sum(numbers[i:j]) % k == 0 for i in range(len(numbers)) for j in range(i + 1, len(numbers) + 1))


def _turned(k: int, matrix: list[list[int]]) -> list[list[int]]:
    for _ in range(k % 4):
        matrix = [list(row) for row in zip(*matrix[::-1], strict=True)]
    return matrix


def _two(k: int, numbers: list[int]) -> list[int]:
    return next(
        ([i, j] for i in range(len(numbers)) for j in range(i + 1, len(numbers)) if numbers[i] + numbers[j] == k), []
    )


def _random_numbers(rng, count: int, low: int = -9, high: int = 9) -> list[int]:  # type: ignore[no-untyped-def]
    return [rng.randrange(low, high + 1) for _ in range(count)]


FAMILIES = (
    Family(
        "merge_intervals_with_gaps_up_to_k",
        (0, 1, 2, 3, 5),
        _merged,
        lambda k, rng: [
            [[[1, 3], [3 + k, 9]]],
            [[[5, 6], [1, 2]]],
            [[]],
            [[[1, 20], [2, 3], [4, 5]]],
            [[[1, 3], [4 + k, 9], [30, 31]]],
            [[[low, low + rng.randrange(9)] for low in _random_numbers(rng, 12, 0, 80)]],
        ],
        correct=(
            """
            class Solution:
                def merge(self, intervals: List[List[int]]) -> List[List[int]]:
                    out = []
                    for low, high in sorted(intervals):
                        if out and low <= out[-1][1] + $K:
                            out[-1][1] = max(out[-1][1], high)
                        else:
                            out.append([low, high])
                    return out
            """,
            """
            def merge(intervals):
                if not intervals:
                    return []
                intervals = sorted(map(tuple, intervals))
                out, (low, high) = [], intervals[0]
                for a, b in intervals[1:]:
                    if a - high > $K:
                        out.append((low, high))
                        low, high = a, b
                    high = max(high, b)
                return out + [(low, high)]
            """,
        ),
        wrong=(
            """
            class Solution:
                def merge(self, intervals: List[List[int]]) -> List[List[int]]:
                    out = []
                    for low, high in sorted(intervals):
                        if out and low < out[-1][1] + $K:
                            out[-1][1] = max(out[-1][1], high)
                        else:
                            out.append([low, high])
                    return out
            """,
            """
            def merge(intervals):
                out = []
                for low, high in sorted(intervals):
                    if out and low <= out[-1][1] + $K:
                        out[-1][1] = high
                    else:
                        out.append([low, high])
                return out
            """,
        ),
        fn_name="merge",
    ),
    Family(
        "first_pair_with_sum_k",
        (4, 6, 8, 10, 12),
        _two,
        lambda k, rng: [
            [[k // 2, 1, k - 1]],
            [[1, 2]],
            [[k // 2, k // 2]],
            [[0, k, 1, k - 1]],
            [_random_numbers(rng, 12, 0, 12)],
        ],
        correct=(
            """
            class Solution:
                def twoSum(self, nums: List[int]) -> List[int]:
                    for i in range(len(nums)):
                        for j in range(i + 1, len(nums)):
                            if nums[i] + nums[j] == $K:
                                return [i, j]
                    return []
            """,
            """
            def twoSum(nums):
                last = {}
                pairs = []
                for j, x in enumerate(nums):
                    for i in last.get($K - x, ()):
                        pairs.append((i, j))
                    last.setdefault(x, []).append(j)
                return min(pairs, default=[])
            """,
        ),
        wrong=(
            """
            class Solution:
                def twoSum(self, nums: List[int]) -> List[int]:
                    where = {x: i for i, x in enumerate(nums)}
                    for i, x in enumerate(nums):
                        if $K - x in where:
                            return [i, where[$K - x]]
                    return []
            """,
            """
            def twoSum(nums):
                for i in range(len(nums)):
                    for j in range(i + 1, len(nums)):
                        if nums[i] + nums[j] == $K:
                            return [nums[i], nums[j]]
                return []
            """,
        ),
        fn_name="twoSum",
    ),
    Family(
        "median_of_shifted_numbers",
        (0, 1, 2, 7, 100),
        _median,
        lambda k, rng: [
            [[3]],
            [[1, 2]],
            [[9, 1, 5]],
            [[4, 1, 3, 2]],
            [[-1, -2]],
            [_random_numbers(rng, 8)],
            [[10, 1, 2]],
        ],
        correct=(
            """
            class Solution:
                def median(self, nums: List[int]) -> float:
                    nums = sorted(nums)
                    n = len(nums)
                    return (nums[(n - 1) // 2] + nums[n // 2]) / 2 + $K
            """,
            "import statistics\ndef median(nums):\n    return statistics.median(x + $K for x in nums)",
        ),
        wrong=(
            "def median(a):\n    a = sorted(a)\n    n = len(a)\n    return (a[(n - 1) // 2] + a[n // 2]) // 2 + $K",
            "def median(nums):\n    n = len(nums)\n    return (nums[(n - 1) // 2] + nums[n // 2]) / 2 + $K",
        ),
        fn_name="median",
    ),
    Family(
        "keep_at_most_k_copies",
        (1, 2, 3, 4, 5),
        _at_most,
        lambda k, rng: [
            [[]],
            [[1] * 9],
            [[1, 2] * 6],
            [[5] * k],
            [[1] * k + [2] + [1] * k],
            [_random_numbers(rng, 30, 0, 4)],
        ],
        correct=(
            """
            from collections import defaultdict
            def trim(nums):
                seen = defaultdict(int)
                out = []
                for x in nums:
                    if seen[x] < $K:
                        out.append(x)
                    seen[x] += 1
                return out
            """,
            """
            class Solution:
                def trim(self, nums):
                    return [x for i, x in enumerate(nums) if nums[:i].count(x) < $K]
            """,
        ),
        wrong=(
            """
            def trim(nums):
                out = []
                for x in nums:
                    if out[-$K:] != [x] * $K:
                        out.append(x)
                return out
            """,
            """
            class Solution:
                def trim(self, nums):
                    return [x for i, x in enumerate(nums) if nums[:i].count(x) <= $K]
            """,
        ),
        fn_name="trim",
    ),
    Family(
        "subarrays_divisible_by_k",
        (2, 3, 4, 5, 7),
        _divisible,
        lambda k, rng: (
            [[[k]], [[1]], [[-1, 1 - k, 2]], [[k - 1, 1, k]], [[0, 0]]] + [[_random_numbers(rng, 15)] for _ in range(3)]
        ),
        correct=(
            """
            class Solution:
                def count(self, nums: List[int]) -> int:
                    seen = Counter({0: 1})
                    total = answer = 0
                    for x in nums:
                        total = (total + x) % $K
                        answer += seen[total]
                        seen[total] += 1
                    return answer
            """,
            """
            def count(nums):
                answer = 0
                for i in range(len(nums)):
                    total = 0
                    for x in nums[i:]:
                        total += x
                        answer += total % $K == 0
                return answer
            """,
        ),
        wrong=(
            """
            class Solution:
                def count(self, nums: List[int]) -> int:
                    seen = Counter()
                    total = answer = 0
                    for x in nums:
                        total = (total + x) % $K
                        answer += seen[total]
                        seen[total] += 1
                    return answer
            """,
            """
            from math import fmod
            def count(nums):
                seen, total, answer = {0: 1}, 0, 0
                for x in nums:
                    total = int(fmod(total + x, $K))
                    answer += seen.get(total, 0)
                    seen[total] = seen.get(total, 0) + 1
                return answer
            """,
        ),
        fn_name="count",
    ),
    Family(
        "turn_a_matrix_k_times",
        (1, 2, 3, 5, 7),
        _turned,
        lambda k, rng: [[[[1]]], [[[1, 2], [3, 4]]], [[[1, 2, 3], [4, 5, 6]]], [[[1], [2], [3]]]],
        correct=(
            """
            class Solution:
                def turn(self, m):
                    for _ in range($K):
                        m = list(zip(*m[::-1]))
                    return m
            """,
            """
            def turn(m):
                for _ in range($K % 4):
                    rows, columns = len(m), len(m[0])
                    m = [[m[rows - 1 - r][c] for r in range(rows)] for c in range(columns)]
                return m
            """,
        ),
        wrong=(
            """
            def turn(m):
                for _ in range($K % 4):
                    m = list(zip(*m))
                return m
            """,
            """
            class Solution:
                def turn(self, m):
                    for _ in range($K + 1):
                        m = [list(row) for row in zip(*m[::-1])]
                    return m
            """,
        ),
        fn_name="turn",
    ),
)
