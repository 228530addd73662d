"""Whatever a model writes comes back: grown, mutated and hostile strings, as predictions and as golds."""

import json
import random
import resource
import string
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from falcon_h1r.types import Verdict
from falcon_h1r.verifier import Verifier, canonical_answer, check_gold

PAIRS = Path(__file__).resolve().parents[2] / "../shared/verifier/dev_pairs.jsonl"
SECONDS_PER_PAIR = 2.0
SLACK_SECONDS = 8.0  # a busy neighbour, and the start of the next worker
PATIENCE = 60.0
MAX_GROWTH_BYTES = 256 << 20  # of the calling process, all caches full

GOLDS = ["1", r"\sqrt{2}", "x", "[0,1]", "1,2,3", r"x^2 < 4", "y = 2x+1", "(1,2)", r"\int_0^1 x^2 dx", r"\text{yes}"]

# Notations to mutate, one of each kind that is read.
SEEDS = [
    r"\frac{1}{2}", r"-\dfrac{22}{7}", "0.1\\overline{6}", "1,234,567.5", r"3\frac12", "1e-7", "2^{10}", "101_2",
    r"2\sqrt{3} - \sqrt[3]{5}", r"\pi/4", r"\log_{2} 8", r"\sin^{2}\left(\frac{\pi}{3}\right)", "e^{i\\pi}", "5!",
    r"\binom{n}{k}", r"{n \choose k}", r"\left(-\infty, 3\right] \cup [5, 7)", r"\{1, 2, 3\}", "(1, -2, x)",
    r"x = 2 \text{ or } x = -3", r"\pm\sqrt{2}", r"x \in \mathbb{R}", r"\{x \mid x^2 < 4\}", "x < 3", "1 < x \\le 2",
    r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{vmatrix} a & b \\ c & d \end{vmatrix}", "y = 2x + 3",
    r"\sum_{k=1}^{n} k^2", r"\prod_{i=1}^{5} i", r"\int_{0}^{1} x^2 dx", r"\lim_{x \to 0} \frac{\sin x}{x}",
    "2 : 3 : 4",
    r"10\%", r"\$5.50", r"45^\circ", r"5\text{ cm}^2", r"\text{(C)}", r"\text{Evelyn}", "12:30", r"|x - 1|",
    r"\lfloor 2.5 \rfloor", r"\lceil x \rceil", r"f(x) = x^2 + 1", r"k\pi, k \in \mathbb{Z}", r"\frac12 \approx 0.5",
    r"\mathbb{R} \setminus \{0\}", r"\gcd(12, 18)", r"\max\{1, 2\}", r"\overline{AB}", r"\vec{v}", r"\angle ABC",
    r"x_{1}, x_{2}", "x²+½", "−√2", "]0,1[", r"\frac{\text{miles}}{\text{hour}}", "12^{th}", r"\langle 1, 2 \rangle",
]  # fmt: skip

# What the tokeniser and the rewrites know, a piece at a time.
PIECES = (
    r"\frac \sqrt \binom \choose \cdot \times \div \pm \mp \cup \cap \setminus \in \notin \approx \to \emptyset "
    r"\lfloor \rfloor \lceil \rceil \angle \overline \vec \mathbb \mathcal \lim \sum \prod \int \pmod \langle \rangle "
    r"\iff \implies \boxed \triangle \ldots \sin \arctan \log \ln \exp \gcd \max \pi \infty \alpha \and \lor \text "
    r"\mathrm \operatorname \begin \end \begin{pmatrix} \end{pmatrix} \begin{cases} \left \right \left( \right) \{ \} "
    r"\( \) \[ \] \\ \, \; \! \: \$ \% \& \le \ge \ne < > = <= >= != ( ) [ ] { } | , ; : . / * ** ^ _ + - ! ' ~ $ % & "
    r"# @ ` \text{ \text{( \frac{ \frac{\text{ \sqrt{ \sqrt[ ^{ _{ ^\circ {,} \hspace{ \phantom{ x a e i d pi sqrt and "
    r"or for where percent cm st nd th 0 1 9 12 1.5 .5 1. 1e9 1e-9 1,234 x^ a, -x (( 1/ 2* |x| {x} (x) [x] \frac12 "
    r"\frac{1}{2} 1\frac{ \sqrt2 x_1 x! !! == <> >= => -> 1: ≤ ½ ² √ π − × ∞ ° ∪ ， ％"
).split()
BLANKS = [" ", "\t", "\n", "\\ ", "\\,", "\\quad ", "~", "\u00a0", "\u2009", "\u200b", "\x1c", "1 111 ", "1,111,"]
STRANGE = [
    "\x00", "\x07", "\x7f", "\x85", "\u00ad", "\u0301", "\u0338", "\u200f", "\u202e", "\u2066", "\u2028", "\ufeff",
    "\ufffd", "\ud800", "\udfff", "\U0001d7d8", "\U0001f600", "\u0664", "\u0967", "\u2467", "\u216b", "\u3007",
    "\u33a5",
    "\ufb03", "\u1e9e", "\u0130", "\u2160", "\ufdfa", "\U000e0041", "\uff11", "\u00b9", "\u2044", "\u215b", "\u221b",
]  # fmt: skip


