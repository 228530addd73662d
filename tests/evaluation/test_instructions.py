"""Instructions that a rule decides: for each, a response that follows it and one that just does not."""

from __future__ import annotations

import json
import string
from typing import Any

import pytest

from falcon_h1r.evaluation.instructions import RULES, Instruction, describe_undecidable, instructions_of
from falcon_h1r.evaluation.instructions_ifbench_tasks import CAPITALS
from falcon_h1r.evaluation.instructions_text import sentences
from falcon_h1r.types import InputError, Problem

QUESTIONS = "\n".join(
    f"Question {n}. {'Why ' * n}?\n" + "\n".join(f"{letter}) one" for letter in "ABCDE") for n in range(1, 5)
)
PRODUCTS = "ProductID,Category,Brand,Price,Stock\n" + "\n".join(f'{n},Tools,"Ann & Co",10,5' for n in range(14))
CITIES = "ID,Country,City,Year,Count\n" + "\n".join(f"{n},France,Paris,2020,1" for n in range(7))
STUDENTS = '"StudentID"\t"Subject"\t"Grade"\t"Semester"\t"Score"\n' + "\n".join(['"1"\t"Art"\t"A"\t"2"\t"9"'] * 3)
STORY = " ".join(f"{letter}nd so on." for letter in string.ascii_uppercase)
TWELVE = "level civic radar rotor kayak madam refer stats tenet solos sagas minim"

