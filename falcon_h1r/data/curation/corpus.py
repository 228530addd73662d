"""The way through a corpus that does not fit memory, and can be cut at any moment.

    plan     the sources cut into chunks: a table that depends on the files alone      work/plan.json
    judge    each chunk, in processes, or in the jobs of an array                      work/000012.npy, .json
    reduce   all facts                                                                 nothing on disk
    render   each chunk                                                                work/000012.kept-0.jsonl
    lay down                                                                           traces.jsonl, dropped.jsonl, ...

A file has its name once it is whole, so whatever a kill leaves is taken up again, and what comes out is the same.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from glob import glob
from pathlib import Path
from typing import Any

from falcon_h1r.config import Config
from falcon_h1r.data.chunks import Chunk, plan_chunks
from falcon_h1r.data.curation.facts import ChunkFiles, CorpusFacts, load_corpus
from falcon_h1r.data.curation.pool import ChunkPool
from falcon_h1r.data.curation.reduce import Reduced, reduce_corpus
from falcon_h1r.data.curation.render import Rendered, RenderedFiles, concatenate, decisions_by_chunk, lay_down
from falcon_h1r.data.curation.summary import summarise, throughput
from falcon_h1r.data.jsonl import new_file, write_jsonl
from falcon_h1r.progress import ProgressReporter
from falcon_h1r.types import InputError

WORK = "work"  # in the run folder, until the end
SUMMARY, TRACES, DROPPED = "summary.json", "traces.jsonl", "dropped.jsonl"
EXAMPLES, DISAGREEMENTS, THROUGHPUT = "dropped_examples.json", "disagreements.jsonl", "throughput.json"

# Settings that judging does not depend on: shards may be merged anew under others.
NOT_JUDGED_BY = ("work", "mix", "traces_per_problem", "weights", "synthetic")

Check = Callable[[], None]  # raises where the run is to stop
Reporter = Callable[[int, str], ProgressReporter]  # of a number of chunks and what is done with them


def remove_work(folder: Path) -> None:
    """Once all that stays is there; with it what kills have left half written."""
    shutil.rmtree(folder / WORK, ignore_errors=True)
    for partial in folder.glob(".*.partial"):
        partial.unlink()


def curate_corpus(config: Config, folder: Path, report: Reporter, check: Check = lambda: None) -> dict[str, Any]:
    """Curate `config.curate.sources` into `folder`, or go on where a kill left it; returns the summary.

    The work stays beside what was written: remove_work.

    With `work.shard` only the chunks of that shard are judged, and the summary is empty: the job that merges has it.

    Raises:
        InputError: for rows that cannot be read (unless they are to be skipped), sources that changed on the way,
            shards that are not whole, and what reduce_corpus refuses.
    """
    work = folder / WORK
    work.mkdir(parents=True, exist_ok=True)
    settings = config.curate.work
    chunks = _plan(config, work)
    with ChunkPool(config, settings.num_workers, check) as pool:
        if settings.merge is None:
            _judge(chunks, work, config, pool, report)
            if settings.shard is not None:
                return {}
        judged = _find_judged(chunks, work, settings.merge)
        corpus = load_corpus(judged)
        reduced = reduce_corpus(corpus, config.curate, judged, config.seed)
        rendered = _render(chunks, judged, corpus, reduced, work, config, pool, report)
    return _publish(corpus, reduced, judged, rendered, folder, config)


# -----------------------------------------------------------------------------
# Plan


def _plan(config: Config, work: Path) -> list[Chunk]:
    """The table of chunks, written down once: what was judged by it is only good for the same files."""
    path, spool = work / "plan.json", Path(config.curate.work.spool or work / "spool")
    chunk_bytes = int(config.curate.work.chunk_megabytes * 1e6)
    if path.is_file():
        plan = json.loads(path.read_bytes())
        changed = [name for name, stamp in plan["files"].items() if stamp != _stamp(name, spool)]
        if changed:
            raise InputError(f"{changed[0]}: has changed since curation began; start anew in another folder")
        return [Chunk(**chunk) for chunk in plan["chunks"]]
    chunks = plan_chunks(config.curate.sources, chunk_bytes, spool)
    files = dict.fromkeys(chunk.path for chunk in chunks)
    plan = {
        "chunks": [asdict(chunk) for chunk in chunks],
        "files": {name: _stamp(name, spool) for name in files},
        "settings": _judging_settings(config),
    }
    with new_file(path) as file:
        file.write(json.dumps(plan).encode())
    return chunks


def _judging_settings(config: Config) -> dict[str, Any]:
    """By key, as JSON has them: what each job of an array has to agree on."""
    curate = asdict(config.curate)
    settings = {f"curate.{key}": value for key, value in curate.items() if key not in NOT_JUDGED_BY}
    settings |= {f"curate.weights.{key}": curate["weights"][key] for key in ("measured_by", "pass_rates")}
    plain: dict[str, Any] = json.loads(json.dumps(settings | {"model.path": config.model.path}))
    return plain


def _stamp(path: str, spool: Path) -> list[int] | None:
    """Size and time of a file's last change: of spooled files the size, for jobs that read at the same time replace
    each other's parts by equal ones."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return [status.st_size] if Path(path).is_relative_to(spool) else [status.st_size, status.st_mtime_ns]