class Fuzzer:
    """Strings of every kind, from one seed: the same seed gives the same strings."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.seeds = [*SEEDS, *_notations_of_labelled_pairs()]
        self.kinds: list[Callable[[], str]] = [
            self.mutated, self.mutated, self.mutated, self.grown, self.grown, self.soup, self.repeated, self.nested,
            self.digits, self.tower, self.big_operator, self.collection, self.unicode, self.unbalanced, self.many_names,
            self.blanks, self.sandwich,
        ]  # fmt: skip

    def strings(self, count: int) -> Iterator[tuple[str, str]]:
        """(kind, text), all kinds in turn."""
        for index in range(count):
            kind = self.kinds[index % len(self.kinds)]
            yield kind.__name__, kind()

    def size(self) -> int:
        """How often something repeats: mostly little, at times up to the limits and far beyond."""
        return int(self.rng.choice([3, 20, 60, 200, 1_000, 7_900, 30_000]) * self.rng.uniform(0.3, 1.0)) + 1

    def number(self) -> str:
        digits = "".join(self.rng.choices(string.digits, k=self.rng.choice([1, 1, 2, 3, 9, 40, 400])))
        return self.rng.choice([digits, digits, f"-{digits}", f"{digits}.{digits}", f"{digits}e{digits[:3]}"])

    def atom(self) -> str:
        return self.rng.choice([
            self.number(), "x", "y", "n", r"\pi", "e", "i", r"\infty", r"\theta", "x_1", "0", "1", "2",
        ])  # fmt: skip

    def grown(self, depth: int | None = None) -> str:
        """An expression grown from a grammar: it parses, and means something, mostly something terrible."""
        depth = self.rng.randint(1, 6) if depth is None else depth
        if depth <= 0:
            return self.atom()
        a, b, c = (self.grown(depth - self.rng.randint(1, 3)) for _ in range(3))
        return self.rng.choice([
            f"{a}+{b}", f"{a}-{b}", f"{a} \\cdot {b}", rf"\frac{{{a}}}{{{b}}}", f"({a})/({b})", f"({a})^{{{b}}}",
            rf"\sqrt{{{a}}}", rf"\sqrt[{a}]{{{b}}}", f"({a})!", rf"\binom{{{a}}}{{{b}}}", rf"\sin({a})", rf"\ln({a})",
            rf"\log_{{{a}}}({b})", rf"\left|{a}\right|", rf"\lfloor {a} \rfloor", rf"\pm {a}", rf"e^{{{a}}}", f"{a}\\%",
            rf"\arctan({a})", rf"\tan({a})", rf"\cosh({a})", rf"\gcd({a},{b})", rf"\max({a},{b})", f"{a}={b}",
            f"{a}<{b}",
            f"({a},{b})", f"[{a},{b})", rf"({a},{b}) \cup [{b},{c}]", rf"\{{{a},{b},{c}\}}", f"{a},{b},{c}", f"{a}:{b}",
            rf"\sum_{{k={a}}}^{{{b}}} ({c})^k", rf"\prod_{{n={a}}}^{{{b}}} ({c})", rf"\int_{{{a}}}^{{{b}}} {c} dx",
            rf"\lim_{{x \to {a}}} \frac{{{b}}}{{{c}}}", rf"\begin{{pmatrix}} {a} & {b} \\ {b} & {c} \end{{pmatrix}}",
            rf"\begin{{vmatrix}} {a} & {b} \\ {b} & {c} \end{{vmatrix}}", rf"\{{x \mid {a} < {b}\}}",
            rf"{a} \text{{ or }} {b}",
        ])  # fmt: skip

    def mutated(self) -> str:
        """A notation with pieces taken out, doubled, swapped or put in."""
        text = self.rng.choice(self.seeds)[:4_000]
        for _ in range(self.rng.choice([1, 1, 2, 3, 8])):
            low = self.rng.randint(0, len(text))
            high = min(len(text), low + self.rng.choice([0, 1, 1, 2, 5, 20]))
            middle = self.rng.choice([
                "", text[low:high] * 2, text[low:high][::-1], self.rng.choice(PIECES), self.rng.choice(STRANGE),
                self.rng.choice(self.seeds)[:200], text[low:high] * self.rng.choice([3, 30, 300]),
            ])  # fmt: skip
            text = text[:low] + middle + text[high:]
        return text

    def soup(self) -> str:
        """Pieces in any order."""
        pieces = self.rng.choices(PIECES, k=self.rng.choice([3, 10, 40, 200, 1_000]))
        return self.rng.choice(["", " "]).join(pieces)

    def repeated(self) -> str:
        """One piece, or two in turn, up to 100 kB."""
        piece = "".join(self.rng.choices(PIECES, k=self.rng.choice([1, 1, 2])))
        return (piece * self.size())[:100_000]

    def nested(self) -> str:
        """Openers and as many closers around something."""
        before, after = self.rng.choice([
            ("(", ")"), ("[", "]"), ("{", "}"), (r"\{", r"\}"), ("|", "|"), (r"\frac{1}{", "}"), (r"\sqrt{", "}"),
            (r"\left(", r"\right)"), ("x^{", "}"), ("x_{", "}"), (r"\text{", "}"), (r"\boxed{", "}"), ("-(", ")"),
            (r"\sin(", ")"), ("(", ")!"), ("1+(", ")"), (r"\lfloor ", r" \rfloor"), (r"\binom{2}{", "}"),
            (r"\begin{pmatrix}", r"\end{pmatrix}"), (r"\{x \mid ", r"\}"), ("f(x)=", ""), (r"\sqrt[", "]2"),
            ("(1,", ")"),
            ("-", ""), (r"\pm", ""), ("2^", ""), (r"\sum_{k=1}^{9}", "k"), (r"\lim_{x\to 0}", ""), 
            (r"\int_0^1 ", " dx"),
            ("{x \\choose ", "}"), (r"1\frac{", "}{2}"), (r"\log_{", "}2"), (r"\overline{", "}"), ("", "!"), ("", "%"),
        ])  # fmt: skip
        count = min(self.size(), 12_000)
        return before * count + self.atom() + after * self.rng.choice([count, count, count - 1, 0])

    def digits(self) -> str:
        """Long numbers in several ways of writing."""
        count = self.size()
        flood = (str(self.rng.randint(1, 10**9)) * (count // 8 + 1))[:count]
        return self.rng.choice([
            flood, f"0.{flood}", f"1/{flood}", rf"\frac{{{flood}}}{{{flood[::-1]}}}", f"{flood}^{{{flood[:5]}}}",
            f"0.{flood[:50]}\\overline{{{flood}}}", rf"\sqrt{{{flood}}}", f"{flood}_{{16}}", f"{flood}!",
            ",".join(flood),
            f"1e{flood[:9]}", rf"\log_{{10}} {flood}", rf"\binom{{{flood[:12]}}}{{{flood[:6]}}}", " ".join(flood),
            rf"\gcd({flood}, {flood[::-1]})", f"{flood[:1900]} \\cdot {flood[:1900]}", "1" + ",000" * (count // 4),
        ])  # fmt: skip

    def tower(self) -> str:
        """Powers of powers, factorials of factorials."""
        base = self.rng.choice(["2", "9", "x", "e", "(1+1)", "10", "-1", "0.5", "i", r"\pi", "2024"])
        count = self.rng.choice([2, 3, 4, 6, 15, 18, 40, 55, 300])
        nines = "9" * count
        return self.rng.choice([
            f"{base}^{{" * count + base + "}" * count, f"({base})" + "^{99}" * count, f"{base}**" * count + base,
            f"{base}^" * count + base, "(" * count + base + ")!" * count, f"{base}" + "!" * count,
            f"{base}^{{-{nines}}}", f"({base}^{{{nines}}})! - 1", rf"\sqrt[{nines}]{{{base}}}",
            rf"\tan({base}^{{{nines}}})", rf"\sqrt[{base}]{{" * count + "2" + "}" * count,
            f"(x+{base})^{{{nines[:5]}}}", r"\ln(" * count + base + ")" * count,
            r"\ln " * count + base, r"\log_2 " * count + base, r"\sqrt" * count + base,
        ])  # fmt: skip

    def big_operator(self) -> str:
        """Sums, products, limits and integrals that are too long, nested, or not elementary."""
        body = self.grown(self.rng.randint(0, 3))
        high = self.rng.choice(["10", "100", "999", "10^{9}", r"\infty", "n", "10!", "-5", "0.5"])
        return self.rng.choice([
            rf"\sum_{{k=1}}^{{{high}}} {body}", rf"\sum_{{k=1}}^{{{high}}} \frac{{1}}{{k^{{{body}}}}}",
            rf"\sum_{{a=1}}^{{{high}}} \sum_{{b=1}}^{{{high}}} \sum_{{c=1}}^{{{high}}} abc {body}",
            rf"\prod_{{k=1}}^{{{high}}} (1 + {body})", rf"\int_{{0}}^{{{high}}} {body} dx",
            rf"\int_{{0}}^{{1}} \sin(x^{{x}}) e^{{\tan x}} {body} dx", rf"\lim_{{x \to {high}}} {body}",
            r"\int_0^1 \int_0^1 \int_0^1 e^{xyz} dx dy dz",
            rf"\lim_{{x \to 0}} \frac{{\sin(\tan x) - {body}}}{{x^{{7}}}}",
            rf"\int_{{-\infty}}^{{\infty}} e^{{-x^2}} {body} dx", rf"\sum_{{n=1}}^{{\infty}} \frac{{{body}}}{{n!}}",
        ])  # fmt: skip

    def collection(self) -> str:
        """Lists, sets, intervals, unions and matrices of very many items."""
        count = self.size()
        item = self.rng.choice(["1", "x", self.grown(1), "", r"\pm 1", "(1,2)", "x=1", "x^2<2", "[0,1]", r"\sqrt{2}"])
        numbered = self.rng.random() < 0.5
        items = [f"{item}{n}" if numbered else item for n in range(min(count, 100_000 // (len(item) + 6) + 1))]
        opening, closing = self.rng.choice([("", ""), ("(", ")"), (r"\{", r"\}"), ("[", ")"), ("{", "}")])
        joiners = [",", ", ", ";", r"\cup ", r"\cap ", " and ", " or ", "&", r"\\", r" \text{ or } ", "+", "<"]
        joiner = self.rng.choice(joiners)
        text = opening + joiner.join(items) + closing
        return text if joiner not in ("&", "\\\\") else rf"\begin{{pmatrix}}{text}\end{{pmatrix}}"

    def unicode(self) -> str:
        """Strange characters in and around a notation, or a flood of one."""
        strange = self.rng.choice(STRANGE)
        if self.rng.random() < 0.3:
            return strange * self.size()
        text = list(self.rng.choice(self.seeds)[:500])
        for _ in range(self.rng.randint(1, 6)):
            text.insert(self.rng.randint(0, len(text)), self.rng.choice(STRANGE) * self.rng.choice([1, 1, 5]))
        return "".join(text)

    def unbalanced(self) -> str:
        """Braces and boxes that do not match."""
        parts = ["{", "}", r"\{", r"\}", r"\boxed{", r"\boxed ", r"\fbox{", "{{", "}}", "\\", "1", "x", r"\text{"]
        return "".join(self.rng.choices(parts, k=min(self.size(), 20_000)))

    def many_names(self) -> str:
        """Expressions in many variables."""
        names = [f"x_{{{n}}}" for n in range(self.rng.choice([3, 30, 150, 400]))]
        joiner = self.rng.choice(["+", "*", "-", " ", "^", "/", ",", "=", "<", r"\pm ", r"\cdot \sin "])
        return joiner.join(names) + self.rng.choice(["", "=0", "!", "^2", "<1"])

    def blanks(self) -> str:
        """Long runs of white space and of separators, where greedy patterns meet."""
        run = self.rng.choice(BLANKS) * self.size()
        before, after = self.rng.choice(PIECES + SEEDS), self.rng.choice(PIECES + SEEDS)
        return (before + run + after)[:100_000]

    def sandwich(self) -> str:
        """A run of one piece between two others: what makes a pattern try again from everywhere."""
        count = self.size()
        run = self.rng.choice([*PIECES, *BLANKS]) * count
        return self.rng.choice(PIECES) + self.rng.choice(PIECES) + run[:50_000] + self.rng.choice(PIECES)


def _notations_of_labelled_pairs() -> list[str]:
    if not PAIRS.exists():
        return []
    rows = [json.loads(line) for line in PAIRS.read_text().splitlines()]
    return [text for row in rows for text in (row["gold"], row.get("answer") or "") if 0 < len(text) < 2_000]


@dataclass(frozen=True)
class Judged:
    """One verdict and what it cost: `caller_seconds` in the thread that asked, before it had its future."""

    kind: str
    prediction: str
    gold: str
    verdict: Verdict
    caller_seconds: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.seconds:.3f} s ({self.caller_seconds:.3f} in the caller) {self.kind}: {self.prediction} | "
            f"{self.gold} -> {self.verdict.status}, {self.verdict.stage}, {self.verdict.reason[:60]}"
        )


def _shown(text: str) -> str:
    """Enough to tell which string it was; kept whole, ten thousand of them would be what fills the memory."""
    return ascii(text) if len(text) < 100 else f"{text[:50]!a}...{text[-20:]!a} ({len(text)})"


def judge_all(verifier: Verifier, strings: Iterable[tuple[str, str]], rng: random.Random) -> list[Judged]:
    """Each string as a prediction, as a gold, and against itself with a little change, one after the other."""
    judged = []
    for kind, text in strings:
        other = rng.choice(GOLDS)
        for prediction, gold in ((text, other), (other, text), (text, f"{text}+0")):
            start = time.perf_counter()
            future = verifier.submit(f"\\boxed{{{prediction}}}", gold)
            submitted = time.perf_counter()
            verdict = future.result(PATIENCE)
            end = time.perf_counter()
            judged.append(Judged(kind, _shown(prediction), _shown(gold), verdict, submitted - start, end - start))
        verifier.submit(text, other).result(PATIENCE)  # not in a box
        canonical_answer(f"\\boxed{{{text}}}")
        check_gold(text)
    return judged


def check(judged: list[Judged], verifier: Verifier) -> None:
    """Everything came back in time, from healthy workers, and the next pair is judged as ever."""
    slow = [str(j) for j in judged if j.seconds > SECONDS_PER_PAIR + SLACK_SECONDS]
    assert slow == []
    errors = [str(j) for j in judged if j.verdict.stage in ("error", "worker", "memory", "closed")]
    assert errors == []
    assert verifier.num_lost_workers == 0 and len(verifier._pool.process_ids()) <= verifier._pool.num_workers
    assert verifier.submit(r"\boxed{\sqrt{1250}}", r"25\sqrt{2}").result(PATIENCE).correct


@pytest.fixture
def verifier() -> Iterator[Verifier]:
    with Verifier(2) as shared:
        shared.submit(r"\boxed{\sqrt{8}}", r"2\sqrt{2}").result(PATIENCE)
        yield shared


def test_the_same_seed_gives_the_same_strings() -> None:
    assert list(Fuzzer(7).strings(60)) == list(Fuzzer(7).strings(60)) != list(Fuzzer(8).strings(60))


def test_whatever_is_written_comes_back(verifier: Verifier) -> None:
    fuzzer = Fuzzer(seed=1)
    check(judge_all(verifier, fuzzer.strings(200), fuzzer.rng), verifier)


def _resident_bytes(pid: int | str = "self") -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.slow
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("seed", [2])
def test_ten_thousand_strings_come_back_and_memory_stays_flat(verifier: Verifier, seed: int) -> None:
    fuzzer = Fuzzer(seed)
    judge_all(verifier, fuzzer.strings(500), fuzzer.rng)  # fills what is imported and allocated once
    before = _resident_bytes()
    judged = judge_all(verifier, fuzzer.strings(10_000), fuzzer.rng)
    grown = _resident_bytes() - before
    workers = [_resident_bytes(pid) for pid in verifier._pool.process_ids()]
    print(f"\n{len(judged)} verdicts, {verifier.num_deadline_kills} kills, grown by {grown >> 20} MiB, ", end="")
    print(f"workers of {[size >> 20 for size in workers]} MiB\n{Counter(j.verdict.status for j in judged)}")
    for cost in ("seconds", "caller_seconds"):
        print(f"slowest by {cost}:", *sorted(judged, key=lambda j: -getattr(j, cost))[:20], sep="\n  ")
    check(judged, verifier)
    assert grown < MAX_GROWTH_BYTES
    assert max(workers) < 1 << 30


@pytest.mark.skipif(not PAIRS.exists(), reason="the labelled pairs are not beside the repository")
def test_every_adversarial_labelled_pair_comes_back_both_ways(verifier: Verifier) -> None:
    rows = [json.loads(line) for line in PAIRS.read_text().splitlines()]
    for row in rows:
        if row["kind"] != "adversarial" and not row.get("any_verdict"):
            continue
        for prediction, gold in ((row["prediction"], row["gold"]), (f"\\boxed{{{row['gold']}}}", row["prediction"])):
            start = time.perf_counter()
            verdict = verifier.submit(prediction, gold).result(PATIENCE)
            assert time.perf_counter() - start < SECONDS_PER_PAIR + SLACK_SECONDS, row["id"]
            assert verdict.stage not in ("error", "worker", "memory"), row["id"]
            if prediction == row["prediction"] and not row.get("any_verdict"):
                assert verdict.correct == row["expected"], row["id"]
