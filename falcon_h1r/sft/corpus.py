"""The documents of the cold start: tokenised once for all ranks, held to the limits by their lengths alone."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from falcon_h1r.config import Config
from falcon_h1r.config_sources import SourceConfig
from falcon_h1r.config_stage import LimitsConfig
from falcon_h1r.data.jsonl import write_jsonl
from falcon_h1r.data.packing import Document
from falcon_h1r.data.packing_plan import Indices
from falcon_h1r.data.sources import read_traces
from falcon_h1r.data.token_entries import Encoding, Made, save_tokenizer
from falcon_h1r.data.token_store import POLL_SECONDS, DocumentIndex, TokenStore, stage_entries, tokenise
from falcon_h1r.distributed.watch import StopRequested
from falcon_h1r.distributed.world import World
from falcon_h1r.progress import ProgressReporter
from falcon_h1r.types import InputError, to_row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOLD_AT_ONCE = 65_536  # documents in one piece of the text that is hashed


def open_tokens(config: Config, folder: Path, tokenizer: PreTrainedTokenizerBase, world: World) -> TokenStore:
    """The tokenised traces of `sft.data`, made first where they are missing. Every rank has to call it.

    One process of each node makes entries, in competition where there are several; the others wait in a meeting.

    Raises:
        InputError, StopRequested: on every rank.
    """
    settings = config.sft.tokens
    cache = Path(settings.cache) if settings.cache is not None else folder / "tokens"

    def prepare() -> tuple[Path, Encoding]:
        try:
            where = save_tokenizer(tokenizer, cache)
        except OSError as error:
            raise InputError(f"sft.tokens.cache={cache}: cannot be written ({error.strerror})") from None
        return _traces_file(config.sft.data, folder), Encoding(*where, config.system_prompt, config.sft.conversations)

    path, encoding = world.on_main(prepare)
    keys = list[str]()
    failure: InputError | StopRequested | None = None
    if os.environ.get("LOCAL_RANK", "0") == "0":
        try:
            keys = _tokenise(path, encoding, tokenizer, cache, settings.num_workers, world)
            if settings.stage is not None:
                stage_entries(cache, keys, Path(settings.stage))
        except (InputError, StopRequested) as error:
            failure = error
        except OSError as error:
            failure = InputError(f"sft.tokens: {error.filename or cache}: cannot be written ({error.strerror})")
    for raised in world.gather(failure):
        if raised is not None:
            raise raised
    keys = world.broadcast(keys)
    return TokenStore(Path(settings.stage) if settings.stage is not None else cache, keys)


def _traces_file(source: SourceConfig, folder: Path) -> Path:
    """The traces as curation writes them: its own file, or a copy of another source in the run's folder."""
    if source.path is not None and source.curated and source.limit is None and Path(source.path).is_file():
        return Path(source.path)
    write_jsonl(folder / "traces.jsonl", map(to_row, read_traces(source)))
    return folder / "traces.jsonl"