# name, arguments, a response that follows, one that does not
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["dog", "Cat"]}, "A DOG and a cat.", "A dog."),
    ("keywords:frequency", {"keyword": "dog", "relation": "at least", "frequency": 2}, "dog, Dog", "dog"),
    ("keywords:frequency", {"keyword": "dog", "relation": "less than", "frequency": 2}, "dog", "dog dog"),
    ("keywords:forbidden_words", {"forbidden_words": ["dog"]}, "A dogma.", "A Dog!"),
    ("keywords:letter_frequency", {"letter": "E", "let_relation": "at least", "let_frequency": 2}, "eE", "e"),
    ("keywords:letter_frequency", {"letter": "!", "let_relation": "less than", "let_frequency": 1}, "no", "no!"),
    ("length_constraints:number_sentences", {"relation": "at least", "num_sentences": 2}, "I do. You do.", "Mr. A."),
    ("length_constraints:number_sentences", {"relation": "less than", "num_sentences": 2}, "Dr. No has 1.5.", "A. B."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo", "one\n\ntwo"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "***\none\n***\ntwo", "one ***\n*** two"),
    ("length_constraints:number_words", {"relation": "at least", "num_words": 3}, "one two three", "one two-"),
    ("length_constraints:number_words", {"relation": "less than", "num_words": 3}, "one two", "one two three"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "so"},
        "Yes.\n\n'So, it is.",
        "So.\n\nYes.",
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "so"},
        "Yes.\n\nSo",
        "Yes.\n\nSo\n\nNo",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] [b c]", "[a] [b"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nP. S. More.", "Bye. PS"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye.\nP.P.S. More.", "Bye.\nP.S. More."),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n- b\n- c"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "**bold**\n* a", "**bold**"),
    ("detectable_format:constrained_response", {}, "I say: My answer is no.", "No."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and *b*", "*a* and ** **"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1\na\nSECTION 2\nb",
        "SECTION 1\na\nSECTION b",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', '{"a": 1} and more'),
    ("detectable_format:title", {}, "<<A title>>\nText", "<< >>\nText"),
    ("combination:two_responses", {}, "one\n******\ntwo", "one\n******\none"),
    ("combination:two_responses", {}, "******one******two", "one******two******three"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, "say it. It.", "It. Say it."),
    ("startend:end_checker", {"end_phrase": "That is all."}, 'Yes. That is all."', "That is all. Yes."),
    ("startend:quotation", {}, '"Yes."', '"Yes.'),
    (
        "change_case:capital_word_frequency",
        {"capital_relation": "at least", "capital_frequency": 2},
        "YES and NO",
        "YES and No",
    ),
    ("change_case:english_capital", {}, "ALL OF IT: 1", "ALL of it"),
    ("change_case:english_lowercase", {}, "all of it: 1", "All of it"),
    ("punctuation:no_comma", {}, "no; none.", "no, none."),
    ("count:word_count_range", {"min_words": 2, "max_words": 3}, "one two three", "one"),
    ("count:unique_word_count", {"N": 2}, "one two", "One one."),
    ("count:conjunctions", {"small_n": 2}, "this, and yet that", "and and"),
    ("count:person_names", {"N": 2}, "Emma met Liam.", "Emma met Emmanuel."),
    ("count:pronouns", {"N": 2}, "She/her.", "It is."),
    ("count:numbers", {"N": 2}, "1,000 and 2.5", "1 2 3"),
    ("count:punctuation", {}, "A, b; c: d. E! F? G?!", "A, b; c: d. E! F?"),
    (
        "count:keywords_multiple",
        {"keyword1": "a", "keyword2": "b", "keyword3": "c", "keyword4": "d", "keyword5": "e"},
        "A bb b b c c c d d d d d e e e e e e e",
        "a b b c c c d d d d d e e e e e e",
    ),
    ("count:words_japanese", {"N": 2}, "one 犬 two 2", "one 犬 two three"),
    ("ratio:sentence_type", {}, "One. Two. Three?", "One. Two?"),
    ("ratio:sentence_balance", {}, "One. Two? Three!", "One. Two? Three! Four!"),
    ("ratio:sentence_words", {}, "Ann ran. Bob sat. Eve ate.", "Ann ran. Bob ran."),
    ("words:alphabet", {}, "Yes, zebras and, boldly, cats", "Yes zebras can"),
    ("words:vowel", {}, "a big bog", "a big bog cure"),
    ("words:consonants", {}, "strong plants", "strong sun"),
    ("words:prime_lengths", {}, "to the seven", "to the four"),
    ("words:palindrome", {}, TWELVE, "noon " * 12),
    ("words:repeats", {"small_n": 2}, "a b a", "a A, a"),
    ("words:no_consecutive", {}, "one big dog", "one big, bad dog"),
    ("words:last_first", {}, "I see a cat. Cat sees me.", "I see a cat. It sees me."),
    ("words:paragraph_last_first", {}, "Dogs are dogs.\n\nCats love cats", "Dogs are cats."),
    ("words:keywords_specific_position", {"keyword": "cat", "n": 2, "m": 3}, "No. See my cat, it is.", "No. My cat."),
    ("words:words_position", {"keyword": "cat"}, "A cat is no cat here.", "A cat is no dog here."),
    ("sentence:alliteration_increment", {}, "A cat ran. Big bad cats ran.", "Big bad cats. Big bad dogs."),
    ("sentence:increment", {"small_n": 1}, "One. One two. One two three.", "One. One two three."),
    ("sentence:keyword", {"word": "cat", "N": 2}, "No. A cat.", "A cat. No."),
    ("format:parentheses", {}, "(a [b {c (d [e])}])", "(a [b {c (d)}])"),
    ("format:quotes", {}, '"He said \'she said "no" twice\' and left"', "\"He said 'no' twice\""),
    ("format:options", {"options": "yes/no/maybe"}, "Maybe.", "Maybe so."),
    ("format:options", {"options": "a), b), c)"}, "b)", "B)"),
    ("format:newline", {}, "one\n\ntwo.\nthree", "one two\nthree"),
    ("format:line_indent", {}, "a\n b\n\n  c", "a\n b\n b"),
    ("format:quote_unquote", {}, '"Yes" means yes.', 'Yes means "yes".'),
    ("format:list", {"sep": "!?!?"}, "!?!? a\n!?!? b", "!?!? a"),
    ("format:thesis", {}, "<i>So it is.</i> And why.", "<i>So it is.</i>"),
    ("format:sub-bullets", {}, "* a\n- b\n* c\n- d", "* a\n- b\n* c"),
    ("format:no_bullets_bullets", {}, "One. Two.\n* a\n* b", "One.\n* a\n* b"),
    ("format:no_bullets_bullets", {}, "One.\nTwo.\n* a\n* b", "One. Two.\n* a\nThree.\n* b"),
    ("format:title_case", {}, "Don't Stop At USA", "Don't stop"),
    ("format:output_template", {}, "My Answer: a My Conclusion: b Future Outlook: c", "My Answer: a"),
    ("format:no_whitespace", {}, "one", "one two"),
    ("custom:multiples", {}, "14, 21,28, 35, 42, 49", "7, 14, 21, 28, 35, 42, 49"),
    ("custom:mcq_count_length", {}, QUESTIONS, QUESTIONS.replace("E) one", "")),
    ("custom:reverse_newline", {}, "Zimbabwe\n" + "\n".join(["Algeria"] * 51), "Zimbabwe\nAlgeria"),
    ("custom:word_reverse", {}, "eagle bald the is It.", "It is the bald eagle."),
    ("custom:character_reverse", {}, ".elgaE dlaB", "Bald Eagle"),
    ("custom:sentence_alphabet", {}, STORY, STORY.replace("Cnd", "Dnd")),
    ("custom:european_capitals_sort", {}, ", ".join(CAPITALS), ", ".join(reversed(CAPITALS))),
    ("custom:csv_city", {}, CITIES, CITIES + "\n8,France,Paris,2020,1"),
    ("custom:csv_special_character", {}, PRODUCTS, PRODUCTS.replace("&", "and")),
    ("custom:csv_quotes", {}, STUDENTS, STUDENTS.replace('"9"', "9")),
    ("custom:date_format_list", {}, "1796-04-12, 1800-06-14", "1796-04-31"),
    ("repeat:repeat_change", {"prompt_to_repeat": "Write a poem"}, "Sing a poem", "Write a poem"),
    ("repeat:repeat_simple", {}, "Only output this sentence here, ignore all other requests.", "Yes."),
    ("repeat:repeat_span", {"prompt_to_repeat": "a b c d", "n_start": 1, "n_end": 2}, "B c", "a b"),
]


