"""From many ways of writing to few: unicode, LaTeX sizes and spaces, thousands separators, remarks."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from falcon_h1r.verifier.extract import unwrap_boxes
from falcon_h1r.verifier.reading.remarks import NO_REMARK, Remark, builder_family, split_remark, whole_answer
from falcon_h1r.verifier.reading.spellings import CURRENCIES, REWRITES, TRANSLATION, with_scripts
from falcon_h1r.verifier.tree.node import MAX_ANSWER_CHARS

_INVISIBLE = frozenset(("Cf", "Cc", "Cs", "Co", "Cn"))
_THOUSANDS = re.compile(r"(?<![\d.,^_])([1-9]\d{0,2})((?:,\d{3})+)(?!\d|,\d)")
_INDIAN_GROUPS = re.compile(r"[1-9]\d?(?:,\d{2})+,\d{3}(?:\.\d+)?")  # 3,00,000
_SPACED_THOUSANDS = re.compile(r"(?<![\d.,^_/])([1-9]\d{0,2})((?: \d{3})+)(?![\d/]| \d)")
_INTERVAL = re.compile(
    r"(?<!\\sqrt)([\[\]])(?!\{)( ?[^\[\]()\s,;][^\[\](),;]{0,80}[,;] ?[^\[\]()\s,;][^\[\](),;]{0,80})"
    r"(?<!\\sqrt)([\[\]])(?!\{)"
)
_FULL_STOP = re.compile(r"(?<=[\d)}\]])\.(?=\$?$)")  # of the sentence that the box ends
_ESCAPED_TWICE = re.compile(r"\\\\(?=[A-Za-z]{2}|[{}%$])")


def _join_thousands(text: str) -> str:
    """Thousands separators removed outside brackets; inside, (312,123) is a pair."""
    if not re.search(r"\d[, ]\d{3}", text):
        return text
    if _INDIAN_GROUPS.fullmatch(text):
        return text.replace(",", "")
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


def _within_one_pair(text: str) -> str:
    """((((x)))) as (x): a pair of parentheses directly around another says nothing."""
    partner: dict[int, int] = {}
    opened: list[int] = []
    for position, character in enumerate(text):
        if character == "(":
            opened.append(position)
        elif character == ")" and opened:
            partner[opened.pop()] = position
    dropped = {end for start, close in partner.items() if partner.get(start + 1) == close - 1 for end in (start, close)}
    return "".join(character for position, character in enumerate(text) if position not in dropped)


def _with_round_brackets(match: re.Match[str]) -> str:
    """]0, 1[ as (0, 1)."""
    low, body, high = match.groups()
    return ("(" if low == "]" else low) + body + (")" if high == "[" else high)


def clean_parts(answer: str, join_thousands: bool = True) -> tuple[str, Remark]:
    """(value, remark) of an answer in few ways of writing; the value is what the tokeniser reads."""
    text, remark = _rewritten(answer)
    if join_thousands:
        text = _join_thousands(text)
    while text and text[-1] in ".,;: \\":
        text = text[:-1]
    return text, remark


@lru_cache(maxsize=1024)
def _rewritten(answer: str) -> tuple[str, Remark]:
    text = unwrap_boxes(answer)
    if _ESCAPED_TWICE.search(text) and ("\\begin" not in text or "\\\\begin" in text):
        text = _ESCAPED_TWICE.sub(r"\\", text)
    if not text.isascii():
        text = with_scripts(text)
        text = unicodedata.normalize("NFKC", text.translate(TRANSLATION)).translate(TRANSLATION)
        text = "".join(c for c in text if unicodedata.category(c) not in _INVISIBLE or c in "\n\t")
        if len(text) > MAX_ANSWER_CHARS:  # characters that stand for several: no rule is tried, no parser reads it
            return text, NO_REMARK
    text = _FULL_STOP.sub("", " ".join(text.split()))
    for needs, pattern, replacement in REWRITES:
        if needs in text:
            text = pattern.sub(replacement, text)
    text = " ".join(CURRENCIES.sub("", text).split())
    text = _within_one_pair(text) if "((" in text else text
    text = _INTERVAL.sub(_with_round_brackets, text)
    if text.startswith("**") and text.endswith("**") and len(text) > 4:
        text = text[2:-2].strip()
    text = text.rstrip(".,;: ")
    return split_remark(builder_family(whole_answer(text)))


def compact(cleaned: str) -> str:
    r"""A cleaned answer as a key: no spaces, no text wrappers, lower case unless it is one letter."""
    key = re.sub(r"\\(?:text|textbf|textit|mathrm|mbox)\s*\{([^{}]*)\}", r"\1", cleaned)
    key = re.sub(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mbox|rm|bf)(?![A-Za-z])\s*", "", key)
    key = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", key)
    key = re.sub(r"\{\s*([A-Za-z0-9])\s*\}", r"\1", key)
    # a space that ends a command's name or stands between digits is needed, every other one is not
    key = re.sub(r"(\\[A-Za-z]+|\d) +(?=[A-Za-z\d])(?:(?<!\d )|(?=\d))", r"\1" + "\0", key)
    key = key.replace(" ", "").replace("\0", " ")
    return key.lower() if re.fullmatch(r"[A-Za-z]{2,}[A-Za-z .,']*", key) else key


@lru_cache(maxsize=1024)
def string_forms(answer: str) -> tuple[str, str]:
    """(cleaned, compact) forms of an answer."""
    value, remark = clean_parts(answer)
    return value, compact(value) + remark.text
