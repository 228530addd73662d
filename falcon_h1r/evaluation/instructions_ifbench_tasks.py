"""IFBench's instructions that are a whole task: data in a given form, a text to repeat, lists in a given order."""

from __future__ import annotations

import csv
import datetime
import io
import re
import string
import unicodedata
from itertools import pairwise

from falcon_h1r.evaluation.instructions_text import Given, Rule, sentences, stripped

ONLY_THIS_SENTENCE = "only output this sentence here, ignore all other requests."
# Above 45 degrees of latitude, from north to south, as the benchmark has them.
CAPITALS = (
    "Reykjavik Helsinki Oslo Tallinn Stockholm Riga Moscow Copenhagen Vilnius Minsk Dublin Berlin Amsterdam Warsaw "
    "London Brussels Prague Luxembourg Paris Vienna Bratislava Budapest Vaduz Chisinau Bern Ljubljana Zagreb"
).split()
AFRICAN_COUNTRIES = 52  # lines at least
NAPOLEON = (1769, 1821)


def multiples(text: str, given: Given) -> bool:
    """The multiples of 7 between 10 and 50, and no other number."""
    return re.findall(r"\d+", text) == [str(number) for number in range(14, 51, 7)]


def choice_questions(text: str, given: Given) -> bool:
    """Four questions of five options each, nothing before them, each longer than the one before."""
    if not text.startswith("Question"):
        return False
    lengths = []
    for question in filter(str.strip, re.split(r"Question \d+[.|):;]?", text)):
        is_option = [bool(re.match(r"[A-Ea-e][.|)]\s*\w", line.strip())) for line in question.strip().split("\n")]
        if sum(is_option) != 5:
            return False
        asked = question.strip().split("\n")[: is_option.index(True)]
        lengths.append(len(" ".join(line.strip() for line in asked)))
    return len(lengths) == 4 and all(one < other for one, other in pairwise(lengths))


def countries_reversed(text: str, given: Given) -> bool:
    lines = list(filter(None, map(stripped, _ascii(text).split("\n"))))
    first = next((place for place, line in enumerate(lines) if "Zimbabwe" in line), len(lines))
    listed = lines[first:]
    return len(listed) >= AFRICAN_COUNTRIES and listed == sorted(listed, reverse=True)


def words_reversed(text: str, given: Given) -> bool:
    """The words of one sentence about the bald eagle, from last to first."""
    bare = text.lower().translate(str.maketrans("", "", string.punctuation)).split()
    return "bald eagle" in " ".join(reversed(bare))


def alphabet_story(text: str, given: Given) -> bool:
    initials = [stripped(sentence)[:1].lower() for sentence in sentences(text)]
    return initials == list(string.ascii_lowercase)


def capitals_sorted(text: str, given: Given) -> bool:
    return [name.strip() for name in _ascii(text).split(",") if name.strip()] == CAPITALS


def city_table(text: str, given: Given) -> bool:
    rows = _rows(text)
    return len(rows) == 8 and rows[0] == ["ID", "Country", "City", "Year", "Count"] and _all_have(rows, 5)


def product_table(text: str, given: Given) -> bool:
    """A field in double quotes holds a special character."""
    rows = _rows(text)
    header = ["ProductID", "Category", "Brand", "Price", "Stock"]
    quoted = re.findall(r'"([^"\n]*)"', text.partition("\n")[2])
    has_special = any(re.search(r"[^\w\s]", field) for field in quoted)
    return len(rows) == 15 and [name.strip() for name in rows[0]] == header and _all_have(rows, 5) and has_special


def student_table(text: str, given: Given) -> bool:
    """Divided by tabs, every field in double quotes."""
    rows = [line.split("\t") for line in text.strip().split("\n")]
    header = ["StudentID", "Subject", "Grade", "Semester", "Score"]
    fields = [field.strip() for row in rows for field in row]
    are_quoted = all(len(field) > 1 and field[0] == field[-1] == '"' for field in fields)
    return len(rows) == 4 and _all_have(rows, 5) and are_quoted and [name.strip('"') for name in fields[:5]] == header


def dates(text: str, given: Given) -> bool:
    """Nothing but days of Napoleon's life as YYYY-MM-DD, divided by commas."""
    return all(_is_day(date.strip()) for date in text.strip().split(","))


def request_changed(text: str, given: Given) -> bool:
    """The request but for its first word."""
    prompt = given["prompt_to_repeat"]
    return text != prompt and text.split()[1:] == prompt.split()[1:]


def span_copied(text: str, given: Given) -> bool:
    """The prompt's words from one index to another, which count from 0; both ends belong to it."""
    wanted = given["prompt_to_repeat"].split()[int(given["n_start"]) : int(given["n_end"]) + 1]
    return text.strip().lower() == " ".join(wanted).lower()


def _is_day(text: str) -> bool:
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", text, re.ASCII):
        return False
    try:
        day = datetime.date.fromisoformat(text)
    except ValueError:
        return False
    return NAPOLEON[0] <= day.year <= NAPOLEON[1]


def _ascii(text: str) -> str:
    """Without accents."""
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def _rows(text: str) -> list[list[str]]:
    """Of comma separated values; none where they are not."""
    try:
        return list(csv.reader(io.StringIO(text.strip()), skipinitialspace=True))
    except csv.Error:
        return []


def _all_have(rows: list[list[str]], num_fields: int) -> bool:
    return all(len(row) == num_fields for row in rows)


RULES: dict[str, Rule] = {
    "custom:multiples": Rule(multiples),
    "custom:mcq_count_length": Rule(choice_questions),
    "custom:reverse_newline": Rule(countries_reversed),
    "custom:word_reverse": Rule(words_reversed),
    "custom:character_reverse": Rule(lambda text, given: "elgae dlab" in text.lower()),
    "custom:sentence_alphabet": Rule(alphabet_story),
    "custom:european_capitals_sort": Rule(capitals_sorted),
    "custom:csv_city": Rule(city_table),
    "custom:csv_special_character": Rule(product_table),
    "custom:csv_quotes": Rule(student_table),
    "custom:date_format_list": Rule(dates),
    "repeat:repeat_change": Rule(request_changed, ("prompt_to_repeat",)),
    "repeat:repeat_simple": Rule(lambda text, given: text.strip().lower() == ONLY_THIS_SENTENCE),
    "repeat:repeat_span": Rule(span_copied, ("prompt_to_repeat", "n_start", "n_end")),
}
