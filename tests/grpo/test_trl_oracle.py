"""TRL 1.16's GRPOTrainer as oracle: the same rollouts, the same loss and gradients; and where it errs, by how much.

TRL's model runs in float64 but for what transformers casts down: the scan, softmax and norms, which leave 4e-7 to 7e-7
of a gradient. So there are two comparisons: of everything, to 1e-6; of TRL's loss alone, on given logprobs, to 1e-12.
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import FalconH1ForCausalLM, PreTrainedTokenizerBase

from falcon_h1r.config_grpo import GRPOLossConfig
from falcon_h1r.config_stage import OptimizerConfig
from falcon_h1r.data.packing import Document, PackedBatch, pack_for_rank, pack_row
from falcon_h1r.distributed.engine import TorchEngine
from falcon_h1r.distributed.world import World
from falcon_h1r.grpo.credit import normalise_within_group
from falcon_h1r.grpo.losses import Denominators, grpo_loss, loss_denominators
from tests.grpo.trl_trainer import Sampled, trl_gradients, trl_inputs, trl_trainer

pytest.importorskip("trl")

ALONE = World(0, 1, torch.device("cpu"))
GROUP, MAX_RESPONSE, TEMPERATURE = 4, 16, 0.8
LENGTHS = (2, 4, 8, 16)  # whose inverses float32 has exactly


@dataclass(frozen=True)
class Case:
    """TRL's settings and ours that ask for the same."""

    trl: dict[str, Any]
    ours: dict[str, Any]


CLIP_TRL, CLIP = {"epsilon": 0.01, "epsilon_high": 0.02}, {"clip_low": 0.01, "clip_high": 0.02}
SEQUENCE_RATIO = {"importance_sampling_level": "sequence", **CLIP_TRL}
CASES = {
    "grpo": Case({"loss_type": "grpo", **CLIP_TRL}, {"aggregation": "sequence", **CLIP}),
    "dapo": Case({"loss_type": "dapo", **CLIP_TRL}, {"aggregation": "token", **CLIP}),
    "dr_grpo": Case(
        {"loss_type": "dr_grpo", "scale_rewards": "none", **CLIP_TRL},
        {"aggregation": "constant", "advantage_scale": "none", **CLIP},
    ),
    "cispo": Case(
        {"loss_type": "cispo", "epsilon_high": 1.01, "scale_rewards": "batch"},
        {"objective": "cispo", "aggregation": "token", "cispo_cap": 1.01, "advantage_scale": "batch"},
    ),
    "gspo": Case({"loss_type": "grpo", **SEQUENCE_RATIO}, {"objective": "gspo", "aggregation": "sequence", **CLIP}),
    "gspo by token": Case(
        {"loss_type": "dapo", **SEQUENCE_RATIO}, {"objective": "gspo", "aggregation": "token", **CLIP}
    ),
}
FAST = ("grpo", "gspo")
# Everything on at once: the sampler's correction, an old policy that differs, KL, entropy, truncated rollouts masked.
TERMS_TRL = {
    "num_iterations": 2,
    "temperature": TEMPERATURE,
    "max_completion_length": MAX_RESPONSE,
    "mask_truncated_completions": True,
    "entropy_coef": 0.05,
    "vllm_importance_sampling_mode": "token_truncate",
    "vllm_importance_sampling_clip_max": 2.0,
}
TERMS = {"kl_coefficient": 0.1, "entropy_coefficient": 0.05, "importance_cap": 2.0}
TRUNCATED = 2  # of the rollouts, which one has no end


@pytest.fixture
def model(tiny_model: FalconH1ForCausalLM) -> FalconH1ForCausalLM:
    """With biases of the convolution, which trained checkpoints have and fresh ones do not."""
    return moved(tiny_model, "conv1d.bias", 0.3)


