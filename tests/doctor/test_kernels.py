"""Right kernels are green in every dtype; one that is wrong anywhere, forward or backward, is red."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from falcon_h1r.doctor import kernels
from falcon_h1r.model.kernels import Kernels, choose_kernels
from tests.doctor.examinations import ALONE, assert_green, examination, statuses


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_the_chosen_kernels_agree_with_their_twins(dtype: str, tmp_path: Path) -> None:
    findings = kernels.check_kernels(examination(tmp_path, ALONE, f"model.dtype={dtype}"))
    assert_green(findings)
    assert len(findings) == 4


class DoubledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, outputs: torch.Tensor) -> torch.Tensor:
        return outputs.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return 2 * gradient


def blind_to_borders(row: Any) -> Any:
    """The same tokens as one document."""
    length = len(row.seq_idx)
    return replace(row, seq_idx=torch.zeros_like(row.seq_idx), position_ids=torch.arange(length), lengths=(length,))


WRONG: dict[str, tuple[str, Callable[[Kernels], Kernels]]] = {
    "attention scaled wrongly": (
        "attention kernel",
        lambda k: replace(k, attention=lambda q, key, v, row, scale: k.attention(q, key, v, row, 1.1 * scale)),
    ),
    "convolution over borders": (
        "convolution kernel",
        lambda k: replace(k, conv=lambda u, w, b, row: k.conv(u, w, b, blind_to_borders(row))),
    ),
    "scan over borders": (
        "scan kernel",
        lambda k: replace(k, scan=lambda x, dt, A, B, C, D, row: k.scan(x, dt, A, B, C, D, blind_to_borders(row))),
    ),
    "scan of a wrong gradient": (
        "scan kernel",
        lambda k: replace(k, scan=lambda *arguments: DoubledGradient.apply(k.scan(*arguments))),
    ),
    "scan that is not finite": (
        "scan kernel",
        lambda k: replace(k, scan=lambda *arguments: k.scan(*arguments) * float("nan")),
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_kernel_is_red_and_the_others_are_not(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, spoil = WRONG[fault]
    monkeypatch.setattr(kernels, "choose_kernels", lambda *arguments: spoil(choose_kernels(*arguments)))
    found = statuses(kernels.check_kernels(examination(tmp_path)))
    assert [n for n, status in found.items() if status == "failed"] == [name]


def test_a_gpu_without_fused_kernels_is_a_warning() -> None:
    slow = "kernels on cuda, bfloat16: attention torch varlen, convolution torch (missing), scan mamba-ssm 2.3"
    fast = "kernels on cuda, bfloat16: attention torch varlen, convolution causal-conv1d 1.7, scan mamba-ssm 2.3"
    assert kernels.choice_finding(slow, "cuda").status == "warn"
    assert kernels.choice_finding(fast, "cuda").status == "ok"


def test_the_row_has_resets_within_a_chunk_and_a_document_across_its_border() -> None:
    row = kernels.row_with_resets(256, torch.device("cpu"))
    ends = row.document_ends.tolist()
    assert 1 in row.lengths and sum(row.lengths) > 256
    assert any(start < 256 < end for start, end in itertools.pairwise(ends))
