"""The report page of a curation: every number on it, hostile text harmless, whatever is missing left out."""

from __future__ import annotations

import html
import json
import re
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from falcon_h1r.data.curation.report import write_report
from falcon_h1r.data.curation.report_examples import reason_rows
from falcon_h1r.types import InputError

SCRIPT = "<script>alert('x')</script>"
HOSTILE = f"</pre>{SCRIPT} \x00 \x1b[31m \u202egnirts\u202c \ud800 {{{{ 7 * 7 }}}} " + "x" * 3_000
ARABIC = "ما هو مجموع الأعداد من 1 إلى 100؟"
COPIED = "Let $ABCD$ be a convex quadrilateral with\n$AB = 2, AD = \\frac{7}{2},$ and $CD = 3$"
SECTIONS = "funnel dropped mix lengths difficulty teachers origins verdicts evaluation-sets settings".split()

TEACHERS = {"deepseek-ai/DeepSeek-R1-0528": 0.62, "Qwen/QwQ-32B": 0.28, "openai/gpt-oss-120b": 0.1}
DOMAINS = {"math": 0.58, "code": 0.27, "science": 0.11, "other": 0.04}
FAMILIES = "olympiads amc_aime number_theory cn_k12 competitive_programming stem_questions tool_calling safety".split()
REASONS = {
    "other_teacher": 35_120,
    "wrong": 18_442,
    "no_box": 5_208,
    "duplicate": 3_977,
    "enough_of_domain": 2_650,
    "unverifiable_gold": 1_204,
    "contaminated": 613,
    "undecided": 412,
    "unreadable": 21,
    "too_long": 9,
}
NUM_READ = 120_000


def split(total: int, shares: dict[str, float]) -> dict[str, int]:
    """The total by shares; what rounding leaves goes to the first."""
    counts = {name: int(total * share) for name, share in shares.items()}
    counts[next(iter(counts))] += total - sum(counts.values())
    return counts


def lengths(generator: np.random.Generator, median: int, spread: float, most: int) -> dict[str, Any]:
    tokens = np.minimum(generator.lognormal(np.log(median), spread, 52_344).astype(int) + 1, most)
    exponents = np.ceil(np.log2(tokens)).astype(int)
    bins = {str(1 << exponent): int(count) for exponent, count in enumerate(np.bincount(exponents)) if count}
    numbers = {
        "median": np.median(tokens),
        "p99": np.percentile(tokens, 99),
        "max": tokens.max(),
        "mean": tokens.mean(),
    }
    return {"bins": bins, **{name: round(float(number), 1) for name, number in numbers.items()}}


def make_summary() -> dict[str, Any]:
    """Of a corpus of 120,000 rows of which 52,344 are kept."""
    generator = np.random.default_rng(0)
    num_dropped, num_tokens = sum(REASONS.values()), 418_772_301
    kept = NUM_READ - num_dropped
    families = {name: 1 / 2 ** (place + 1) for place, name in enumerate(FAMILIES)}
    shares = {"math": 0.5531, "code": 0.30008, "science": 0.11672, "other": 0.0301}
    targets = {"math": 0.55, "code": 0.3, "science": 0.12, "other": 0.03}
    return {
        "funnel": {
            **{"traces": NUM_READ, "of_the_teacher": 84_880, "complete": 79_642, "uncontaminated": 79_029},
            **{"correct": 58_971, "distinct": 54_994, "kept": kept},
        },
        "dropped_by_reason": REASONS,
        "written": {"rows": kept, "tokens": num_tokens, "problems": 24_816},
        "kept_by_teacher": {next(iter(TEACHERS)): kept},
        "dropped_by_teacher": split(num_dropped, TEACHERS),
        "kept_by_family": split(kept, families),
        "dropped_by_family": split(num_dropped, families),
        "kept_by_domain": split(kept, DOMAINS),
        "dropped_by_domain": split(num_dropped, DOMAINS),
        "kept_by_difficulty": {"easy": 8_411, "medium": 21_090, "hard": 22_843},
        "dropped_by_difficulty": {"unknown": 613, "easy": 31_002, "medium": 20_119, "hard": num_dropped - 51_734},
        "teacher": {"kept": next(iter(TEACHERS)), "solved_problems": split(53_401, TEACHERS)},
        "difficulty": {
            "measured_by": "pass_rate",
            "problems_by_pass_rate": {
                **{"0.0": 4_015, "0.1": 912, "0.2": 1_288, "0.3": 1_501, "0.5": 3_377, "0.7": 2_944, "0.8": 4_120},
                **{"0.9": 1_004, "1.0": 11_832, "unknown": 207},
            },
        },
        "token_shares": {
            name: {"tokens": int(num_tokens * share), "share": share, "target": targets[name]}
            for name, share in shares.items()
        },
        "tokens_counted_by": "tiiuae/Falcon-H1-7B-Base",
        "lengths": {
            "prompt": lengths(generator, 140, 0.8, 4_096),
            "response": lengths(generator, 6_100, 0.95, 32_768),
        },
        "weights": {"0.5": 8_411, "1": 21_090, "1.25": 4_410, "1.375": 6_013, "1.5": 7_551, "1.75": 4_869},
        "mean_weight": 1.1327,
        "verdicts": {
            **{"correct": 58_971, "wrong": 18_442, "undecided": 412, "no_answer": 5_208},
            **{"given_by_source": 41_336, "agreeing": 41_208},
        },
        "unverifiable_golds": ["\\frac{1}{", "see the figure", HOSTILE, "no such $n$ exists"],
        "evaluation_sets": {"checked": ["aime24", "aime25", "math500", "gpqa_diamond"], "switched_off": ["mmlu_pro"]},
    }


