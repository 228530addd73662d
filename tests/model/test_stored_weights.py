"""Weights come from their files exactly, through no more memory than they take, and a broken file is named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import FalconH1ForCausalLM

from falcon_h1r.config import ModelConfig
from falcon_h1r.data.tokenisation import train_tokenizer
from falcon_h1r.model import stored_weights
from falcon_h1r.model.load import load_policy, random_policy
from falcon_h1r.model.stored_weights import INDEX, find_tensors, read_tensors
from falcon_h1r.types import InputError

CPU = torch.device("cpu")
WIDE = {  # 332 MiB in float32
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "mamba_d_ssm": 2048,
    "mamba_n_heads": 16,
    "mamba_d_head": 128,
    "mamba_n_groups": 1,
    "mamba_d_state": 64,
}
SMALL = {**WIDE, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"mamba_d_ssm": 32, "mamba_n_heads": 2, "mamba_d_head": 16, "mamba_d_state": 8}


def write_checkpoint(architecture: dict[str, int], folder: Path, shard_size: str) -> Path:
    tokenizer = train_tokenizer(["1 + 1 = 2"], 400)
    model = random_policy(ModelConfig(architecture=architecture), tokenizer, seed=0)
    model.save_pretrained(folder, max_shard_size=shard_size)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(SMALL, tmp_path_factory.mktemp("stored") / "model", "40KB")


@pytest.fixture
def sharded(pristine: Path, tmp_path: Path) -> Path:
    """A copy in several shards, to spoil."""
    return Path(shutil.copytree(pristine, tmp_path / "model"))


def shards_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.safetensors"))


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_policy(ModelConfig(path=str(folder)), CPU)
    message = str(caught.value)
    assert message.startswith(f"model.path={folder}: ") and "\n" not in message
    return message.removeprefix(f"model.path={folder}: ")


# -----------------------------------------------------------------------------
# What is read is what was written


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("asked", [torch.float64, torch.float32, torch.bfloat16])
def test_tensors_come_back_in_any_dtype_through_any_buffer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, asked: torch.dtype
) -> None:
    monkeypatch.setattr(stored_weights, "BUFFER_BYTES", 56)  # 7 to 28 entries: pieces, whole and cut
    torch.manual_seed(0)
    written = {"a": torch.randn(5, 7), "scalar": torch.randn(()), "none": torch.empty(0, 3), "b": torch.randn(3, 1, 4)}
    written = {name: tensor.to(dtype) for name, tensor in written.items()}
    save_file(written, tmp_path / "model.safetensors", metadata={"format": "pt"})
    targets = {name: torch.full(tensor.shape, torch.nan, dtype=asked) for name, tensor in written.items()}
    read_tensors(find_tensors(tmp_path), targets)
    for name, tensor in written.items():
        assert torch.equal(targets[name], tensor.to(asked)), name


def test_a_sharded_checkpoint_is_read_whole(sharded: Path) -> None:
    assert len(shards_of(sharded)) > 3
    weights = {name: tensor for shard in shards_of(sharded) for name, tensor in load_file(shard).items()}
    model, _ = load_policy(ModelConfig(path=str(sharded)), CPU)
    assert dict(model.named_parameters()).keys() == weights.keys()
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())


def test_it_is_the_model_that_transformers_loads(sharded: Path) -> None:
    ours, _ = load_policy(ModelConfig(path=str(sharded)), CPU)
    theirs = FalconH1ForCausalLM.from_pretrained(sharded)
    assert not ours.training and all(parameter.requires_grad for parameter in ours.parameters())
    assert ours.generation_config.to_dict() == theirs.generation_config.to_dict()
    buffers = dict(theirs.named_buffers())
    for name, buffer in ours.named_buffers():
        if "mup_vector" not in name:  # transformers may leave it unwritten
            assert torch.equal(buffer, buffers[name]), name
    ids = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, random_policy_logits(ids), rtol=0, atol=1e-6)


def random_policy_logits(ids: torch.Tensor) -> torch.Tensor:
    """Of the model that was written."""
    tokenizer = train_tokenizer(["1 + 1 = 2"], 400)
    return random_policy(ModelConfig(architecture=SMALL), tokenizer, seed=0).eval()(ids).logits


def test_tied_embeddings_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    folder = write_checkpoint({**SMALL, "tie_word_embeddings": True}, tmp_path / "tied", "1GB")
    assert "lm_head.weight" not in find_tensors(folder)
    model, _ = load_policy(ModelConfig(path=str(folder)), CPU)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not model.lm_head.weight.is_meta


def test_a_hub_checkpoint_is_read_from_its_cache(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--owner--name"
    shutil.copytree(pristine, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for revision in (None, commit):
        settings = ModelConfig(path="owner/name", revision=revision, local_files_only=True)
        model, _ = load_policy(settings, CPU)
        assert model.config.hidden_size == SMALL["hidden_size"]
    shards_of(repository / "snapshots" / commit)[1].unlink()
    with pytest.raises(InputError, match=r"^model.path=owner/name: model-00002-of-.*: no such file"):
        load_policy(settings, CPU)


# -----------------------------------------------------------------------------
# What is broken is named


def test_a_missing_shard_is_named(sharded: Path) -> None:
    shards_of(sharded)[1].unlink()
    assert (
        refusal(sharded) == f"{shards_of(sharded)[0].name.replace('00001', '00002', 1)}: no such file; {INDEX} names it"
    )


@pytest.mark.parametrize("kept_share", [0.0, 0.001, 0.5, 0.999])
def test_a_cut_off_shard_is_named(sharded: Path, kept_share: float) -> None:
    shard = shards_of(sharded)[2]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: int(kept_share * len(whole))])
    message = refusal(sharded)
    assert message.startswith(f"{shard.name}: ")
    assert "cut off" in message


@pytest.mark.parametrize(
    "content", [b"\x02" + bytes(7) + b"[]", b"\x04" + bytes(7) + b"oops", b"version https://git-lfs"]
)
def test_a_file_that_is_no_safetensors_is_named(sharded: Path, content: bytes) -> None:
    shard = shards_of(sharded)[0]
    shard.write_bytes(content)
    message = refusal(sharded)
    assert message.startswith(f"{shard.name}: ") and "safetensors" in message


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 3}', "{}"])
def test_an_index_that_is_none_is_named(sharded: Path, content: str) -> None:
    (sharded / INDEX).write_text(content)
    assert refusal(sharded) == f"{INDEX}: not an index of safetensors files"


def test_weights_that_the_model_has_no_place_for_are_refused(sharded: Path) -> None:
    """Such as biases where config.json says that there are none: dropped, another model would be trained."""
    shard = shards_of(sharded)[0]
    weights = load_file(shard)
    save_file({**weights, "model.layers.0.mamba.in_proj.bias": torch.zeros(3)}, shard, metadata={"format": "pt"})
    assert refusal(sharded) == (
        "1 weights belong to no part of the model, model.layers.0.mamba.in_proj.bias among them"
    )


def test_a_weight_of_another_shape_is_named_with_both(sharded: Path) -> None:
    config = json.loads((sharded / "config.json").read_text())
    (sharded / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    message = refusal(sharded)
    assert message.endswith("feed_forward.gate_proj.weight is stored as (48, 32), where config.json asks for (64, 32)")


# -----------------------------------------------------------------------------
# Memory


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = write_checkpoint(WIDE, tmp_path_factory.mktemp("wide") / "model", "90MB")
    yield folder
    shutil.rmtree(folder)


MEASURE = """
import sys
import torch
from falcon_h1r.config import ModelConfig
from falcon_h1r.model.load import load_policy

def resident(field):
    lines = dict(line.split(":") for line in open("/proc/self/status"))
    return int(lines[field].split()[0]) * 1024

before = resident("VmRSS")
model, _ = load_policy(ModelConfig(path=sys.argv[1], dtype=sys.argv[2]), torch.device("cpu"))
total = sum(parameter.data.view(-1)[::1024].sum() for parameter in model.parameters())  # touches every page
size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
print((resident("VmHWM") - before) / size, size)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_takes_the_memory_of_one_model(wide: Path, dtype: str) -> None:
    """Stored in float32, in four shards: the highest resident size, in sizes of the model that comes out."""
    assert len(shards_of(wide)) >= 4
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(wide), dtype], capture_output=True, text=True, timeout=120, check=True
    )
    growth, size = (float(word) for word in run.stdout.split())
    assert size > 160 * 2**20
    assert growth < 1.3
