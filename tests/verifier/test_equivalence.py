"""The rules of notation, one table a rule; pairs are judged in both directions."""

import pytest

from falcon_h1r.verifier import verify

RIGHT = {
    "fractions and decimals": [
        (r"\frac12", "0.5"),
        (r"\dfrac{2}{4}", "1/2"),
        ("0.50", ".5"),
        (r"1\frac{3}{4}", "7/4"),
        ("1 1/2", "1.5"),
        (r"-\frac{1}{2}", r"\frac{-1}{2}"),
        (r"-3 \frac{1}{2}", "-7/2"),
        (r"0.1\overline{6}", "1/6"),
        ("8/46", r"\frac{4}{23}"),
    ],
    "thousands": [
        ("12,345", "12345"),
        ("12{,}345", "12345"),
        (r"12\,345\,678", "12345678"),
        (r"11,\! 111", "11111"),
        ("1 234", "1234"),
    ],
    "powers of ten": [(r"1.5 \times 10^{-3}", "0.0015"), ("2.5e3", "2500"), ("10^-2", "0.01")],
    "percent": [(r"25\%", "0.25"), ("25%", "25"), ("33.5 percent", "0.335")],
    "units": [
        (r"5\text{ cm}^2", "5"),
        (r"5 \mathrm{~cm}", "5"),
        (r"10\text{ m/s}", "10"),
        ("64 square feet", "64"),
        ("3s", "3"),
        (r"\$5.50", "5.5"),
        (r"45^\circ", "45"),
        ("45°", r"45 \text{ degrees}"),
        ("12th", "12"),
    ],
    "labels": [
        ("x = 5", "5"),
        ("f(x) = x^2", "x^2"),
        (r"\angle APC = 74^\circ", "74"),
        ("|AB|=1", "1"),
        ("S_n = 2n", "2n"),
        (r"\frac{6}{15} = \frac{2}{5}", "2/5"),
        ("(x,y)=(3,4)", "(3,4)"),
    ],
    "lists have no order": [
        ("1, 2, 3", "3, 1, 2"),
        (r"\{1,2\}", r"2 \text{ and } 1"),
        ("x=1, x=2", "2, 1"),
        ("-1;-2", "-2, -1"),
        (r"\pm 3", "3, -3"),
        (r"\frac{-1\pm\sqrt{5}}{2}", r"\frac{-1-\sqrt5}{2}, \frac{-1+\sqrt5}{2}"),
        ("(1,2), (3,4)", "(3,4), (1,2)"),
        ("p=5,q=2;p=7,q=2", "(5,2),(7,2)"),
    ],
    "intervals and inequalities": [
        ("x < 3", r"(-\infty, 3)"),
        ("5 > x", "x<5"),
        (r"x \le 3 \text{ or } x \ge 5", r"(-\infty,3]\cup[5,\infty)"),
        ("|x|<3", "(-3,3)"),
        ("x^2-5x+6>0", r"(-\infty,2)\cup(3,\infty)"),
        (r"\mathbb{R}\setminus\{2\}", r"x \neq 2"),
        (r"\{1,2\}\cup[0,3]", "[0,3]"),
        (r"[\sqrt{2}, \sqrt{8}]", r"\sqrt2 \le x \le 2\sqrt2"),
        (r"\frac{1}{x} > 1", "(0,1)"),
    ],
    "matrices": [
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix} 1.0 & 2\\ 3 & \frac{8}{2} \end{bmatrix}"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", "(1,2)"),
        (r"\begin{vmatrix}2&1\\1&2\end{vmatrix}", "3"),
    ],
    "algebra": [
        (r"\sqrt{8}", r"2\sqrt2"),
        (r"\frac{1}{\sqrt2}", r"\frac{\sqrt2}{2}"),
        ("(x+1)^2", "x^2+2x+1"),
        (r"\ln 8", r"3\ln 2"),
        (r"\sin^2 x+\cos^2 x", "1"),
        (r"\sin^{-1} a", r"\arcsin(a)"),
        (r"\binom{n}{2}", r"\frac{n(n-1)}{2}"),
        (r"e^{i\pi}", "-1"),
        (r"\sin(90^\circ-x)", r"\cos x"),
        (r"\sum_{k=1}^{10} k", "55"),
        (r"\log_{10} 100", "2"),
        ("x^2/4+y^2/3=1", "3x^2+4y^2=12"),
        ("y=2x+3", "2x-y+3=0"),
        (r"\lim_{x \to \infty} \frac{1}{x}", "0"),
    ],
    "text": [
        (r"\text{Yes}", "yes"),
        (r"\text{(C)}", "C"),
        (r"\textbf{(B) } 5", "B"),
        (r"\text{no solution}", "No solution"),
    ],
    "ratios": [("1:2:3", "2:4:6"), ("3:4", "3/4")],
    "remarks": [
        (r"\frac{1}{2} \approx 0.5", "1/2"),
        (r"k\pi, k \in \mathbb{Z}", r"k\pi"),
        (r"\text{The answer is } 7", "7"),
        (r"\text{The only solution is } f(n)=n^2 \text{ for every positive integer } n", "f(n)=n^2"),
        ("= 12", "12"),
    ],
    "spellings of symbols": [
        ("2 million", "2000000"),
        (r"\dbinom{5}{2}", "10"),
        (r"x \not< 4", r"x \ge 4"),
        (r"x \not\le 4", "x > 4"),
        (r"x \not\ge 4", "x < 4"),
        (r"x \not= 4", r"x \ne 4"),
        (r"[0,1] \bigcup [2,3]", r"[0,1]\cup[2,3]"),
        (r"30\degree", "30"),
        (r"\pi \simeq 3.14", r"\pi"),
        (r"\mathbb{R}_{<0}", r"(-\infty,0)"),
        ("C^2_5", "10"),
        ("FiniteSet(1, 2)", r"\{1,2\}"),
        ("5亿", "500000000"),
        (r"\text{Yes.}", "yes"),
    ],
    "decimal commas, dots and bars": [
        ("0{,}25", r"\frac14"),
        ("1.234,56", "1234.56"),
        (r"\frac{1,000}{3}", r"\frac{1000}{3}"),
        (r"0.333\ldots", "1/3"),
        ("0.1666...", "1/6"),
        (r"0.\dot{2}\dot{7}", r"\frac{3}{11}"),
        ("0.1(6)", "1/6"),
        (r"30^\circ 15'", "30.25"),
    ],
    "stacked and combined": [
        (r"{3 \over 7}", r"\frac37"),
        (r"{5 \choose 2}", "10"),
        ("C_5^2", r"\binom52"),
        (r"{}^5C_2", "10"),
        (r"(2n-1)!!", r"\frac{(2n)!}{2^n n!}"),
        ("(1011)_2", "1011_{2}"),
    ],
    "declared parameters": [
        (r"n\pi, n\in\mathbb{Z}", r"k\pi, k \in \mathbb{Z}"),
        (r"x=\frac{5\pi}{4}-n\pi, n \in \mathbb{Z}", r"\frac{\pi}{4}+k\pi, k \in \mathbb{Z}"),
        (r"\frac{\pi}{6}+2k\pi, \frac{5\pi}{6}+2k\pi, k\in\mathbb{Z}", r"(-1)^{k}\frac{\pi}{6}+k\pi, k \in \mathbb{Z}"),
        ("f(x)=cx", "f(x)=kx"),
        ("f(t)=t^2", "f(x)=x^2"),
        ("x^2+C", "x^2+c"),
        (r"-\frac14\cos 2x+C", r"\frac{\sin^2 x}{2}+C"),
        ("C_1 e^x+C_2 e^{-x}", "C_1 e^{-x}+C_2 e^x"),
        (r"\{2k : k\in\mathbb{Z}\}", r"\text{all even integers}"),
        (r"e^{i\pi k/2}, k=0,1,2,3", "1, i, -1, -i"),
        (r"(1,2,3) \text{ and permutations}", "(1,2,3),(1,3,2),(2,1,3),(2,3,1),(3,1,2),(3,2,1)"),
    ],
    "assumptions": [
        (r"\sqrt{x^2}, x > 0", "x, x > 0"),
        (r"\lfloor n/2 \rfloor \lceil n/2 \rceil", r"\lfloor n^2/4 \rfloor"),
        (r"\cos(n\pi)", "(-1)^n"),
    ],
    "congruences": [
        (r"n \equiv 1 \pmod{4}", r"n\equiv 5 \mod 4"),
        (r"x \equiv 1, 3 \pmod 4", r"x \equiv 3 \pmod 4 \text{ or } x \equiv 1 \pmod 4"),
        (r"n=3k+1, k\in\mathbb{Z}", r"n \equiv 1 \pmod{3}"),
    ],
    "cases": [
        (r"\begin{cases}x=1\\y=2\end{cases}", "(1,2)"),
        (r"\begin{aligned}x&=2\\y&=-1\end{aligned}", "(2,-1)"),
        (
            r"\begin{cases} x & \text{if } x>0\\ -x & \text{otherwise}\end{cases}",
            r"\begin{cases} -x, & x\le 0\\ x, & x>0\end{cases}",
        ),
        (
            r"\begin{cases} 1, & n \text{ even} \\ 2, & n \text{ odd} \end{cases}",
            r"\begin{cases} 1 & \text{if } n \text{ is even} \\ 2 & \text{if } n \text{ is odd} \end{cases}",
        ),
    ],
    "vectors": [(r"3\mathbf{i}-2\mathbf{j}", "(3,-2)"), (r"3\hat{i}-2\hat{j}+\hat{k}", r"\langle 3,-2,1\rangle")],
    "python": [("[[0, 1], [1, 2]]", r"\begin{pmatrix}0&1\\1&2\end{pmatrix}"), ("3 + 4*I", "3+4i")],
    "solutions": [("a=2, b=5 or a=5, b=2", "(a,b)=(2,5),(5,2)"), (r"y=\pm\frac34 x", r"3x\pm 4y=0")],
    "sets of whole numbers": [
        (r"\{x\in\mathbb{Z} : -2\le x\le 2\}", r"\{-2,-1,0,1,2\}"),
        (r"\{1,2,\dots,6\}", r"\{1,2,3,4,5,6\}"),
        (r"\text{no solution}", r"\emptyset"),
    ],
    "french intervals": [("]0,1[", "(0,1)"), ("[0;1[", "[0,1)"), (r"]-\infty,2]", r"x \le 2")],
    "ranges": [
        (r"2-\sqrt3 \le \frac{y}{x} \le 2+\sqrt3", r"[2-\sqrt3, 2+\sqrt3]"),
        (r"|x|<\sqrt3", r"(-\sqrt3,\sqrt3)"),
    ],
    "options": [
        (r"\mathrm{ACD}", "A, C, D"),
        ("12", r"\textbf{(B)}\ 12"),
        (r"\text{point } P", "P"),
        ("I, III", r"\text{I and III}"),
    ],
    "unit words": [
        (r"15\ \text{m s}^{-1}", r"15 \text{ m/s}"),
        (r"6.6\times 10^{-34}\ \mathrm{J\cdot s}", r"6.6 \times 10^{-34} \text{ J s}"),
        (r"10{:}45\text{ a.m.}", r"10:45 \text{ AM}"),
    ],
    "rounded": [
        (r"\lfloor \log_2 n \rfloor + 1", r"\lceil \log_2(n+1) \rceil"),
        (r"\lceil \frac{m}{n} \rceil", r"\lfloor \frac{m+n-1}{n} \rfloor"),
        (r"\lfloor \frac{n}{2} \rfloor", r"\frac{2n-1+(-1)^n}{4}"),
        (r"(-1)^{n(n-1)/2}", r"(-1)^{\lfloor n/2 \rfloor}"),
    ],
    "large": [
        (r"2^{1000}\sqrt2", r"2^{1000.5}"),
        (r"(1+\sqrt2)^{2024}", r"(3+2\sqrt2)^{1012}"),
        (r"2^{1000}\cos\frac{\pi}{7}", r"-2^{1000}\cos\frac{6\pi}{7}"),
        (r"1000!\ln 4", r"2\cdot 1000!\ln 2"),
    ],
    "values with names": [("f(4)>f(1)>f(2)", "f(2)<f(1)<f(4)"), ("f(2)=5", "5"), ("f(0)+1", "1+f(0)")],
    "two lines": [(r"y=\frac34x, y=-\frac34x", r"3x\pm 4y=0"), (r"x_1=1, x_2=-1", r"x=\pm 1")],
    "letters as they are": [
        (r"R\sqrt{\frac{2mgh}{mR^2 + I}}", r"\sqrt{\frac{2mgh}{m+I/R^2}}"),
        ("mR^2 + I", "I+mR^2"),
        ("1 + I", "1+i"),
    ],
    "a power before a fraction": [(r"x^2\frac12", r"\frac{x^2}{2}"), (r"\sin^2\frac12", r"(\sin 0.5)^2")],
    "a full stop": [("12 (ways).", "12"), ("1.234,56.", "1234.56")],
    "angles": [(r"60^\circ", r"\frac{\pi}{3}"), (r"60^\circ, 120^\circ", r"\frac{\pi}{3}, \frac{2\pi}{3}")],
    "sentences": [
        (r"7\sqrt2\ (\approx 9.90)", r"7\sqrt2"),
        (r"\text{The answer is (B)}", "B"),
        (r"\text{The answer is 2.5}", "2.5"),
        (r"\text{The sum is } 5", "5"),
    ],
}

