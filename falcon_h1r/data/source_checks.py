"""What may be wrong with a SourceConfig itself, found before a row is read."""

from __future__ import annotations

import re
from collections.abc import Iterable

from falcon_h1r.config_sources import SourceConfig
from falcon_h1r.types import DIFFICULTIES, InputError

FORMATS = ("jsonl", "parquet", "hub")
DOMAINS = ("math", "code", "science", "other")
TOOL_CALL = "tool_call"  # of ShareGPT: a turn of its own that is an assistant's call
ROLES = ("system", "user", "assistant", "tool", TOOL_CALL)
TRACE_KEYS = ("reasoning_field", "generations_field", "generations", "messages_field")

# A key that says something only beside one of the others.
NEEDS: dict[str, tuple[str, ...]] = {
    "generation_text": ("generations_field", "generations"),
    "generation_verdict": ("generations_field", "generations"),
    "message_reasoning_field": ("messages_field",),
    "role_names": ("messages_field",),
    "system_field": ("messages_field",),
    "tools_field": ("messages_field",),
    "domain_names": ("domain_field",),
    "difficulty_names": ("difficulty_field",),
    "difficulty_bounds": ("difficulty_field",),
    "answer_after": ("answer_field", "generations_field", "generations"),
    "answer_in_box": ("answer_field",),
    "unprovable_answers": ("answer_field",),
    "choices_field": ("answer_field",),
    "choices": ("answer_field",),
    "shuffle_choices": ("choices_field", "choices"),
}
CONTRADICTIONS = (
    TRACE_KEYS,
    *(("response_field", name) for name in TRACE_KEYS[1:]),
    ("answer_after", "answer_in_box"),
    ("choices_field", "choices"),
    ("tests_field", "tests_fields"),
    ("verdict_field", "generation_verdict"),
)


def check_source(source: SourceConfig, key: str = "") -> None:
    """Check the settings of one source; its files are not touched.

    Args:
        key: where it stands in the config ("curate.sources.openr1"), to name the setting by.

    Raises:
        InputError: for a setting that is out of range, says nothing or contradicts another.
    """
    for complaint in _complaints(source):
        raise InputError(f"{key}.{complaint}" if key else complaint)


def _complaints(source: SourceConfig) -> Iterable[str]:
    if not source.path:
        yield "path: a file, a folder or a dataset has to be named"
    if source.format is not None and source.format not in FORMATS:
        yield f"format={source.format}: has to be one of {', '.join(FORMATS)}, or null"
    if source.limit is not None and source.limit < 1:
        yield f"limit={source.limit} has to be at least 1"
    for name in ("subset", "revision"):
        if getattr(source, name) is not None and source.format != "hub":
            yield f"{name}={getattr(source, name)}: only a hub dataset has one; set format=hub"
    if source.curated:  # the field names do not apply
        return
    for name, others in NEEDS.items():
        if getattr(source, name) and not any(getattr(source, other) for other in others):
            yield f"{name}: says nothing without {' or '.join(others)}"
    for names in CONTRADICTIONS:
        if len(found := [name for name in names if getattr(source, name)]) > 1:
            yield f"{found[1]}: contradicts {found[0]}; one of the two has to be null"
    yield from _wrong_values(source)


def _wrong_values(source: SourceConfig) -> Iterable[str]:
    for name, value, allowed in (
        ("domain", source.domain, DOMAINS),
        *(("domain_names", target, DOMAINS) for target in source.domain_names.values()),
        *(("difficulty_names", target, (*DIFFICULTIES, "")) for target in source.difficulty_names.values()),
        *(("role_names", target, ROLES) for target in source.role_names.values()),
    ):
        if value not in allowed:
            yield f"{name}: {value!r} is none of {', '.join(filter(None, allowed))}"
    bounds = source.difficulty_bounds
    if bounds and (len(bounds) != 2 or bounds[0] > bounds[1]):
        yield f"difficulty_bounds={bounds}: has to be two numbers, the smaller first"
    marks = source.reasoning_marks
    if marks and (len(marks) != 2 or not all(marks)):
        yield f"reasoning_marks={marks}: has to be two texts, the one before the reasoning and the one after it"
    if source.strip_pattern is not None:
        try:
            re.compile(source.strip_pattern)
        except re.error as error:
            yield f"strip_pattern={source.strip_pattern}: not a regular expression ({error})"
