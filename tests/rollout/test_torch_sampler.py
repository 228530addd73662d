"""The sampler's truth: the trainer's logprobs, no influence between prompts, seeds that reproduce."""

from __future__ import annotations

import dataclasses
import gc
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from transformers import FalconH1ForCausalLM

from falcon_h1r.data.packing import Document, pack_row
from falcon_h1r.distributed.watch import StopRequested, Watch
from falcon_h1r.model.hybrid import packed_hidden_states
from falcon_h1r.model.logprobs import packed_logprobs
from falcon_h1r.rollout.drawing import DrawRules, draw_tokens, truncated
from falcon_h1r.rollout.sampler import Prompt, RolloutRequest, SamplingSettings, requests_for
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_greedy_follows_transformers_generate(tiny_model, tokenizer, dtype: torch.dtype) -> None:
    model = tiny_model.to(dtype)
    batch = prompts([12, 3, 40, 25, 1, 7])
    settings = SamplingSettings(num_samples=1, max_response_tokens=40, temperature=0.0)
    longest = max(len(prompt.input_ids) for prompt in batch)
    padding = [[0] * (longest - len(prompt.input_ids)) for prompt in batch]
    theirs = model.generate(
        torch.tensor([pad + prompt.input_ids for pad, prompt in zip(padding, batch, strict=True)]),
        attention_mask=torch.tensor(
            [pad + [1] * len(prompt.input_ids) for pad, prompt in zip(padding, batch, strict=True)]
        ),
        do_sample=False,
        max_new_tokens=40,
        eos_token_id=[2, 4],
        pad_token_id=0,
    )[:, longest:]
    ours = TorchSampler(model, tokenizer).generate(batch, settings)
    for rollout, expected in zip(ours, theirs.tolist(), strict=True):
        assert rollout.response_ids == expected[: len(rollout.response_ids)]
        assert rollout.stop_reason == "stop" or len(rollout.response_ids) == 40


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


# -----------------------------------------------------------------------------
# The law


def chi_square_excess(tokens: list[int], probabilities: torch.Tensor) -> float:
    """How many standard deviations the statistic is above its mean; tokens expected less than 8 times are pooled."""
    expected = probabilities.double() * len(tokens)
    counts = torch.bincount(torch.tensor(tokens), minlength=len(expected)).double()
    rare = expected < 8
    if rare.any():
        expected, counts = (torch.cat([each[~rare], each[rare].sum()[None]]) for each in (expected, counts))
    degrees = len(expected) - 1
    cube_root = (((counts - expected).square() / expected).sum().item() / degrees) ** (1 / 3)
    spread = 2 / (9 * degrees)  # Wilson and Hilferty's normal approximation
    return (cube_root - (1 - spread)) / math.sqrt(spread)


def test_frequencies_of_first_and_second_tokens_are_the_models_probabilities(tiny_model, tokenizer) -> None:
    model = tiny_model.float()
    (prompt,) = prompts([9])
    settings = SamplingSettings(num_samples=6000, max_response_tokens=2, temperature=0.9, seed=3)
    sampler = endless(TorchSampler(model, tokenizer, max_slots=1000))
    rollouts = sampler.generate([prompt], settings)

    def next_probabilities(documents: list[list[int]], temperature: float) -> torch.Tensor:
        batch = pack_row([Document(ids, [0.0] * len(ids)) for ids in documents])
        ends = packed_hidden_states(model, batch)[batch.document_ends]
        logits = model.lm_head(ends) * model.model.lm_head_multiplier
        return (logits.detach().double() / temperature).softmax(-1)

    vocabulary = [[*prompt.input_ids, token] for token in range(model.config.vocab_size)]
    (first,) = next_probabilities([prompt.input_ids], 0.9)
    second = first @ next_probabilities(vocabulary, 0.9)
    for position, probabilities in enumerate((first, second)):
        assert chi_square_excess([rollout.response_ids[position] for rollout in rollouts], probabilities) < 3
    (another,) = next_probabilities([prompt.input_ids], 1.3)
    assert chi_square_excess([rollout.response_ids[0] for rollout in rollouts], another) > 6  # it would be noticed


