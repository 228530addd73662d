"""What a user may have got wrong in curation's input, found before any work."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from falcon_h1r.config_data import CurateConfig
from falcon_h1r.config_rules import one_of
from falcon_h1r.data.adapters import Adapter
from falcon_h1r.data.curation.reduce import read_pass_rates
from falcon_h1r.data.decontamination import EvaluationIndex
from falcon_h1r.data.files import source_files
from falcon_h1r.data.source_checks import DOMAINS
from falcon_h1r.data.sources import read_traces
from falcon_h1r.types import InputError

READ_WHOLE_BYTES = 64_000_000  # files of a source that are so small together are read whole ...
HEAD_ROWS = 1000  # ... of others so many rows; the rest is read by chunks, where the first bad row is named as well


def check_sources(curate: CurateConfig) -> None:
    """Open every source and every evaluation set, and read their beginnings. A hub dataset is only looked for.

    Raises:
        InputError: naming key, file or row. With `on_error` skip, rows are left to the run, which counts them.
    """
    if curate.filters.second_check == "llm":
        for key in ("url", "model"):
            if getattr(curate.second_check, key) is None:
                raise InputError(f"curate.second_check.{key} is not set: filters.second_check=llm needs it")
    for name in ("domain_token_shares", "domain_samples"):
        for domain in getattr(curate.mix, name):
            one_of(f"curate.mix.{name}", domain, DOMAINS)
    for name, source in curate.sources.items():
        Adapter(source, key=f"curate.sources.{name}")
        if source.format == "hub":
            continue
        size = sum(file.stat().st_size for file in source_files(source))
        if curate.on_error == "raise":
            limit = source.limit if size <= READ_WHOLE_BYTES else min(HEAD_ROWS, source.limit or HEAD_ROWS)
            max_row_bytes = int(curate.max_row_megabytes * 1e6)
            deque(read_traces(replace(source, limit=limit), max_row_bytes), maxlen=0)
    EvaluationIndex.from_config(curate.decontamination)
    weights = curate.weights
    if weights.measured_by == "pass_rate" and weights.pass_rates not in ("traces", "rows"):
        read_pass_rates(weights.pass_rates)
