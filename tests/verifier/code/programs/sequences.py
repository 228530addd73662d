"""Lists: windows, pairs, intervals, ties; bounds that are off by one, and negatives that nobody thought of."""

from __future__ import annotations

from collections import Counter, OrderedDict
from itertools import accumulate

from tests.verifier.code.programs.family import Family, lines


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split()]


def _window(k: int, text: str) -> int:
    numbers = _numbers(text)
    return max(sum(numbers[i : i + k]) for i in range(len(numbers) - k + 1))


def _pairs(k: int, text: str) -> int:
    numbers = _numbers(text)
    return sum(a + b == k for i, a in enumerate(numbers) for b in numbers[i + 1 :])


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


def _exceeds(k: int, text: str) -> int:
    return next((i for i, total in enumerate(accumulate(_numbers(text)), start=1) if total > k), -1)


def _divisible(k: int, numbers: list[int]) -> int:
    return sum(sum(numbers[i:j]) % k == 0 for i in range(len(numbers)) for j in range(i + 1, len(numbers) + 1))


def _cache(k: int, text: str) -> int:
    kept: OrderedDict[int, None] = OrderedDict()
    misses = 0
    for page in _numbers(text):
        misses += page not in kept
        kept[page] = None
        kept.move_to_end(page)
        if len(kept) > k:
            kept.popitem(last=False)
    return misses


def _turned(k: int, matrix: list[list[int]]) -> list[list[int]]:
    for _ in range(k % 4):
        matrix = [list(row) for row in zip(*matrix[::-1], strict=True)]
    return matrix


def _two(k: int, numbers: list[int]) -> list[int]:
    return next(
        ([i, j] for i in range(len(numbers)) for j in range(i + 1, len(numbers)) if numbers[i] + numbers[j] == k), []
    )


def _rotated(k: int, text: str) -> str:
    numbers = text.split()
    cut = k % len(numbers)
    return " ".join(numbers[cut:] + numbers[:cut])


def _random_numbers(rng, count: int, low: int = -9, high: int = 9) -> list[int]:  # type: ignore[no-untyped-def]
    return [rng.randrange(low, high + 1) for _ in range(count)]


