"""The sampler's truth: the trainer's logprobs, no influence between prompts, seeds that reproduce."""

from __future__ import annotations

import random

import pytest
import torch

from falcon_h1r.data.packing import Document, pack_row
from falcon_h1r.model.hybrid import packed_hidden_states
from falcon_h1r.model.logprobs import packed_logprobs
from falcon_h1r.rollout.drawing import DrawRules, draw_tokens, truncated
from falcon_h1r.rollout.sampler import Prompt, SamplingSettings
from falcon_h1r.rollout.torch_sampler import TorchSampler
from falcon_h1r.types import Rollout

SETTINGS = SamplingSettings(num_samples=4, max_response_tokens=24, temperature=0.8, seed=5)


def prompts(lengths: list[int]) -> list[Prompt]:
    rng = random.Random(0)
    return [Prompt(f"problem-{i}", [rng.randrange(300) for _ in range(n)]) for i, n in enumerate(lengths)]


def trainer_logprobs(model, rollout: Rollout, temperature: float) -> torch.Tensor:
    blank = [0.0] * len(rollout.prompt_ids)
    document = Document(rollout.prompt_ids + rollout.response_ids, blank + [1.0] * len(rollout.response_ids))
    batch = pack_row([document])
    logprobs, _ = packed_logprobs(model, packed_hidden_states(model, batch), batch, temperature)
    return logprobs[len(blank) :]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_logprobs_are_the_trainers(tiny_model, tokenizer, dtype, tolerance: float) -> None:
    model = tiny_model.to(dtype)
    rollouts = TorchSampler(model, tokenizer).generate(prompts([3, 17, 40, 1]), SETTINGS)
    assert len(rollouts) == 16
    for rollout in rollouts:
        expected = trainer_logprobs(model, rollout, SETTINGS.temperature)
        assert (torch.tensor(rollout.sampler_logprobs, dtype=torch.float64) - expected).abs().max() < tolerance


def test_prompts_of_other_lengths_in_the_batch_change_nothing(tiny_model, tokenizer) -> None:
    batch = prompts([3, 17, 40, 1, 9])
    sampler = TorchSampler(tiny_model, tokenizer)
    together = sampler.generate(batch, SETTINGS)
    alone = [rollout for prompt in batch for rollout in sampler.generate([prompt], SETTINGS)]
    assert [r.response_ids for r in together] == [r.response_ids for r in alone]
    for a, b in zip(together, alone, strict=True):
        assert torch.allclose(torch.tensor(a.sampler_logprobs), torch.tensor(b.sampler_logprobs), atol=1e-9)


@pytest.mark.parametrize("max_slots", [1, 3, 7, 100])
def test_a_seed_reproduces_a_rollout_whatever_else_is_in_the_batch(tiny_model, tokenizer, max_slots: int) -> None:
    reference = TorchSampler(tiny_model, tokenizer).generate(prompts([3, 17, 40]), SETTINGS)
    again = TorchSampler(tiny_model, tokenizer, max_slots).generate(prompts([3, 17, 40]), SETTINGS)
    assert [r.response_ids for r in reference] == [r.response_ids for r in again]
    assert [(r.problem_uid, r.sample_index) for r in again] == [(f"problem-{p}", s) for p in range(3) for s in range(4)]
    other_seed = SamplingSettings(num_samples=4, max_response_tokens=24, temperature=0.8, seed=6)
    assert [r.response_ids for r in TorchSampler(tiny_model, tokenizer).generate(prompts([3, 17, 40]), other_seed)] != [
        r.response_ids for r in reference
    ]


def test_greedy_follows_transformers_generate(tiny_model, tokenizer) -> None:
    model = tiny_model.float()
    (prompt,) = prompts([12])
    settings = SamplingSettings(num_samples=1, max_response_tokens=10, temperature=0.0)
    (ours,) = TorchSampler(model, tokenizer).generate([prompt], settings)
    theirs = model.generate(
        torch.tensor([prompt.input_ids]),
        do_sample=False,
        max_new_tokens=10,
        eos_token_id=[2, 4],
        pad_token_id=0,
    )
    assert ours.response_ids == theirs[0, len(prompt.input_ids) :].tolist()[: len(ours.response_ids)]


def test_a_rollout_ends_at_its_stop_token_or_at_the_limit(tiny_model, tokenizer) -> None:
    sampler = TorchSampler(tiny_model, tokenizer)
    with torch.no_grad():  # make the stop token likely
        tiny_model.lm_head.weight[sampler.stop_ids[0]] *= 4
    rollouts = sampler.generate(prompts([5] * 40), SETTINGS)
    stops = set(sampler.stop_ids.tolist())
    assert {r.stop_reason for r in rollouts} == {"stop", "length"}
    for rollout in rollouts:
        assert len(rollout.response_ids) == len(rollout.sampler_logprobs) <= SETTINGS.max_response_tokens
        assert not stops & set(rollout.response_ids[:-1])
        assert (rollout.response_ids[-1] in stops) == (rollout.stop_reason == "stop")
        if rollout.stop_reason == "length":
            assert len(rollout.response_ids) == SETTINGS.max_response_tokens


def test_draws_follow_the_distribution() -> None:
    """Inverting the cumulative distribution at a fine grid gives each token its share."""
    logits = torch.log(torch.tensor([[0.5, 0.0, 0.3, 0.2]], dtype=torch.float64)).expand(10_000, 4)
    grid = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    drawn = draw_tokens(logits, grid, DrawRules.of([SamplingSettings(1, 1)] * len(grid), logits.device))
    tokens, logprobs = drawn.tokens, drawn.logprobs
    assert torch.bincount(tokens, minlength=4).tolist() == [5000, 0, 3000, 2000]
    assert torch.allclose(logprobs.exp(), torch.tensor([0.5, 0.0, 0.3, 0.2], dtype=torch.float64)[tokens])


def test_top_p_and_top_k_keep_the_smallest_likeliest_set() -> None:
    probabilities = torch.tensor([[0.1, 0.4, 0.3, 0.2]])

    def kept(top_p: float, top_k: int) -> list[float]:
        return truncated(probabilities, torch.tensor([top_p], dtype=torch.float64), torch.tensor([top_k]))[0].tolist()

    assert kept(1.0, 2) == pytest.approx([0.0, 0.4, 0.3, 0.0])
    assert kept(0.65, 0) == pytest.approx([0.0, 0.4, 0.3, 0.0])
    assert kept(0.75, 0) == pytest.approx([0.0, 0.4, 0.3, 0.2])
    assert kept(0.01, 0) == pytest.approx([0.0, 0.4, 0.0, 0.0])
    assert kept(1.0, 0) == pytest.approx([0.1, 0.4, 0.3, 0.2])
