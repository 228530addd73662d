"""The sampler's logprobs against the trainer's, on rollouts of the small model in the run's dtype.

With p the trainer's and q the sampler's logprobs of a sampled token, the gap is |p - q|, and the mean over tokens of
k3 = exp(p - q) - 1 - (p - q) estimates KL(sampler || trainer) (Schulman, "Approximating KL divergence", 2020).
"""

from __future__ import annotations

import torch

from falcon_h1r.data.packing import Document, pack_row, weightless_document
from falcon_h1r.distributed.engine import Engine
from falcon_h1r.doctor.examination import Examination
from falcon_h1r.doctor.finding import FAILED, OK, SKIPPED, WARN, Finding, graded
from falcon_h1r.rollout.sampler import Prompt, SamplingSettings
from falcon_h1r.rollout.torch_sampler import TorchSampler
from falcon_h1r.types import Rollout

PROMPTS = ("Compute 12 + 30.", "Compute 7.", "The answer is 42. Compute 3 + 4 and the answer.")
SAMPLES, RESPONSE_TOKENS = 4, 24
# (largest gap, mean k3) allowed. In bfloat16 a decode step and a packed row round differently, by design.
LIMITS = {torch.float64: (1e-8, 1e-14), torch.float32: (5e-3, 1e-6), torch.bfloat16: (0.5, 2e-3)}


def check_sampler(examination: Examination) -> list[Finding]:
    """Rollouts from the torch sampler, scored by the engine in one packed row."""
    findings = []
    if (name := examination.config.grpo.rollout.name) != "torch":
        advice = "its server is not started here; the torch sampler stands in"
        findings.append(Finding(f"{name} sampler", SKIPPED, "not tried", advice))
    engine = examination.opened_engine()
    settings = SamplingSettings(SAMPLES, RESPONSE_TOKENS, seed=examination.config.seed)
    tokenizer = examination.tokenizer
    prompts = [Prompt(text, tokenizer(text, add_special_tokens=False)["input_ids"]) for text in PROMPTS]
    with engine.whole():
        rollouts = TorchSampler(engine.model, tokenizer).generate(prompts, settings)
    return [*findings, compare(engine, prompts, rollouts, examination.dtype)]


def compare(engine: Engine, prompts: list[Prompt], rollouts: list[Rollout], dtype: torch.dtype) -> Finding:
    """The gap between what the sampler wrote down and what the trainer computes of the same tokens."""
    by_uid = {prompt.problem_uid: prompt.input_ids for prompt in prompts}
    documents = []
    for rollout in rollouts:
        prompt, response = by_uid[rollout.problem_uid], rollout.response_ids
        weights = [0.0] * len(prompt) + [1.0] * len(response)
        documents.append(Document([*prompt, *response], weights))
    tail = -sum(map(len, documents)) % engine.world.sequence.size
    row = pack_row([*documents, *([weightless_document(tail)] if tail else [])]).to(engine.world.device)
    with torch.no_grad():
        logprobs, _ = engine.logprobs(row)
    trainer = logprobs[row.loss_weights != 0].double().cpu()
    sampler = torch.tensor([each for rollout in rollouts for each in rollout.sampler_logprobs], dtype=torch.float64)
    difference = trainer - sampler
    gap = difference.abs().max().item()
    k3 = (difference.exp() - 1 - difference).mean().item()
    most_gap, most_k3 = LIMITS[dtype]
    fine = gap <= most_gap and k3 <= most_k3  # false for NaN, too
    status = OK if fine else WARN if gap <= 2 * most_gap and k3 <= 2 * most_k3 else FAILED
    measured = f"gap {gap:.1e} at most, mean k3 {k3:.1e} over {len(sampler)} tokens ({most_gap:g}, {most_k3:g} allowed)"
    advice = "GRPO's importance weights would be noise: see the kernels' lines; try model.dtype=float32"
    return graded("sampler logprobs", status, measured, advice)
