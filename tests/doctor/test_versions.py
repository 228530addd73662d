"""A violated minimum and unequal ranks are red, a version beside its pin is a warning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from falcon_h1r.distributed.world import World
from falcon_h1r.doctor import versions
from falcon_h1r.doctor.finding import Finding
from falcon_h1r.doctor.versions import Facts, check_minima, check_pins, check_python, check_ranks_alike, read_minima
from tests.doctor.examinations import RunOnRanks, examination, only

ROOT = Path(__file__).parents[2]
GPU = Facts("node-0", "3.12.4", {"torch": "2.13.0"}, "13.0", "2.29.7", "580.1", "H100, 80 GiB", "GPU-a")


def test_this_environment_is_not_red(tmp_path: Path) -> None:
    findings = versions.check_versions(examination(tmp_path))
    assert {f.name for f in findings} == {"python", "minima", "pins", "device", "ranks alike"}
    assert "failed" not in {f.status for f in findings if f.name != "device"}  # this machine may have an idle GPU


def test_another_version_than_the_pin_is_a_warning_that_names_both() -> None:
    found = check_pins({"torch": "2.13.0", "numpy": "2.4.6"}, {"torch": "2.13.0+cpu", "numpy": "2.5.0"})
    assert (found.status, found.measured) == ("warn", "numpy 2.5.0 (pin 2.4.6)")


def test_a_local_build_of_the_pinned_version_is_as_pinned() -> None:
    assert check_pins({"torch": "2.13.0"}, {"torch": "2.13.0+cu130"}).status == "ok"


def test_a_violated_minimum_is_red() -> None:
    assert check_minima([Requirement("numpy>=99")], set()).status == "failed"
    assert check_minima([Requirement("numpy>=1")], set()).status == "ok"


def test_a_missing_package_is_red_where_the_engine_needs_it() -> None:
    optional = Requirement("not-there>=1; extra == 'gpu'")
    assert check_minima([optional], set()).status == "ok"
    assert check_minima([optional], {"not-there"}).status == "failed"
    assert check_minima([Requirement("not-there>=1")], set()).status == "failed"


def test_minima_are_those_of_the_project() -> None:
    project = ROOT / "pyproject.toml"
    names = {requirement.name for requirement in read_minima(project, set(), set())}
    assert {"torch", "transformers"} <= names and "deepspeed" not in names
    assert "deepspeed" in {requirement.name for requirement in read_minima(project, set(), {"deepspeed"})}
    assert {"mamba-ssm", "triton"} <= {requirement.name for requirement in read_minima(project, {"gpu"}, set())}


def test_an_unsupported_python_is_red() -> None:
    assert check_python("3.10.1", ROOT / "pyproject.toml").status == "failed"
    assert check_python("3.12.1", ROOT / "pyproject.toml").status == "ok"


@pytest.mark.parametrize("change", ["python", "cuda", "nccl", "driver", "device"])
def test_ranks_that_differ_are_red(change: str) -> None:
    other = replace(GPU, host="node-1", device_id="GPU-b", **{change: "another"})
    found = check_ranks_alike([GPU, other])
    assert found.status == "failed" and f"rank 1 (node-1): {change} another" in found.measured


def test_two_ranks_on_one_gpu_are_red() -> None:
    assert check_ranks_alike([GPU, replace(GPU, device_id="GPU-b")]).status == "ok"
    assert check_ranks_alike([GPU, GPU]).status == "failed"
    assert check_ranks_alike([GPU, replace(GPU, host="node-1")]).status == "ok"  # the other node's own


def test_a_rank_with_another_version_is_named(run_on_ranks: RunOnRanks, tmp_path: Path) -> None:
    def work(world: World) -> Finding:
        if world.rank == 1:
            real = versions._installed
            versions._installed = lambda name: "0.1" if name == "numpy" else real(name)
        return only(versions.check_versions(examination(tmp_path, world)), "ranks alike")

    for found in run_on_ranks(2, work):
        assert found.status == "failed" and "numpy 0.1" in found.measured and "rank 1" in found.measured


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((9, 0), ["sm_80", "sm_90"], True),
        ((8, 9), ["sm_80"], True),
        ((9, 0), ["sm_80"], False),
        ((12, 0), ["sm_90", "compute_90"], True),
        ((7, 5), ["sm_80", "compute_80"], False),
        ((9, 0), ["sm_90a"], True),
    ],
)
def test_a_gpu_that_torch_holds_no_code_for_is_recognised(
    capability: tuple[int, int], architectures: list[str], runs: bool
) -> None:
    assert versions._is_built_for(*capability, architectures) == runs