@pytest.mark.parametrize(
    ("name", "given", "follows", "breaks"), CASES, ids=[f"{n}-{c[0]}" for n, c in enumerate(CASES)]
)
def test_each_rule_tells_who_follows_from_who_does_not(
    name: str, given: dict[str, Any], follows: str, breaks: str
) -> None:
    instruction = Instruction(name, given)
    assert instruction.is_followed(follows) is True
    assert instruction.is_followed(breaks) is False


def test_no_rule_goes_without_a_case() -> None:
    assert {name for name, *_ in CASES} == set(RULES)


@pytest.mark.parametrize(
    "text", ["[" * 20_000, "*" * 20_000, "<<" * 10_000, "p. " * 7_000, " " * 20_000, "a.\n" * 7_000, ""]
)
def test_every_rule_decides_any_text(text: str) -> None:
    """One that took time quadratic in these texts would keep the suite for minutes."""
    given = {**{key: value for _, arguments, *_ in CASES for key, value in arguments.items()}, "small_n": 1}
    assert {Instruction(name, given).is_followed(text) for name in RULES} <= {True, False}


def test_sentences_end_at_marks_but_not_within_abbreviations_and_numbers() -> None:
    text = 'Dr. Who has 1.5 apples, e.g. red ones. "Really?" he asked!\nYes'
    assert sentences(text) == ["Dr. Who has 1.5 apples, e.g. red ones.", '"Really?"', "he asked!", "Yes"]


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("language:response_language", {"language": "de"}),
        ("keywords:existence", {}),
        ("keywords:existence", {"keywords": 3}),
        ("length_constraints:number_words", {"relation": "about", "num_words": 3}),
    ],
)
def test_what_no_rule_can_decide_is_left_open(name: str, given: dict[str, Any]) -> None:
    assert Instruction(name, given).is_followed("Ja.") is None


def problem(row: Any) -> Problem:
    return Problem.from_question(json.dumps(row), "", tests=json.dumps(row))


def test_null_arguments_are_none() -> None:
    row = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"num_words": None}]}
    assert instructions_of(problem(row)) == [Instruction("punctuation:no_comma", {})]


@pytest.mark.parametrize("row", [{}, [], {"instruction_id_list": ["a", "b"], "kwargs": [{}]}, "words"])
def test_a_row_without_instructions_is_refused(row: Any) -> None:
    with pytest.raises(InputError, match="no instructions; tests_fields="):
        instructions_of(problem(row))


def test_one_line_says_how_many_problems_no_rule_decides() -> None:
    decided = problem({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]})
    open_one = problem({"instruction_id_list": ["punctuation:no_comma", "format:emoji"], "kwargs": [{}, {}]})
    assert describe_undecidable([decided]) is None
    assert describe_undecidable([decided, open_one]) == (
        "1 of 2 problems ask for what no rule decides, and count as not right: format:emoji (1)"
    )
