"""Words and lines: wrong tie-breaks, lines that are never split, defaults that remember."""

from __future__ import annotations

from collections import Counter

from tests.verifier.code.programs.family import Family, lines


def _top_words(k: int, text: str) -> str:
    ranked = sorted(Counter(text.lower().split()).items(), key=lambda pair: (-pair[1], pair[0]))
    return "\n".join(f"{word} {count}" for word, count in ranked[:k])


def _distinct(k: int, word: str) -> int:
    return max(
        (j - i for i in range(len(word)) for j in range(i + 1, len(word) + 1) if len(set(word[i:j])) <= k), default=0
    )


def _anagrams(k: int, words: list[str]) -> int:
    return sum(count >= k for count in Counter("".join(sorted(word)) for word in words).values())


def _version(k: int, text: str) -> str:
    first, second = ([int(x) for x in part.split(".")] + [0] * k for part in text.split())
    return "older" if first[:k] < second[:k] else "newer" if first[:k] > second[:k] else "same"


def _ledger(k: int, text: str) -> int:
    return sum(int(number) for line in text.split("\n") for number in line.split() if int(number) % k == 0)


def _first_words(k: int, text: str) -> str:
    rows = text.split("\n")
    return "\n".join(" ".join(sorted(row.split())[:k]) for row in rows[1 : 1 + int(rows[0])])


WORDS = "pear fig apple kiwi plum date lime".split()