def moved(model: FalconH1ForCausalLM, names: str = "", scale: float = 0.02) -> FalconH1ForCausalLM:
    """A copy of the model with noise on the parameters whose name ends so."""
    generator = torch.Generator().manual_seed(1)
    result = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in result.named_parameters():
            if name.endswith(names):
                parameter += scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return result


def sampled(tokenizer: PreTrainedTokenizerBase, prompt_lengths: tuple[int, ...], seed: int = 0) -> list[Sampled]:
    """A group of rollouts for each prompt; one rollout is cut off."""
    rng = random.Random(seed)
    rollouts = []
    for prompt_length in prompt_lengths:
        prompt = [rng.randrange(3, 300) for _ in range(prompt_length)]
        for index in range(GROUP):
            length = LENGTHS[(index + prompt_length) % 4]
            response = [rng.randrange(3, 300) for _ in range(length - 1)] + [tokenizer.eos_token_id]
            if len(rollouts) == TRUNCATED:
                response[-1] = 7
            logprobs = [-rng.randrange(4 * 64, 7 * 64) / 64 for _ in response]
            rollouts.append(Sampled(prompt, response, logprobs, rng.choice([0.0, 0.5, 1.0])))
    return rollouts


def documents_of(rollouts: list[Sampled], loss: GRPOLossConfig, masked: tuple[int, ...] = ()) -> list[Document]:
    """Ours: rewards with their credit as documents."""
    rewards = torch.tensor([rollout.reward for rollout in rollouts]).view(-1, GROUP)
    advantages = normalise_within_group(rewards, loss.advantage_scale).flatten().tolist()
    documents = []
    for index, (rollout, advantage) in enumerate(zip(rollouts, advantages, strict=True)):
        blank, length = [0.0] * len(rollout.prompt), len(rollout.response)
        weight = {"sequence": 1 / length, "token": 1.0, "constant": 1 / MAX_RESPONSE}[loss.aggregation]
        documents.append(
            Document(
                rollout.prompt + rollout.response,
                blank + [0.0 if index in masked else weight] * length,
                advantages=blank + [advantage] * length,
                positives=blank + [0.0] * length,
                sampler_logprobs=blank + rollout.logprobs,
                uid=str(index),
            )
        )
    return documents


def our_gradients(
    policy: FalconH1ForCausalLM, rows: list[PackedBatch], loss: GRPOLossConfig
) -> tuple[float, dict[str, Tensor]]:
    engine = TorchEngine(copy.deepcopy(policy), OptimizerConfig(), 1, ALONE)
    denominators, total = Denominators(*loss_denominators(rows)), 0.0
    for row in rows:
        value, _ = grpo_loss(*engine.logprobs(row, TEMPERATURE), row, denominators, loss)
        engine.backward(value)
        total += value.item()
    return total, {name: parameter.grad for name, parameter in engine.trained.items() if parameter.grad is not None}


def with_logprobs_of(model: FalconH1ForCausalLM, row: PackedBatch, field: str) -> PackedBatch:
    """The row with this model's logprobs as its old or reference ones."""
    with torch.no_grad():
        logprobs, _ = TorchEngine(copy.deepcopy(model), OptimizerConfig(), 1, ALONE).logprobs(row, TEMPERATURE)
    return replace(row, **{field: logprobs})