def make_example(reason: str, place: int) -> dict[str, Any]:
    if reason == "unreadable":
        return {"reason": reason, "detail": "no question", "origin": f"a.jsonl:{place}", "raw": HOSTILE[:600]}
    details = {
        "wrong": "number: 42 is not 17",
        "duplicate": "of open-r1/OpenR1-Math-220k/train-00003.parquet:10412",
        "contaminated": f"math500 3e1f0a9c71d2b8aa: 97% of it, {COPIED!r}",
        "no_box": HOSTILE[:600],
    }
    copied = reason == "contaminated"
    return {
        "reason": reason,
        "detail": details.get(reason, ""),
        "origin": f"open-r1/OpenR1-Math-220k/data/train-00001-of-00010.parquet:{1_000 + place}:0",
        "teacher": list(TEACHERS)[place % 3],
        "question": f"{COPIED}. Find its area." if copied else [ARABIC, HOSTILE[:600], "What is $6 \\cdot 7$?"][place],
        "gold": "17",
        "reasoning": "First, 6 times 7 is the same as 6 times 5 and 6 times 2.\n\nSo 30 + 12 = 42.\n" * 4,
        "response": "" if place else "The answer is \\boxed{42}.",
    }


def make_disagreement(place: int) -> dict[str, Any]:
    return {
        "origin": f"AceReason/part-{place % 7:02d}.jsonl:{place}",
        "teacher": "Qwen/QwQ-32B",
        "given": place % 3 > 0,
        "verdict": ("correct", "wrong", "undecided")[place % 3],
        "gold": HOSTILE if place == 4 else f"\\frac{{{place}}}{{7}}",
        "response": f"So we get \\boxed{{{place}/7}}. {SCRIPT}",
        "question": ARABIC,
    }


