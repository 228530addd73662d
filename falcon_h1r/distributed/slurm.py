"""What a run asks of slurm: to be put back into the queue after it has been stopped and saved."""

from __future__ import annotations

import subprocess

SCONTROL_SECONDS = 60.0


def requeue(job_id: str) -> str:
    """Have slurm queue this job again, which ends it here; the line to be told about that."""
    command = ["scontrol", "requeue", job_id]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SCONTROL_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"warning: job {job_id} is not requeued: {error}"
    if done.returncode:
        reason = " ".join((done.stderr or done.stdout).split()) or f"exit status {done.returncode}"
        return f"warning: job {job_id} is not requeued: {' '.join(command)}: {reason}"
    return f"job {job_id} is requeued"
