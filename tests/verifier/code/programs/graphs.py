"""Graphs and dynamic programming: base cases, directions, budgets, ties, recursion that is too deep."""

from __future__ import annotations

import heapq
from functools import lru_cache

from tests.verifier.code.programs.family import Family, lines


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split()]


def _edges(text: str) -> tuple[int, list[list[int]]]:
    head, *rows = text.strip().split("\n")
    return int(head.split()[0]), [_numbers(row) for row in rows]


def _components(k: int, text: str) -> int:
    n, edges = _edges(text)
    root = list(range(n + 1))

    def find(x: int) -> int:
        while root[x] != x:
            x = root[x]
        return x

    for a, b in edges:
        root[find(a)] = find(b)
    sizes = [find(x) for x in range(1, n + 1)]
    return sum(sizes.count(x) >= k for x in set(sizes))


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


def _cheapest(k: int, text: str) -> int:
    n, roads = _edges(text)
    best, queue = {}, [(0, 1)]
    while queue:
        cost, at = heapq.heappop(queue)
        if at not in best:
            best[at] = cost
            for a, b, price in roads:
                for here, there in ((a, b), (b, a)):
                    if here == at:
                        heapq.heappush(queue, (cost + price + k, there))
    return best.get(n, -1)


def _order(k: int, text: str) -> str:
    n, edges = _edges(text)
    waiting = set(range(1, n + 1))
    found: list[int] = []
    while ready := [x for x in waiting if all(a not in waiting for a, b in edges if b == x)]:
        found.append(min(ready))
        waiting.remove(min(ready))
    return "cycle" if waiting else " ".join(str(x + k) for x in found)


def _paths(k: int, grid: list[str]) -> int:
    ways = [[0] * (len(grid[0]) + 1) for _ in range(len(grid) + 1)]
    for r, row in enumerate(grid):
        for c, cell in enumerate(row):
            if cell == "." and (r or c):
                ways[r][c] = (ways[r - 1][c] + ways[r][c - 1]) % k
            elif cell == ".":
                ways[r][c] = 1 % k
    return ways[len(grid) - 1][len(grid[0]) - 1]


def _jumps(k: int, text: str) -> int:
    row = text.strip()
    reached, seen, steps = {0}, {0}, 0
    while reached:
        if len(row) - 1 in reached:
            return steps
        near = {at + move for at in reached for move in range(-k, k + 1)}
        reached = {at for at in near if 0 <= at < len(row) and row[at] == "."} - seen
        seen |= reached
        steps += 1
    return -1


def _deep(k: int, text: str) -> int:
    n, *parents = _numbers(text)
    depth = {0: k}
    for node, parent in enumerate(parents, start=1):
        depth[node] = depth[parent] + 1
    return max(depth.values())


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


CHAIN = 20_000

