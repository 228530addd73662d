"""Dynamic programming: base cases, the order of loops, rows that are never filled."""

from __future__ import annotations

from functools import lru_cache

from tests.verifier.code.programs.family import Family


def _stairs(k: int, n: int) -> int:
    ways = [1]
    for step in range(1, n + 1):
        ways.append(sum(ways[max(0, step - k) : step]) % 1_000_000_007)
    return ways[n]


def _coins(k: int, amount: int) -> int:
    best = [0] + [10**9] * amount
    for total in range(1, amount + 1):
        best[total] = min([best[total - c] + 1 for c in (4, k, k + 3) if c <= total], default=10**9)
    return best[amount] if best[amount] < 10**9 else -1


def _knapsack(k: int, items: list[list[int]]) -> int:
    best = [0] * (k + 1)
    for weight, value in items:
        for room in range(k, weight - 1, -1):
            best[room] = max(best[room], best[room - weight] + value)
    return best[k]


def _distance(k: int, a: str, b: str) -> int:
    @lru_cache(None)
    def d(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return i + j
        return min(d(i - 1, j) + 1, d(i, j - 1) + 1, d(i - 1, j - 1) + (0 if a[i - 1] == b[j - 1] else k))

    return d(len(a), len(b))


def _paths(k: int, grid: list[str]) -> int:
    ways = [[0] * (len(grid[0]) + 1) for _ in range(len(grid) + 1)]
    for r, row in enumerate(grid):
        for c, cell in enumerate(row):
            if cell == "." and (r or c):
                ways[r][c] = (ways[r - 1][c] + ways[r][c - 1]) % k
            elif cell == ".":
                ways[r][c] = 1 % k
    return ways[len(grid) - 1][len(grid[0]) - 1]


def _rising(k: int, numbers: list[int]) -> int:
    best: list[int] = []
    for i, n in enumerate(numbers):
        best.append(1 + max([best[j] for j in range(i) if 0 < n - numbers[j] <= k], default=0))
    return max(best, default=0)


def _profit(k: int, prices: list[int]) -> int:
    without, holding = 0, -(10**9)
    for price in prices:
        without, holding = max(without, holding + price - k), max(holding, without - price)
    return without


FAMILIES = (
    Family(
        "stairs_with_steps_up_to_k",
        (2, 3, 4, 5, 6),
        _stairs,
        lambda k, rng: [[0], [1], [k], [k + 1], [30], [rng.randrange(100, 1000)]],
        correct=(
            """
            class Solution:
                def climb(self, n: int) -> int:
                    ways = [1] + [0] * n
                    for i in range(1, n + 1):
                        for s in range(1, $K + 1):
                            if i >= s:
                                ways[i] += ways[i - s]
                    return ways[n] % (10**9 + 7)
            """,
            """
            from functools import cache
            @cache
            def climb(n):
                if n < 0:
                    return 0
                return 1 if n == 0 else sum(climb(n - s) for s in range(1, $K + 1)) % (10**9 + 7)
            """,
        ),
        wrong=(
            """
            def climb(n):
                ways = [0, 1] + [0] * n
                for i in range(2, n + 1):
                    ways[i] = sum(ways[max(0, i - $K):i]) % (10**9 + 7)
                return ways[n]
            """,
            """
            class Solution:
                def climb(self, n: int) -> int:
                    ways = [1] + [0] * n
                    for i in range(1, n + 1):
                        for s in range(1, $K):
                            if i >= s:
                                ways[i] += ways[i - s]
                    return ways[n] % (10**9 + 7)
            """,
        ),
        fn_name="climb",
    ),
    Family(
        "fewest_coins",
        (5, 6, 7, 9, 10),
        _coins,
        lambda k, rng: [[0], [1], [4], [8], [2 * k], [k + 7], [3], [40], [k + 3], [12], [2 * k + 4], [16]],
        correct=(
            """
            class Solution:
                def fewest(self, amount: int) -> int:
                    best = [0] + [float("inf")] * amount
                    for coin in (4, $K, $K + 3):
                        for total in range(coin, amount + 1):
                            best[total] = min(best[total], best[total - coin] + 1)
                    return best[amount] if best[amount] < float("inf") else -1
            """,
            """
            def fewest(amount):
                reach, steps, seen = {0}, 0, {0}
                while reach:
                    if amount in reach:
                        return steps
                    reach = {r + c for r in reach for c in (4, $K, $K + 3) if r + c <= amount} - seen
                    seen |= reach
                    steps += 1
                return -1
            """,
        ),
        wrong=(
            """
            def fewest(amount):
                count = 0
                for coin in ($K + 3, $K, 4):
                    count += amount // coin
                    amount %= coin
                return count if amount == 0 else -1
            """,
            """
            class Solution:
                def fewest(self, amount: int) -> int:
                    best = [0] + [10**9] * amount
                    for coin in (4, $K, $K + 3):
                        for total in range(coin, amount + 1):
                            best[total] = min(best[total], best[total - coin] + 1)
                    return best[amount]
            """,
        ),
        fn_name="fewest",
    ),
    Family(
        "knapsack_of_k",
        (5, 8, 10, 13, 20),
        _knapsack,
        lambda k, rng: (
            [[[]], [[[1, 5]]], [[[k, 9]]], [[[k + 1, 99], [2, 3]]], [[[2, 3], [3, 4], [4, 5]]]]
            + [[[[rng.randrange(1, 7), rng.randrange(1, 30)] for _ in range(6)]] for _ in range(3)]
        ),
        correct=(
            """
            class Solution:
                def pack(self, items: List[List[int]]) -> int:
                    best = [0] * ($K + 1)
                    for w, v in items:
                        for room in range($K, w - 1, -1):
                            best[room] = max(best[room], best[room - w] + v)
                    return best[-1]
            """,
            """
            from itertools import combinations
            def pack(items):
                return max(
                    sum(v for _, v in chosen)
                    for n in range(len(items) + 1)
                    for chosen in combinations(items, n)
                    if sum(w for w, _ in chosen) <= $K
                )
            """,
        ),
        wrong=(
            """
            class Solution:
                def pack(self, items: List[List[int]]) -> int:
                    best = [0] * ($K + 1)
                    for w, v in items:
                        for room in range(w, $K + 1):
                            best[room] = max(best[room], best[room - w] + v)
                    return best[-1]
            """,
            """
            def pack(items):
                best = [0] * $K
                for w, v in items:
                    for room in range($K - 1, w - 1, -1):
                        best[room] = max(best[room], best[room - w] + v)
                return best[-1]
            """,
        ),
        fn_name="pack",
    ),
    Family(
        "edit_distance_with_dear_replacement",
        (1, 2, 3, 4, 5),
        _distance,
        lambda k, rng: [
            ["", ""],
            ["abc", ""],
            ["", "xy"],
            ["kitten", "sitting"],
            ["ab", "ba"],
            ["abcd", "wxyz"],
            ["a", "b"],
        ],
        correct=(
            """
            class Solution:
                def distance(self, a: str, b: str) -> int:
                    row = list(range(len(b) + 1))
                    for i, x in enumerate(a, 1):
                        last, row[0] = row[0], i
                        for j, y in enumerate(b, 1):
                            change = last + (0 if x == y else $K)
                            last = row[j]
                            row[j] = min(change, row[j] + 1, row[j - 1] + 1)
                    return row[-1]
            """,
            """
            from functools import lru_cache
            def distance(a, b):
                @lru_cache(None)
                def d(i, j):
                    if i == len(a):
                        return len(b) - j
                    if j == len(b):
                        return len(a) - i
                    if a[i] == b[j]:
                        return d(i + 1, j + 1)
                    return min(1 + d(i + 1, j), 1 + d(i, j + 1), $K + d(i + 1, j + 1))
                return d(0, 0)
            """,
        ),
        wrong=(
            """
            class Solution:
                def distance(self, a: str, b: str) -> int:
                    row = [0] * (len(b) + 1)
                    for i, x in enumerate(a, 1):
                        last, row[0] = row[0], i
                        for j, y in enumerate(b, 1):
                            change = last + (0 if x == y else $K)
                            last = row[j]
                            row[j] = min(change, row[j] + 1, row[j - 1] + 1)
                    return row[-1]
            """,
            """
            def distance(a, b):
                rows = [[i + j if not i or not j else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
                for i in range(1, len(a) + 1):
                    for j in range(1, len(b) + 1):
                        rows[i][j] = min(rows[i-1][j] + 1, rows[i][j-1] + 1, rows[i-1][j-1] + $K)
                return rows[-1][-1]
            """,
        ),
        fn_name="distance",
    ),
    Family(
        "paths_round_obstacles_modulo_k",
        (7, 10, 97, 1000, 1000003),
        _paths,
        lambda k, rng: [
            [["."]],
            [["#"]],
            [["..", ".."]],
            [[".#", "#."]],
            [["." * 12] * 12],
            [[".#..", "....", "#..."]],
            [["..."]],
        ],
        correct=(
            """
            class Solution:
                def paths(self, grid: List[str]) -> int:
                    ways = [0] * len(grid[0])
                    ways[0] = 1
                    for row in grid:
                        for c, cell in enumerate(row):
                            if cell == "#":
                                ways[c] = 0
                            elif c:
                                ways[c] += ways[c - 1]
                    return ways[-1] % $K
            """,
            """
            from functools import cache
            def paths(grid):
                @cache
                def f(r, c):
                    if r < 0 or c < 0 or grid[r][c] == "#":
                        return 0
                    return 1 if r == c == 0 else (f(r - 1, c) + f(r, c - 1)) % $K
                return f(len(grid) - 1, len(grid[0]) - 1)
            """,
        ),
        wrong=(
            """
            def paths(grid):
                ways = [[1] * len(grid[0]) for _ in grid]
                for r in range(1, len(grid)):
                    for c in range(1, len(grid[0])):
                        ways[r][c] = 0 if grid[r][c] == "#" else (ways[r - 1][c] + ways[r][c - 1]) % $K
                return ways[-1][-1]
            """,
            """
            class Solution:
                def paths(self, grid: List[str]) -> int:
                    ways = [0] * len(grid[0])
                    ways[0] = 1
                    for row in grid:
                        for c, cell in enumerate(row):
                            if c and cell == ".":
                                ways[c] = (ways[c] + ways[c - 1]) % $K
                    return ways[-1]
            """,
        ),
        fn_name="paths",
    ),
    Family(
        "longest_rise_in_steps_up_to_k",
        (1, 2, 3, 5, 8),
        _rising,
        lambda k, rng: (
            [
                [[]],
                [[5]],
                [[1, 1, 1]],
                [[1, 1 + k, 2 + 2 * k]],
                [[9, 8, 7]],
                [[1, 9, 2, 8, 3, 7, 4]],
                [[1, 2 + k, 2]],
                [[rng.randrange(12) for _ in range(20)]],
            ]
        ),
        correct=(
            """
            class Solution:
                def rise(self, nums: List[int]) -> int:
                    best = [1] * len(nums)
                    for i in range(len(nums)):
                        for j in range(i):
                            if nums[j] < nums[i] <= nums[j] + $K:
                                best[i] = max(best[i], best[j] + 1)
                    return max(best, default=0)
            """,
            """
            def rise(nums):
                longest = {}
                for x in nums:
                    longest[x] = 1 + max(longest.get(y, 0) for y in range(x - $K, x))
                return max(longest.values()) if longest else 0
            """,
        ),
        wrong=(
            """
            class Solution:
                def rise(self, nums: List[int]) -> int:
                    best = [1] * len(nums)
                    for i in range(len(nums)):
                        for j in range(i):
                            if nums[j] <= nums[i] <= nums[j] + $K:
                                best[i] = max(best[i], best[j] + 1)
                    return max(best, default=0)
            """,
            """
            def rise(nums):
                best = run = min(1, len(nums))
                for a, b in zip(nums, nums[1:]):
                    run = run + 1 if 0 < b - a <= $K else 1
                    best = max(best, run)
                return best
            """,
        ),
        fn_name="rise",
    ),
    Family(
        "profit_after_fees_of_k",
        (1, 2, 3, 4, 5),
        _profit,
        lambda k, rng: (
            [
                [[]],
                [[5]],
                [[1, 2 + k]],
                [[1, 3 + 2 * k, 2, 9 + k]],
                [[9, 1]],
                [[1, 3, 2, 8, 4, 9]],
                [[1, 1 + k]],
                [[rng.randrange(30) for _ in range(20)]],
            ]
        ),
        correct=(
            """
            class Solution:
                def profit(self, prices: List[int]) -> int:
                    cash, hold = 0, float("-inf")
                    for p in prices:
                        hold = max(hold, cash - p)
                        cash = max(cash, hold + p - $K)
                    return cash
            """,
            """
            def profit(prices):
                best = [0]
                for i, sell in enumerate(prices):
                    deals = [best[j] + sell - buy - $K for j, buy in enumerate(prices[:i])]
                    best.append(max([best[-1]] + deals))
                return best[-1]
            """,
        ),
        wrong=(
            """
            class Solution:
                def profit(self, prices: List[int]) -> int:
                    cash, hold = 0, float("-inf")
                    for p in prices:
                        hold = max(hold, cash - p - $K)
                        cash = max(cash, hold + p - $K)
                    return cash
            """,
            """
            def profit(prices):
                return sum(max(0, b - a - $K) for a, b in zip(prices, prices[1:]))
            """,
        ),
        fn_name="profit",
    ),
)
