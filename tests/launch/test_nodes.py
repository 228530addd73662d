"""Two nodes, as network namespaces of this machine that reach each other only through a cable between them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from falcon_h1r.tracking import strip_times
from tests.launch.real_runs import finish, start

ADDRESSES = ("10.99.0.1", "10.99.0.2")
STEPS = 5
SHORT = [f"sft.num_steps={STEPS}", "model.dtype=float64"]  # in which all engines compute the same
ENGINES = {
    "torch": ["engine.name=torch"],
    "ZeRO-2": ["engine.name=deepspeed", "engine.zero_stage=2"],
    "ZeRO-3": ["engine.name=deepspeed", "engine.zero_stage=3"],
}
CASES = [("torchrun", "torch"), ("torchrun", "ZeRO-3"), ("deepspeed", "torch"), ("deepspeed", "ZeRO-2")]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and ip"),
]


@dataclass(frozen=True)
class Node:
    namespace: str
    interface: str
    address: str


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    """Two namespaces, each with one end of a cable and nothing else; gone with the test."""
    made = [Node(f"node{os.getpid()}-{index}", f"cable{index}", address) for index, address in enumerate(ADDRESSES)]
    try:
        for node in made:
            ip("netns", "add", node.namespace)
        first, second = made
        ip(
            "link", "add", first.interface, "netns", first.namespace, "type", "veth",
            "peer", "name", second.interface, "netns", second.namespace,
        )  # fmt: skip
        for node in made:
            ip("-n", node.namespace, "address", "add", f"{node.address}/24", "dev", node.interface)
            ip("-n", node.namespace, "link", "set", node.interface, "up")
            ip("-n", node.namespace, "link", "set", "lo", "up")
        yield made
    finally:
        for node in made:
            subprocess.run(["ip", "netns", "delete", node.namespace], capture_output=True)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@pytest.fixture(scope="module")
def one_node(traces: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The steps of four ranks on one node."""
    run = tmp_path_factory.mktemp("one_node") / "run"
    finish(start(["launch/torchrun.sh"], traces, run, *SHORT, NPROC="4"), run)
    return repeatable(run)


def repeatable(run: Path) -> list[dict[str, Any]]:
    """The figures of every step, without those of the clock."""
    lines = [strip_times(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if isinstance(value, int | float)} for line in lines]


@pytest.mark.parametrize(("launcher", "engine"), CASES)
def test_two_nodes_compute_what_one_node_computes(
    launcher: str, engine: str, nodes: list[Node], traces: Path, one_node: list[dict[str, Any]], tmp_path: Path
) -> None:
    if "deepspeed" in (launcher, ENGINES[engine][0].partition("=")[2]):
        pytest.importorskip("deepspeed")
    run, hostfile = tmp_path / "run", tmp_path / "hostfile"
    hostfile.write_text("".join(f"{node.address} slots=2\n" for node in nodes))
    settings = {"MASTER_ADDR": nodes[0].address}
    settings |= {"NNODES": "2", "NPROC": "2"} if launcher == "torchrun" else {"HOSTFILE": str(hostfile)}
    started = [
        start(
            ["ip", "netns", "exec", node.namespace, f"launch/{launcher}.sh"], traces, run, *SHORT, *ENGINES[engine],
            # This machine's name leads to its loopback.
            NODE_RANK=str(rank), GLOO_SOCKET_IFNAME=node.interface, **settings,
        )
        for rank, node in enumerate(nodes)
    ]  # fmt: skip
    try:
        for process in started:
            finish(process, run)
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
    metrics = repeatable(run)
    assert [line["step"] for line in metrics] == list(range(1, STEPS + 1))
    assert metrics == [pytest.approx(line, rel=1e-6) for line in one_node]
