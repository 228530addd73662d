"""Five hundred right programs and five hundred subtly wrong ones, written for this test, judged without one error."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from falcon_h1r.verifier.code import CodeVerifier
from tests.verifier.code.programs import FAMILIES

PROGRAMS = [(right, *program) for right in (True, False) for family in FAMILIES for program in family.programs(right)]
SAMPLE = PROGRAMS[:: len(PROGRAMS) // 60][:60]  # right and wrong, of all kinds


@pytest.fixture(scope="module")
def verifier() -> Iterator[CodeVerifier]:
    with CodeVerifier(num_workers=2) as shared:
        yield shared


def misjudged(verifier: CodeVerifier, programs: list[tuple[bool, str, str, object]]) -> list[str]:
    """Names of the programs whose verdict is not the true one, with what was said."""
    responses = [f"Like this:\n```python\n{source}```\n" for _, _, source, _ in programs]
    verdicts = verifier.score(responses, [tests for *_, tests in programs])
    return [
        f"{name}: {verdict.status}, {verdict.stage}: {verdict.reason}"
        for (right, name, _, _), verdict in zip(programs, verdicts, strict=True)
        if verdict.status != ("correct" if right else "wrong")
    ]


def test_the_thousand_are_a_thousand_different_programs() -> None:
    assert [right for right, *_ in PROGRAMS].count(True) == [right for right, *_ in PROGRAMS].count(False) == 500
    assert len({source for _, _, source, _ in PROGRAMS}) == 1000
    assert len(FAMILIES) == 50


def test_a_sample_of_them_is_judged_without_an_error(verifier: CodeVerifier) -> None:
    assert {right for right, *_ in SAMPLE} == {True, False}
    assert misjudged(verifier, SAMPLE) == []


@pytest.mark.slow
def test_all_of_them_are_judged_without_an_error(verifier: CodeVerifier) -> None:
    assert misjudged(verifier, PROGRAMS) == []