# -----------------------------------------------------------------------------
# Chunk by chunk


def _judge(chunks: Sequence[Chunk], work: Path, config: Config, pool: ChunkPool, report: Reporter) -> None:
    settings = config.curate.work
    own = [chunk for chunk in chunks if settings.shard is None or chunk.index % settings.num_shards == settings.shard]
    left = [chunk for chunk in own if not ChunkFiles(work, chunk.index).exists()]
    progress = report(len(left), "judging" if len(left) == len(own) else f"judging the {len(left)} chunks left")
    with progress.bar:
        for num_traces, num_tokens in pool.judge(left, work):
            progress.advance(1, num_tokens, traces=num_traces)


def _find_judged(chunks: Sequence[Chunk], work: Path, merge: str | None) -> list[ChunkFiles]:
    """Each chunk's files, in this run's folder or in those of the shards to merge.

    Raises:
        InputError: where shards were cut or judged otherwise, or a chunk was judged by none.
    """
    if merge is None:
        return [ChunkFiles(work, chunk.index) for chunk in chunks]
    folders = [Path(found) / WORK for found in sorted(glob(merge)) if (Path(found) / WORK / "plan.json").is_file()]
    if not folders:
        raise InputError(f"curate.work.merge={merge}: no folder of a shard there")
    own = json.loads((work / "plan.json").read_bytes())
    for folder in folders:
        theirs = json.loads((folder / "plan.json").read_bytes())
        if other := [key for key in own["settings"] if own["settings"][key] != theirs.get("settings", {}).get(key)]:
            raise InputError(f"{folder.parent}: was judged with another {other[0]} than this run has")
        if theirs != own:
            raise InputError(f"{folder.parent}: its sources were other files, or cut into other chunks")
    judged = []
    for chunk in chunks:
        found = [files for folder in folders if (files := ChunkFiles(folder, chunk.index)).exists()]
        if not found:
            raise InputError(
                f"curate.work.merge={merge}: chunk {chunk.index} of {len(chunks)} ({chunk.path}) was judged by no "
                f"shard; with {len(folders)} shards it belongs to shard {chunk.index % len(folders)}"
            )
        judged.append(found[0])
    return judged


def _render(
    chunks: Sequence[Chunk],
    judged: Sequence[ChunkFiles],
    corpus: CorpusFacts,
    reduced: Reduced,
    work: Path,
    config: Config,
    pool: ChunkPool,
    report: Reporter,
) -> list[RenderedFiles]:
    files = [RenderedFiles(work, chunk.index) for chunk in chunks]
    graded = config.curate.weights.measured_by != "label"
    decided = decisions_by_chunk(corpus, reduced, judged, graded)
    tasks = (
        (chunk, facts_of, decisions, one)
        for chunk, facts_of, decisions, one in zip(chunks, judged, decided, files, strict=True)
        if not one.done.is_file()
    )
    progress = report(sum(not one.done.is_file() for one in files), "writing")
    with progress.bar:
        for _ in pool.render(tasks):
            progress.advance()
    return files


# -----------------------------------------------------------------------------
# What stays


def _publish(
    corpus: CorpusFacts,
    reduced: Reduced,
    judged: Sequence[ChunkFiles],
    files: Sequence[RenderedFiles],
    folder: Path,
    config: Config,
) -> dict[str, Any]:
    """Write the files that stay, the summary last; the work may then be removed."""
    lay_down(corpus, reduced.mix, files, folder / TRACES)
    concatenate([one.dropped for one in files], folder / DROPPED)
    notes = [one.read_notes(with_places=False) for one in judged]
    summary = summarise(corpus, reduced, notes, config)
    _write_json(folder / EXAMPLES, _first_examples(one.read() for one in files))
    if any(one.read().disagreements for one in files):
        write_jsonl(folder / DISAGREEMENTS, (row for one in files for row in one.read().disagreements))
    _write_json(folder / THROUGHPUT, throughput(notes, corpus))
    _write_json(folder / SUMMARY, summary)
    return summary


def _first_examples(rendered: Iterable[Rendered]) -> dict[str, list[dict[str, Any]]]:
    """A few dropped traces of each reason, the first in the corpus."""
    whole = Rendered()
    for one in rendered:
        for reason, rows in one.examples.items():
            for row in rows:
                whole.remember(reason, row)
    return dict(sorted(whole.examples.items()))


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with new_file(path) as file:
        file.write((json.dumps(value, indent=2) + "\n").encode())
