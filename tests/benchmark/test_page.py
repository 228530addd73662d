"""The page from figures made up by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from falcon_h1r.benchmark.cases import BY_DOCUMENT, LEAKING, OURS, PADDED, PEER, Case, Contender, suite_cases
from falcon_h1r.benchmark.figures import Figures, check_same_setting, result_of
from falcon_h1r.benchmark.page import render, write_page
from falcon_h1r.config_tools import BenchmarkSuiteConfig
from falcon_h1r.types import InputError

GIB = 1024**3
SHAPE = {
    "architecture": {
        "hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "num_key_value_heads": 2,
        "mamba_n_heads": 8, "mamba_d_head": 64, "mamba_d_state": 64, "num_hidden_layers": 4, "vocab_size": 130_048,
    },
    "num_layers": 4, "dtype": "float32",
}  # fmt: skip
ENVIRONMENT = {"device": "cpu", "hardware": "Abacus, one thread", "torch": "2", "transformers": "5"}
FLOPS = {"linear": 600, "convolution": 100, "attention": 100, "scan": 100, "head": 100}


def runs(*seconds: float, gib: float = 1.0, loss: float = 6.5) -> dict[str, Any]:
    """Runs of a third forward, two thirds backward."""
    return {
        "is_finalist": True,
        "reason": None,
        "runs": [
            {
                "seconds": {"forward": total / 3, "backward": 2 * total / 3},
                "growth_bytes": gib * GIB, "peak_bytes": 2 * gib * GIB, "facts": {"loss": loss, "grad_norm": 2.0},
            }
            for total in seconds
        ],
    }  # fmt: skip


def failed(reason: str) -> dict[str, Any]:
    return {"is_finalist": False, "reason": reason, "runs": []}


def figures_of(*cases: tuple[Case, list[dict[str, Any]]]) -> Figures:
    figures = Figures(ENVIRONMENT, {"flops_per_second": 1e6, "source": "made up"}, SHAPE, ["python x.py"])
    for case, outcomes in cases:
        content = case.as_dict()
        pairs = zip(content["contenders"], outcomes, strict=True)
        contenders = [contender | outcome for contender, outcome in pairs]
        figures.add(content | {"revision": "abc", "forward_flops": FLOPS, "contenders": contenders})
    return figures


def scan_case(length: int) -> Case:
    peers = tuple(Contender(PEER, size) for size in (64, 256))
    return Case("scan", "one", (length,), None, (Contender(OURS), *peers))


def cells(page: str, *starts: str) -> list[str]:
    """Of the one table row that starts with these cells."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    (found,) = [row for row in rows if row[: len(starts)] == list(starts)]
    return found


def test_the_peer_stands_there_at_its_best_chunk_size_and_by_its_median() -> None:
    figures = figures_of(
        (scan_case(8192), [runs(1.0, 2.0, 9.0), runs(6.0, 3.0, 3.3, gib=2.0), failed("out of memory at 12 GiB")])
    )
    row = cells(render(figures, None, False), "8,192")
    assert row[5:7] == ["64", "1.65x (at least 1.5x: met)"]
    assert row[9] == "50%", "memory is judged from 32k on"


def test_a_trial_of_another_chunk_size_is_not_compared() -> None:
    figures = figures_of((scan_case(8192), [runs(1.0), runs(3.0), runs(2.9) | {"is_finalist": False}]))
    result = result_of(figures.cases["scan/one/8192"], PEER)
    assert not isinstance(result, str) and result is not None
    assert result.chunk_size == 64


def test_growth_and_memory_are_shown_with_their_bars() -> None:
    peers = [runs(30.0, gib=4.0), runs(40.0, gib=4.0)]
    figures = figures_of(
        (scan_case(16_384), [runs(4.0), *peers]),
        (scan_case(32_768), [runs(10.0), *peers]),
    )
    page = render(figures, None, False)
    assert "from 16,384 to 32,768 tokens our time grows 2.50x (at most 2.3x: **missed**)" in page
    assert cells(page, "32,768")[9] == "25% (at most 40%: met)"


