"""The evaluation's page: its numbers, text that wants to be markup, and what it carries of a long evaluation."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon_h1r.config_evaluate import ScalingConfig
from falcon_h1r.evaluation import evaluation_page_browser
from falcon_h1r.evaluation.charts import RIGHT, WRONG, Interval
from falcon_h1r.evaluation.evaluation_page import write_page
from falcon_h1r.evaluation.evaluation_page_browser import Shelf, browser_data, script_json, shares_of
from falcon_h1r.evaluation.evaluation_page_charts import CostSeries, Values, cost_chart, distribution_chart, token_tick
from falcon_h1r.evaluation.evaluation_page_content import Part, score_row
from falcon_h1r.evaluation.metrics import differences, summarise
from falcon_h1r.evaluation.report import write_report
from falcon_h1r.evaluation.scaling_curves import scaling_summary
from falcon_h1r.evaluation.summary import summarise_pipeline
from falcon_h1r.evaluation.transcripts import MAX_CHARACTERS
from falcon_h1r.scaling.traces import SCORES
from falcon_h1r.types import InputError

HOSTILE = "<think>3 < 4 </script><script>alert('x')</script> & <!-- \u2028 \ud800 </think> so \\boxed{%s}"
CONFIG = ScalingConfig(warmup_traces=2, wave_traces=1, budgets=[2, 4], keep_shares=[0.5, 0.9], num_traces=4)
Row = dict[str, Any]


def sample(uid: str, index: int, answer: str, confidence: float | None, **fields: Any) -> Row:
    row = {"problem_uid": uid, "question": f"What is ${uid}$, <b>mod</b> 9?", "gold": "7", "family": "<i>modular</i>"}
    row |= {"difficulty": "easy", "greedy": False, "sample_index": index, "response": HOSTILE % answer}
    row |= {"prediction": answer, "answer_key": answer, "status": "correct" if answer == "7" else "wrong"}
    row |= {"stage": "string", "reason": "", "response_tokens": 20 + index, "stop_reason": "stop"}
    if confidence is not None:
        parts: Row = {score: confidence for score in SCORES} | {"minima": [[0, 20.0], [2, confidence]]}
        row["confidence"] = {"top_k": parts, "sampled": parts}
    return row | fields


def samples(skill: float, seed: int, *, measured: bool = True) -> list[Row]:
    generator, rows = np.random.default_rng(seed), []
    for number in range(8):
        for index in range(5):
            is_right = generator.random() < skill
            confidence = float(generator.normal(12 if is_right else 10, 1)) if measured else None
            rows.append(sample(f"{number:04x}", index % 4, "7" if is_right else "8", confidence, greedy=index == 4))
    rows[0] |= {"stop_reason": "length", "status": "wrong", "prediction": None, "answer_key": None}
    return rows


ONLINE = [
    sample("0000", 0, "7", 12.0, was_stopped=False, threshold=None),
    sample("0000", 1, "8", 9.0, was_stopped=True, threshold=11.0, stop_reason="confidence", status="undecided"),
]
ONLINE_SUMMARY = [
    {
        **{"problem_uid": "0000", "num_traces": 2, "num_stopped": 1, "tokens": 30, "threshold": 11.0},
        **{"consensus": 1.0, "ended_by": "consensus", "votes": {"lowest_group": {"answer": "7", "right": 1.0}}},
        **{"tokens_saved_by_confidence": 5.0, "tokens_saved_by_consensus": 40.0},
    }
]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_benchmark(folder: Path, rows: Sequence[Row], **extra: Any) -> Row:
    """One benchmark's folder; returns its summary."""
    write_rows(folder / "samples.jsonl", rows)
    write_rows(folder / "online.jsonl", ONLINE)
    summary = summarise(rows, 4, 0) | {"scaling": scaling_summary(rows, ONLINE_SUMMARY, CONFIG, 4, 0)} | extra
    (folder / "summary.json").write_text(json.dumps(summary))
    return summary


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Row]:
    """The page over two benchmarks that were run and one that a bridge runs, and the summary of the first."""
    folder = tmp_path_factory.mktemp("runs") / "evaluate"
    rows = samples(0.7, 0)
    first = write_benchmark(
        folder / "aime24",
        rows,
        **{"reference_score": 88.1, "reference_scaled_score": 96.7, "reference_scaled_tokens": 89_800_000},
        **{"compared_with": "runs/other", "differences": differences([(rows, samples(0.4, 2))], 4, 0)},
        notes=["1 problem left out"],
    )
    second = write_benchmark(folder / "math500", samples(0.9, 1))
    groups = [{"name": "Mathematics", "ours": None, "num_run": 2, "num_all": 5, "reference": 73.96}]
    benchmarks = {"aime24": first, "math500": second, "hle": {"bridge": "lm_eval --tasks hle", "reference_score": 11.1}}
    overall = {"benchmarks": benchmarks, "groups": groups, "engine": "torch <sampler>"}
    (folder / "summary.json").write_text(json.dumps(overall))
    path = write_page(folder)
    assert path == folder / "page.html"
    return path.read_text(encoding="utf-8"), first