@pytest.mark.parametrize("vocab_size", [5, 128, 400, 3000])
def test_blockwise_draws_are_the_plain_inversion(vocab_size: int) -> None:
    generator = torch.Generator().manual_seed(vocab_size)
    logits = 4 * torch.randn(2000, vocab_size, generator=generator)
    uniforms = torch.rand(2000, generator=generator, dtype=torch.float64)
    uniforms[:2] = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    drawn = draw_tokens(logits, uniforms, DrawRules.of([SamplingSettings(1, 1)] * 2000, logits.device))
    cumulative = logits.double().softmax(-1).cumsum(-1)
    before = torch.cat([torch.zeros(2000, 1, dtype=torch.float64), cumulative[:, :-1]], dim=1)
    chosen = drawn.tokens[:, None]
    # The literal inverse, but for what float32 weights may move a border.
    assert (before.gather(1, chosen).squeeze(1) <= 1 - uniforms + 1e-6).all()
    assert (cumulative.gather(1, chosen).squeeze(1) >= 1 - uniforms - 1e-6).all()
    expected = torch.log_softmax(logits.double(), -1).gather(1, chosen).squeeze(1)
    assert (drawn.logprobs - expected).abs().max() < 1e-5


def test_each_slot_draws_by_its_own_settings() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 50, generator=generator, dtype=torch.float64)
    uniforms = torch.rand(200, generator=generator, dtype=torch.float64)
    kinds = [
        SamplingSettings(1, 1),
        SamplingSettings(1, 1, temperature=0.5),
        SamplingSettings(1, 1, temperature=0.0),
        SamplingSettings(1, 1, temperature=1.5, top_p=0.7),
        SamplingSettings(1, 1, top_k=3),
    ]
    settings = [kinds[slot % len(kinds)] for slot in range(200)]
    together = draw_tokens(logits, uniforms, DrawRules.of(settings, logits.device))
    for slot, own in enumerate(settings):
        alone = draw_tokens(logits[slot : slot + 1], uniforms[slot : slot + 1], DrawRules.of([own], logits.device))
        assert alone.tokens[0] == together.tokens[slot] and alone.logprobs[0] == together.logprobs[slot]
        if own.temperature == 0.0:
            assert together.tokens[slot] == logits[slot].argmax()
            expected = torch.log_softmax(logits[slot], -1).max()
            assert together.logprobs[slot].item() == pytest.approx(expected.item(), abs=1e-12)


# -----------------------------------------------------------------------------
# Feeding and advancing


def requests(lengths: list[int], settings: SamplingSettings = SETTINGS, **options: Any) -> list[RolloutRequest]:
    return [dataclasses.replace(request, **options) for request in requests_for(prompts(lengths), settings)]


def run_out(sampler: TorchSampler, step: int) -> list[Rollout]:
    found: list[Rollout] = []
    while more := (sampler.advance(step) or bool(sampler._running.slots or sampler._waiting)):
        found += more if isinstance(more, list) else []
    return found


def endless(sampler: TorchSampler) -> TorchSampler:
    """One for which no token ends a response."""
    sampler.ignore_stop_tokens()
    return sampler


def in_order(rollouts: list[Rollout]) -> list[Rollout]:
    return sorted(rollouts, key=lambda rollout: (rollout.problem_uid, rollout.sample_index))


def assert_alike(ours: list[Rollout], expected: list[Rollout], tolerance: float = 1e-9) -> None:
    for a, b in zip(in_order(ours), in_order(expected), strict=True):
        assert (a.problem_uid, a.sample_index, a.response_ids) == (b.problem_uid, b.sample_index, b.response_ids)
        assert (a.stop_reason, a.text) == (b.stop_reason, b.text)
        assert np.abs(np.array(a.sampler_logprobs) - np.array(b.sampler_logprobs)).max(initial=0.0) < tolerance


