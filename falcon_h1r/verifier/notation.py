"""From many ways of writing to few: unicode, LaTeX sizes and spaces, thousands separators, remarks."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

from falcon_h1r.verifier.extract import unwrap_boxes
from falcon_h1r.verifier.remarks import builder_family, split_remark, whole_answer

_UNICODE = {
    "−": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ", "∗": "*",
    "π": r"\pi ", "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∖": r"\setminus ", "√": r"\sqrt ",
    "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ",
    "±": r"\pm ", "∓": r"\mp ", "°": r"^\circ ", "º": r"^\circ ", "∈": r"\in ", "∅": r"\emptyset ",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℚ": r"\mathbb{Q}", "ℕ": r"\mathbb{N}", "∠": r"\angle ",
    "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "→": r"\to ", "′": "'", "’": "'",
    "∣": "|", "≡": r"\equiv ", "…": r"\dots ", "⋯": r"\dots ", "⟨": r"\langle ", "⟩": r"\rangle ",
    "，": ",", "；": ";", "：": ":", "％": "%", "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}",
    "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
}  # fmt: skip
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi "
    "chi psi omega"
).split()
for _name in _GREEK:
    _official = _name.replace("lambda", "lamda").upper()
    _UNICODE[unicodedata.lookup(f"GREEK SMALL LETTER {_official}")] = f"\\{_name} "
    _UNICODE[unicodedata.lookup(f"GREEK CAPITAL LETTER {_official}")] = f"\\{_name.capitalize()} "
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUPERSCRIPT_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_TRANSLATION = str.maketrans(_UNICODE)
_INVISIBLE = frozenset(("Cf", "Cc", "Cs", "Co", "Cn"))

_END = r"(?![A-Za-z])"  # of a command's name
_TEXT = r"\\(?:text|mathrm)\s*\{\s*"
_INDEX = r"\{?(\w+)\}?"  # of a letter, braces dropped

_MINUTE = r"(?:'|\^\s*\{?\s*\\prime\s*\}?|′)"


def _in_degrees(match: re.Match[str]) -> str:
    degrees, minutes, seconds = match.groups()
    return f"({degrees}+{minutes}/60+{seconds or 0}/3600)°"


# Applied in order to the LaTeX source; each drops or unifies one way of writing and never changes the value.
_REWRITES: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\\$|[€£¥₹]", ""),
        (r"\{([:;.])\}", r"\1"),
        # a decimal comma: in braces unless three digits follow, or behind thousands' points
        (r"(?<![\d,.])(0|\d+(?=\{,\}(?!\d{3}(?!\d))))\{,\}(?=\d)", r"\1."),
        (r"(?<![\d.,])(\d{1,3})\.(\d{3}),(\d+)(?![\d.,])", r"\1\2.\3"),
        (r"\\\\\s*\[[\d.]+\s*(?:em|ex|pt|mm|cm)\]", r"\\\\ "),
        (r"(?<!\\)\\[()\[\]]|\$+", " "),
        (r"\\(?:left|right)\s*\.", " "),
        (r"\\(?:left|right|middle|[bB]igg?[lrm]?|displaystyle|textstyle|limits|nolimits)" + _END, " "),
        (r"\\(?:hspace|vspace|phantom|label|tag|color|textcolor)\*?\{[^{}]*\}", " "),
        (r"(\d)\{,\}(?=\d{3}(?!\d))", r"\1"),
        (r"(\d)\s*,\s*\\!\s*(?=\d{3}(?!\d))", r"\1"),
        (r"(\d)(?:\\[,;: ]\s?)(?=\d{3}(?!\d))", r"\1"),
        (r"(?<!\\)\\(?:[,;:!> ]|(?:quad|qquad|enspace|thinspace|hfill|newline|nobreak)" + _END + ")|~", " "),
        (r"\\(?:[dtcs]|nice)frac" + _END, r"\\frac"),
        (r"\\[dt]binom" + _END, r"\\binom"),
        (r"\\(?:leq|leqslant|le)" + _END + "|<=|=<", "≤"),
        (r"\\(?:geq|geqslant|ge)" + _END + "|>=", "≥"),
        (r"\\(?:neq|ne)" + _END + "|!=", "≠"),
        (r"\\&", " , "),
        (r"\\lt" + _END, "<"),
        (r"\\gt" + _END, ">"),
        (r"\\(?:mid|vert|lvert|rvert)" + _END, "|"),
        (r"\\(?:cupdot|sqcup|bigcup)" + _END, r"\\cup "),
        (r"\\lbrace" + _END, r"\\{"),
        (r"\\rbrace" + _END, r"\\}"),
        (r"\\(?:varnothing|O)" + _END, r"\\emptyset "),
        (r"\\var(?=epsilon|theta|phi|rho|sigma|kappa|pi)", r"\\"),
        (r"\\%|" + _TEXT + r"(?:%|\\%|percent|per cent|pct)\s*\}", "%"),
        (r"(?<=\d)\s*(?:percent|per cent|pct)\b", "%"),
        (r"\\(?:degree|degrees)" + _END, r"^\\circ "),
        (r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ" + _END, r"°"),
        # a unit written as a fraction of words
        (r"\\frac\s*\{\s*" + _TEXT + r"([^{}]*)\}\s*\}\s*\{\s*" + _TEXT + r"[^{}]*\}(?:\^\{?\d\}?)?\s*\}",
         r"\\text{\1} "),
        # ordinals: 12th, 5^{th}
        (r"(?<=\d)\s*(?:\^\s*\{?\s*)?(?:" + _TEXT + r")?(?:st|nd|rd|th)" + _END + r"\s*\}*", ""),
        (r"(?<=\S)\s*\\text\s*\{\s*\([^{}()]*\)\s*\}\s*$", ""),
        (r"\\colon" + _END, ":"),
        (r"\\(?:simeq|cong|sim|doteq)" + _END, r"\\approx "),
        (r"\.{3,}|\\(?:dots[bcimo]?|[lch]dots)" + _END, r" \\dots "),
        (r"(?i)(?<=:\d\d)\s*(?:" + _TEXT + r")?(a|p)\.?\s?m\b\.?\s*\}?", r" \\text{\1m}"),
        # a repeating decimal: 0.1(6), 0.\dot{1}4\dot{2}
        (r"(?<![\d.])(\d*\.\d*)\((\d+)\)(?![\d^])", r"\1\\overline{\2}"),
        (r"(?<![\d.])(\d*\.\d*)\\dot\s*\{?(\d)\}?\s*(\d*)\s*\\dot\s*\{?(\d)\}?", r"\1\\overline{\2\3\4}"),
        # degrees, minutes and seconds
        (
            r"(?<!\d)(\d+)\s*°\s*(\d+)\s*" + _MINUTE + r"(?:\s*(\d+(?:\.\d+)?)\s*(?:" + _MINUTE + "{2}|\"))?",
            _in_degrees,
        ),
        (r"\\overrightarrow" + _END, r"\\vec"),
        (r"\\(?:mathbf|bm|boldsymbol)\s*\{?\s*([RZQN])\s*\}?(?![A-Za-z])", r"\\mathbb{\1}"),
        (r"(?<=[\d)]\*)I\b|(?<=[+-] )I\b|\bI(?=\*)", "i"),  # sympy's imaginary unit
        (r"^\s*(?:Matrix|array)\s*\(\s*(\[.*\])\s*\)\s*$", r"\1"),
        (r"^\s*=\s*", ""),
        # what introduces the answer: a sentence, an article, the noun of a letter
        (r"^\s*\\text\s*\{[^{}]*\b(?:is|are|equals|equal to|be|has|have|:)(?: approximately)?\s*:?\s*\}\s*(?=\S)", ""),
        (r"^\s*\\text\s*\{\s*(?:an?|the|exactly|only|just)\s*\}\s*(?=\S)", ""),
        (r"(?i)^\s*(?:\\text\s*\{\s*)?(?:option|choice|point|statement|answer)\s*\}?\s*(\(?[A-Z]\)?)\s*\}?\s*$", r"\1"),
        # combinations with the indices around the letter
        (r"(?:\{\s*\}|(?<![\w}]))[\^_]\s*" + _INDEX + r"\s*C\s*_\s*" + _INDEX, r"\\binom{\1}{\2}"),
        (r"(?<![A-Za-z])C\s*_\s*" + _INDEX + r"\s*\^\s*" + _INDEX, r"\\binom{\1}{\2}"),
        (r"(?<![A-Za-z])C\s*\^\s*" + _INDEX + r"\s*_\s*" + _INDEX, r"\\binom{\2}{\1}"),
    )
)  # fmt: skip
_THOUSANDS = re.compile(r"(?<![\d.,^_])([1-9]\d{0,2})((?:,\d{3})+)(?!\d|,\d)")
_SPACED_THOUSANDS = re.compile(r"(?<![\d.,^_/])([1-9]\d{0,2})((?: \d{3})+)(?![\d/]| \d)")
_INTERVAL = re.compile(
    r"(?<!\\sqrt)([\[\]])(?!\{)(\s*[^\[\]()\s,;][^\[\]()]*[,;][^\[\]()]*[^\[\]()\s,;]\s*)(?<!\\sqrt)([\[\]])(?!\{)"
)
_ESCAPED_TWICE = re.compile(r"\\\\(?=[A-Za-z]{2}|[{}%$])")


def _join_thousands(text: str) -> str:
    """Thousands separators removed outside brackets; inside, (312,123) is a pair."""
    if not re.search(r"\d[, ]\d{3}", text):
        return text
    out: list[str] = []
    depth = 0
    inside_command = False  # in \frac{1,000}{3} a comma lists nothing
    for piece in re.split(r"([()\[\]{}])", text):
        if piece in ("(", "[", "{"):
            depth += 1
            inside_command = piece == "{" and "".join(out[-2:]).rstrip().endswith(("\\frac", "}", "^"))
        elif piece in (")", "]", "}"):
            depth -= 1
        elif depth == 0 or inside_command:
            for pattern in (_THOUSANDS, _SPACED_THOUSANDS):
                piece = pattern.sub(lambda m: m.group(1) + m.group(2).replace(",", "").replace(" ", ""), piece)
        out.append(piece)
    return "".join(out)


def _with_round_brackets(match: re.Match[str]) -> str:
    """]0, 1[ as (0, 1)."""
    low, body, high = match.groups()
    return ("(" if low == "]" else low) + body + (")" if high == "[" else high)


def clean_parts(answer: str, join_thousands: bool = True) -> tuple[str, str]:
    """(value, remark) of an answer in few ways of writing; the value is what the tokeniser reads."""
    text, remark = _rewritten(answer)
    if join_thousands:
        text = _join_thousands(text)
    while text and text[-1] in ".,;: \\":
        text = text[:-1]
    return text, remark


@lru_cache(maxsize=1024)
def _rewritten(answer: str) -> tuple[str, str]:
    text = unwrap_boxes(answer)
    if _ESCAPED_TWICE.search(text) and ("\\begin" not in text or "\\\\begin" in text):
        text = _ESCAPED_TWICE.sub(r"\\", text)
    text = _SUPERSCRIPT_RUN.sub(lambda m: "^{" + m.group().translate(_SUPERSCRIPTS) + "}", text)
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text.translate(_TRANSLATION)).translate(_TRANSLATION)
        text = "".join(c for c in text if unicodedata.category(c) not in _INVISIBLE or c in "\n\t")
    text = " ".join(text.split())
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = " ".join(text.split())
    text = _INTERVAL.sub(_with_round_brackets, text)
    if text.startswith("**") and text.endswith("**") and len(text) > 4:
        text = text[2:-2].strip()
    return split_remark(builder_family(whole_answer(text)))


def clean(answer: str) -> str:
    """The value of `clean_parts` alone."""
    return clean_parts(answer)[0]


def compact(cleaned: str) -> str:
    r"""A cleaned answer as a key: no spaces, no text wrappers, lower case unless it is one letter."""
    key = re.sub(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mbox|rm|bf)(?![A-Za-z])\s*", "", cleaned)
    key = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", key)
    key = re.sub(r"\{\s*([A-Za-z0-9])\s*\}", r"\1", key)
    # a space that ends a command's name is needed, every other one is not
    key = re.sub(r"(\\[A-Za-z]+) +(?=[A-Za-z])", r"\1" + "\0", key).replace(" ", "").replace("\0", " ")
    return key.lower() if re.fullmatch(r"[A-Za-z]{2,}[A-Za-z .,']*", key) else key