class Page(HTMLParser):
    """The page's text without styles and scripts, the scripts, and whether its elements nest."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.text, self.open, self.scripts = "", [], list[str]()
        self.feed(source)
        assert self.open == []
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "script":
            self.scripts.append("")
        if tag not in ("meta", "input", "col"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.scripts[-1] += data
        elif not {"style", "svg"} & set(self.open):
            self.text += data


def data_of(source: str) -> Row:
    data: Row = json.loads(Page(source).scripts[0])
    return data


def test_the_page_holds_ours_with_intervals_and_the_published_marked_as_such(evaluation: tuple[str, Row]) -> None:
    source, summary = evaluation
    text = Page(source).text
    for metric in ("pass_at_1", "greedy", "maj_at_4"):
        low, high = summary[f"{metric}_interval"]
        assert f"{100 * summary[metric]:.1f}%{100 * low:.1f}% to {100 * high:.1f}%" in text
    for published in ("88.1%", "96.7%", "11.1%", "73.96"):
        cells = re.findall(rf'<td class="([^"]*)">{published}', source)
        assert cells and all("published" in names for names in cells)
    for fact in (
        "89.8M tokens",
        "2 of 5",
        "lm_eval --tasks hle",
        "1 problem left out",
        "torch <sampler>",
        "runs/other",
    ):
        assert fact in text
    assert f"{summary['differences']['pass_at_1']['value'] * 100:+.1f}".replace("-", "−") in text


def test_every_section_is_there_and_every_plot(evaluation: tuple[str, Row]) -> None:
    source, _ = evaluation
    sections = ["scores", "differences", "costs", "confidence", "lengths", "k", "transcripts"]
    assert re.findall(r'<section id="([^"]*)"', source) == sections
    labels = re.findall(r'<svg role="img" aria-label="([^"]*)"', source)
    for name in ("aime24", "math500"):
        for measure in ("top-k", "sampled-token"):
            assert f"Accuracy against tokens, {name}, {measure} confidence" in labels
            assert f"Confidence of right and wrong traces, {name}, {measure} confidence" in labels
        assert {f"Response lengths, {name}", f"Response lengths, {name}, online"} <= set(labels)
        assert f"pass@k and maj@k, {name}" in labels
    assert len(labels) == 14


def test_model_text_cannot_become_markup(evaluation: tuple[str, Row]) -> None:
    source, _ = evaluation
    page = Page(source)
    assert len(page.scripts) == 2  # the data and the browser, no third
    assert "alert('x')" in page.scripts[0] and "alert" not in page.scripts[1]
    assert source.count("</script") == 2 and "<!--" not in source
    assert "<i>modular" not in source and "<b>mod" not in source
    row = next(row for row in data_of(source)["rows"] if row["prediction"] == "7")
    assert row["response"] == HOSTILE % "7"


def test_the_page_needs_no_network(evaluation: tuple[str, Row]) -> None:
    source = evaluation[0]
    assert re.findall(r"""https?://|(?:src|href)=["'](?!#)|@import|url\((?!#)|fetch\(|XMLHttp""", source) == []


def test_nothing_on_the_page_is_not_a_number(evaluation: tuple[str, Row]) -> None:
    assert re.findall(r"\b(?:nan|NaN|inf|None|undefined)\b", Page(evaluation[0]).text) == []


