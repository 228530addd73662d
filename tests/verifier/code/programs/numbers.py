"""Arithmetic: off by one, integers turned into floats, the wrong modulus, edges such as 0 and 1."""

from __future__ import annotations

import math

from tests.verifier.code.programs.family import Family, lines


def _multiples(k: int, text: str) -> int:
    return sum(x for x in range(1, int(text) + 1) if x % k == 0 or x % 5 == 0)


def _digit_sum(k: int, text: str) -> int:
    n, total = int(text), 0
    while n:
        total, n = total + n % k, n // k
    return total


def _recurrence(k: int, text: str) -> int:
    a, b = 0, 1
    for _ in range(int(text)):
        a, b = b, (b + k * a) % 1_000_000_007
    return a


def _squares(k: int, text: str) -> int:
    low, high = map(int, text.split())
    return math.isqrt(high // (k * k)) - (math.isqrt((low - 1) // (k * k)) if low > 0 else -1)


def _primes_ending(k: int, text: str) -> int:
    low, high = map(int, text.split())
    return sum(n % 10 == k for n in range(max(2, low), high + 1) if all(n % d for d in range(2, math.isqrt(n) + 1)))


def _clock(k: int, text: str) -> str:
    seconds = (int(text) + 3600 * k) % 86400
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _price(k: int, text: str) -> str:
    cents = (int(text) * (100 + k) + 50) // 100  # half a cent is rounded up
    return f"{cents // 100}.{cents % 100:02d}"


FAMILIES = (
    Family(
        "sum_of_multiples_of_k_or_5",
        (2, 3, 7, 11, 13),
        _multiples,
        lambda k, rng: [lines(n) for n in (0, k, 5 * k, 10 * k, rng.randrange(100, 999), 1000)],
        correct=(
            "n = int(input())\nprint(sum(x for x in range(n + 1) if x % $K == 0 or x % 5 == 0))",
            """
            def series(n, step):
                count = n // step
                return step * count * (count + 1) // 2
            n = int(input())
            print(series(n, $K) + series(n, 5) - series(n, 5 * $K))
            """,
        ),
        wrong=(
            "n = int(input())\nprint(sum(x for x in range(n) if x % $K == 0 or x % 5 == 0))",
            "n = int(input())\nprint(sum(range(0, n + 1, $K)) + sum(range(0, n + 1, 5)))",
        ),
    ),
    Family(
        "scaled_power_modulo",
        (2, 3, 9, 10, 17),
        lambda k, text: (lambda a, b, m: k * pow(a, b, m) % m)(*map(int, text.split())),
        lambda k, rng: (
            [lines([k + 1, 0, 1]), lines([7, 3, 2])]
            + [lines([rng.randrange(10**8, 10**9), rng.randrange(10**8, 10**9), 10**6 + k + n]) for n in range(5)]
        ),
        correct=(
            "a, b, m = map(int, input().split())\nprint($K * pow(a, b, m) % m)",
            """
            a, b, m = map(int, input().split())
            result, base = $K % m, a % m
            while b:
                if b & 1:
                    result = result * base % m
                base = base * base % m
                b >>= 1
            print(result)
            """,
        ),
        wrong=(
            "a, b, m = map(int, input().split())\nprint($K * pow(a, b, m))",
            """
            a, b, m = map(int, input().split())
            result, base = $K, a % m
            while b > 1:
                if b & 1:
                    result = result * base % m
                base = base * base % m
                b >>= 1
            print(result % m)
            """,
        ),
    ),
    Family(
        "digit_sum_in_base_k",
        (2, 3, 8, 10, 16),
        _digit_sum,
        lambda k, rng: [lines(n) for n in (0, 1, k - 1, k, k**5, 10**30 + 7, rng.randrange(10**9))],
        correct=(
            "n = int(input())\ntotal = 0\nwhile n > 0:\n    n, digit = divmod(n, $K)\n    total += digit\nprint(total)",
            "def s(n):\n    return n if n < $K else n % $K + s(n // $K)\nprint(s(int(input())))",
        ),
        wrong=(
            "n = int(input())\ntotal = 0\nwhile n >= $K:\n    total += n % $K\n    n //= $K\nprint(total)",
            "n = int(input())\ntotal = 0\nwhile n > 0:\n    total += n % $K\n    n = int(n / $K)\nprint(total)",
        ),
    ),
    Family(
        "ceiling_division",
        (3, 4, 7, 10, 12),
        lambda k, text: -(-int(text) // k),
        lambda k, rng: [lines(n) for n in (0, 1, k, k + 1, 5 * k, k * 10**18 + 1, rng.randrange(10**6))],
        correct=(
            "print((int(input()) + $K - 1) // $K)",
            "n = int(input())\nfull, rest = divmod(n, $K)\nprint(full + (rest > 0))",
        ),
        wrong=(
            "print(int(input()) // $K + 1)",
            "import math\nprint(math.ceil(int(input()) / $K))",
        ),
    ),
    Family(
        "least_common_multiple_with_k",
        (6, 10, 12, 15, 21),
        lambda k, text: math.lcm(k, *map(int, text.split())),
        lambda k, rng: (
            [lines([k]), lines([1, 2, 3]), lines([2 * k, 3]), lines([10**17 + 3, 10**17 + 9])]
            + [lines([rng.randrange(1, 60) for _ in range(4)]) for _ in range(3)]
        ),
        correct=(
            "import math\nprint(math.lcm($K, *map(int, input().split())))",
            "from math import gcd\nr = $K\nfor x in map(int, input().split()):\n    r = r // gcd(r, x) * x\nprint(r)",
        ),
        wrong=(
            "import math\nr = $K\nfor x in map(int, input().split()):\n    r = int(r / math.gcd(r, x) * x)\nprint(r)",
            "r = $K\nfor x in map(int, input().split()):\n    if r % x:\n        r *= x\nprint(r)",
        ),
    ),
    Family(
        "recurrence_modulo",
        (1, 2, 3, 5, 8),
        _recurrence,
        lambda k, rng: [lines(n) for n in (0, 1, 2, 10, 100, rng.randrange(500, 5000))],
        correct=(
            """
            n = int(input())
            a, b = 0, 1
            for _ in range(n):
                a, b = b, (b + $K * a) % (10**9 + 7)
            print(a)
            """,
            """
            from functools import lru_cache
            @lru_cache(None)
            def f(n):
                return n if n < 2 else (f(n - 1) + $K * f(n - 2)) % 1000000007
            print(f(int(input())))
            """,
        ),
        wrong=(
            "a, b = 0, 1\nfor _ in range(int(input())):\n    a, b = b, (b + $K * a) % (10**9 + 9)\nprint(a)",
            "a, b = 0, 1\nfor _ in range(int(input()) - 1):\n    a, b = b, (b + $K * a) % (10**9 + 7)\nprint(b)",
        ),
    ),
    Family(
        "squares_divisible_by_k_squared",
        (1, 2, 3, 5, 6),
        _squares,
        lambda k, rng: [
            lines([k * k, 16 * k * k]),
            lines([k * k, (10**9 + 1) ** 2 * k * k - 1]),
            lines([0, 0]),
            lines([k * k + 1, 4 * k * k]),
            lines([rng.randrange(1, 100), rng.randrange(200, 10**6)]),
        ],
        correct=(
            """
            from math import isqrt
            low, high = map(int, input().split())
            k = $K * $K
            below = isqrt((low - 1) // k) + 1 if low > 0 else 0
            print(isqrt(high // k) + 1 - below)
            """,
            """
            def roots(n, k=$K):
                if n < 0:
                    return 0
                low, high = 0, 1 << 70
                while low < high:
                    middle = (low + high + 1) // 2
                    if (middle * k) ** 2 <= n:
                        low = middle
                    else:
                        high = middle - 1
                return low + 1
            a, b = map(int, input().split())
            print(roots(b) - roots(a - 1))
            """,
        ),
        wrong=(
            """
            low, high = map(int, input().split())
            k = $K * $K
            print(int((high / k) ** 0.5) - (int(((low - 1) / k) ** 0.5) if low > 0 else -1))
            """,
            """
            from math import isqrt
            low, high = map(int, input().split())
            k = $K * $K
            print(isqrt(high // k) - isqrt(low // k))
            """,
        ),
    ),
    Family(
        "primes_that_end_in_k",
        (1, 2, 3, 7, 9),
        _primes_ending,
        lambda k, rng: (
            [lines([1, 1]), lines([1, 100]), lines([0, 2]), lines([900, 2000])]
            + [lines([3, p]) for p in (13, 17, 31, 79, 3)]
            + [lines([4, {1: 21, 2: 12, 3: 33, 7: 27, 9: 39}[k]])]
        ),
        correct=(
            """
            low, high = map(int, input().split())
            sieve = [True] * (high + 1)
            count = 0
            for n in range(2, high + 1):
                if sieve[n]:
                    count += n >= low and n % 10 == $K
                    for m in range(n * n, high + 1, n):
                        sieve[m] = False
            print(count)
            """,
            """
            def prime(n):
                if n < 2:
                    return False
                d = 2
                while d * d <= n:
                    if n % d == 0:
                        return False
                    d += 1
                return True
            a, b = map(int, input().split())
            print(len([n for n in range(a, b + 1) if n % 10 == $K and prime(n)]))
            """,
        ),
        wrong=(
            """
            low, high = map(int, input().split())
            sieve = [True] * (high + 1)
            count = 0
            for n in range(2, high + 1):
                if sieve[n]:
                    count += n >= low and n % 10 == $K
                    for m in range(n * n, high, n):
                        sieve[m] = False
            print(count)
            """,
            """
            a, b = map(int, input().split())
            last = $K
            count = 0
            for n in range(max(a, 3), b):
                if n % 10 == last and all(n % d for d in range(2, int(n**0.5) + 1)):
                    count += 1
            print(count)
            """,
        ),
    ),
    Family(
        "clock_in_a_time_zone",
        (1, 3, 9, 12, 23),
        _clock,
        lambda k, rng: [lines(n) for n in (0, 59, 3661, 86399, 86400 * 3 + 61, 3600 * (29 - k), rng.randrange(10**6))],
        correct=(
            "s = (int(input()) + $K * 3600) % 86400\nprint('%02d:%02d:%02d' % (s // 3600, s % 3600 // 60, s % 60))",
            """
            m, s = divmod(int(input()), 60)
            h, m = divmod(m, 60)
            print(":".join(str(x).zfill(2) for x in ((h + $K) % 24, m, s)))
            """,
        ),
        wrong=(
            "s = int(input())\nprint(f'{(s // 3600 + $K) % 24}:{s // 60 % 60:02}:{s % 60:02}')",
            "m, s = divmod(int(input()), 60)\nh, m = divmod(m, 60)\nprint(f'{h % 24 + $K:02}:{m:02}:{s:02}')",
        ),
    ),
    Family(
        "price_with_tax_rounded_half_up",
        (5, 10, 15, 19, 25),
        _price,
        lambda k, rng: [lines(n) for n in (10, 30, 50, 70, 90, 10**17 + 1, 250, 150, 550, 0, 1010, 2050)],
        correct=(
            "c = (int(input()) * (100 + $K) + 50) // 100\nprint(f'{c // 100}.{c % 100:02d}')",
            """
            from decimal import Decimal, ROUND_HALF_UP, getcontext
            getcontext().prec = 60
            gross = Decimal(int(input())) * (100 + $K) / 10000
            print(gross.quantize(Decimal("0.01"), rounding=ROUND_HALF_UP))
            """,
        ),
        wrong=(
            "print('%.2f' % (int(input()) * (100 + $K) / 10000))",
            "c = int(input()) * (100 + $K) // 100\nprint(f'{c // 100}.{c % 100}')",
        ),
    ),
    Family(
        "josephus",
        (2, 3, 4, 5, 7),
        lambda k, text: __import__("functools").reduce(lambda at, n: (at + k) % n, range(2, int(text) + 1), 0) + 1,
        lambda k, rng: [lines(n) for n in (1, 2, 3, 7, 41, rng.randrange(50, 400))],
        correct=(
            "at = 0\nfor n in range(2, int(input()) + 1):\n    at = (at + $K) % n\nprint(at + 1)",
            """
            from collections import deque
            ring = deque(range(1, int(input()) + 1))
            while len(ring) > 1:
                ring.rotate(-($K - 1))
                ring.popleft()
            print(ring[0])
            """,
        ),
        wrong=(
            "at = 0\nfor n in range(2, int(input()) + 1):\n    at = (at + $K) % n\nprint(at)",
            """
            from collections import deque
            ring = deque(range(1, int(input()) + 1))
            while len(ring) > 1:
                ring.rotate(-$K)
                ring.popleft()
            print(ring[0])
            """,
        ),
    ),
    Family(
        "binomial_modulo",
        (7, 13, 1009, 998244353, 1000000007),
        lambda k, text: (lambda n, r: math.comb(n, r) % k)(*map(int, text.split())),
        lambda k, rng: [lines(pair) for pair in ([0, 0], [5, 7], [10, 3], [60, 30], [200, 77], [40, 40])],
        correct=(
            "from math import comb\nn, r = map(int, input().split())\nprint(comb(n, r) % $K)",
            """
            n, r = map(int, input().split())
            row = [1] + [0] * n
            for _ in range(n):
                for j in range(n, 0, -1):
                    row[j] = (row[j] + row[j - 1]) % $K
            print(row[r] if r <= n else 0)
            """,
        ),
        wrong=(
            "from math import perm\nn, r = map(int, input().split())\nprint(int(perm(n, r) / perm(r)) % $K)",
            "n, r = map(int, input().split())\nc=1\nfor i in range(r):\n    c = c * (n - i) // (i + 1) % $K\nprint(c)",
        ),
    ),
)
