"""What many tests start from: a tiny random Falcon-H1 with a tokenizer of its own, on one thread."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import torch
import torch.distributed as dist

from falcon_h1r.config import ModelConfig
from falcon_h1r.data.packing import Document
from falcon_h1r.data.tokenisation import train_tokenizer
from falcon_h1r.distributed.world import World
from falcon_h1r.model.load import random_policy

if TYPE_CHECKING:
    from transformers import FalconH1ForCausalLM, PreTrainedTokenizerBase

torch.set_num_threads(1)
hypothesis.settings.register_profile("shared machine", deadline=None)  # a busy neighbour is no failure
hypothesis.settings.load_profile("shared machine")

RandomDocuments = Callable[..., list[Document]]

# Every multiplier differs from 1, so that a forgotten one shows.
TINY_ARCHITECTURE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "mamba_d_ssm": 48,
    "mamba_n_heads": 6,
    "mamba_d_head": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 8,
    "mamba_chunk_size": 16,
    "mamba_rms_norm": True,
    "mamba_norm_before_gate": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "embedding_multiplier": 2.0,
    "lm_head_multiplier": 0.5,
    "attention_in_multiplier": 0.9,
    "attention_out_multiplier": 0.8,
    "key_multiplier": 0.7,
    "ssm_in_multiplier": 1.1,
    "ssm_out_multiplier": 0.6,
    "ssm_multipliers": [0.5, 0.6, 0.7, 0.8, 0.9],
    "mlp_multipliers": [0.9, 0.7],
}


# One layer and no multipliers: for what is read of a model rather than computed by it.
ONE_LAYER = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "mamba_d_ssm": 32,
    "mamba_n_heads": 2,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
}


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(["system\nThink first.\nuser\nCompute 1+2.\nassistant\n"] * 20, vocab_size=330)


@pytest.fixture
def tiny_model(tokenizer: PreTrainedTokenizerBase) -> FalconH1ForCausalLM:
    """Float64, so that equalities can be asked for to 1e-9 and better."""
    settings = ModelConfig(dtype="float64", architecture=dict(TINY_ARCHITECTURE))
    return random_policy(settings, tokenizer, seed=0).eval()


@pytest.fixture
def random_documents() -> RandomDocuments:
    """Documents of random tokens by length; every token but the first carries a loss of random weight."""

    def make(lengths: list[int], seed: int = 0, vocab_size: int = 300) -> list[Document]:
        rng = random.Random(seed)
        return [
            Document(
                input_ids=[rng.randrange(vocab_size) for _ in range(length)],
                loss_weights=[0.0] + [rng.choice([0.5, 1.0, 1.75]) for _ in range(length - 1)],
                uid=str(index),
            )
            for index, length in enumerate(lengths)
        ]

    return make


@pytest.fixture
def run_on_ranks() -> Callable[[int, Callable[[World], Any]], list[Any]]:
    """Calls a function in several forked processes joined by gloo, and returns what each returned."""
    return _run_on_ranks


def _run_on_ranks(size: int, work: Callable[[World], Any]) -> list[Any]:
    """Call `work` in `size` forked processes joined by gloo; returns what each returned."""
    context = multiprocessing.get_context("fork")
    results: Any = context.SimpleQueue()
    folder = tempfile.TemporaryDirectory(prefix="ranks-")  # where they meet: a port could be lost to another test's

    def rank_main(rank: int) -> None:
        os.environ.update(MASTER_ADDR="127.0.0.1", RANK=str(rank), WORLD_SIZE=str(size))
        torch.set_num_threads(1)
        dist.init_process_group("gloo", store=dist.FileStore(f"{folder.name}/store", size), rank=rank, world_size=size)
        world = World(rank, size, torch.device("cpu"), dist.group.WORLD)
        try:
            results.put(
                (rank, pickle.dumps(work(world)))
            )  # by value: a queue would share tensors with a process that ends
        except Exception as error:
            results.put((rank, pickle.dumps(error)))
            raise
        dist.destroy_process_group()

    processes = [context.Process(target=rank_main, args=(rank,)) for rank in range(size)]
    for process in processes:
        process.start()
    returned = sorted((results.get() for _ in range(size)), key=lambda pair: pair[0])  # before joining: pipes fill up
    for process in processes:
        process.join(timeout=60)
    folder.cleanup()
    assert [process.exitcode for process in processes] == [0] * size
    return [pickle.loads(value) for _, value in returned]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The sandbox's tests fork and want a child of one thread: they come before pyarrow's pool, which forks with it."""
    items.sort(key=lambda item: item.path.name != "test_sandbox.py")
