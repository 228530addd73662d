"""The limits, decided by lengths; a corpus that is read from the store; and the data that a resumed run has to find."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from falcon_h1r.config import Config
from falcon_h1r.config_sources import SourceConfig
from falcon_h1r.config_stage import LimitsConfig
from falcon_h1r.data.jsonl import write_jsonl
from falcon_h1r.data.packing import Document
from falcon_h1r.data.tokenisation import encode_traces
from falcon_h1r.distributed.watch import StopRequested, Watch
from falcon_h1r.distributed.world import World
from falcon_h1r.sft.corpus import Corpus, TrainingData, fit_documents, open_tokens
from falcon_h1r.types import InputError, Problem, Trace, content_hash, to_row

ALONE = World(0, 1, torch.device("cpu"))
TRACES = [
    Trace(Problem(str(n), f"{n} + 1?", str(n + 1)), "t", "One more. " * n, rf"\boxed{{{n + 1}}}.", float(n != 3))
    for n in range(8)
]


def config_for(tmp_path: Path) -> Config:
    write_jsonl(tmp_path / "traces.jsonl", map(to_row, TRACES))
    config = Config(system_prompt="Think.")
    config.sft.data = SourceConfig(path=str(tmp_path / "traces.jsonl"), curated=True)
    return config


def test_overlong_traces_are_dropped_or_trimmed_and_counted() -> None:
    def trace(prompt: int, response: int) -> Document:
        return Document([1] * (prompt + response), [0.0] * prompt + [1.0] * response)

    documents = [trace(4, 6), trace(4, 9), trace(7, 2)]
    limits = LimitsConfig(prompt_tokens=5, response_tokens=6, row_tokens=16)
    dropped = fit_documents(documents, limits, "drop")
    assert ([len(d) for d in dropped.documents], dropped.num_dropped, dropped.num_trimmed) == ([10], 2, 0)
    trimmed = fit_documents(documents, limits, "trim")
    assert ([len(d) for d in trimmed.documents], trimmed.num_dropped, trimmed.num_trimmed) == ([10, 10], 1, 1)
    weightless = fit_documents([*documents[:1], Document([1, 2], [0.0, 0.0])], limits, "drop")
    assert (len(weightless.documents), weightless.num_weightless) == (1, 1)
    with pytest.raises(InputError, match="none of 1 traces fits"):
        fit_documents(documents[2:], limits, "trim")


def test_what_is_cut_is_flagged_and_has_no_end_of_its_turn(tokenizer: Any) -> None:
    documents = encode_traces(tokenizer, TRACES[:1] + TRACES[6:7], "Think.")
    prompt = documents[1].loss_weights.index(1.0)
    limits = LimitsConfig(prompt_tokens=prompt, response_tokens=len(documents[1]) - prompt - 1, row_tokens=512)
    fitted = fit_documents(documents, limits, "trim")
    whole, cut = fitted.documents
    assert whole is documents[0] and not whole.truncated
    assert cut.truncated and cut.input_ids == documents[1].input_ids[:-1]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    loss_on_ends = [w for t, w in zip(cut.input_ids, cut.loss_weights, strict=True) if t == end and w]
    assert loss_on_ends == [], "the text does not end where it was cut"
    assert (fitted.num_whole, fitted.num_trimmed, fitted.documents.truncated.tolist()) == (1, 1, [False, True])


def test_those_that_lost_their_answer_are_counted(tokenizer: Any, tmp_path: Path) -> None:
    store = open_tokens(config_for(tmp_path), tmp_path, tokenizer, ALONE)
    index = store.document_index
    for missing, lost in ((1, 0), (2, 0), (3, 1)):  # the end of the turn, the full stop, and a part of the box
        response = int(index.lengths[7] - index.prompt_lengths[7]) - missing
        fitted = fit_documents(store, LimitsConfig(256, response, 2048), "trim")
        assert (fitted.num_trimmed, fitted.num_without_answer) == (1, lost)
    assert f"{fitted.num_whole} whole traces and 1 trimmed, 1 of which lost their answer; 0 beyond" in fitted.describe()
    assert fitted.summary() == {
        "whole": 6,
        "trimmed": 1,
        "trimmed_without_answer": 1,
        "dropped": 0,
        "weightless": 1,
        "tokens": int(fitted.documents.lengths.sum()),
    }


def test_the_store_and_memory_give_the_same_corpus(tokenizer: Any, tmp_path: Path) -> None:
    store = open_tokens(config_for(tmp_path), tmp_path, tokenizer, ALONE)
    documents = encode_traces(tokenizer, TRACES, "Think.")
    limits = LimitsConfig(prompt_tokens=256, response_tokens=60, row_tokens=512)
    for overlong in ("drop", "trim"):
        read, held = (fit_documents(source, limits, overlong) for source in (store, documents))
        assert list(read.documents) == list(held.documents) == read.documents[:]
        assert list(read.documents.uids()) == list(held.documents.uids())
        assert TrainingData(read.documents, "").state_dict() == TrainingData(held.documents, "").state_dict()


def test_another_source_is_written_out_first_and_staged(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"question": f"{n} + 1 = ?", "answer": f"One more than {n}. #### {n + 1}"} for n in range(5)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = Config(system_prompt="Think.")
    config.sft.data = SourceConfig(path=str(tmp_path / "sums.jsonl"), answer_after="####", limit=4)
    config.sft.tokens.cache, config.sft.tokens.stage = str(tmp_path / "cache"), str(tmp_path / "local")
    store = open_tokens(config, tmp_path, tokenizer, ALONE)
    assert len(store) == 4 and (tmp_path / "traces.jsonl").is_file()
    assert "One more than 3." in tokenizer.decode(store[3].input_ids)
    assert len(list((tmp_path / "local").iterdir())) == 1


def test_all_ranks_read_what_was_made_once(tokenizer: Any, tmp_path: Path, run_on_ranks: Any) -> None:
    config = config_for(tmp_path)

    def work(world: World) -> list[Document]:
        return list(open_tokens(config, tmp_path, tokenizer, world))

    assert run_on_ranks(2, work) == [encode_traces(tokenizer, TRACES, "Think.")] * 2


def test_one_ranks_trouble_ends_all(tokenizer: Any, tmp_path: Path, run_on_ranks: Any) -> None:
    config = config_for(tmp_path)
    with open(tmp_path / "traces.jsonl", "a") as file:
        file.write("[]\n")

    def work(world: World) -> str:
        with pytest.raises(InputError) as error:
            open_tokens(config, tmp_path, tokenizer, world)
        return str(error.value)

    for message in run_on_ranks(2, work):
        assert message.startswith(f"{tmp_path}/traces.jsonl, line at byte ")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cache", "sft.tokens.cache=.*file/tokens: cannot be written .Not a"),
        ("stage", "sft.tokens: .*file.*: cannot be"),
    ],
)
def test_a_folder_that_cannot_be_written_is_named(tokenizer: Any, tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").write_text("")
    config = config_for(tmp_path)
    setattr(config.sft.tokens, name, str(tmp_path / "file" / "tokens"))
    with pytest.raises(InputError, match=message):
        open_tokens(config, tmp_path, tokenizer, ALONE)


class Stopping(Watch):
    stop_requested = True  # type: ignore[assignment]


def test_tokenising_leaves_off_when_the_run_is_to_stop(tokenizer: Any, tmp_path: Path) -> None:
    world = World(0, 1, torch.device("cpu"), watch=Stopping())
    with pytest.raises(StopRequested):
        open_tokens(config_for(tmp_path), tmp_path, tokenizer, world)


def test_a_run_does_not_go_on_with_other_data(random_documents) -> None:
    documents = random_documents([5, 6, 7])
    begun = TrainingData(documents, "traces.jsonl").state_dict()
    TrainingData(documents, "moved.jsonl").load_state_dict(begun)
    for other in (documents[:2], documents[::-1], random_documents([5, 6, 8])):
        with pytest.raises(InputError, match="sft.data.path=traces.jsonl: . documents that are not the 3 the run"):
            TrainingData(other, "traces.jsonl").load_state_dict(begun)


def test_the_data_is_told_as_one_text(random_documents) -> None:
    """In pieces, but as checkpoints of earlier runs hold it."""
    documents = random_documents([5, 6, 7])
    assert TrainingData(documents, "").state_dict() == {"num_documents": 3, "hash": content_hash("0 5\n1 6\n2 7")}
    assert list(Corpus.whole(documents).uids()) == ["0", "1", "2"]
