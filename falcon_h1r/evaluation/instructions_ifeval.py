"""The instructions of IFEval (Zhou et al., arXiv 2311.07911), as far as a rule of ours decides them.

Differences from the authors' code: keywords are taken literally, not as regular expressions; sentences are divided by
`instructions_text.sentences`; "English" in the two rules of letter case is not looked at, as that takes a model.
`language:response_language` takes one, too, and is left undecided.
"""

from __future__ import annotations

import json
import re

from falcon_h1r.evaluation.instructions_text import Given, Rule, count_word, related, sentences, words

CONSTRAINED_RESPONSES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def has_keywords(text: str, given: Given) -> bool:
    return all(keyword.lower() in text.lower() for keyword in given["keywords"])


def keyword_frequency(text: str, given: Given) -> bool:
    return related(text.lower().count(given["keyword"].strip().lower()), given["relation"], given["frequency"])


def no_forbidden_words(text: str, given: Given) -> bool:
    return not any(count_word(word, text) for word in given["forbidden_words"])


def letter_frequency(text: str, given: Given) -> bool:
    return related(text.lower().count(given["letter"].lower()), given["let_relation"], given["let_frequency"])


def num_sentences(text: str, given: Given) -> bool:
    return related(len(sentences(text)), given["relation"], given["num_sentences"])


def num_words(text: str, given: Given) -> bool:
    return related(len(words(text)), given["relation"], given["num_words"])


def num_paragraphs(text: str, given: Given) -> bool:
    """Paragraphs divided by `***`; only before the first and after the last may there be nothing."""
    parts = [part.strip() for part in text.split("***")]
    if not all(parts[1:-1]):
        return False
    return sum(map(bool, parts)) == given["num_paragraphs"]


def nth_paragraph_first_word(text: str, given: Given) -> bool:
    """So many paragraphs, divided by an empty line, one of which begins with a given word."""
    paragraphs = text.split("\n\n")
    filled = [paragraph for paragraph in paragraphs if paragraph.strip()]
    place = given["nth_paragraph"]
    if len(filled) != given["num_paragraphs"] or not 0 < place <= len(filled):
        return False
    paragraph = paragraphs[place - 1].strip()
    if not paragraph:
        return False
    first = re.match(r"[^.,?!'\"]*", paragraph.split()[0].lstrip("'\""))
    return first is not None and first[0].lower() == given["first_word"].lower()


def num_placeholders(text: str, given: Given) -> bool:
    return len(re.findall(r"\[[^\[\]\n]*\]", text)) >= given["num_placeholders"]


def has_postscript(text: str, given: Given) -> bool:
    marker = given["postscript_marker"].strip().lower()
    patterns = {"p.s.": r"p\.\s?s\.", "p.p.s": r"p\.\s?p\.\s?s"}
    return re.search(patterns.get(marker, re.escape(marker)), text.lower()) is not None


def num_bullets(text: str, given: Given) -> bool:
    lines = [line.lstrip() for line in text.split("\n")]
    starred = sum(len(line) > 1 and line[0] == "*" and line[1] != "*" for line in lines)
    return starred + sum(line.startswith("-") for line in lines) == given["num_bullets"]


def num_highlights(text: str, given: Given) -> bool:
    spans = re.findall(r"\*([^\n*]*)\*", text) + re.findall(r"\*\*([^\n*]*)\*\*", text)
    return sum(bool(span.strip()) for span in spans) >= given["num_highlights"]


def num_sections(text: str, given: Given) -> bool:
    splitter = re.escape(given["section_spliter"].strip())
    return len(re.findall(rf"{splitter}\s?\d+", text)) >= given["num_sections"]


def constrained_response(text: str, given: Given) -> bool:
    return any(choice in text for choice in CONSTRAINED_RESPONSES)


def is_json(text: str, given: Given) -> bool:
    """The whole response is one JSON value, which may stand in a fence."""
    text = text.strip()
    for opening in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(opening)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def has_title(text: str, given: Given) -> bool:
    """A title in <<double angular brackets>>, on one line."""
    for line in text.split("\n"):
        _, opened, rest = line.partition("<<")
        title, closed, _ = rest.rpartition(">>")
        if opened and closed and title.strip("<> "):
            return True
    return False


def two_responses(text: str, given: Given) -> bool:
    parts = [part.strip() for part in text.split("******")]
    filled = list(filter(None, parts))
    return all(parts[1:-1]) and len(filled) == 2 and filled[0] != filled[1]


def repeats_prompt(text: str, given: Given) -> bool:
    return text.strip().lower().startswith(given["prompt_to_repeat"].strip().lower())


def ends_with_phrase(text: str, given: Given) -> bool:
    return text.strip().strip('"').lower().endswith(given["end_phrase"].strip().lower())


def is_quoted(text: str, given: Given) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def num_capital_words(text: str, given: Given) -> bool:
    number = sum(word.isupper() for word in words(text))
    return related(number, given["capital_relation"], given["capital_frequency"])


RULES: dict[str, Rule] = {
    "keywords:existence": Rule(has_keywords, ("keywords",)),
    "keywords:frequency": Rule(keyword_frequency, ("keyword", "relation", "frequency")),
    "keywords:forbidden_words": Rule(no_forbidden_words, ("forbidden_words",)),
    "keywords:letter_frequency": Rule(letter_frequency, ("letter", "let_relation", "let_frequency")),
    "length_constraints:number_sentences": Rule(num_sentences, ("relation", "num_sentences")),
    "length_constraints:number_paragraphs": Rule(num_paragraphs, ("num_paragraphs",)),
    "length_constraints:number_words": Rule(num_words, ("relation", "num_words")),
    "length_constraints:nth_paragraph_first_word": Rule(
        nth_paragraph_first_word, ("num_paragraphs", "nth_paragraph", "first_word")
    ),
    "detectable_content:number_placeholders": Rule(num_placeholders, ("num_placeholders",)),
    "detectable_content:postscript": Rule(has_postscript, ("postscript_marker",)),
    "detectable_format:number_bullet_lists": Rule(num_bullets, ("num_bullets",)),
    "detectable_format:constrained_response": Rule(constrained_response),
    "detectable_format:number_highlighted_sections": Rule(num_highlights, ("num_highlights",)),
    "detectable_format:multiple_sections": Rule(num_sections, ("section_spliter", "num_sections")),
    "detectable_format:json_format": Rule(is_json),
    "detectable_format:title": Rule(has_title),
    "combination:two_responses": Rule(two_responses),
    "combination:repeat_prompt": Rule(repeats_prompt, ("prompt_to_repeat",)),
    "startend:end_checker": Rule(ends_with_phrase, ("end_phrase",)),
    "startend:quotation": Rule(is_quoted),
    "change_case:capital_word_frequency": Rule(num_capital_words, ("capital_relation", "capital_frequency")),
    "change_case:english_capital": Rule(lambda text, given: text.isupper()),
    "change_case:english_lowercase": Rule(lambda text, given: text.islower()),
    "punctuation:no_comma": Rule(lambda text, given: "," not in text),
}
