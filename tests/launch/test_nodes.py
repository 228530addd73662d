"""Two nodes, as network namespaces of this machine that reach each other only through a cable between them."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ADDRESSES = ("10.99.0.1", "10.99.0.2")
RUN_SECONDS = 240
ENGINES = ["torch"]  # engine.name
LAUNCHERS = ["torchrun", "deepspeed"]
STEPS = 5
UNREPEATABLE = ("second", "memory", "bytes", "mfu")  # in the names of what differs from run to run

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
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "traces.jsonl"
    rows = [
        {"question": f"Compute {a}+{b}.", "reasoning": f"{a}+{b}={a + b}", "answer": str(a + b)}
        for a, b in itertools.product(range(8), repeat=2)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def start(launcher: str, overrides: list[str], log: Path, node: Node | None = None, **settings: str) -> Any:
    """Start a launcher on a node (or on this machine), with its environment and its output in a file."""
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT), **settings,
    }  # fmt: skip
    inside = []
    if node is not None:
        inside = ["ip", "netns", "exec", node.namespace]
        environment["GLOO_SOCKET_IFNAME"] = node.interface  # this machine's name leads to its loopback
    with log.open("w") as output:
        return subprocess.Popen(
            [*inside, f"launch/{launcher}.sh", "recipes/sft.py", *overrides],
            cwd=ROOT, env=environment, stdout=output, stderr=output,
        )  # fmt: skip


def finish(started: list[Any], logs: list[Path]) -> None:
    """Wait for all; show their output where one fails."""
    try:
        codes = [process.wait(RUN_SECONDS) for process in started]
    finally:
        for process in started:
            process.kill()
    assert codes == [0] * len(started), "\n".join(log.read_text()[-3000:] for log in logs)


def repeatable(run: Path) -> list[dict[str, Any]]:
    """The figures of every step, without those of the clock and of the machine."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {
            name: value
            for name, value in line.items()
            if isinstance(value, int | float) and not any(part in name for part in UNREPEATABLE)
        }
        for line in lines
    ]


@pytest.fixture(scope="module")
def expected(traces: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """By engine: the metrics of four ranks on one node."""
    metrics = {}
    for engine in ENGINES:
        folder = tmp_path_factory.mktemp("one_node")
        log = folder / "log"
        finish([start("torchrun", recipe(traces, folder / "run", engine), log, NPROC="4")], [log])
        metrics[engine] = repeatable(folder / "run")
    return metrics


def recipe(traces: Path, run: Path, engine: str) -> list[str]:
    return [
        "experiment=quickstart_smoke", "data=jsonl", f"sft.data.path={traces}", f"run_dir={run}",
        f"sft.num_steps={STEPS}", "tracking.log_every_steps=1", f"engine.name={engine}",
    ]  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_nodes_compute_what_one_node_computes(
    launcher: str, engine: str, nodes: list[Node], traces: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    if launcher == "deepspeed":
        pytest.importorskip("deepspeed")
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("".join(f"{node.address} slots=2\n" for node in nodes))
    settings = {"MASTER_ADDR": nodes[0].address}
    settings |= {"NNODES": "2", "NPROC": "2"} if launcher == "torchrun" else {"HOSTFILE": str(hostfile)}
    logs = [tmp_path / f"log{rank}" for rank in range(2)]
    overrides = recipe(traces, tmp_path / "run", engine)
    started = [
        start(launcher, overrides, logs[rank], node, NODE_RANK=str(rank), **settings) for rank, node in enumerate(nodes)
    ]
    finish(started, logs)
    metrics = repeatable(tmp_path / "run")
    assert [line["step"] for line in metrics] == list(range(1, STEPS + 1))
    assert metrics == [pytest.approx(line, rel=1e-6) for line in expected[engine]]