def test_plots_follow_the_colour_scheme(evaluation: tuple[str, Row]) -> None:
    for plot in re.findall(r"<svg.*?</svg>", evaluation[0], flags=re.DOTALL):
        assert "var(--" in plot and not re.search(r"(?:fill|stroke): #", plot)


def test_the_browser_carries_every_response_with_its_verdict(evaluation: tuple[str, Row]) -> None:
    data = data_of(evaluation[0])
    assert data["num_seen"] == len(data["rows"]) == 2 * (40 + 2)
    kinds = [row["kind"] for row in data["rows"]]
    assert [kinds.count(kind) for kind in ("sampled", "greedy", "online")] == [64, 16, 4]
    assert sum(row["status"] == "stopped" for row in data["rows"]) == 2
    assert {problem["benchmark"] for problem in data["problems"]} == {"aime24", "math500"}
    assert len(data["problems"]) == 16
    for row in data["rows"]:
        assert set(row["scores"]) == {"top_k", "sampled"} and set(row["scores"]["top_k"]) == set(SCORES)


def test_the_same_evaluation_gives_the_same_page(tmp_path: Path) -> None:
    rows = samples(0.7, 0, measured=False)
    pages = []
    for name in ("a", "b"):
        write_benchmark(tmp_path / name / "aime24", rows)
        pages.append(write_page(tmp_path / name / "aime24").read_text(encoding="utf-8"))
    assert pages[0] == pages[1]


def test_an_evaluation_without_confidence_has_its_page(tmp_path: Path) -> None:
    rows = samples(0.7, 0, measured=False)
    write_rows(tmp_path / "samples.jsonl", rows)
    (tmp_path / "summary.json").write_text(json.dumps(summarise(rows, 4, 0)))
    source = write_page(tmp_path).read_text(encoding="utf-8")
    assert re.findall(r'<section id="([^"]*)"', source) == ["scores", "lengths", "k", "transcripts"]
    assert "Published" not in Page(source).text


def test_greedy_answers_alone_have_their_page(tmp_path: Path) -> None:
    rows = [row for row in samples(0.7, 0) if row["greedy"]]
    write_rows(tmp_path / "samples.jsonl", rows)
    (tmp_path / "summary.json").write_text(json.dumps(summarise(rows, 1, 0)))
    text = Page(write_page(tmp_path).read_text(encoding="utf-8")).text
    assert f"{100 * np.mean([row['status'] == 'correct' for row in rows]):.1f}%" in text


@pytest.mark.parametrize("has_samples", [True, False])
def test_a_folder_that_holds_no_evaluation_that_has_ended_is_refused(tmp_path: Path, has_samples: bool) -> None:
    if has_samples:
        write_rows(tmp_path / "samples.jsonl", samples(0.5, 0))
    with pytest.raises(InputError, match="has not ended" if has_samples else "no evaluation to show"):
        write_page(tmp_path)
    assert not (tmp_path / "page.html").exists()


def test_the_pipeline_s_report_shows_tokens_where_confidence_was_measured(tmp_path: Path) -> None:
    rows = samples(0.7, 0)
    write_rows(tmp_path / "evaluate" / "grpo" / "samples.jsonl", rows)
    summary = summarise_pipeline({"grpo": rows}, {}, 0, CONFIG)
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert 'aria-label="Accuracy against tokens, GRPO, top-k confidence"' in write_report(tmp_path).read_text()


# ------------------------------------------------------------------------------------------------------------
# What of a long evaluation the page carries


def test_too_many_responses_are_chosen_by_hash_whatever_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation_page_browser, "MAX_BYTES", 4000)
    rows = [sample(f"{number:03}", 0, "7", None, response="x" * (50 + 37 * number % 400)) for number in range(60)]
    chosen = []
    for order in (rows, rows[::-1]):
        shelf = Shelf()
        for row in order:
            shelf.put(row, "sampled")
        assert shelf.num_seen == 60
        chosen.append([entry["uid"] for entry in shelf.first(4000)])
    assert chosen[0] == chosen[1]
    assert 5 < len(chosen[0]) < 40

    everything = Shelf()
    monkeypatch.setattr(evaluation_page_browser, "MAX_BYTES", 10**9)
    for row in rows:
        everything.put(row, "sampled")
    assert [entry["uid"] for entry in everything.first(4000)] == chosen[0]


