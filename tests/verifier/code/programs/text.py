"""Letters: alphabets that wrap, runs and groups that are cut short."""

from __future__ import annotations

import re
from itertools import groupby

from tests.verifier.code.programs.family import Family, lines


def _caesar(k: int, text: str) -> str:
    def shifted(c: str) -> str:
        start = ord("a" if c.islower() else "A")
        return chr(start + (ord(c) - start + k) % 26) if c.isalpha() else c

    return "".join(map(shifted, text.rstrip("\n")))


def _runs(k: int, text: str) -> str:
    return "".join(c if len(g) < k else f"{c}{len(g)}" for c, g in ((c, list(g)) for c, g in groupby(text.strip())))


def _palindromes(k: int, text: str) -> int:
    word = text.strip()
    return sum(word[i : i + k] == word[i : i + k][::-1] for i in range(len(word) - k + 1))


def _depth(k: int, text: str) -> str:
    depth = 0
    for bracket in text.strip():
        depth += 1 if bracket == "(" else -1
        if depth < 0 or depth > k:
            return "NO"
    return "YES" if depth == 0 else "NO"


def _columns(k: int, text: str) -> str:
    return "".join(text.strip()[start::k] for start in range(k))


FAMILIES = (
    Family(
        "caesar",
        (1, 3, 13, 24, 25),
        _caesar,
        lambda k, rng: ["abc xyz\n", "Hello, World!\n", "ZYXW zyxw 123\n", "q\n", "The Quick Brown Fox\n"],
        correct=(
            """
            out = ""
            for c in input():
                if "a" <= c <= "z":
                    c = chr((ord(c) - 97 + $K) % 26 + 97)
                elif "A" <= c <= "Z":
                    c = chr((ord(c) - 65 + $K) % 26 + 65)
                out += c
            print(out)
            """,
            """
            import string
            low, up = string.ascii_lowercase, string.ascii_uppercase
            table = str.maketrans(low + up, low[$K:] + low[:$K] + up[$K:] + up[:$K])
            print(input().translate(table))
            """,
        ),
        wrong=(
            """
            out = ""
            for c in input():
                out += chr(ord(c) + $K) if c.isalpha() else c
            print(out)
            """,
            """
            import string
            low = string.ascii_lowercase
            print(input().translate(str.maketrans(low, low[$K:] + low[:$K])))
            """,
        ),
    ),
    Family(
        "run_lengths_from_k",
        (2, 3, 4, 5, 6),
        _runs,
        lambda k, rng: (
            [lines(word) for word in ("a", "a" * k, "b" + "c" * k, "ab" * 3, "x" * (k - 1) + "y" * (k + 1) + "z")]
            + [lines("".join(rng.choice("ab") * rng.randrange(1, 8) for _ in range(9)))]
        ),
        correct=(
            """
            from itertools import groupby
            parts = []
            for c, group in groupby(input().strip()):
                n = len(list(group))
                parts.append(c + str(n) if n >= $K else c)
            print("".join(parts))
            """,
            """
            s = input().strip() + "\\0"
            out, start = [], 0
            for i in range(1, len(s)):
                if s[i] != s[start]:
                    n = i - start
                    out.append(s[start])
                    if n >= $K:
                        out.append(str(n))
                    start = i
            print(*out, sep="")
            """,
        ),
        wrong=(
            """
            s = input().strip()
            out, start = [], 0
            for i in range(1, len(s)):
                if s[i] != s[start]:
                    n = i - start
                    out.append(s[start] + (str(n) if n >= $K else ""))
                    start = i
            print(*out, sep="")
            """,
            """
            from itertools import groupby
            print("".join(c + (str(n) if n > $K else "") for c, n in ((c, len(list(g))) for c, g in groupby(input()))))
            """,
        ),
    ),
    Family(
        "palindromes_of_length_k",
        (2, 3, 4, 5, 6),
        _palindromes,
        lambda k, rng: (
            [lines(word) for word in ("a" * k, "ab" * k, "a" * (k + 3), "b" + "a" * k, "z")]
            + [lines("".join(rng.choice("ab") for _ in range(30)))]
        ),
        correct=(
            """
            s = input().strip()
            count = 0
            for i in range(len(s) - $K + 1):
                part = s[i:i + $K]
                if part == part[::-1]:
                    count += 1
            print(count)
            """,
            """
            s = input().strip()
            k = $K
            print(sum(all(s[i + j] == s[i + k - 1 - j] for j in range(k // 2)) for i in range(max(0, len(s) - k + 1))))
            """,
        ),
        wrong=(
            "s = input().strip()\nprint(sum(s[i:i+$K] == s[i:i+$K][::-1] for i in range(len(s) - $K)))",
            "s = input().strip()\nprint(len({s[i:i+$K] for i in range(len(s)-$K+1) if s[i:i+$K] == s[i:i+$K][::-1]}))",
        ),
    ),
    Family(
        "brackets_of_depth_at_most_k",
        (1, 2, 3, 4, 5),
        _depth,
        lambda k, rng: [
            lines(s) for s in ("(" * k + ")" * k, "(" * (k + 1) + ")" * (k + 1), "())(", "(", "()()", ")(")
        ],
        correct=(
            """
            depth, good = 0, True
            for c in input().strip():
                depth += 1 if c == "(" else -1
                good = good and 0 <= depth <= $K
            print("YES" if good and depth == 0 else "NO")
            """,
            """
            def check(s):
                stack = []
                for c in s:
                    if c == "(":
                        stack.append(c)
                        if len(stack) > $K:
                            return False
                    elif not stack:
                        return False
                    else:
                        stack.pop()
                return not stack
            print("YES" if check(input().strip()) else "NO")
            """,
        ),
        wrong=(
            """
            depth = most = 0
            for c in input().strip():
                depth += 1 if c == "(" else -1
                most = max(most, depth)
            print("YES" if depth == 0 and most <= $K else "NO")
            """,
            """
            depth, good = 0, True
            for c in input().strip():
                depth += 1 if c == "(" else -1
                good = good and 0 <= depth < $K
            print("YES" if good and depth == 0 else "NO")
            """,
        ),
    ),
    Family(
        "read_down_k_columns",
        (2, 3, 4, 5, 7),
        _columns,
        lambda k, rng: (
            [lines(s) for s in ("a", "abcdefghijklmnopqrstuvwxyz"[: k * 3], "abcdefghijklmnopqrstuvwxyz"[: k * 2 + 1])]
            + [lines("".join(rng.choice("xyz") for _ in range(31)))]
        ),
        correct=(
            "s = input().strip()\nprint(''.join(s[i::$K] for i in range($K)))",
            """
            s = input().strip()
            rows = [s[i:i + $K] for i in range(0, len(s), $K)]
            print("".join(row[c] for c in range($K) for row in rows if c < len(row)))
            """,
        ),
        wrong=(
            "s = input().strip()\nr = [s[i:i+$K] for i in range(0, len(s), $K)]\nprint(*map(''.join, zip(*r)), sep='')",
            "s = input().strip()\nprint(''.join(s[i::$K] for i in range($K - 1)) + s[-1:])",
        ),
    ),
    Family(
        "mask_every_kth_letter",
        (2, 3, 4, 5, 6),
        lambda k, text: "".join("*" if n % k == 0 else c for n, c in enumerate(text.strip(), start=1)),
        lambda k, rng: [lines(s) for s in ("a", "ab" * k, "abcdefghijkl", "x" * (k - 1), "y" * k)],
        correct=(
            "print(''.join('*' if (i + 1) % $K == 0 else c for i, c in enumerate(input().strip())))",
            "s = list(input().strip())\nfor i in range($K - 1, len(s), $K):\n    s[i] = '*'\nprint(''.join(s))",
        ),
        wrong=(
            "print(''.join('*' if i % $K == 0 else c for i, c in enumerate(input().strip())))",
            "s = list(input().strip())\nfor i in range($K - 1, len(s) - 1, $K):\n    s[i] = '*'\nprint(''.join(s))",
        ),
    ),
    Family(
        "thousands_in_groups_of_k",
        (2, 3, 4, 5, 6),
        lambda k, text: re.sub(rf"(?<=\d)(?=(?:\d{{{k}}})+$)", ",", text.strip()),
        lambda k, rng: [lines(n) for n in (0, 10 ** (k - 1), 10**k, 10 ** (2 * k), 123456789012345678901, 12)],
        correct=(
            """
            s = input().strip()
            parts = []
            while s:
                parts.append(s[-$K:])
                s = s[:-$K]
            print(",".join(reversed(parts)))
            """,
            """
            s = input().strip()[::-1]
            print(",".join(s[i:i + $K] for i in range(0, len(s), $K))[::-1])
            """,
        ),
        wrong=(
            "s = input().strip()\nprint(','.join(s[i:i + $K] for i in range(0, len(s), $K)))",
            """
            n = int(input())
            parts = []
            while n >= 10 ** $K:
                n, rest = divmod(n, 10 ** $K)
                parts.append(str(rest))
            print(",".join([str(n)] + parts[::-1]))
            """,
        ),
    ),
)
