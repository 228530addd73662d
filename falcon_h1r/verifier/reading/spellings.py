r"""The table of spellings: LaTeX, unicode, programs' printouts and languages in many ways, written in few.

Each rule drops or unifies one way of writing and never changes a value. Rules apply in order. The first field is a
piece of text without which the rule cannot match: it spares most rules most of the time.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

Replacement = str | Callable[[re.Match[str]], str]

_END = r"(?![A-Za-z])"  # of a command's name
_TEXT = r"\\(?:text|mathrm)\s*\{\s*"
_GROUP = r"\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}"  # a group with two levels of groups inside
_LETTER_C = r"(?:\\(?:mathrm|text)\s*\{\s*C\s*\}|(?<![A-Za-z\\])C)"
_INDEX = r"(\{\s*\w+\s*\}|\w)"  # of a letter
_UPRIGHT = r"\\(?:mathrm|text)\s*\{\s*[AP]\s*\}"
_MINUTE = r"(?:'|\^\s*\{?\s*\\prime\s*\}?|′)"
# words in a sentence before a value that make it another value
_CHANGING = (
    r"(?:\b(?:[Nn]ot|cannot|[Nn]ever|no|wrong|incorrect|[Tt]wice|[Tt]hrice|[Dd]ouble|[Hh]alf|opposite|negative|"
    r"reciprocal|inverse|less|more|than|minus|plus|(?<!of )times|(?<![Tt]he )(?:sum|square|root))\b|n't)"
)
_MAX_REPEATED = 9_999  # digits under a brace


def _combination(match: re.Match[str]) -> str:
    """C_5^2 as a binomial, unless C_1 says that C with an index is a constant."""
    n, k = (part.strip("{} ") for part in match.groups())
    constant = re.search(r"C_\{?1\}?(?!\d)", match.string) or (n.isdigit() and k.isdigit() and int(n) < int(k))
    return match.group() if constant else rf"\binom{{{n}}}{{{k}}}"


def _in_degrees(match: re.Match[str]) -> str:
    degrees, minutes, seconds = match.groups()
    return f"({degrees}+{minutes}/60+{seconds or 0}/3600)°"


def changes_value(words: str) -> bool:
    """Whether words before a value make it another value: "not", "twice"."""
    return re.search(_CHANGING, words) is not None


def _repeated_digit(match: re.Match[str]) -> str:
    digit, count = match.groups()
    return f"({digit}(10^{{{count}}}-1)/9)" if int(count) <= _MAX_REPEATED else match.group()


def _joined_conditions(match: re.Match[str]) -> str:
    """x < 2 \\cup x > 6, where nothing is an interval, as conditions joined by "or"."""
    parts = match.group().split("\\cup ")
    return " or ".join(parts) if all(re.search("[<>≤≥]", part) for part in parts) else match.group()


def _half_of_day(match: re.Match[str]) -> str:
    return rf" \text{{{match.group(1).lower()}m}}"


def _ordinal(match: re.Match[str]) -> str:
    """12th as 12; 2st is a product."""
    count, ending, rest = match.groups()
    right = {"1": "st", "2": "nd", "3": "rd"}.get(count[-1], "th") if count[-2:-1] != "1" else "th"
    return count + rest if ending == right else match.group()


def _power_of_ten(match: re.Match[str]) -> str:
    return rf"{match.group(1)} \cdot 10^{{{_MAGNITUDES[match.group(2).lower()]}}}"


def _interval(match: re.Match[str]) -> str:
    kind, ends = match.groups()
    brackets = {".open": "()", ".Lopen": "(]", ".Ropen": "[)"}.get(kind or "", "[]")
    return brackets[0] + ends + brackets[1]


_BINOMIAL = r"\\binom{\1}{\2}"
_MAGNITUDES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}

# What prints nothing, or only places what it holds.
_LAYOUT: tuple[tuple[str, str, Replacement], ...] = (
    ("\\left", r"\\left\s*(?:\[|\\\{)\s*(\\begin\{(array|aligned|gathered)\}.*?\\end\{\2\})\s*\\right\s*\.", r"\1"),
    ("\\\\", r"\\\\\s*\[[\d.]+\s*(?:em|ex|pt|mm|cm)\]", r"\\\\ "),
    ("\\", r"(?<!\\)\\[()\[\]]", " "),
    ("$", r"\\\$", ""),
    ("$", r"\$+", " "),
    ("\\", r"\\(?:left|right)\s*\.", " "),
    ("\\", r"\\(?:left|right|middle|[bB]igg?[lrm]?|displaystyle|textstyle|limits|nolimits|allowbreak|mathstrut|strut|"
     r"nonumber|notag|noindent|ensuremath|smash|bm|underline)" + _END, " "),
    ("\\operatorname*", r"\\operatorname\*", r"\\operatorname"),
    ("\\", r"\\(?:hspace|vspace|[hv]?phantom|label|tag|color|textcolor)\*?\s*" + _GROUP, " "),
    ("\\", r"\\(?:hskip|kern|mkern|mskip)\s*-?[\d.]+\s*(?:pt|em|ex|mu|cm|mm|in|bp)", " "),
    ("\\math", r"\\math(?:open|close|bin|rel|ord|punct|op|inner)\s*\{([^{}]*)\}", r"\1"),
    ("\\", r"\\(?:stackrel|overset)\s*" + _GROUP + r"\s*" + _GROUP, r"\2"),
    ("\\underset", r"\\underset\s*" + _GROUP + r"\s*\{\s*(\\[A-Za-z]+)\s*\}", r"\2_{\1}"),
)  # fmt: skip

_NUMERALS: tuple[tuple[str, str, Replacement], ...] = (
    ("{,}", r"(\d)\{,\}(?=\d{3}(?!\d))(?<!(?<!\d)0\{,\})", r"\1"),
    ("\\!", r"(\d)\s*,\s*\\!\s*(?=\d{3}(?!\d))", r"\1"),
    ("\\", r"(\d)(?:\\[,;: ]\s*)(?=\d{3}(?!\d))", r"\1"),
    ("\\!", r"\\!", ""),
    ("\\", r"(?<!\\)\\(?:[,;:> ]|(?:quad|qquad|enspace|thinspace|hfill|newline|nobreak)" + _END + ")", " "),
    ("~", "~", " "),
    ("{", r"\{([:;.])\}", r"\1"),
    # a decimal comma: in braces, before a currency, behind thousands' points
    ("{,}", r"(?<=\d)\{,\}(?=\d)", "."),
    (",", r"(?<![\d,.])(\d+),(\d\d)\s*(?=€|\\text\{\s*(?:€|EUR|euros?)|EUR)", r"\1.\2"),
    (",", r"(?<![\d.,])(\d{1,3})\.(\d{3}),(\d+)(?![\d.,])", r"\1\2.\3"),
    ("'", r"(?<![\d'])(\d{1,3})'(\d{3})(?:'(\d{3}))?(?:'(\d{3}))?(?![\d'])",
     lambda m: "".join(part or "" for part in m.groups())),
    ("E", r"(\d)\s*\\(?:mathrm|text)\s*\{\s*E\s*\}\s*\{?\s*([-+]?\d+)\s*\}?", r"\1e\2"),
    ("underbrace", r"\\underbrace\s*\{\s*(\d)(?:\s*\1)*\s*(?:\\[lc]?dots)\s*(?:\1\s*)*\}\s*_\s*\{?\s*(\d+)[^{}]*"
     r"(?:\{[^{}]*\})?\s*\}?", _repeated_digit),
    # a repeating decimal: 0.1(6), 0.\dot{1}4\dot{2}
    ("(", r"(?<![\d.])(\d*\.\d*)\((\d+)\)(?![\d^])", r"\1\\overline{\2}"),
    ("\\dot", r"(?<![\d.])(\d*\.\d*)\s*\\dot\s*\{?\s*(\d)\s*\}?\s*(\d*)\s*\\dot\s*\{?\s*(\d)\s*\}?",
     r"\1\\overline{\2\3\4}"),
    ("", r"(?i)(\d)\s*" + _TEXT + r"(hundred|thousand|million|billion|trillion)s?\b[^{}]*\}", _power_of_ten),
    ("", r"(?i)(\d)\s*(hundred|thousand|million|billion|trillion)s?\b", _power_of_ten),
    # siunitx
    ("\\", r"\\(?:SI|qty)\s*(?:\[[^\]]*\])?\s*" + _GROUP + r"\s*" + _GROUP, r"\1"),
    ("\\", r"\\(?:unit|si)\s*" + _GROUP, " "),
    ("\\num", r"\\num\s*" + _GROUP, r"\1"),
    ("\\ang", r"\\ang\s*\{([^{};]*)\}", r"\1°"),
)  # fmt: skip

_SYMBOLS: tuple[tuple[str, str, Replacement], ...] = (
    ("frac", r"\\(?:[dtcs]|nice)frac" + _END, r"\\frac"),
    ("binom", r"\\[dt]binom" + _END, r"\\binom"),
    ("\\not", r"\\not\s*(?:<|\\lt)" + _END, "≥"),
    ("\\not", r"\\not\s*(?:>|\\gt)" + _END, "≤"),
    ("\\not", r"\\not\s*(?:\\leq?|≤)" + _END, ">"),
    ("\\not", r"\\not\s*(?:\\geq?|≥)" + _END, "<"),
    ("\\not", r"\\not\s*=", "≠"),
    ("\\not", r"\\not\s*\\in" + _END, r"\\notin"),
    ("", r"\\(?:leq|leqslant|leqq|le)" + _END + "|<=|=<", "≤"),
    ("", r"\\(?:geq|geqslant|geqq|ge)" + _END + "|>=", "≥"),
    ("", r"\\(?:neq|ne)" + _END + "|!=", "≠"),
    ("\\&", r"\\&", " , "),
    ("\\lt", r"\\lt" + _END, "<"),
    ("\\gt", r"\\gt" + _END, ">"),
    ("\\", r"\\(?:mid|vert|lvert|rvert)" + _END, "|"),
    ("cup", r"\\(?:cupdot|sqcup|bigcup)" + _END, r"\\cup "),
    ("U", r"(?<=[\])])\s*U\s*(?=[\[(])", r"\\cup "),
    ("minus", r"\\smallsetminus" + _END, r"\\setminus "),
    ("brace", r"\\lbrace" + _END, r"\\{"),
    ("brace", r"\\rbrace" + _END, r"\\}"),
    ("\\", r"\\(?:varnothing|O)" + _END, r"\\emptyset "),
    ("\\var", r"\\var(?=epsilon|theta|phi|rho|sigma|kappa|pi)", r"\\"),
    ("%", r"\\%|" + _TEXT + r"(?:%|\\%)\s*\}", "%"),
    ("p", _TEXT + r"(?:percent|per cent|pct)\s*\}|(?<=\d)\s*(?:percent|per cent|pct)\b", "%"),
    ("degree", r"\\(?:degree|degrees)" + _END, r"^\\circ "),
    ("\\circ", r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ" + _END, r"°"),
    # a unit written as a fraction of words
    ("\\frac", r"\\frac\s*\{\s*" + _TEXT + r"([^{}]*)\}\s*\}\s*\{\s*" + _TEXT + r"[^{}]*\}(?:\^\{?\d\}?)?\s*\}",
     r"\\text{\1} "),
    ("\\colon", r"\\colon" + _END, ":"),
    ("\\", r"\\(?:simeq|doteq)" + _END, r"\\approx "),
    ("", r"\.{3,}|\\(?:dots[bcimo]?|[lch]dots)" + _END, r" \\dots "),
    ("°", r"(?<!\d)(\d+)\s*°\s*(\d+)\s*" + _MINUTE + r"(?:\s*(\d+(?:\.\d+)?)\s*(?:" + _MINUTE + "{2}|\"))?",
     _in_degrees),
    ("arrow", r"\\overrightarrow" + _END, r"\\vec"),
    ("\\", r"\\(?:mathbf|boldsymbol)\s*\{?\s*([RZQN])\s*\}?(?![A-Za-z])", r"\\mathbb{\1}"),
    ("\\mathbb", r"\\mathbb\s*\{?\s*R\s*\}?\s*(?:_\s*\{?\s*([+>])\s*0?\s*\}?|\^\s*\{?\s*(\+)\s*\}?)", r"(0,\\infty)"),
    ("\\mathbb", r"\\mathbb\s*\{?\s*R\s*\}?\s*(?:_\s*\{?\s*([-<])\s*0?\s*\}?|\^\s*\{?\s*(-)\s*\}?)", r"(-\\infty,0)"),
    ("\\mathbb", r"\\mathbb\s*\{?\s*R\s*\}?\s*_\s*\{\s*≥\s*0\s*\}", r"[0,\\infty)"),
    ("\\mathbb", r"\\mathbb\s*\{?\s*Z\s*\}?\s*(?:_\s*\{?\s*(?:>\s*0|\+)\s*\}?|\^\s*\{?\s*\+\s*\}?)", r"\\mathbb{Z+}"),
    ("mapsto", r"^\s*(?:[a-zA-Z]\s*:)?\s*([a-zA-Z])\s*\\mapsto\s*", r"f(\1)="),
    # combinations and permutations with indices around the letter
    ("C", r"(?:\{\s*\}|(?<![\w}]))[\^_]\s*" + _INDEX + r"\s*" + _LETTER_C + r"\s*_\s*" + _INDEX, _BINOMIAL),
    ("C", _LETTER_C + r"\s*_\s*" + _INDEX + r"\s*\^\s*" + _INDEX, _combination),
    ("C", _LETTER_C + r"\s*\^\s*" + _INDEX + r"\s*_\s*" + _INDEX, r"\\binom{\2}{\1}"),
    ("_", _UPRIGHT + r"\s*_\s*" + _INDEX + r"\s*\^\s*" + _INDEX, r"\\frac{(\1)!}{(\1-\2)!}"),
    ("prime", r"\^\s*(?:\{\s*((?:\\prime\s*)+)\}|(\\prime)" + _END + ")", lambda m: "'" * m.group().count("prime")),
    ("(", r"(?<=\S)[\s,]*\(([^()]*[≠<>≤≥][^()]*)\)\s*$", r", \1"),
    ("{d}", r"\\(?:mathrm|text|operatorname)\s*\{d\}\s*(?=[a-zA-Z\\])", "d "),
    ("\\operatorname", r"\\operatorname\s*\{\s*(?:sen)\s*\}", r"\\sin "),
    ("\\operatorname", r"\\operatorname\s*\{\s*([cs])h\s*\}", lambda m: {"c": r"\cosh ", "s": r"\sinh "}[m.group(1)]),
    ("|", r"^\s*([A-Z])\s*\(([^|()]*)\|([^|()]*)\)\s*$", r"\1(\2,\3)"),
)  # fmt: skip

_PROGRAMS: tuple[tuple[str, str, Replacement], ...] = (  # printouts of sympy, numpy, Mathematica
    ("I", r"(?<=[\d)]\*)I\b|\bI(?=\*)", "i"),
    ("I", r"^([-\d./+* ()]|sqrt|pi)+ [+-] I$", lambda m: m.group()[:-1] + "i"),
    ("(", r"^\s*(?:Matrix|array)\s*\(\s*(\[.*\])\s*\)\s*$", r"\1"),
    ("Interval", r"\bInterval(\.open|\.Lopen|\.Ropen)?\(([^()]*)\)", _interval),
    ("FiniteSet", r"\bFiniteSet\(([^()]*)\)", r"\\{\1\\}"),
    ("Union", r"^\s*Union\((.*)\)\s*$", r"\1"),
    ("Eq", r"^\s*Eq\((.*),\s*([^,()]*)\)\s*$", r"\1 = \2"),
    ("Rational", r"\bRational\(\s*(-?\d+)\s*,\s*(-?\d+)\s*\)", r"(\1/\2)"),
    ("Sqrt", r"\bSqrt\[([^\[\]]*)\]", r"\\sqrt{\1}"),
    ("->", r"\{\s*(\w+)\s*->\s*([^{},]*)\}", r"\1=\2"),
    (":", r"^\s*\{((?:\s*[A-Za-z]\w*\s*:[^{}:,]*,?)+)\}\s*$", lambda m: m.group(1).replace(":", "=")),
)

_WORDS: tuple[tuple[str, str, Replacement], ...] = (
    # ordinals: 12th, 5^{th}
    ("", r"^\s*(\d+)\s*(?:\^\s*\{?\s*)?(?:" + _TEXT + r")?(st|nd|rd|th)" + _END + r"\s*\}*((?:\s+[a-z]+)*)\s*$",
     _ordinal),
    ("万", r"(\d)\s*万", r"\1 \\cdot 10^4"),
    ("亿", r"(\d)\s*亿", r"\1 \\cdot 10^8"),
    (":", r"(?i)(?<=:\d\d)\s*" + _TEXT + r"(a|p)\.?\s?m\b\.?\s*\}", _half_of_day),
    (":", r"(?i)(?<=:\d\d)\s*(a|p)\.?\s?m\b\.?", _half_of_day),
    ("mod", r"\\text\s*\{\s*\(\s*mod(?:ulo)?\s+(\w+)\s*\)\s*\}", r"\\pmod{\1}"),
    ("(", r"(?<=\S)\s*\\text\s*\{\s*\((?![^)]*\b(?:or|but|and|not|am|pm)\b)[a-z ]{2,}\)\s*\}\s*$", ""),
    ("(", r"(?<=\d)\s*\(\s*\\(?:text|mathrm)\s*\{\s*[a-zA-Z]{1,4}\s*\}\s*\)\s*$", ""),
    ("(", r"(?<=\d)\s*\((?!or\b|and\b|not\b|mod\b|but\b)[a-z]{3,}(?: [a-z]+)*\)\s*$", ""),
    ("approx", r"(?<=[^\s(])\s*\(\s*\\approx[^()]*\)\s*$", ""),
    (".", r"\\text\s*\{[^{}]*\.[^{}]*\}", lambda m: re.sub(r"(?<=[a-z])\.(?!\d)", "", m.group())),
    ("", r"^\s*(?:\\text\s*\{\s*)?(?:USD|EUR|GBP|INR|Rs\.?)\s*\}?\s*(?=\d)", ""),
    ("out", r"(?<!\d)(\d+)\s*(?:\\text\s*\{\s*)?out of\s*\}?\s*(\d+)", r"\1/\2"),
    ("\\cup", r"^[^()\[\]]*$", _joined_conditions),
    # a counter behind a number; 万 and its like multiply
    ("", r"(?<=[\d})])\s*(?:\\(?:text|mathrm)\s*\{\s*)?(?![十百千万亿億半倍])[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+"
     r"\s*\}?\s*$", ""),
    ("text", r"\.\s*\}\s*$", "}"),
    ("text", r"\\text\s*\{\s*(?:et|und)\s*\}", r"\\text{ and }"),
    ("text", r"\\text\s*\{\s*(?:ou|oder)\s*\}", r"\\text{ or }"),
    # what introduces the answer: an equals sign, a sentence, an article, the noun of a letter
    ("=", r"^\s*=\s*", ""),
    ("\\text", r"^\s*\\text\s*\{(?![^{}]*" + _CHANGING + r")[^{}]*\b(?:is|are|equals|equal to|be|has|have)"
     r"(?: approximately)?\s*:?\s*\}\s*(?=\S)", ""),
    ("is ", r"^\s*\\text\s*\{(?![^{}]*" + _CHANGING + r")[^{}]*\bis:?\s+(\(?[A-J]\)?|-?\d+(?:\.\d+)?)\s*\}\s*$", r"\1"),
    ("\\text", r"^\s*\\text\s*\{(?![^{}]*" + _CHANGING + r")[^{}]*:\s*\}\s*(?=\S)(?=[^:]*$)", ""),
    ("\\text", r"^\s*\\text\s*\{\s*(?:an?|the|exactly|only|just)\s*\}\s*(?=\S)", ""),
    ("", r"^\s*(\\text\s*\{\s*)?(?:an?|[Tt]he)\s+(?=[a-z]{3})", r"\1"),
    ("", r"(?i)^\s*(?:\\text\s*\{\s*)?(?:option|choice|point|statement|answer)\s*\}?\s*(\(?[A-Z]\)?)\s*\}?\s*$", r"\1"),
)  # fmt: skip

REWRITES = tuple(
    (needs, re.compile(pattern), replacement)
    for table in (_LAYOUT, _NUMERALS, _SYMBOLS, _PROGRAMS, _WORDS)
    for needs, pattern, replacement in table
)
CURRENCIES = re.compile("[€£¥₹]")

# ---------------------------------------------------------------------- unicode
UNICODE = {
    "−": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ", "∗": "*",
    "π": r"\pi ", "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∖": r"\setminus ", "√": r"\sqrt ",
    "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ",
    "±": r"\pm ", "∓": r"\mp ", "°": r"^\circ ", "º": r"^\circ ", "∈": r"\in ", "∅": r"\emptyset ",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℚ": r"\mathbb{Q}", "ℕ": r"\mathbb{N}", "∠": r"\angle ",
    "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "→": r"\to ", "′": "'", "’": "'",
    "∣": "|", "≡": r"\equiv ", "…": r"\dots ", "⋯": r"\dots ", "⟨": r"\langle ", "⟩": r"\rangle ", "⁄": "/",
    "，": ",", "；": ";", "：": ":", "％": "%",
}  # fmt: skip
for _value, _character in enumerate("①②③④⑤⑥⑦⑧⑨⑩", start=1):
    UNICODE[_character] = f"({_value}),"  # numbered statements, side by side
for _character in "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞":
    _top, _, _bottom = unicodedata.normalize("NFKC", _character).partition("⁄")
    UNICODE[_character] = rf"\frac{{{_top}}}{{{_bottom}}}"
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi "
    "chi psi omega"
).split()
for _name in _GREEK:
    _official = _name.replace("lambda", "lamda").upper()
    UNICODE[unicodedata.lookup(f"GREEK SMALL LETTER {_official}")] = f"\\{_name} "
    UNICODE[unicodedata.lookup(f"GREEK CAPITAL LETTER {_official}")] = f"\\{_name.capitalize()} "
TRANSLATION = str.maketrans(UNICODE)
_RAISED, _LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "₀₁₂₃₄₅₆₇₈₉₊₋ₙ"
_SCRIPTS = str.maketrans(_RAISED + _LOWERED, "0123456789+-n" * 2)
_SCRIPT_RUN = re.compile(f"[{_RAISED}]+|[{_LOWERED}]+")


def with_scripts(text: str) -> str:
    """Raised and lowered characters as powers and indices."""
    return _SCRIPT_RUN.sub(
        lambda m: ("^" if m.group()[0] in _RAISED else "_") + "{" + m.group().translate(_SCRIPTS) + "}", text
    )