FAMILIES = (
    Family(
        "components_of_k_or_more",
        (1, 2, 3, 4, 5),
        _components,
        lambda k, rng: [
            lines([1, 0]),
            lines([6, 3], [1, 2], [2, 3], [4, 5]),
            lines([k + 2, k - 1], *[[i, i + 1] for i in range(1, k)]),
            lines([k + 2, k], *[[i, 1] for i in range(2, k + 2)]),
            lines([12, 9], *[[rng.randrange(1, 13), rng.randrange(1, 13)] for _ in range(9)]),
            lines([5, 4], [5, 4], [4, 3], [3, 2], [2, 1]),
        ],
        correct=(
            """
            import sys
            data = list(map(int, sys.stdin.read().split()))
            n, m = data[:2]
            near = [[] for _ in range(n + 1)]
            for a, b in zip(data[2::2], data[3::2]):
                near[a].append(b)
                near[b].append(a)
            seen, answer = set(), 0
            for start in range(1, n + 1):
                if start in seen:
                    continue
                stack, size = [start], 0
                seen.add(start)
                while stack:
                    size += 1
                    for x in near[stack.pop()]:
                        if x not in seen:
                            seen.add(x)
                            stack.append(x)
                answer += size >= $K
            print(answer)
            """,
            """
            n, m = map(int, input().split())
            root = list(range(n + 1))
            def find(x):
                while root[x] != x:
                    root[x] = root[root[x]]
                    x = root[x]
                return x
            for _ in range(m):
                a, b = map(int, input().split())
                root[find(a)] = find(b)
            sizes = [0] * (n + 1)
            for x in range(1, n + 1):
                sizes[find(x)] += 1
            print(sum(s >= $K for s in sizes))
            """,
        ),
        wrong=(
            """
            n, m = map(int, input().split())
            root = list(range(n + 1))
            def find(x):
                return x if root[x] == x else find(root[x])
            for _ in range(m):
                a, b = map(int, input().split())
                root[find(a)] = find(b)
            sizes = [0] * (n + 1)
            for x in range(1, n + 1):
                sizes[find(x)] += 1
            print(sum(s > $K for s in sizes))
            """,
            """
            n, m = map(int, input().split())
            root = list(range(n + 1))
            for _ in range(m):
                a, b = map(int, input().split())
                root[b] = root[a]
            print(sum(root[1:].count(x) >= $K for x in set(root[1:])))
            """,
        ),
    ),
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
        "cheapest_road_with_toll",
        (1, 2, 3, 5, 9),
        _cheapest,
        lambda k, rng: [
            lines([1, 0]),
            lines([2, 0]),
            lines([2, 1], [2, 1, 7]),
            lines([3, 3], [1, 2, 1], [2, 3, 1], [1, 3, 2 + k // 2]),
            lines([4, 4], [1, 2, 5], [2, 4, 5], [1, 3, 1], [3, 4, 20]),
            lines([7, 12], *[[rng.randrange(1, 8), rng.randrange(1, 8), rng.randrange(1, 20)] for _ in range(12)]),
        ],
        correct=(
            """
            import heapq, sys
            data = list(map(int, sys.stdin.read().split()))
            n, m = data[0], data[1]
            near = [[] for _ in range(n + 1)]
            for i in range(m):
                a, b, c = data[2 + 3 * i:5 + 3 * i]
                near[a].append((b, c + $K))
                near[b].append((a, c + $K))
            best = [float("inf")] * (n + 1)
            best[1] = 0
            heap = [(0, 1)]
            while heap:
                d, u = heapq.heappop(heap)
                if d > best[u]:
                    continue
                for v, c in near[u]:
                    if d + c < best[v]:
                        best[v] = d + c
                        heapq.heappush(heap, (d + c, v))
            print(best[n] if best[n] < float("inf") else -1)
            """,
            """
            n, m = map(int, input().split())
            roads = [tuple(map(int, input().split())) for _ in range(m)]
            inf = 10**18
            best = [inf] * (n + 1)
            best[1] = 0
            for _ in range(n):
                for a, b, c in roads:
                    best[b] = min(best[b], best[a] + c + $K)
                    best[a] = min(best[a], best[b] + c + $K)
            print(best[n] if best[n] < inf else -1)
            """,
        ),
        wrong=(
            """
            n, m = map(int, input().split())
            roads = [tuple(map(int, input().split())) for _ in range(m)]
            best = [10**18] * (n + 1)
            best[1] = 0
            for _ in range(n):
                for a, b, c in roads:
                    best[b] = min(best[b], best[a] + c + $K)
            print(best[n] if best[n] < 10**18 else -1)
            """,
            """
            n, m = map(int, input().split())
            roads = [tuple(map(int, input().split())) for _ in range(m)]
            best = [10**18] * (n + 1)
            best[1] = 0
            for _ in range(n):
                for a, b, c in roads:
                    best[b] = min(best[b], best[a] + c)
                    best[a] = min(best[a], best[b] + c)
            print(best[n] + $K if n > 1 and best[n] < 10**18 else best[n] if n == 1 else -1)
            """,
        ),
    ),
    Family(
        "smallest_topological_order",
        (0, 1, 2, 10, 100),
        _order,
        lambda k, rng: [
            lines([1, 0]),
            lines([4, 2], [4, 1], [3, 2]),
            lines([3, 3], [1, 2], [2, 3], [3, 1]),
            lines([5, 3], [1, 5], [1, 2], [5, 3]),
            lines([6, 4], [6, 1], [1, 2], [3, 2], [5, 4]),
        ],
        correct=(
            """
            import heapq
            n, m = map(int, input().split())
            after = [[] for _ in range(n + 1)]
            before = [0] * (n + 1)
            for _ in range(m):
                a, b = map(int, input().split())
                after[a].append(b)
                before[b] += 1
            heap = [x for x in range(1, n + 1) if not before[x]]
            order = []
            while heap:
                x = heapq.heappop(heap)
                order.append(x + $K)
                for y in after[x]:
                    before[y] -= 1
                    if not before[y]:
                        heapq.heappush(heap, y)
            print(*order if len(order) == n else ["cycle"])
            """,
            """
            n, m = map(int, input().split())
            need = {x: set() for x in range(1, n + 1)}
            for _ in range(m):
                a, b = map(int, input().split())
                need[b].add(a)
            order = []
            while need:
                ready = min((x for x in need if not need[x]), default=None)
                if ready is None:
                    break
                order.append(str(ready + $K))
                del need[ready]
                for rest in need.values():
                    rest.discard(ready)
            print("cycle" if need else " ".join(order))
            """,
        ),
        wrong=(
            """
            from collections import deque
            n, m = map(int, input().split())
            after = [[] for _ in range(n + 1)]
            before = [0] * (n + 1)
            for _ in range(m):
                a, b = map(int, input().split())
                after[a].append(b)
                before[b] += 1
            queue = deque(x for x in range(1, n + 1) if not before[x])
            order = []
            while queue:
                x = queue.popleft()
                order.append(x + $K)
                for y in sorted(after[x]):
                    before[y] -= 1
                    if not before[y]:
                        queue.append(y)
            print(*order if len(order) == n else ["cycle"])
            """,
            """
            import heapq
            n, m = map(int, input().split())
            after = [[] for _ in range(n + 1)]
            before = [0] * (n + 1)
            for _ in range(m):
                a, b = map(int, input().split())
                after[a].append(b)
                before[b] += 1
            heap = [x for x in range(1, n + 1) if not before[x]]
            order = []
            while heap:
                x = heapq.heappop(heap)
                order.append(x + $K)
                for y in after[x]:
                    before[y] -= 1
                    if not before[y]:
                        heapq.heappush(heap, y)
            print(*order)
            """,
        ),
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
        "fewest_jumps_of_up_to_k",
        (1, 2, 3, 4, 5),
        _jumps,
        lambda k, rng: [
            lines(s) for s in (".", "." * (k + 1), "." + "#" * k + ".", "." * 20, "." + "#" * (k - 1) + ".", "..")
        ],
        correct=(
            """
            row = input().strip()
            inf = len(row) + 1
            best = [0] + [inf] * (len(row) - 1)
            for i in range(1, len(row)):
                if row[i] == ".":
                    best[i] = min(best[max(0, i - $K):i]) + 1
            print(best[-1] if best[-1] < inf else -1)
            """,
            """
            from collections import deque
            row = input().strip()
            queue, seen = deque([(0, 0)]), {0}
            answer = -1
            while queue:
                at, steps = queue.popleft()
                if at == len(row) - 1:
                    answer = steps
                    break
                for there in range(at - $K, at + $K + 1):
                    if 0 <= there < len(row) and row[there] == "." and there not in seen:
                        seen.add(there)
                        queue.append((there, steps + 1))
            print(answer)
            """,
        ),
        wrong=(
            """
            row = input().strip()
            best = [0] + [999] * (len(row) - 1)
            for i in range(1, len(row)):
                if row[i] == ".":
                    best[i] = min(best[max(0, i - $K):i]) + 1
            print(best[-1])
            """,
            """
            from collections import deque
            row = input().strip()
            queue, seen = deque([(0, 1)]), {0}
            answer = -1
            while queue:
                at, steps = queue.popleft()
                if at == len(row) - 1:
                    answer = steps
                    break
                for there in range(at + 1, min(at + $K, len(row) - 1) + 1):
                    if row[there] == "." and there not in seen:
                        seen.add(there)
                        queue.append((there, steps + 1))
            print(answer)
            """,
        ),
    ),
    Family(
        "depth_of_a_deep_tree",
        (0, 1, 2, 5, 10),
        _deep,
        lambda k, rng: [
            lines([1]),
            lines([4], [0, 0, 1]),
            lines([CHAIN], list(range(CHAIN - 1))),
            lines([9], [rng.randrange(i) for i in range(1, 9)]),
        ],
        correct=(
            """
            import sys
            n, *parents = map(int, sys.stdin.read().split())
            depth = [$K] * n
            for i, p in enumerate(parents, 1):
                depth[i] = depth[p] + 1
            print(max(depth))
            """,
            """
            import sys, threading
            def main():
                n, *parents = map(int, sys.stdin.read().split())
                children = [[] for _ in range(n)]
                for i, p in enumerate(parents, 1):
                    children[p].append(i)
                def depth(x):
                    return max((depth(c) + 1 for c in children[x]), default=$K)
                print(depth(0))
            sys.setrecursionlimit(10**6)
            threading.stack_size(256 * 1024 * 1024)
            thread = threading.Thread(target=main)
            thread.start()
            thread.join()
            """,
        ),
        wrong=(
            """
            import sys
            sys.setrecursionlimit(3000)
            n, *parents = map(int, sys.stdin.read().split())
            children = [[] for _ in range(n)]
            for i, p in enumerate(parents, 1):
                children[p].append(i)
            def depth(x):
                return $K if not children[x] else 1 + max(map(depth, children[x]))
            print(depth(0))
            """,
            """
            import sys
            n, *parents = map(int, sys.stdin.read().split())
            depth = [$K] * n
            for i, p in enumerate(parents, 1):
                depth[i] = depth[p] + 1
            print(depth[-1] + 1)
            """,
        ),
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
