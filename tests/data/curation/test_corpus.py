"""The way through a corpus: whatever is cut, divided or repeated, the same bytes come out."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import recipes.curate
from falcon_h1r.config import Config
from falcon_h1r.config_sources import SourceConfig
from falcon_h1r.data.curation.check import check_sources
from falcon_h1r.data.curation.corpus import curate_corpus, remove_work
from falcon_h1r.data.curation.report import PAGE
from falcon_h1r.distributed.world import World
from falcon_h1r.progress import ProgressReporter
from falcon_h1r.types import InputError

OUTPUTS = ("traces.jsonl", "dropped.jsonl", "summary.json", "dropped_examples.json")


def rows_of(seed: int, count: int, domain: str) -> list[dict[str, Any]]:
    """Sums, some of them answered wrongly, some not at all, some twice; by two teachers."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        a, b = rng.randrange(100), rng.randrange(100)
        stated = rng.choice([a + b, a + b, a + b, a + b + 1, None])
        reasoning = " ".join(f"step {rng.randrange(1000)} of {a} and {b}" for _ in range(rng.randrange(1, 12)))
        reasoning += "</think>That is all." if stated is None else f"</think>so \\boxed{{{stated}}}"
        row = {"question": f"What is {a}+{b}?", "answer": str(a + b), "reasoning": reasoning}
        rows.append({**row, "teacher": rng.choice("xy"), "domain": domain, "difficulty": rng.choice(["easy", "hard"])})
        if rng.random() < 0.1:
            rows.append(rows[-1])
    return rows


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Two sources of small chunks, with everything switched on."""
    config = Config()
    for seed, domain in enumerate(("math", "science")):
        folder = tmp_path / domain
        folder.mkdir()
        for part in range(2):
            rows = rows_of(10 * seed + part, 150, domain)
            (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        config.curate.sources[domain] = SourceConfig(
            path=str(folder), reasoning_field="reasoning", teacher_field="teacher", domain_field="domain",
            difficulty_field="difficulty",
        )  # fmt: skip
    curate = config.curate
    curate.work.chunk_megabytes = 0.02
    curate.keep_teacher = "by_coverage"
    curate.duplicates.of = "trace"
    curate.mix.domain_token_shares = {"math": 0.75, "science": 0.25}
    curate.decontamination.sets = {"held_out": SourceConfig(path=str(tmp_path / "held_out.jsonl"))}
    asked = json.loads((tmp_path / "math" / "0.jsonl").read_text().splitlines()[7])
    question = asked["question"] + " Explain at length how it is done."
    (tmp_path / "held_out.jsonl").write_text(json.dumps({"question": question, "answer": "1"}) + "\n")
    return config


def run(config: Config, folder: Path, **how: Any) -> dict[str, Any]:
    return curate_corpus(config, folder, lambda total, what: ProgressReporter(total, what, "chunks"), **how)


def outputs(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


class Killed(Exception):
    pass


def killed_after(calls: int) -> Any:
    left = [calls]

    def check() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    return check


def test_every_row_comes_out_once_and_the_counts_add_up(config: Config, tmp_path: Path) -> None:
    config.curate.mix.domain_token_shares = {}
    summary = run(config, tmp_path / "run")
    kept = [json.loads(line) for line in (tmp_path / "run" / "traces.jsonl").read_text().splitlines()]
    dropped = [json.loads(line) for line in (tmp_path / "run" / "dropped.jsonl").read_text().splitlines()]
    origins = [row["origin"] for row in kept + dropped]
    expected = []
    for domain in ("math", "science"):
        for part in range(2):
            num_rows = len((tmp_path / domain / f"{part}.jsonl").read_text().splitlines())
            expected += [f"{domain}:{part}.jsonl:{number}" for number in range(1, num_rows + 1)]
    assert sorted(origins) == sorted(expected)
    assert [row["origin"] for row in kept] == sorted((row["origin"] for row in kept), key=expected.index)
    assert summary["funnel"]["traces"] == len(expected)
    assert summary["funnel"]["kept"] == len(kept) == summary["written"]["rows"]
    assert sum(summary["dropped_by_reason"].values()) == len(dropped)
    for reason in ("no_box", "wrong", "duplicate", "other_teacher"):
        assert summary["dropped_by_reason"][reason] == sum(row["reason"] == reason for row in dropped) > 0
    assert {row["teacher"] for row in kept} == {summary["teacher"]["kept"]}
    remove_work(tmp_path / "run")
    assert not (tmp_path / "run" / "work").exists()


def test_a_duplicate_names_the_row_it_repeats(config: Config, tmp_path: Path) -> None:
    run(config, tmp_path / "run")
    dropped = [json.loads(line) for line in (tmp_path / "run" / "dropped.jsonl").read_text().splitlines()]
    repeats = [row for row in dropped if row["reason"] == "duplicate"]
    assert repeats
    for row in repeats:
        name, file, number = row["detail"].rsplit(" ", 1)[-1].split(":")
        first = json.loads((tmp_path / name / file).read_text().splitlines()[int(number) - 1])
        assert first["question"] == row["problem"]["question"]
        assert row["reasoning"] == first["reasoning"].split("</think>")[0]


def test_the_mix_reaches_its_shares(config: Config, tmp_path: Path) -> None:
    shares = run(config, tmp_path / "run")["token_shares"]
    assert abs(shares["math"]["share"] - 0.75) < 0.005


@pytest.mark.parametrize("calls", [0, 1, 4, 7, 10, 14])
def test_cut_anywhere_and_begun_again_the_same_bytes_come_out(config: Config, tmp_path: Path, calls: int) -> None:
    run(config, tmp_path / "whole")
    with pytest.raises(Killed):
        run(config, tmp_path / "cut", check=killed_after(calls))
    run(config, tmp_path / "cut")
    assert outputs(tmp_path / "cut") == outputs(tmp_path / "whole")


def test_two_processes_write_what_one_writes(config: Config, tmp_path: Path) -> None:
    run(config, tmp_path / "one")
    config.curate.work.num_workers = 2
    run(config, tmp_path / "two")
    assert outputs(tmp_path / "two") == outputs(tmp_path / "one")


def test_shards_merged_are_the_whole(config: Config, tmp_path: Path) -> None:
    run(config, tmp_path / "whole")
    work = config.curate.work
    work.num_shards = 3
    for shard in (2, 0, 1):
        if shard == 1:
            work.shard, work.merge = None, str(tmp_path / "shard-*")
            with pytest.raises(InputError, match=r"chunk 1 of \d+ .* was judged by no shard"):
                run(config, tmp_path / "merged")
            work.merge = None
        work.shard = shard
        assert run(config, tmp_path / f"shard-{shard}") == {}
    work.shard, work.merge = None, str(tmp_path / "shard-*")
    run(config, tmp_path / "merged")
    assert outputs(tmp_path / "merged") == outputs(tmp_path / "whole")


def test_a_run_that_was_killed_after_its_summary_writes_its_page_and_clears_up(config: Config, tmp_path: Path) -> None:
    world, folder = World(0, 1, torch.device("cpu")), tmp_path / "run"
    run(config, folder)  # and no further: no page, and all of the work
    (folder / ".traces.jsonl.7.partial").touch()
    config.resume = True
    recipes.curate.curate(config, folder, world)
    page = (folder / PAGE).read_bytes()
    assert page.rstrip().endswith(b"</html>") and not (folder / "work").exists()
    assert not list(folder.glob(".*.partial"))
    config.resume = False
    recipes.curate.curate(config, tmp_path / "whole", world)
    assert (tmp_path / "whole" / PAGE).read_bytes() == page and not (tmp_path / "whole" / "work").exists()


def test_shards_that_were_judged_by_other_settings_are_refused(config: Config, tmp_path: Path) -> None:
    work = config.curate.work
    work.num_shards, work.shard = 2, 0
    run(config, tmp_path / "shard-0")
    work.shard, config.curate.filters.max_response_tokens = 1, 50
    run(config, tmp_path / "shard-1")
    work.shard, work.merge = None, str(tmp_path / "shard-*")
    with pytest.raises(InputError, match=r"shard-0: was judged with another curate\.filters than this run has"):
        run(config, tmp_path / "merged")


def test_shards_may_be_mixed_anew(config: Config, tmp_path: Path) -> None:
    work = config.curate.work
    work.shard = 0
    run(config, tmp_path / "shard-0")
    work.shard, work.merge = None, str(tmp_path / "shard-*")
    config.curate.mix.domain_token_shares = {"math": 0.5, "science": 0.5}
    assert abs(run(config, tmp_path / "merged")["token_shares"]["math"]["share"] - 0.5) < 0.005


def test_shards_share_what_they_read_of_a_hub_dataset(config: Config, tmp_path: Path) -> None:
    config.curate.sources["math"].format = "hub"  # a folder of files is a dataset to the library, too
    config.curate.decontamination.sets = {}
    run(config, tmp_path / "whole")
    work = config.curate.work
    work.num_shards, work.spool = 2, str(tmp_path / "spool")
    for shard in range(2):
        work.shard = shard
        run(config, tmp_path / f"shard-{shard}")
    work.shard, work.merge = None, str(tmp_path / "shard-*")
    run(config, tmp_path / "merged")
    assert outputs(tmp_path / "merged") == outputs(tmp_path / "whole")
    assert '"origin": "math:train:' in (tmp_path / "merged" / "traces.jsonl").read_text()


def test_chunks_of_another_size_change_nothing(config: Config, tmp_path: Path) -> None:
    run(config, tmp_path / "small")
    config.curate.work.chunk_megabytes = 16
    run(config, tmp_path / "large")
    assert outputs(tmp_path / "large") == outputs(tmp_path / "small")


def test_what_cannot_be_read_stands_where_it_was_whatever_the_chunks(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "math" / "0.jsonl"
    lines = path.read_text().splitlines()
    for number in (3, 60, 100):
        lines[number] = "{broken"
    path.write_text("\n".join(lines) + "\n")
    config.curate.on_error = "skip"
    run(config, tmp_path / "small")
    config.curate.work.chunk_megabytes = 16
    run(config, tmp_path / "large")
    assert outputs(tmp_path / "large") == outputs(tmp_path / "small")


def test_a_source_that_changed_on_the_way_is_refused(config: Config, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(config, tmp_path / "cut", check=killed_after(3))
    path = tmp_path / "math" / "0.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[0] + "\n")
    with pytest.raises(InputError, match=r"0\.jsonl: has changed since curation began"):
        run(config, tmp_path / "cut")


def test_a_row_that_cannot_be_read_is_named_or_set_aside(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "science" / "0.jsonl"
    lines = path.read_text().splitlines()
    lines[40] = '{"question": 1}'
    lines[90] = "{broken"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=r"science/0\.jsonl, line 41: "):
        run(config, tmp_path / "raise")
    config.curate.on_error = "skip"
    summary = run(config, tmp_path / "skip")
    assert summary["dropped_by_reason"]["unreadable"] == 2
    dropped = [json.loads(line) for line in (tmp_path / "skip" / "dropped.jsonl").read_text().splitlines()]
    (first, second) = (row for row in dropped if row["reason"] == "unreadable")
    assert "line 41" in first["origin"] and "line 91" in second["origin"]
    assert second["raw"] == "{broken"


def test_difficulty_by_pass_rate_is_written_into_the_rows(config: Config, tmp_path: Path) -> None:
    config.curate.weights.measured_by = "pass_rate"
    run(config, tmp_path / "run")
    kept = [json.loads(line) for line in (tmp_path / "run" / "traces.jsonl").read_text().splitlines()]
    for row in kept:
        rate = row["problem"]["pass_rate"]
        assert row["problem"]["difficulty"] == ("easy" if rate >= 0.75 else "hard" if rate <= 0.25 else "medium")


def test_generations_that_are_not_there_are_dropped_and_counted(config: Config, tmp_path: Path) -> None:
    said = "<think>so</think>\\boxed{2}"
    rows = [
        {"question": f"{place}?", "answer": "2", "all": all_} for place, all_ in enumerate([[said, None], [], [None]])
    ]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config.curate.sources = {"s": SourceConfig(path=str(tmp_path / "all.jsonl"), generations_field="all")}
    config.curate.mix.domain_token_shares = {}
    config.curate.filters.require_reasoning = False
    summary = run(config, tmp_path / "run")
    dropped = [json.loads(line) for line in (tmp_path / "run" / "dropped.jsonl").read_text().splitlines()]
    assert [(row["origin"], row["reason"]) for row in dropped] == [
        ("s:all.jsonl:1#2", "empty_reasoning"),
        ("s:all.jsonl:2", "empty_reasoning"),
        ("s:all.jsonl:3#1", "empty_reasoning"),
    ]
    assert (summary["funnel"]["traces"], summary["funnel"]["kept"]) == (4, 1)


def test_what_curation_wrote_is_weighed_anew_and_not_once_more(config: Config, tmp_path: Path) -> None:
    run(config, tmp_path / "once")
    config.curate.sources = {"once": SourceConfig(path=str(tmp_path / "once" / "traces.jsonl"), curated=True)}
    run(config, tmp_path / "twice")
    rows = [[json.loads(line) for line in (tmp_path / name / "traces.jsonl").open()] for name in ("once", "twice")]
    once, twice = ({row["origin"]: row["weight"] for row in part} for part in rows)
    assert twice and {origin: once[origin] for origin in twice} == twice and set(twice.values()) == {0.5, 1.5}


def test_verdicts_that_differ_from_the_sources_are_listed(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "math" / "1.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    right = next(row for row in rows if row["reasoning"].endswith(f"\\boxed{{{row['answer']}}}"))
    path.write_text("".join(json.dumps({**row, "right": row is not right}) + "\n" for row in [right]))
    config.curate.sources = {"math": config.curate.sources["math"]}
    config.curate.sources["math"].path = str(path)
    config.curate.sources["math"].verdict_field = "right"
    config.curate.mix.domain_token_shares = {}
    summary = run(config, tmp_path / "run")
    assert (summary["verdicts"]["given_by_source"], summary["verdicts"]["agreeing"]) == (1, 0)
    (row,) = (json.loads(line) for line in (tmp_path / "run" / "disagreements.jsonl").read_text().splitlines())
    assert (row["given"], row["verdict"], row["origin"]) == (False, "correct", "math:1.jsonl:1")


def test_origins_stand_whatever_a_file_is_called(config: Config, tmp_path: Path) -> None:
    os.rename(tmp_path / "math" / "0.jsonl", tmp_path / "math" / "a\nb.jsonl")
    os.rename(tmp_path / "math" / "1.jsonl", os.fsencode(tmp_path / "math") + b"/\xff.jsonl")
    config.curate.decontamination.sets = {}
    run(config, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "dropped.jsonl").read_text().splitlines()]
    files = {row["detail"].split(":")[1] for row in rows if row["reason"] == "duplicate"}
    assert files == {"a\nb.jsonl", "\\xff.jsonl", "0.jsonl", "1.jsonl"}


def test_what_would_only_be_missed_at_the_end_is_looked_for_first(config: Config, tmp_path: Path) -> None:
    config.curate.weights.measured_by = "pass_rate"
    config.curate.weights.pass_rates = str(tmp_path / "rates.jsonl")
    with pytest.raises(InputError, match=r"rates\.jsonl: no such file"):
        check_sources(config.curate)
    (tmp_path / "rates.jsonl").write_text('{"uid": "7", "pass_rate": 0.5}\n')
    check_sources(config.curate)
    config.curate.max_row_megabytes = 0.001
    with open(tmp_path / "math" / "1.jsonl", "a") as file:
        file.write("[" + "1," * 1000 + "1]")
    with pytest.raises(InputError, match="longer than 1,000 bytes"):
        check_sources(config.curate)
    config.curate.mix.domain_samples = {"sports": 10}
    with pytest.raises(InputError, match=r"curate\.mix\.domain_samples=sports: not one of math, code"):
        check_sources(config.curate)