FAMILIES = (
    Family(
        "most_frequent_words",
        (1, 2, 3, 4, 5),
        _top_words,
        lambda k, rng: (
            ["b a b a c\n", "zebra Apple apple ZEBRA mango fig kiwi\n", "one\n", "e d c b a\nf e d\n"]
            + [lines([rng.choice(WORDS) for _ in range(20)]) for _ in range(3)]
        ),
        correct=(
            """
            import sys
            from collections import Counter
            counts = Counter(sys.stdin.read().lower().split())
            for word, n in sorted(counts.items(), key=lambda x: (-x[1], x[0]))[:$K]:
                print(word, n)
            """,
            """
            import sys
            counts = {}
            for line in sys.stdin:
                for word in line.split():
                    counts[word.lower()] = counts.get(word.lower(), 0) + 1
            order = sorted(sorted(counts), key=counts.get, reverse=True)
            print("\\n".join("%s %d" % (w, counts[w]) for w in order[:$K]))
            """,
        ),
        wrong=(
            """
            import sys
            from collections import Counter
            for word, n in Counter(sys.stdin.read().lower().split()).most_common($K):
                print(word, n)
            """,
            """
            import sys
            from collections import Counter
            counts = Counter(sys.stdin.read().lower().split())
            for word, n in sorted(counts.items(), key=lambda x: (x[1], x[0]), reverse=True)[:$K]:
                print(word, n)
            """,
        ),
    ),
    Family(
        "longest_with_k_distinct",
        (1, 2, 3, 4, 5),
        _distinct,
        lambda k, rng: (
            [["a" * 5], ["abcdefg"], [""], ["abcabcdabcdeabcdef"], ["ab"]]
            + [["".join(rng.choice("abcdef") for _ in range(30))] for _ in range(4)]
        ),
        correct=(
            """
            class Solution:
                def longest(self, s: str) -> int:
                    best = left = 0
                    seen: Dict[str, int] = {}
                    for right, c in enumerate(s):
                        seen[c] = seen.get(c, 0) + 1
                        while len(seen) > $K:
                            seen[s[left]] -= 1
                            if not seen[s[left]]:
                                del seen[s[left]]
                            left += 1
                        best = max(best, right - left + 1)
                    return best
            """,
            """
            def longest(s):
                best = 0
                for i in range(len(s)):
                    letters = set()
                    for j in range(i, len(s)):
                        letters.add(s[j])
                        if len(letters) > $K:
                            break
                        best = max(best, j - i + 1)
                return best
            """,
        ),
        wrong=(
            """
            class Solution:
                def longest(self, s: str) -> int:
                    best = left = 0
                    seen = {}
                    for right, c in enumerate(s):
                        seen[c] = seen.get(c, 0) + 1
                        while len(seen) >= $K:
                            seen[s[left]] -= 1
                            if not seen[s[left]]:
                                del seen[s[left]]
                            left += 1
                        best = max(best, right - left + 1)
                    return best
            """,
            """
            def longest(s):
                best, start, letters = 0, 0, set()
                for i, c in enumerate(s):
                    letters.add(c)
                    if len(letters) > $K:
                        best = max(best, i - start)
                        while len(set(s[start:i + 1])) > $K:
                            start += 1
                        letters = set(s[start:i + 1])
                return best
            """,
        ),
        fn_name="longest",
    ),
    Family(
        "anagram_groups",
        (1, 2, 3, 4, 5),
        _anagrams,
        lambda k, rng: (
            [
                [["abc"] * k],
                [["abc", "cab", "bca", "bac", "acb"][:k]],
                [[]],
                [["aab", "abb"] * k],
                [["a"] * (k - 1)],
                [["".join(rng.choice("ab") for _ in range(3)) for _ in range(20)]],
            ]
        ),
        correct=(
            """
            from collections import Counter
            class Solution:
                def groups(self, words: List[str]) -> int:
                    return sum(n >= $K for n in Counter("".join(sorted(w)) for w in words).values())
            """,
            """
            def groups(words):
                found = {}
                for w in words:
                    found.setdefault(tuple(sorted(w)), []).append(w)
                return len([g for g in found.values() if len(g) >= $K])
            """,
        ),
        wrong=(
            """
            from collections import Counter
            def groups(words):
                return sum(n >= $K for n in Counter(frozenset(w) for w in words).values())
            """,
            """
            class Solution:
                def groups(self, words: List[str]) -> int:
                    found = {}
                    for w in words:
                        found.setdefault("".join(sorted(w)), []).append(w)
                    return sum(len(group) > $K for group in found.values())
            """,
        ),
        fn_name="groups",
    ),
    Family(
        "versions_of_k_parts",
        (2, 3, 4, 5, 6),
        _version,
        lambda k, rng: ["1.2 1.10\n", "1.0 1\n", "2.9 2.9\n", "3.0.1 3\n", "10.1 9.9\n", "1 1.0\n", "1.1 1\n"],
        correct=(
            """
            a, b = ([int(x) for x in v.split(".")] for v in input().split())
            a, b = (a + [0] * $K)[:$K], (b + [0] * $K)[:$K]
            print("older" if a < b else "newer" if a > b else "same")
            """,
            """
            a, b = (v.split(".") for v in input().split())
            answer = "same"
            for i in range($K):
                x = int(a[i]) if i < len(a) else 0
                y = int(b[i]) if i < len(b) else 0
                if x != y:
                    answer = "older" if x < y else "newer"
                    break
            print(answer)
            """,
        ),
        wrong=(
            """
            a, b = (v.split(".") for v in input().split())
            a, b = (a + ["0"] * $K)[:$K], (b + ["0"] * $K)[:$K]
            print("older" if a < b else "newer" if a > b else "same")
            """,
            """
            a, b = ([int(x) for x in v.split(".")][:$K] for v in input().split())
            print("older" if a < b else "newer" if a > b else "same")
            """,
        ),
    ),
    Family(
        "ledger_over_many_lines",
        (2, 3, 4, 5, 9),
        _ledger,
        lambda k, rng: (
            [
                f"{k} {2 * k}\n{3 * k}\n",
                f"\n\n{k}\n\n",
                "0\n",
                f"{-k} 1\n{k + 1}\n{-k}",
                "1 1 1\n",
                "\n".join(str(rng.randrange(-99, 99)) for _ in range(30)),
            ]
        ),
        correct=(
            "import sys\nprint(sum(x for x in map(int, sys.stdin.read().split()) if x % $K == 0))",
            """
            total = 0
            while True:
                try:
                    line = input()
                except EOFError:
                    break
                for word in line.split():
                    total += int(word) if int(word) % $K == 0 else 0
            print(total)
            """,
        ),
        wrong=(
            "print(sum(x for x in map(int, input().split()) if x % $K == 0))",
            """
            import sys
            total = 0
            for line in sys.stdin:
                if not line.strip():
                    break
                total += sum(int(x) for x in line.split() if int(x) % $K == 0)
            print(total)
            """,
        ),
    ),
    Family(
        "first_k_words_of_each_line",
        (1, 2, 3, 4, 5),
        _first_words,
        lambda k, rng: [
            lines(
                n,
                *[
                    [rng.choice(WORDS) + str(rng.randrange(9)) for _ in range(rng.randrange(k + 1, 9))]
                    for _ in range(n)
                ],
            )
            for n in (1, 2, 3, 5)
        ],
        correct=(
            """
            for _ in range(int(input())):
                print(*sorted(input().split())[:$K])
            """,
            """
            def first(words, found=None):
                found = [] if found is None else found
                for word in words:
                    found.append(word)
                    found.sort()
                return found[:$K]
            for _ in range(int(input())):
                print(" ".join(first(input().split())))
            """,
        ),
        wrong=(
            """
            def first(words, found=[]):
                for word in words:
                    found.append(word)
                    found.sort()
                return found[:$K]
            for _ in range(int(input())):
                print(" ".join(first(input().split())))
            """,
            """
            for _ in range(int(input())):
                print(*input().split()[:$K])
            """,
        ),
    ),
)
