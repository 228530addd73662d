"""A real slurm cluster on one machine: its daemons, ports, sockets and state in a temporary folder.

Several nodes are several slurmd on this machine. Everything is started by `SlurmCluster.start` and ended by `stop`;
the machine's own slurm and munge, if there are any, are neither used nor touched.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
START_SECONDS = 120
STOP_SECONDS = 20

# `low` and `patient` give way to `high`, `patient` with a period of grace; who gave way goes back into the queue.
# cred_expire is also how long a requeued job waits before it may start again.
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType={proctrack}
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=1,bf_interval=1,sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=30
ReturnToService=2
{nodes}
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=patient Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2
"""


def why_not() -> str | None:
    """Why no cluster can be started here, or None where one can."""
    if os.geteuid() != 0:
        return "a slurm cluster needs root"
    missing = [name for name in DAEMONS if shutil.which(name) is None]
    return f"not installed: {', '.join(missing)} (make system-packages)" if missing else None


class SlurmCluster:
    """A controller and `num_nodes` nodes of two CPUs each."""

    def __init__(self, num_nodes: int = 2, proctrack: str = "proctrack/linuxproc") -> None:
        # Of a short name, for the path of a socket may not be long.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm."))
        self.nodes = [f"node{index}" for index in range(num_nodes)]
        self.environment = {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen[bytes]] = []
        controller_port, *node_ports = _free_ports(1 + num_nodes)
        host = socket.gethostname()
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 State=UNKNOWN"
            for name, port in zip(self.nodes, node_ports, strict=True)
        )
        (self.folder / "state").mkdir()
        (self.folder / "slurm.conf").write_text(
            CONFIG.format(
                host=host, folder=self.folder, controller_port=controller_port, nodes=nodes, proctrack=proctrack
            )
        )

    def start(self) -> None:
        """Start the daemons and wait until every node is idle.

        Raises:
            RuntimeError: where they are not within START_SECONDS; with the ends of their logs.
        """
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self._run(
            "munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", f"--key-file={key}",
            f"--pid-file={self.folder}/munged.pid", f"--log-file={self.folder}/munged.log",
            f"--seed-file={self.folder}/munged.seed",
        )  # fmt: skip
        wait_until(lambda: (self.folder / "munge.socket").exists(), START_SECONDS, self.logs)
        self._run("slurmctld", "-D")
        for name in self.nodes:
            (self.folder / f"spool.{name}").mkdir()
            self._run("slurmd", "-D", "-N", name)
        wait_until(lambda: self._states() == ["idle"] * len(self.nodes), START_SECONDS, self.logs)

    def stop(self) -> None:
        """End the jobs and the daemons, the last started first, and remove the folder."""
        self.call("scancel", "--user=root", check=False)
        self.call("scancel", "--user=root", "--signal=KILL", "--full", check=False)
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def call(self, *command: str, check: bool = True, **environment: str) -> str:
        """Run one of slurm's commands and return what it prints.

        Raises:
            RuntimeError: where it fails and `check` is set, with what it said.
        """
        result = subprocess.run(
            command, capture_output=True, text=True, env={**self.environment, **environment}, timeout=60
        )
        if check and result.returncode:
            raise RuntimeError(f"{' '.join(command)}: {result.stderr.strip()}\n{self.logs()}")
        return result.stdout.strip()

    def submit(self, *arguments: str, **environment: str) -> str:
        """Submit a batch script with sbatch's arguments; returns the job's number."""
        return self.call("sbatch", "--parsable", *arguments, **environment)

    def job(self, number: str) -> dict[str, str]:
        """What slurm knows of a job: JobState, Restarts, ..."""
        shown = self.call("scontrol", "show", "job", "--oneliner", number)
        return dict(field.split("=", 1) for field in shown.split() if "=" in field)

    def wait_for(self, number: str, states: Sequence[str], seconds: float) -> dict[str, str]:
        """Wait until a job is in one of `states`; returns what slurm then knows of it."""
        wait_until(lambda: self.job(number)["JobState"] in states, seconds, lambda: f"{self.job(number)}")
        return self.job(number)

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        ends = (f"{path.name}:\n{path.read_text(errors='replace')[-1500:]}" for path in self.folder.glob("*.log"))
        return "\n".join(ends)

    def _states(self) -> list[str]:
        return self.call("sinfo", "--noheader", "--Node", "--partition=low", "--format=%T", check=False).split()

    def _run(self, *command: str) -> None:
        log = (self.folder / f"output.{command[0]}.{len(self._daemons)}.log").open("wb")
        with log:
            self._daemons.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))


def wait_until(reached: Callable[[], bool], seconds: float, describe: Callable[[], str] = str) -> None:
    """Wait until something is so.

    Raises:
        RuntimeError: where it is not so within `seconds`, with what `describe` says.
    """
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {seconds} seconds: {describe()}")
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]
    finally:
        for listener in sockets:
            listener.close()
