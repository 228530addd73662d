"""Numbers on a line: windows, prefixes, ranks; bounds off by one, and negatives that nobody thought of."""

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


def _exceeds(k: int, text: str) -> int:
    return next((i for i, total in enumerate(accumulate(_numbers(text)), start=1) if total > k), -1)


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
