"""Graphs and grids: directions, budgets, ties, recursion that is too deep."""

from __future__ import annotations

import heapq

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
)