def write_curation(folder: Path) -> dict[str, Any]:
    """A curation's folder as of a real corpus, with text that wants to be markup; returns its summary."""
    folder.mkdir(parents=True, exist_ok=True)
    summary = make_summary()
    (folder / "summary.json").write_text(json.dumps(summary))
    examples = {
        reason: [make_example(reason, place) for place in range(3)] for reason in REASONS if reason != "too_long"
    }
    (folder / "dropped_examples.json").write_text(json.dumps(examples))
    rows = "".join(json.dumps(make_disagreement(place)) + "\n" for place in range(128))
    (folder / "disagreements.jsonl").write_text(rows)
    sources = {
        "openr1": {"path": "open-r1/OpenR1-Math-220k", "format": "hub", "split": "train", "domain": "math"},
        "codes": {"path": "/data/codes/*.parquet", "domain": "code", "limit": 30_000},
        SCRIPT: {"path": "/data/science.jsonl", "domain_field": "subject"},
    }
    config = {"seed": 17, "curate": {"sources": sources, "keep_teacher": "by_coverage", "work": {"num_workers": 4}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "throughput.json").write_text(json.dumps({"stages": {"verifying": {"seconds": 98765.4}}}))
    return summary


class Page(HTMLParser):
    """The page's text, and whether its elements nest."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.text, self.open, self.tags, self.ids = "", list[str](), set[str](), list[str]()
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in ("meta", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.text += " " if tag in ("td", "th", "strong", "div") else ""

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("curate")
    summary = write_curation(folder)
    path = write_report(folder)
    assert path == folder / "data_report.html"
    return path.read_text(encoding="utf-8"), summary


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    else:
        yield path, value


def test_every_number_of_the_summary_is_on_the_page(whole: tuple[str, dict[str, Any]]) -> None:
    source, summary = whole
    text = Page(source).text
    numbers = [(path, value) for path, value in leaves(summary) if isinstance(value, int | float)]
    assert len(numbers) > 100
    for path, value in numbers:
        if path[-1] in ("share", "target"):
            shown = f"{100 * value:.1f}%"
        else:
            shown = f"{value:,}".removesuffix(".0")
        assert re.search(rf"(?<![\d,.]){re.escape(shown)}(?!,?\d)", text), (path, shown)


def test_every_name_of_the_summary_is_on_the_page(whole: tuple[str, dict[str, Any]]) -> None:
    text = Page(whole[0]).text
    names = [*TEACHERS, *DOMAINS, *FAMILIES, *(reason.replace("_", " ") for reason in REASONS), "mmlu_pro", "math500"]
    assert [name for name in names if name not in text] == []


def test_what_the_numbers_mean_is_reckoned(whole: tuple[str, dict[str, Any]]) -> None:
    text = Page(whole[0]).text
    assert f"{100 * 84_880 / NUM_READ:.1f}%" in text  # of the step before
    assert "+0.3" in text and "−0.3" in text  # points off the target: maths, science
    assert f"{100 * 41_208 / 41_336:.1f}%" in text
    assert "the first 50 of 128" in text


def test_the_sections_are_all_there_and_linked(whole: tuple[str, dict[str, Any]]) -> None:
    assert Page(whole[0]).ids == SECTIONS
    assert re.findall(r'href="#([^"]*)"', whole[0]) == SECTIONS


def test_text_of_rows_cannot_become_markup(whole: tuple[str, dict[str, Any]]) -> None:
    source, _ = whole
    page = Page(source)
    assert "script" not in page.tags
    assert SCRIPT in page.text and ARABIC in page.text and "{{ 7 * 7 }}" in page.text


def test_invisible_characters_are_written_out_and_long_texts_cut(whole: tuple[str, dict[str, Any]]) -> None:
    source, _ = whole
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", source)
    assert "⟨U+0000⟩ ⟨U+001B⟩[31m ⟨U+202E⟩gnirts⟨U+202C⟩ ⟨U+D800⟩" in Page(source).text
    assert "x" * 1_000 not in source


def test_what_was_found_in_an_evaluation_is_marked(whole: tuple[str, dict[str, Any]]) -> None:
    marks = re.findall(r"<mark>(.*?)</mark>", whole[0], flags=re.DOTALL)
    assert [html.unescape(mark) for mark in marks] == [COPIED] * 6  # in detail and question of each example


@pytest.mark.parametrize(
    ("detail", "labels"),
    [
        (f"a set 17: 100% of it, {COPIED!r}", ["Evaluation problem", "Share of it found", "Text found"]),
        (f"a set 17: 100% of it, {COPIED!r}"[:-5] + "...", ["Evaluation problem", "Share of it found", "Text found"]),
        ("said in another way", ["Found in an evaluation"]),
    ],
)
def test_a_match_is_shown_by_its_parts_however_it_is_cut(tmp_path: Path, detail: str, labels: list[str]) -> None:
    write_curation(tmp_path)
    example = make_example("contaminated", 0) | {"detail": detail}
    (tmp_path / "dropped_examples.json").write_text(json.dumps({"contaminated": [example]}))
    source = write_report(tmp_path).read_text(encoding="utf-8")
    shown = source[source.index('<div class="detail">') : source.index("<h4>Question</h4>")]
    assert re.findall("<h4>(.*?)</h4>", shown) == labels


def test_the_page_needs_nothing_else(whole: tuple[str, dict[str, Any]]) -> None:
    assert re.findall(r"""https?://|(?:src|href)=["'](?!#)|@import|url\(""", whole[0]) == []
    assert re.findall(r"\b(?:nan|NaN|inf|None|Infinity)\b", Page(whole[0]).text) == []


def test_the_same_corpus_gives_the_same_page(whole: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    """In a folder of another name, in another time, by another number of processes."""
    folder = tmp_path / "elsewhere"
    write_curation(folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["curate"]["work"]["num_workers"] = 64
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "throughput.json").write_text("{}")
    assert write_report(folder).read_text(encoding="utf-8") == whole[0]


def test_the_summary_alone_makes_a_page(tmp_path: Path) -> None:
    write_curation(tmp_path)
    for name in ("dropped_examples.json", "disagreements.jsonl", "config.yaml", "throughput.json"):
        (tmp_path / name).unlink()
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert page.ids == SECTIONS[:-1]
    assert "Disagreements" not in page.text


def test_without_a_summary_there_is_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"summary\.json: not there"):
        write_report(tmp_path)


@pytest.mark.parametrize("num_read", [0, 1_234])
def test_a_corpus_of_which_nothing_is_kept(tmp_path: Path, num_read: int) -> None:
    nothing: dict[str, Any] = {"bins": {}}
    steps = ("of_the_teacher", "complete", "uncontaminated", "correct", "distinct", "kept")
    summary = {
        "funnel": {"traces": num_read, **dict.fromkeys(steps, 0)},
        "dropped_by_reason": {"other_teacher": num_read} if num_read else {},
        "written": {"rows": 0, "tokens": 0, "problems": 0},
        **{f"{side}_by_{name}": {} for side in ("kept", "dropped") for name in ("teacher", "family", "difficulty")},
        "teacher": {"kept": None, "solved_problems": {"verbose": 0}},
        "difficulty": {"measured_by": "label", "problems_by_pass_rate": {}},
        "token_shares": {},
        "lengths": {"prompt": nothing, "response": nothing},
        "weights": {},
        "mean_weight": 0.0,
        "verdicts": dict.fromkeys(("correct", "wrong", "undecided", "given_by_source", "agreeing"), 0),
        "unverifiable_golds": [],
        "evaluation_sets": {"checked": [], "switched_off": []},
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "dropped_examples.json").write_text("{}")
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert page.ids == (["funnel", "dropped"] if num_read else [])
    assert f"0 of {num_read:,} rows kept" in page.text and "Nothing was kept" in page.text


def test_tokens_and_problems_that_came_in_are_told_where_they_were_counted(tmp_path: Path) -> None:
    summary = make_summary() | {"read": {"tokens": 987_654_321, "problems": 31_200}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    text = Page(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert "418,772,301 of 987,654,321" in text and "of 31,200" in text


def test_long_tails_are_one_line_that_counts_them(tmp_path: Path) -> None:
    summary = make_summary()
    summary["kept_by_family"] = {f"family {place}": 1_000 - place for place in range(60)}
    summary["dropped_by_family"] = {}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    source = write_report(tmp_path).read_text(encoding="utf-8")
    assert "family 24<" in source and "family 25<" not in source
    assert "35 others" in source and f"{sum(1_000 - place for place in range(25, 60)):,}" in source


def test_bins_that_nothing_fell_into_stand_in_their_place(tmp_path: Path) -> None:
    summary = make_summary()
    summary["lengths"] = {"prompt": {"bins": {"1": 3, "8": 5}, "median": 6.5, "p99": 8, "max": 8, "mean": 5.25}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    source = write_report(tmp_path).read_text(encoding="utf-8")
    part = source[source.index('id="lengths"') : source.index('id="difficulty"')]
    assert re.findall(r'<th scope="row"><bdi>(.*?)</bdi>', part) == ["0–1", "2", "3–4", "5–8"]


def test_the_page_is_written_at_once(tmp_path: Path) -> None:
    write_curation(tmp_path)
    repeating = {"reason": "contaminated", "detail": "a" * 600, "origin": "o", "teacher": "t", "gold": "a" * 600}
    repeating |= {"question": "a" * 600, "reasoning": "a" * 600, "response": "a" * 600}  # the slowest to match
    (tmp_path / "dropped_examples.json").write_text(json.dumps({"contaminated": [repeating] * 3}))
    started = time.perf_counter()
    write_report(tmp_path)
    assert time.perf_counter() - started < 60.0  # a pattern that goes back and forth would take hours


def test_what_a_detail_has_escaped_stays_written_out() -> None:
    detail = f"math500 17: 97% of it, {'a' + chr(0) + chr(0x202E) + 'b'!r}"
    (row,) = reason_rows({"contaminated": 1}, {"contaminated": [{"detail": detail}]})
    assert "".join(text for text, _ in row["examples"][0]["details"][-1][1]) == "a⟨U+0000⟩⟨U+202E⟩b"