@pytest.mark.parametrize("step", [1, 5, 1000])
def test_advancing_in_steps_draws_what_generate_draws(tiny_model, tokenizer, step: int) -> None:
    expected = TorchSampler(tiny_model, tokenizer).generate(prompts([3, 17, 40, 1]), SETTINGS)
    sampler = TorchSampler(tiny_model, tokenizer, max_slots=6)
    sampler.submit(requests([3, 17, 40, 1]))
    assert_alike(run_out(sampler, step), expected)


def test_the_same_calls_give_the_same_bits(tiny_model, tokenizer) -> None:
    def once() -> list[Any]:
        sampler = TorchSampler(tiny_model.float(), tokenizer, max_slots=5)
        batch = requests([3, 17, 40, 1, 9])
        sampler.submit(batch[:7])
        found = sampler.advance(5)
        found += sampler.abort([batch[1].key, batch[6].key])
        sampler.submit(batch[7:])
        return [dataclasses.astuple(rollout) for rollout in [*found, *run_out(sampler, 4)]]

    assert once() == once()


def test_a_request_joins_while_others_run(tiny_model, tokenizer) -> None:
    sampler = endless(TorchSampler(tiny_model, tokenizer, max_slots=8))
    early, late = requests([3, 17])[:4], requests([3, 17])[4:]
    assert sampler.free_slots == 8
    sampler.submit(early)
    assert sampler.free_slots == 4
    assert sampler.advance(6) == [] and sampler.free_slots == 4
    sampler.submit(late)
    assert sampler.free_slots == 0
    expected = endless(TorchSampler(tiny_model, tokenizer)).generate(prompts([3, 17]), SETTINGS)
    assert_alike(run_out(sampler, 3), expected)
    assert sampler.free_slots == 8