def test_a_contender_that_died_says_so_in_its_row() -> None:
    contenders = (Contender(OURS), Contender("naive"))
    case = Case("loss", "compared", (2048,), None, contenders)
    page = render(figures_of((case, [runs(1.0), failed("killed by signal 9")])), None, False)
    assert cells(page, "2,048", "naive") == ["2,048", "naive", "killed by signal 9", "–", "–", "–", "–"]


def test_the_model_is_compared_with_all_three_ways_and_agrees_with_two() -> None:
    contenders = (Contender(OURS), *(Contender(path, 64) for path in (BY_DOCUMENT, PADDED, LEAKING)))
    case = Case("model", "documents", (1024,) * 8, 1024, contenders)
    outcomes = [runs(3.0), runs(12.0, loss=6.50001), runs(6.0), runs(9.0, loss=6.7)]
    page = render(figures_of((case, outcomes)), None, False)
    assert cells(page, "ours")[4] == "0.1%", "3 x 1000 operations in 3 s at 1e6 a second"
    assert "4.00x (at least 3x: met)" in cells(page, "transformers, one by one")
    assert "2.00x (at least 3x: **missed**)" in cells(page, "transformers, padded")
    assert "differs from the correct ones by 1.0e-05 (at most 0.0001: met)" in page
    assert "from the leaking row's by 2.0e-01" in page


def test_the_page_names_where_it_was_measured_and_what_was_not() -> None:
    page = render(figures_of((scan_case(8192), [runs(1.0), runs(2.0), runs(3.0)])), None, False)
    for expected in ("python x.py", "Abacus, one thread", "torch 2, transformers 5; revision abc", "GPU are missing"):
        assert expected in page


def test_a_training_step_stands_with_and_without_recomputed_activations() -> None:
    settings = BenchmarkSuiteConfig(
        parts=["row"], train_row_tokens=49_152, train_row_documents=[8], train_row_recompute=["none", "layer"]
    )
    kept, recomputed = suite_cases(settings)
    page = render(figures_of((kept, [runs(3.0, gib=5.0)]), (recomputed, [runs(4.0, gib=2.0)])), None, False)
    assert cells(page, "49,152", "8", "none")[-1] == "10.00 GiB (at most 8 GiB: **missed**)"
    assert cells(page, "49,152", "8", "layer")[-1] == "4.00 GiB (at most 8 GiB: met)"


def test_fewer_layers_are_said_plainly() -> None:
    figures = figures_of((scan_case(8192), [runs(1.0), runs(2.0), runs(3.0)]))
    figures.shape = SHAPE | {"num_layers": 2}
    assert "**2 of the architecture's 4 layers**" in render(figures, None, False)


def test_a_page_is_written_with_its_figures_and_plot(tmp_path: Path) -> None:
    outcomes = [runs(1.0), runs(2.0)]
    contenders = (Contender(OURS), Contender(BY_DOCUMENT, 64))
    lengths = [(Case("lengths", "one", (size,), 1024, contenders), outcomes) for size in (512, 1024)]
    figures = figures_of(*lengths)
    write_page(figures, tmp_path / "model.md")
    assert "](model.svg)" in (tmp_path / "model.md").read_text()
    assert (tmp_path / "model.svg").read_text().startswith("<?xml")
    again = Figures.read(tmp_path / "model.json")
    assert again == figures
    assert again.holds(lengths[0][0])
    assert not again.holds(Case("lengths", "one", (512,), 2048, contenders)), "another vocabulary is another case"


def test_figures_of_two_machines_are_not_mixed(tmp_path: Path) -> None:
    figures_of().write(tmp_path / "model.json")
    check_same_setting(tmp_path / "model.json", ENVIRONMENT, SHAPE)
    with pytest.raises(InputError, match="holds figures of another hardware"):
        check_same_setting(tmp_path / "model.json", ENVIRONMENT | {"hardware": "a GPU"}, SHAPE)