def error_of(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """|found - expected| / |expected|, of the gradients as one vector."""
    assert found.keys() == expected.keys()
    difference = sum((found[name] - expected[name]).square().sum() for name in expected)
    return (difference / sum(gradient.square().sum() for gradient in expected.values())).sqrt().item()  # type: ignore


def everything_on(model: FalconH1ForCausalLM, tokenizer: Any, rollouts: list[Sampled], folder: str, case: Case) -> Any:
    """A trainer that uses every term."""
    from trl.trainer.utils import add_fused_lm_head

    trainer = trl_trainer(model, tokenizer, rollouts, folder, GROUP, corrected=True, **TERMS_TRL, **case.trl)
    trainer.ref_model, trainer.beta = moved(model, scale=0.05), TERMS["kl_coefficient"]
    add_fused_lm_head(trainer.ref_model, temperature=TEMPERATURE)
    return trainer


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in CASES])
def test_loss_and_gradients_equal_trls(model, tokenizer, tmp_path, name: str) -> None:
    """From rewards to the gradient of every parameter; prompts of one length, where TRL pads none of them."""
    case, rollouts = CASES[name], sampled(tokenizer, (6, 6))
    trainer = everything_on(model, tokenizer, rollouts, str(tmp_path), case)
    inputs = trl_inputs(trainer, len(rollouts))
    trainer.model.load_state_dict(moved(model).state_dict())  # as after a first update
    expected_loss, expected = trl_gradients(trainer, inputs)

    loss = GRPOLossConfig(**case.ours, **TERMS)
    rows = pack_for_rank(documents_of(rollouts, loss, masked=(TRUNCATED,)), 48, 0, 1)
    rows = [with_logprobs_of(model, row, "old_policy_logprobs") for row in rows]
    rows = [with_logprobs_of(moved(model, scale=0.05), row, "reference_logprobs") for row in rows]
    assert len(rows) > 2
    found_loss, found = our_gradients(moved(model), rows, loss)
    assert found_loss == pytest.approx(expected_loss, rel=1e-6)
    assert error_of(found, expected) < 1e-6


@pytest.mark.parametrize("name", CASES)
def test_the_loss_alone_equals_trls_to_rounding(model, tokenizer, tmp_path, name: str) -> None:
    """Logprobs are given, prompts are of any length: what is left is TRL's loss in float64."""
    case, rollouts = CASES[name], sampled(tokenizer, (3, 9, 6))
    trainer = everything_on(model, tokenizer, rollouts, str(tmp_path), case)
    generator = torch.Generator().manual_seed(2)

    def noise(scale: float) -> Tensor:
        return scale * torch.randn(len(rollouts), max(LENGTHS), generator=generator, dtype=torch.float64)

    old = noise(0.5) - 5.5
    reference, logprobs = old + noise(0.1), (old + noise(0.05)).requires_grad_()
    entropies = noise(1.0).abs().requires_grad_()
    trainer._get_per_token_logps_and_entropies = lambda policy, *_, **__: (
        reference if policy is trainer.ref_model else old,
        None,
        None,
    )
    inputs = trl_inputs(trainer, len(rollouts))
    mask = inputs["completion_mask"].bool()
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logprobs, entropies, None)
    trainer.current_gradient_accumulation_steps = 1
    expected = trainer._compute_loss(trainer.model, inputs)
    expected_gradients = torch.autograd.grad(expected, [logprobs, entropies])

    loss = GRPOLossConfig(**case.ours, **TERMS)
    row = pack_row(documents_of(rollouts, loss, masked=(TRUNCATED,)))
    place = row.loss_weights != 0  # in order: rollouts one after the other, as the mask's rows are

    def packed(values: Tensor) -> Tensor:
        return torch.zeros(row.num_tokens, dtype=torch.float64).masked_scatter(place, values[mask])

    row = replace(row, old_policy_logprobs=packed(old), reference_logprobs=packed(reference))
    value, stats = grpo_loss(packed(logprobs), packed(entropies), row, Denominators(*loss_denominators([row])), loss)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    for found, theirs in zip(torch.autograd.grad(value, [logprobs, entropies]), expected_gradients, strict=True):
        assert torch.allclose(found, theirs, rtol=1e-10, atol=1e-14)
    assert 0 < stats["clipped_high"].item() < stats["tokens"].item()
    assert 0 < stats["capped"].item() < stats["tokens"].item()
    assert stats["reference_kl"].item() / stats["tokens"].item() == pytest.approx(trainer._metrics["train"]["kl"][0])


# -----------------------------------------------------------------------------
# Where TRL errs