def test_the_page_of_a_long_evaluation_stays_small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(evaluation_page_browser, "MAX_BYTES", 60_000)
    rows = [sample(f"{n // 4:04}", n % 4, "7", None, response="word " * 5000) for n in range(80)]
    rows += [sample(f"{n:04}", 0, "8", None, response="long", greedy=True) for n in range(20)]
    write_rows(tmp_path / "samples.jsonl", rows)
    (tmp_path / "summary.json").write_text(json.dumps(summarise(rows, 4, 0)))
    source = write_page(tmp_path).read_text(encoding="utf-8")
    data = data_of(source)
    assert len(json.dumps(data["rows"])) < 62_000
    assert f"{len(data['rows'])} of 100 responses" in Page(source).text
    cut = next(row for row in data["rows"] if row["kind"] == "sampled")
    assert cut["left_out"] == 25_000 - MAX_CHARACTERS


@given(st.lists(st.integers(0, 50), max_size=6), st.integers(0, 120))
def test_shares_are_equal_but_for_what_is_not_needed(needs: list[int], total: int) -> None:
    shares = shares_of(needs, total)
    assert all(share <= need for share, need in zip(shares, needs, strict=True))
    assert sum(shares) <= total
    unmet = [share for share, need in zip(shares, needs, strict=True) if share < need]
    if unmet:
        assert sum(shares) > total - len(needs)  # but for rounding, all of it is given
        assert min(unmet) + len(needs) >= max(shares)  # nobody has more than who would have needed more


@settings(max_examples=50, deadline=None)
@given(st.text(), st.text("</script!->&\u2028\ud800", max_size=12))
def test_any_text_survives_its_script_element(text: str, markup: str) -> None:
    written = script_json({"response": text + markup})
    assert not set("<>&\u2028\u2029") & set(written)
    assert json.loads(written.encode("utf-8")) == {"response": text + markup}


def test_problems_of_one_name_in_two_benchmarks_stay_apart() -> None:
    shelves = {name: Shelf() for name in ("a", "b")}
    for name, shelf in shelves.items():
        shelf.put(sample("same", 0, "7", None, question=name), "sampled")
    data = browser_data(shelves)
    assert [data["problems"][row["problem"]]["question"] for row in data["rows"]] == ["a", "b"]


@pytest.mark.parametrize("tokens", [0.0, 21.0, 3e6])
def test_methods_of_equal_cost_are_drawn_beside_each_other(tokens: float) -> None:
    methods = [
        CostSeries(name, [tokens, tokens], [Interval(0.5, 0.4, 0.6), Interval(0.7, 0.6, 0.8)], 1, "o") for name in "abc"
    ]
    plot = cost_chart(methods, [(tokens, 0.7)], "equal costs")
    bars = re.findall(r'<path d="M ([\d.]+) [\d.]+ \nL \1 ', plot)  # vertical: gridlines of x, and the intervals
    assert len(set(bars)) >= 6


@pytest.mark.parametrize("values", [[20.0, 20.0], [20.0, 24.0], [1.0, 5e5], [0.0, 3.0]])
def test_any_range_of_lengths_has_ticks_to_read(values: list[float]) -> None:
    groups = [Values("right", RIGHT, np.array(values)), Values("wrong", WRONG, np.array([]))]
    plot = distribution_chart(groups, "lengths", "tokens", log_axis=True, of_all=True)
    ticks = re.findall(r">([\d.]+[kM]?)</text>", plot)
    assert len(ticks) >= 2


@pytest.mark.parametrize(("tokens", "text"), [(950, "950"), (12_000, "12k"), (89_800_000, "89.8M"), (2.5e9, "2.5G")])
def test_tokens_are_written_short(tokens: float, text: str) -> None:
    assert token_tick(tokens) == text


def test_the_majority_shown_is_that_of_the_most_votes() -> None:
    points = [{"k": k, "value": k / 100, "low": 0.0, "high": 1.0} for k in (1, 8, 32)]
    row = score_row(Part("name", {"pass_at_1": 0.5, "maj_at_8": 0.08, "curves": {"maj_at_k": points}}))
    assert (row["majority_name"], row["majority"]) == ("maj@32", Interval(0.32, 0.0, 1.0))
    assert score_row(Part("name", {"curves": {"maj_at_k": points[:1]}}))["majority"] is None