def _tokenise(
    path: Path, encoding: Encoding, tokenizer: PreTrainedTokenizerBase, cache: Path, num_workers: int, world: World
) -> list[str]:
    console = Console() if world.is_main else None
    reporter = ProgressReporter(path.stat().st_size // 1024, "tokenising", "KiB", console=console)

    def report(made: Made) -> None:
        reporter.advance(made.num_bytes // 1024, made.num_tokens)
        world.watch.check()

    def pause() -> None:
        time.sleep(POLL_SECONDS)
        world.watch.check()

    with reporter.bar:
        return tokenise(path, encoding, tokenizer, cache, num_workers, report, pause=pause)


# -----------------------------------------------------------------------------
# The limits


class Corpus(Sequence[Document]):
    """Some documents of a sequence, a few of them cut on the right; their tokens are read when they are asked for."""

    def __init__(self, documents: Sequence[Document], chosen: Indices, lengths: Indices, truncated: NDArray[Any]):
        """
        Args:
            chosen: (n), which documents.
            lengths: (n), so many tokens of each.
            truncated: (n) bool, whether it had more.
        """
        self._documents, self._chosen, self.lengths, self.truncated = documents, chosen, lengths, truncated

    @classmethod
    def whole(cls, documents: Sequence[Document]) -> Corpus:
        """All of them, as they are."""
        if isinstance(documents, cls):
            return documents
        truncated = np.array([document.truncated for document in documents], bool)
        lengths = np.array([len(document) for document in documents], np.int64)
        return cls(documents, np.arange(len(documents)), lengths, truncated)

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, number: Any) -> Any:
        """A document; or, for a slice, a list of them."""
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        document = self._documents[int(self._chosen[number])]
        if not self.truncated[number]:
            return document
        end = int(self.lengths[number])
        ids, weights = document.input_ids[:end], document.loss_weights[:end]
        return replace(document, input_ids=ids, loss_weights=weights, truncated=True)

    def uids(self) -> Iterator[str]:
        """In order, without reading tokens where that can be avoided."""
        documents = self._documents
        for number in self._chosen.tolist():
            yield documents.uid(number) if isinstance(documents, TokenStore) else documents[number].uid


@dataclass(frozen=True, slots=True)
class FittedDocuments:
    """What is left within the limits, and what was not."""

    documents: Corpus
    num_dropped: int
    num_trimmed: int
    num_weightless: int  # of weight 0: nothing to learn from
    num_without_answer: int  # of the trimmed: the cut took the answer, or a part of it

    @property
    def num_whole(self) -> int:
        return len(self.documents) - self.num_trimmed

    def describe(self) -> str:
        return (
            f"{self.num_whole} whole traces and {self.num_trimmed} trimmed, {self.num_without_answer} of which lost "
            f"their answer; {self.num_dropped} beyond the limits dropped, {self.num_weightless} of weight 0 left out"
        )

    def summary(self) -> dict[str, int]:
        """For the run's folder."""
        return {
            "whole": self.num_whole,
            "trimmed": self.num_trimmed,
            "trimmed_without_answer": self.num_without_answer,
            "dropped": self.num_dropped,
            "weightless": self.num_weightless,
            "tokens": int(self.documents.lengths.sum()),
        }


def fit_documents(documents: Sequence[Document], limits: LimitsConfig, overlong: str) -> FittedDocuments:
    """Drop, or where `overlong` is "trim" cut on the right, traces beyond the limits. Nothing goes uncounted.

    What is cut has no end of its turn, so that none is learnt where the text does not end.

    Raises:
        InputError: where nothing is left to train on.
    """
    index = documents.document_index if isinstance(documents, TokenStore) else index_of(documents)
    responses = index.lengths - index.prompt_lengths
    fits_prompt = index.carries_loss & (index.prompt_lengths <= limits.prompt_tokens)
    fits = fits_prompt & (responses <= limits.response_tokens)
    trimmed = fits_prompt & ~fits if overlong == "trim" else np.zeros_like(fits)
    chosen = np.flatnonzero(fits | trimmed)
    if not len(chosen):
        raise InputError(
            f"sft.limits: none of {len(documents)} traces fits prompt_tokens={limits.prompt_tokens} and "
            f"response_tokens={limits.response_tokens}"
        )
    kept = np.where(trimmed, index.prompt_lengths + limits.response_tokens, index.lengths)
    return FittedDocuments(
        Corpus(documents, chosen, kept[chosen], trimmed[chosen]),
        num_dropped=int((index.carries_loss & ~fits & ~trimmed).sum()),
        num_trimmed=int(trimmed.sum()),
        num_weightless=int((~index.carries_loss).sum()),
        num_without_answer=int((trimmed & (kept < index.answer_ends)).sum()),
    )


def index_of(documents: Sequence[Document]) -> DocumentIndex:
    """Of documents in memory. Where the answer ends they do not say: with the last token but one."""
    lengths = np.array([len(document) for document in documents], np.int64)
    first = [next((t for t, w in enumerate(d.loss_weights) if w != 0), -1) for d in documents]
    prompt_lengths = np.array(first, np.int64)
    return DocumentIndex(lengths, prompt_lengths, lengths - 1, prompt_lengths >= 0)


# -----------------------------------------------------------------------------
# Resuming


class TrainingData:
    """What a resumed run has to find again: the same documents in the same order, told by uids and lengths."""

    def __init__(self, documents: Sequence[Document], path: str) -> None:
        corpus = Corpus.whole(documents)
        told, digest = list[str](), hashlib.sha256()
        for number, (uid, length) in enumerate(zip(corpus.uids(), corpus.lengths.tolist(), strict=True)):
            told.append(f"\n{uid} {length}" if number else f"{uid} {length}")
            if len(told) == TOLD_AT_ONCE or number == len(corpus) - 1:
                digest.update("".join(told).encode())
                told.clear()
        self._path = path
        self._state = {"num_documents": len(corpus), "hash": digest.hexdigest()[:16]}

    def state_dict(self) -> dict[str, Any]:
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Raises:
            InputError: where the data is not that of the checkpoint.
        """
        if state != self._state:
            raise InputError(
                f"sft.data.path={self._path}: {self._state['num_documents']} documents that are not the "
                f"{state['num_documents']} the run was begun with"
            )