WRONG = [
    ("1", "2"),
    ("10", "0.1"),
    (r"5\%", "0.5"),
    ("1.0001", "1"),
    (r"\frac{22}{7}", r"\pi"),
    (r"\sqrt2", "1.414"),
    ("2.3", "2.2892"),
    ("(3,4)", "(4,3)"),
    ("[0,1]", "(0,1)"),
    ("x > 3", r"x \ge 3"),
    ("1, 2", "1"),
    ("1, 2", "1, 2, 3"),
    (r"1 \text{ or } 2", "1"),
    (r"42 \pm 1", "42"),
    ("[41, 43]", "42"),
    ("x = 2", "x = 1"),
    ("a=1, b=2", "a=2, b=1"),
    (r"\frac{1}{2006!}", r"\frac{1}{2004!}"),
    (r"\tan(\pi/2)", "0"),
    ("1/0", "2/0"),
    (r"\infty - \infty", "0"),
    ("x^2", "x^3"),
    (r"\sqrt{x^2}", "x"),
    ("5\\pi", "5"),
    ("16386.16", "16386.17"),
    ("(3,1),(2,1)", "f(2) < f(1) < f(4)"),
    (r"\frac{1}{2006!}", r"\lim_{x \to \infty} \frac{1}{x}"),
    ("f(x) = 1", "x = 1"),
    ("f(x) = 1", "|AB| = 1"),
    ("(2,1]", "(3,1]"),
    ("1:00", "12:00"),
    ("12:30", "2:05"),
    ("even", "odd"),
    ("C", "D"),
    ("x+1", "y+1"),
    (r"\cos x = \frac12", r"\sin x = \frac12"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", "(2,1)"),
    (r"2n\pi, n\in\mathbb{Z}", r"k\pi, k \in \mathbb{Z}"),
    (r"\frac{\pi}{4}+k\pi, k\in\mathbb{Z}", r"\frac{\pi}{3}+k\pi, k \in \mathbb{Z}"),
    ("f(x)=x+1", "f(x)=y+1"),
    ("x^2+C", "x^2"),
    ("x^2+C", "x^3+C"),
    (r"n \equiv 1 \pmod{4}", r"n\equiv 1 \pmod 5"),
    (r"n \equiv 1 \pmod{4}", r"n\equiv 3 \pmod 4"),
    (r"\{1,\{2\}\}", r"\{1,2\}"),
    ("10:45 a.m.", "10:45 p.m."),
    (
        r"\begin{cases} 1, & n \text{ even} \\ 2, & n \text{ odd} \end{cases}",
        r"\begin{cases} 2, & n \text{ even} \\ 1, & n \text{ odd} \end{cases}",
    ),
    (r"\text{no solution}", "0"),
    (r"(1,2,3) \text{ and permutations}", "(1,2,3)"),
    ("A, C", "A, B"),
    ("A", "B, A"),
    (r"3\mathbf{i}+2\mathbf{j}", "(2,3)"),
    (r"\lfloor n/2 \rfloor", "n/2"),
    (r"\text{The answer is not } 7", "7"),
    *[(rf"\lceil {n}/{q} \rceil", rf"\lfloor {n}/{q} \rfloor + 1") for n in "nkxtaNpm" for q in (2, 3, 4, 5, 10)],
    *[(f"(-1)^{n}", other) for n in "nkxNm" for other in ("1", f"(-1)^{{{n}({n}-1)/2}}", "-1")],
    (r"\lceil \log_2 n \rceil", r"\lfloor \log_2 n \rfloor + 1"),
    (r"\lceil m/n \rceil", r"\lfloor m/n \rfloor + 1"),
    (r"\cos\frac{n\pi}{2}", r"(-1)^{n/2}"),
    (r"2^{1000}+\sqrt2", "2^{1000}"),
    (r"2^{300}+\pi", "2^{300}+e"),
    ("3^{200}+n", "3^{200}+2n"),
    ("2^{2024}+C", "2^{2024}"),
    ("f(4)<f(1)<f(2)", "f(2)<f(1)<f(4)"),
    ("f(1)<f(3)", "f(1)<f(2)"),
    ("f(2)+f(3)", "f(1)+f(4)"),
    ("f(0)", "0"),
    (r"3x-4y=0", r"3x\pm 4y=0"),
    (r"y=-\frac34x", r"3x\pm 4y=0"),
    ("x+y=1, x-y=3", "x+y=1, x-y=3, 2x+3y=5"),
    (r"x\in(3,7)", "x=3, x=7"),
    (r"\text{(A) or B}", "A"),
    ("(A), B", "A"),
    (r"2, \max = 5", "5"),
    (r"x < \max = 5", "5"),
    (r"a \ne b, 7", r"a \ne b, 3"),
    (r"30^\circ", r"\frac{\pi}{3}"),
    (r"\text{Twice the answer is } 7", "7"),
    (r"\text{Half of it is 5}", "5"),
    (r"(0,1)\times(0,2)", r"(0,2)\times(0,1)"),
]


def box(answer: str) -> str:
    return f"The answer is $\\boxed{{{answer}}}$."


@pytest.mark.parametrize(("rule", "a", "b"), [(rule, a, b) for rule, pairs in RIGHT.items() for a, b in pairs])
def test_two_notations_of_one_answer_are_equal_both_ways(rule: str, a: str, b: str) -> None:
    for prediction, gold in ((a, b), (b, a)):
        verdict = verify(box(prediction), gold)
        assert verdict.correct, (rule, prediction, gold, verdict)


@pytest.mark.parametrize(("a", "b"), WRONG)
def test_different_answers_are_told_apart_both_ways(a: str, b: str) -> None:
    for prediction, gold in ((a, b), (b, a)):
        verdict = verify(box(prediction), gold)
        assert not verdict.correct, (prediction, gold, verdict)


@pytest.mark.parametrize(
    ("prediction", "gold"),
    [
        ("a + 3z = 0", "x = 0"),
        ("0", "a + 3z = 0"),
        ("y = f(x)", "f(x) = x + 1"),
        ("x = x", "x = 5"),
        ("2x = 4", "x = 2"),
    ],
)
def test_restating_an_equation_is_not_a_solution(prediction: str, gold: str) -> None:
    assert not verify(box(prediction), gold).correct


def test_a_residue_without_its_modulus_is_no_congruence() -> None:
    assert not verify(box("1"), r"n \equiv 1 \pmod 4").correct


@pytest.mark.parametrize(
    ("prediction", "gold", "correct"),
    [
        (r"\pi", "3.14159265", True),  # nine digits: the exact value is welcome
        ("3.14159265", r"\pi", False),  # an exact gold wants exactness
        (r"\frac{1}{3}", "0.3333333", True),
        (r"\frac{1}{3}", "0.3333", False),
        ("1.97", "1.97423402868049", False),
        ("0.33333333333333", r"\frac13", True),
    ],
)
def test_a_long_decimal_stands_for_the_exact_value(prediction: str, gold: str, correct: bool) -> None:
    assert verify(box(prediction), gold).correct is correct


def test_each_stage_signs_its_verdicts() -> None:
    stages = {
        ("1", "1"): "string",
        (r"\dfrac{1}{2}", r"\frac{1}{2}"): "normalised",
        ("0.5", r"\frac{1}{2}"): "number",
        ("2, 1", "1, 2"): "structure",
        (r"\sqrt{8}", r"2\sqrt{2}"): "algebra",
    }
    assert {pair: verify(box(pair[0]), pair[1]).stage for pair in stages} == stages
    assert verify("no box", "1").stage == "extract"


def test_a_gold_that_does_not_parse_is_unverifiable_unless_the_strings_are_equal() -> None:
    assert verify(box("2"), r"\frac{1}{").status == "unverifiable_gold"
    assert verify(box("2"), "").status == "unverifiable_gold"
    assert verify(box(r"1 \oplus \pmod"), r"1 \oplus \pmod").correct


def test_thinking_counts_only_where_it_may() -> None:
    assert verify(r"<think>\boxed{1}", "1").correct
    assert not verify(r"<think>\boxed{1}", "1", after_think=True).correct