def plain_gradients(
    model: FalconH1ForCausalLM, rollouts: list[Sampled], loss: GRPOLossConfig
) -> tuple[float, dict[str, Tensor]]:
    """Ours at the policy that sampled, by its own logprobs: every ratio and weight is 1."""
    row = with_logprobs_of(model, pack_row(documents_of(rollouts, loss)), "sampler_logprobs")
    return our_gradients(model, [row], loss)


@pytest.mark.parametrize(
    ("prompt_lengths", "fused", "low", "high"),
    [
        pytest.param((6, 6), True, 0.0, 1e-6, marks=pytest.mark.slow),
        pytest.param((3, 9), False, 0.0, 1e-6, marks=pytest.mark.slow),
        ((3, 9), True, 0.01, 0.02),
    ],
    ids=str,
)
def test_trls_left_padding_leaks_into_the_state_on_the_fused_kernel(
    model, tokenizer, tmp_path, monkeypatch, prompt_lengths: tuple[int, ...], fused: bool, low: float, high: float
) -> None:
    """The kernel, which transformers trains with on a GPU, is given no mask: the convolution's bias at a pad goes on
    into the state, where the path without kernels masks it. Here the kernel is emulated by leaving out that mask."""
    from transformers.models.falcon_h1 import modeling_falcon_h1

    mask_states = modeling_falcon_h1.apply_mask_to_padding_states
    if fused:
        hidden = model.config.hidden_size
        monkeypatch.setattr(
            modeling_falcon_h1,
            "apply_mask_to_padding_states",
            lambda states, mask: mask_states(states, mask) if states.shape[-1] == hidden else states,
        )
    rollouts = sampled(tokenizer, prompt_lengths)
    trainer = trl_trainer(model, tokenizer, rollouts, str(tmp_path), GROUP, loss_type="grpo", temperature=TEMPERATURE)
    _, theirs = trl_gradients(trainer, trl_inputs(trainer, len(rollouts)))
    _, ours = plain_gradients(model, rollouts, GRPOLossConfig())
    assert low <= error_of(theirs, ours) < high


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "low", "high"),
    [
        ({"loss_type": "grpo"}, 0.0, 1e-6),
        ({"loss_type": "dapo"}, 0.0, 1e-6),
        ({"loss_type": "dr_grpo"}, 0.0, 1e-6),
        ({"loss_type": "bnpo"}, 0.5, 1.0),
        ({"loss_type": "dapo", "entropy_coef": 0.2}, 0.01, 0.05),
    ],
    ids=str,
)
def test_which_of_trls_terms_depend_on_the_micro_batches(
    model, tokenizer, tmp_path, settings: dict[str, Any], low: float, high: float
) -> None:
    """Means over each micro-batch's tokens do. A mean over its rollouts does not: all micro-batches have as many."""
    rollouts = sampled(tokenizer, (6, 6))
    rollouts[:GROUP] = [replace(r, response=r.response[:2], logprobs=r.logprobs[:2]) for r in rollouts[:GROUP]]
    by_split = []
    for num_micro_batches in (1, 2):
        trainer = trl_trainer(
            model,
            tokenizer,
            rollouts,
            str(tmp_path),
            GROUP,
            gradient_accumulation_steps=num_micro_batches,
            per_device_train_batch_size=8 // num_micro_batches,
            temperature=TEMPERATURE,
            **settings,
        )
        by_split.append(trl_gradients(trainer, trl_inputs(trainer, 8), num_micro_batches)[1])
    assert low <= error_of(by_split[1], by_split[0]) < high


def test_trl_gives_tokens_without_a_sampler_logprob_full_weight(model, tokenizer, tmp_path) -> None:
    """Ours have none. TRL's choice lets a token through whose importance nobody knows."""
    rollouts = sampled(tokenizer, (6, 6))
    rollouts[0].logprobs[0] = float("nan")
    trainer = everything_on(model, tokenizer, rollouts, str(tmp_path), CASES["grpo"])
    assert trl_inputs(trainer, 8)["importance_sampling_ratio"][0, 0] == 1.0
