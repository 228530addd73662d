"""A verifier that all tests of the room share: its sandboxes start once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from falcon_h1r.verifier.code import CodeVerifier
from falcon_h1r.verifier.workers.sandbox import sandbox_support


@pytest.fixture(scope="session")
def code_verifier() -> Iterator[CodeVerifier]:
    if missing := sandbox_support().missing():
        pytest.skip(f"programs cannot be confined here: no {missing[0]}")
    with CodeVerifier(num_workers=2, cpu_seconds=0.6, deadline_seconds=4.0, memory_limit_bytes=512 << 20) as shared:
        nap = "```python\nimport time\ntime.sleep(0.2)  # {}\n```"
        while len(shared.process_ids()) < 2:  # so that no test meets a sandbox that is only starting
            shared.score([nap.format(n) for n in range(4)], [{"input": "", "output": ""}] * 4)
        yield shared