def test_a_groups_prompt_is_read_once_even_where_its_members_do_not_fit_together(
    tiny_model, tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from falcon_h1r.rollout import torch_sampler

    read: list[list[int]] = []
    original = torch_sampler.read_documents

    def counted(model: FalconH1ForCausalLM, documents: list[list[int]], max_tokens: int) -> Any:
        read.extend(documents)
        return original(model, documents, max_tokens)

    monkeypatch.setattr(torch_sampler, "read_documents", counted)
    TorchSampler(tiny_model, tokenizer, max_slots=3).generate(prompts([3, 17, 40]), SETTINGS)
    assert sorted(read) == sorted(prompt.input_ids for prompt in prompts([3, 17, 40]))


@pytest.mark.parametrize("prefill_tokens", [1, 7, 20])
def test_prompts_read_in_chunks_change_nothing(tiny_model, tokenizer, prefill_tokens: int) -> None:
    expected = TorchSampler(tiny_model, tokenizer).generate(prompts([3, 17, 40, 1]), SETTINGS)
    chunked = TorchSampler(tiny_model, tokenizer, prefill_tokens=prefill_tokens)
    assert_alike(chunked.generate(prompts([3, 17, 40, 1]), SETTINGS), expected)


def test_an_aborted_rollout_goes_on_where_it_was_cut(tiny_model, tokenizer) -> None:
    expected = endless(TorchSampler(tiny_model, tokenizer)).generate(prompts([3, 17]), SETTINGS)
    sampler = endless(TorchSampler(tiny_model, tokenizer, max_slots=6))
    sampler.submit(requests([3, 17]))
    ended = sampler.advance(7)
    cut = sampler.abort()
    assert {rollout.stop_reason for rollout in cut} == {"abort"}
    assert {len(rollout.response_ids) for rollout in cut} >= {0, 7}  # two had not begun
    assert sampler.free_slots == 6 and sampler.advance(5) == [] == sampler.abort()
    by_key = {(rollout.problem_uid, rollout.sample_index): rollout for rollout in cut}
    resumed = [dataclasses.replace(r, partial=by_key[r.key]) for r in requests([3, 17]) if r.key in by_key]
    sampler.submit(resumed)
    rest = run_out(sampler, 100)
    assert all(rollout.later_versions == () and rollout.policy_version == 0 for rollout in rest)
    assert_alike(ended + rest, expected)


def test_aborting_some_leaves_the_others_alone(tiny_model, tokenizer) -> None:
    expected = endless(TorchSampler(tiny_model, tokenizer)).generate(prompts([3, 17]), SETTINGS)
    sampler = endless(TorchSampler(tiny_model, tokenizer, max_slots=8))
    sampler.submit(requests([3, 17]))
    ended = sampler.advance(4)
    dropped = {("problem-0", 1), ("problem-1", 3), ("problem-0", 0)}
    cut = sampler.abort([*sorted(dropped), ("nobody", 0)])
    assert [(rollout.problem_uid, rollout.sample_index) for rollout in cut] == sorted(dropped)
    kept = [rollout for rollout in expected if (rollout.problem_uid, rollout.sample_index) not in dropped]
    assert_alike(ended + run_out(sampler, 100), kept)


def test_new_weights_take_over_running_rollouts_and_are_named(tiny_model, tokenizer) -> None:
    sampler = endless(TorchSampler(tiny_model, tokenizer))
    sampler.submit(requests([3, 17], dataclasses.replace(SETTINGS, num_samples=2)))
    assert sampler.advance(10) == []
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter.mul_(1.05)
    sampler.load_weights(None)
    rollouts = run_out(sampler, 100)
    assert len(rollouts) == 4
    for rollout in rollouts:
        assert (rollout.policy_version, rollout.later_versions) == (0, ((10, 1),))
        sampled = torch.tensor(rollout.sampler_logprobs, dtype=torch.float64)
        gap = (trainer_logprobs(tiny_model, rollout, SETTINGS.temperature) - sampled).abs()
        assert gap[10:].max() < 1e-9 and gap[:10].max() > 1e-3


def test_limits_of_single_requests_hold(tiny_model, tokenizer) -> None:
    sampler = endless(TorchSampler(tiny_model, tokenizer))
    expected = {(r.problem_uid, r.sample_index): r for r in sampler.generate(prompts([3, 17]), SETTINGS)}
    batch = [dataclasses.replace(r, max_response_tokens=5 * r.sample_index + 1) for r in requests([3, 17])]
    sampler.submit(batch)
    for rollout in run_out(sampler, 100):
        limit = 5 * rollout.sample_index + 1
        assert rollout.stop_reason == "length" and len(rollout.response_ids) == limit
        assert rollout.response_ids == expected[rollout.problem_uid, rollout.sample_index].response_ids[:limit]
    sampler.submit([dataclasses.replace(batch[0], partial=rollout, max_response_tokens=3)])
    (ended,) = sampler.advance(1)
    assert ended.response_ids == rollout.response_ids and ended.stop_reason == "length"


def test_a_request_that_is_there_already_is_refused(tiny_model, tokenizer) -> None:
    sampler = TorchSampler(tiny_model, tokenizer)
    sampler.submit(requests([3]))
    with pytest.raises(ValueError, match="sample 0 of problem-0"):
        sampler.submit(requests([3]))


def test_stop_strings_end_a_response_wherever_tokens_cut_them(tiny_model, tokenizer) -> None:
    sampler = TorchSampler(tiny_model, tokenizer)
    (whole,) = sampler.generate(prompts([5]), SamplingSettings(1, 40, temperature=0.7, seed=8))
    texts = [tokenizer.decode(whole.response_ids[: n + 1]) for n in range(40)]
    tried = 0
    for end in range(6, 38, 4):
        string = texts[end][-5:]
        first = next(n for n, text in enumerate(texts) if string in text)  # it may have stood there before
        settings = SamplingSettings(1, 40, temperature=0.7, seed=8, stop_strings=("never there", string))
        (cut,) = sampler.generate(prompts([5]), settings)
        assert cut.response_ids == whole.response_ids[: first + 1] and cut.stop_reason == "stop"
        assert string in cut.text and cut.text == texts[first]
        tried += first + 1 < len(whole.response_ids)
    assert tried > 3


def test_top_logprobs_are_raw_and_best_first(tiny_model, tokenizer) -> None:
    settings = dataclasses.replace(SETTINGS, num_top_logprobs=4, top_p=0.9)
    plain = TorchSampler(tiny_model, tokenizer, max_slots=3).generate(
        prompts([3, 17]), dataclasses.replace(SETTINGS, top_p=0.9)
    )
    rollouts = TorchSampler(tiny_model, tokenizer, max_slots=3).generate(prompts([3, 17]), settings)
    assert_alike(rollouts, plain, tolerance=1e-12)
    for rollout in rollouts:
        ids = rollout.prompt_ids + rollout.response_ids
        hidden = packed_hidden_states(tiny_model, pack_row([Document(ids, [0.0] * len(ids))]))
        logits = tiny_model.lm_head(hidden) * tiny_model.model.lm_head_multiplier
        expected = torch.log_softmax(logits, -1).topk(4).values[len(rollout.prompt_ids) - 1 : -1]
        assert rollout.top_logprobs is not None and rollout.top_logprobs.dtype == np.float32
        assert np.abs(rollout.top_logprobs - expected.detach().numpy()).max() < 1e-6
    assert all(rollout.top_logprobs is None for rollout in plain)


class StopsAfter(Watch):
    def __init__(self, beats: int) -> None:
        self.left = beats

    def beat(self, phase: str, step: int | None = None) -> None:
        self.left -= 1

    @property
    def stop_requested(self) -> bool:
        return self.left < 0


def test_a_stop_forgets_all_that_was_submitted(tiny_model, tokenizer) -> None:
    sampler = TorchSampler(tiny_model, tokenizer, max_slots=5, watch=StopsAfter(6))
    sampler.submit(requests([3, 17, 40]))
    with pytest.raises(StopRequested):
        sampler.advance(100)
    sampler.watch = Watch()
    assert sampler.free_slots == 5 and sampler.advance(3) == [] == sampler.abort()
    expected = TorchSampler(tiny_model, tokenizer).generate(prompts([3]), SETTINGS)
    assert_alike(sampler.generate(prompts([3]), SETTINGS), expected)


def test_generate_leaves_what_was_submitted_before_to_advance(tiny_model, tokenizer) -> None:
    sampler = TorchSampler(tiny_model, tokenizer, max_slots=8)
    early, late = prompts([3, 17])
    sampler.submit(requests_for([early], SETTINGS))
    found = sampler.advance(3) + sampler.generate([late], SETTINGS) + run_out(sampler, 50)
    assert_alike(found, TorchSampler(tiny_model, tokenizer).generate([early, late], SETTINGS))


def test_shared_weights_are_read_anew_by_every_generate(tiny_model, tokenizer) -> None:
    sampler = TorchSampler(tiny_model, tokenizer)
    sampler.generate(prompts([3]), SETTINGS)
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter.mul_(1.1)
    for rollout in sampler.generate(prompts([3]), SETTINGS):
        expected = trainer_logprobs(tiny_model, rollout, SETTINGS.temperature)
        assert (torch.tensor(rollout.sampler_logprobs, dtype=torch.float64) - expected).abs().max() < 1e-9


@pytest.mark.slow
def test_nothing_is_kept_between_calls(tiny_model, tokenizer) -> None:
    sampler = TorchSampler(tiny_model, tokenizer, max_slots=6)

    def held() -> int:
        gc.collect()
        return sum(each.numel() for each in gc.get_objects() if isinstance(each, torch.Tensor))

    sampler.generate(prompts([3, 17, 40]), SETTINGS)
    before = held()
    for seed in range(3):
        sampler.generate(prompts([3, 17, 40]), dataclasses.replace(SETTINGS, seed=seed))
    assert held() <= before and sampler._cache is None
