"""What suite=model measures: a case is one amount of work, done by several contenders that are compared.

scan         a Mamba2 mixer, from in_proj to out_proj, on one long document
scan_alone   its scan alone, from x, dt, B, C to y
model        the whole model on one row of equal documents
lengths      the same over row lengths: one document, eight equal ones, and a log-normal mix against padding
row          a training step on one long row with the whole vocabulary: the row, its loss, AdamW
loss         logprobs and gradients of the head alone
"""

from __future__ import annotations

import math
import random
from dataclasses import asdict, dataclass
from typing import Any

from falcon_h1r.config_checks_tools import BENCHMARK_PARTS
from falcon_h1r.config_tools import BenchmarkSuiteConfig

MIX_SIGMA = 0.7  # of the log-normal mix: its longest of a few dozen is about four times its median
MIX_DOCUMENTS = 16

OURS = "ours"
PEER = "transformers"  # where there is one way to run it; else one of
BY_DOCUMENT, PADDED, LEAKING = "one by one", "padded", "one row, leaking"


@dataclass(frozen=True, slots=True)
class Contender:
    """One way of doing a case's work."""

    path: str  # OURS, or how the peer is run
    chunk_size: int | None = None  # transformers' mamba_chunk_size
    skipped: str | None = None  # by which rule it is not run


@dataclass(frozen=True, slots=True)
class Case:
    """Work on one row. The contenders of one path differ in chunk size; the fastest stands for the path."""

    part: str
    layout: str
    lengths: tuple[int, ...]  # of the documents
    vocab_size: int | None  # None: the architecture's
    contenders: tuple[Contender, ...]
    recompute: str = "none"  # what a training step keeps: engine.activation_checkpointing

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    @property
    def key(self) -> str:
        """Names the case in the page's figures."""
        return f"{self.part}/{self.layout}/{self.num_tokens}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"key": self.key, "lengths": list(self.lengths), "num_tokens": self.num_tokens}


def suite_cases(settings: BenchmarkSuiteConfig) -> list[Case]:
    """Every case of the parts asked for, short ones first within a part."""
    make = {
        "scan": lambda: [_scan(settings, "scan", length) for length in settings.scan_lengths],
        "scan_alone": lambda: [_scan(settings, "scan_alone", length) for length in settings.scan_alone_lengths],
        "model": lambda: [_model(settings)],
        "lengths": lambda: [
            _row(settings, length, layout) for length in settings.row_lengths for layout in settings.row_layouts
        ],
        "row": lambda: [
            _train_row(settings, documents, recompute)
            for documents in settings.train_row_documents
            for recompute in settings.train_row_recompute
        ],
        "loss": lambda: [_peer_loss(settings), _loss(settings)],
    }
    return [case for part in BENCHMARK_PARTS if part in settings.parts for case in make[part]()]


def _scan(settings: BenchmarkSuiteConfig, part: str, length: int) -> Case:
    return Case(part, "one", (length,), None, (Contender(OURS), *_peers(settings, part, length, PEER)))


def _model(settings: BenchmarkSuiteConfig) -> Case:
    lengths = tuple(settings.model_documents)
    paths = (BY_DOCUMENT, PADDED, LEAKING)
    peers = (peer for path in paths for peer in _peers(settings, "model", sum(lengths), path))
    return Case("model", "documents", lengths, settings.vocab_size, (Contender(OURS), *peers))


def _row(settings: BenchmarkSuiteConfig, length: int, layout: str) -> Case:
    lengths = {"one": (length,), "eight": equal_lengths(length, 8), "mixed": mixed_lengths(length)}[layout]
    peers = _peers(settings, "lengths", length, PADDED if layout == "mixed" else BY_DOCUMENT)
    return Case("lengths", layout, lengths, settings.vocab_size, (Contender(OURS), *peers))


def _train_row(settings: BenchmarkSuiteConfig, num_documents: int, recompute: str) -> Case:
    lengths = equal_lengths(settings.train_row_tokens, num_documents)
    return Case("row", f"{num_documents} documents, {recompute}", lengths, None, (Contender(OURS),), recompute)


def _loss(settings: BenchmarkSuiteConfig) -> Case:
    return Case("loss", "alone", (settings.loss_tokens,), None, (Contender(OURS),))


def _peer_loss(settings: BenchmarkSuiteConfig) -> Case:
    contenders = (Contender(OURS), Contender("naive"), Contender("TRL, chunked"))
    return Case("loss", "compared", (settings.loss_peer_tokens,), None, contenders)


def _peers(settings: BenchmarkSuiteConfig, part: str, num_tokens: int, path: str) -> tuple[Contender, ...]:
    """transformers at each chunk size, or one contender that says why it is not run."""
    most = settings.peer_max_tokens.get(part)
    if most is not None and num_tokens > most:
        return (Contender(path, skipped=f"above benchmark.peer_max_tokens.{part}={most}"),)
    return tuple(Contender(path, chunk_size) for chunk_size in settings.peer_chunk_sizes)


# -----------------------------------------------------------------------------
# Document lengths


def equal_lengths(num_tokens: int, num_documents: int) -> tuple[int, ...]:
    """As equal as whole tokens allow."""
    short, longer = divmod(num_tokens, num_documents)
    return (short + 1,) * longer + (short,) * (num_documents - longer)


def mixed_lengths(num_tokens: int, num_documents: int = MIX_DOCUMENTS, seed: int = 0) -> tuple[int, ...]:
    """Log-normal lengths scaled to fill the row exactly; the same shape at every row length."""
    rng = random.Random(seed)
    sizes = [math.exp(rng.gauss(0.0, MIX_SIGMA)) for _ in range(num_documents)]
    scale = num_tokens / sum(sizes)
    lengths = [max(2, math.floor(size * scale)) for size in sizes]
    longest = lengths.index(max(lengths))
    lengths[longest] += num_tokens - sum(lengths)
    return tuple(lengths)
