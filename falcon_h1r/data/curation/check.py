"""What a user may have got wrong in curation's input, found before any work."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from falcon_h1r.config_data import CurateConfig
from falcon_h1r.data.adapters import Adapter
from falcon_h1r.data.decontamination import EvaluationIndex
from falcon_h1r.data.files import source_files
from falcon_h1r.data.sources import read_traces

READ_WHOLE_BYTES = 64_000_000  # files of a source that are so small together are read whole ...
HEAD_ROWS = 1000  # ... of others so many rows; the rest is read by chunks, where the first bad row is named as well


def check_sources(curate: CurateConfig) -> None:
    """Open every source and every evaluation set, and read their beginnings. A hub dataset is only looked for.

    Raises:
        InputError: naming key, file or row. With `on_error` skip, rows are left to the run, which counts them.
    """
    for name, source in curate.sources.items():
        Adapter(source, key=f"curate.sources.{name}")
        if source.format == "hub":
            continue
        size = sum(file.stat().st_size for file in source_files(source))
        if curate.on_error == "raise":
            limit = source.limit if size <= READ_WHOLE_BYTES else min(HEAD_ROWS, source.limit or HEAD_ROWS)
            deque(read_traces(replace(source, limit=limit)), maxlen=0)
    EvaluationIndex.from_config(curate.decontamination)
