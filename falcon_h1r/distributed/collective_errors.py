"""What a collective raises when another rank has gone, told from what a rank's own work raises."""

from __future__ import annotations

import re

import torch.distributed as dist

LOST_CONNECTION = re.compile(r"gloo|nccl|process ?group|connection (was )?(closed|reset)|broken pipe", re.IGNORECASE)


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error tells that another rank has gone, rather than what happened to it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, dist.DistError) or (
            isinstance(cause, (RuntimeError, OSError)) and LOST_CONNECTION.search(str(cause))
        ):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