FAMILIES = (
    Family(
        "best_window_of_k",
        (2, 3, 4, 5, 6),
        _window,
        lambda k, rng: (
            [lines([-5] * (k + 2)), lines([0] * k + [9] * k), lines([3] * k), lines([7] + [1] * (2 * k))]
            + [lines(_random_numbers(rng, 20)) for _ in range(3)]
        ),
        correct=(
            "a = list(map(int, input().split()))\nprint(max(sum(a[i:i + $K]) for i in range(len(a) - $K + 1)))",
            """
            a = list(map(int, input().split()))
            total = best = sum(a[:$K])
            for i in range($K, len(a)):
                total += a[i] - a[i - $K]
                best = max(best, total)
            print(best)
            """,
        ),
        wrong=(
            """
            a = list(map(int, input().split()))
            best = 0
            for i in range(len(a) - $K + 1):
                best = max(best, sum(a[i:i + $K]))
            print(best)
            """,
            """
            a = list(map(int, input().split()))
            total = best = sum(a[:$K])
            for i in range($K, len(a) - 1):
                total += a[i] - a[i - $K]
                best = max(best, total)
            print(best)
            """,
        ),
    ),
    Family(
        "pairs_that_sum_to_k",
        (0, 2, 4, 6, 10),
        _pairs,
        lambda k, rng: (
            [lines([k // 2]), lines([k // 2] * 4), lines([1, k - 1, 1, k - 1]), lines([k, 0, k, 5])]
            + [lines(_random_numbers(rng, 15)) for _ in range(3)]
        ),
        correct=(
            """
            a = list(map(int, input().split()))
            print(sum(a[i] + a[j] == $K for i in range(len(a)) for j in range(i)))
            """,
            """
            seen, count = {}, 0
            for x in map(int, input().split()):
                count += seen.get($K - x, 0)
                seen[x] = seen.get(x, 0) + 1
            print(count)
            """,
        ),
        wrong=(
            """
            a = list(map(int, input().split()))
            print(sum(x + y == $K for x in a for y in a) // 2)
            """,
            """
            seen, count = set(), 0
            for x in map(int, input().split()):
                count += $K - x in seen
                seen.add(x)
            print(count)
            """,
        ),
    ),
    Family(
        "kth_smallest_distinct",
        (1, 2, 3, 4, 5),
        lambda k, text: (sorted(set(_numbers(text)))[k - 1 :] or [-1])[0],
        lambda k, rng: (
            [lines([4, 4, 4]), lines(list(range(k))), lines([2, 2, *list(range(9))]), lines([100, 9, 20, 3, 1])]
            + [lines(_random_numbers(rng, 20, 0, 12)) for _ in range(3)]
            + [lines([7] * 6 + [11] * 6)]
        ),
        correct=(
            "a = sorted(set(map(int, input().split())))\nprint(a[$K - 1] if len(a) >= $K else -1)",
            """
            import heapq
            a = heapq.nsmallest($K, {int(x) for x in input().split()})
            print(a[-1] if len(a) == $K else -1)
            """,
        ),
        wrong=(
            "a = sorted(map(int, input().split()))\nprint(a[$K - 1] if len(set(a)) > $K else -1)",
            "a = sorted(set(input().split()))\nprint(a[$K - 1] if len(a) >= $K else -1)",
        ),
    ),
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
        "rotate_left_by_k",
        (1, 3, 5, 8, 12),
        _rotated,
        lambda k, rng: [lines([7]), lines([1, 2]), lines([1, 2, 3, 4]), lines(list(range(9))), lines(list(range(20)))],
        correct=(
            "a = input().split()\nk = $K % len(a)\nprint(*a[k:], *a[:k])",
            "from collections import deque\nd = deque(input().split())\nd.rotate(-$K)\nprint(' '.join(d))",
        ),
        wrong=(
            "a = input().split()\nk = $K % len(a) + 1\nprint(*a[k:], *a[:k])",
            "from collections import deque\nd = deque(input().split())\nd.rotate($K)\nprint(' '.join(d))",
        ),
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
        "first_prefix_sum_above_k",
        (0, 3, 5, 10, 20),
        _exceeds,
        lambda k, rng: (
            [
                lines([k]),
                lines([k, 1]),
                lines([k + 1]),
                lines([-1] * 5),
                lines([k, -1, 2, 5]),
                lines(_random_numbers(rng, 25, -3, 6)),
            ]
        ),
        correct=(
            """
            total, answer = 0, -1
            for i, x in enumerate(map(int, input().split()), 1):
                total += x
                if total > $K:
                    answer = i
                    break
            print(answer)
            """,
            """
            from itertools import accumulate
            sums = list(accumulate(map(int, input().split())))
            over = [i for i, s in enumerate(sums) if s > $K]
            print(over[0] + 1 if over else -1)
            """,
        ),
        wrong=(
            """
            total, answer = 0, -1
            for i, x in enumerate(map(int, input().split()), 1):
                total += x
                if total >= $K:
                    answer = i
                    break
            print(answer)
            """,
            """
            from itertools import accumulate
            over = [i for i, s in enumerate(accumulate(map(int, input().split()))) if s > $K]
            print(over[0] if over else -1)
            """,
        ),
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
        "least_recently_used",
        (1, 2, 3, 4, 5),
        _cache,
        lambda k, rng: (
            [
                lines([1]),
                lines([1, 2, 3, 1, 2, 3]),
                lines([*list(range(k)), 0, 99, 0]),
                lines(list(range(k + 1)) * 2),
                lines(list(range(k)) * 3),
                lines([1, 1, 1]),
            ]
            + [lines(_random_numbers(rng, 40, 0, k + 2)) for _ in range(2)]
        ),
        correct=(
            """
            from collections import OrderedDict
            cache, misses = OrderedDict(), 0
            for page in input().split():
                if page in cache:
                    cache.move_to_end(page)
                else:
                    misses += 1
                    cache[page] = True
                    if len(cache) > $K:
                        cache.popitem(last=False)
            print(misses)
            """,
            """
            cache, misses = [], 0
            for page in input().split():
                if page in cache:
                    cache.remove(page)
                else:
                    misses += 1
                cache = (cache + [page])[-$K:]
            print(misses)
            """,
        ),
        wrong=(
            """
            from collections import OrderedDict
            cache, misses = OrderedDict(), 0
            for page in input().split():
                if page in cache:
                    cache.move_to_end(page)
                else:
                    misses += 1
                    cache[page] = True
                    if len(cache) > $K:
                        cache.popitem()
            print(misses)
            """,
            """
            cache, misses = [], 0
            for page in input().split():
                if page in cache:
                    cache.remove(page)
                else:
                    misses += 1
                cache = (cache + [page])[-($K + 1):]
            print(misses)
            """,
        ),
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
    Family(
        "more_than_an_nth_of_all",
        (2, 3, 4, 5, 6),
        lambda k, text: (
            " ".join(map(str, sorted(n for n, c in Counter(_numbers(text)).items() if c * k > len(text.split()))))
            or "none"
        ),
        lambda k, rng: (
            [
                lines(list(range(k))),
                lines([1] * 3),
                lines([1] * 2 + list(range(2, 2 * k))),
                lines([9, 9, 2, 2, 2]),
                lines([1, *list(range(10, 10 + k - 2)), 5]),
                lines([1] * 3 + list(range(2, 2 * k + 1))),
            ]
        ),
        correct=(
            """
            from collections import Counter
            a = list(map(int, input().split()))
            found = sorted(x for x, n in Counter(a).items() if n * $K > len(a))
            print(*found if found else ["none"])
            """,
            """
            a = sorted(map(int, input().split()))
            found = []
            for x in a:
                if x not in found and a.count(x) > len(a) / $K:
                    found.append(x)
            print(" ".join(map(str, found)) or "none")
            """,
        ),
        wrong=(
            """
            from collections import Counter
            a = list(map(int, input().split()))
            found = sorted(x for x, n in Counter(a).items() if n * $K >= len(a))
            print(*found if found else ["none"])
            """,
            """
            a = sorted(map(int, input().split()))
            found = [x for x in a if a.count(x) > len(a) / $K]
            print(" ".join(map(str, found)) or "none")
            """,
        ),
    ),
)
