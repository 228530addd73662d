"""Sampling a policy on problems and judging every answer: rows for samples.jsonl, and numbers from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from falcon_h1r.checkpoint.stopping import gather_unless_stopped
from falcon_h1r.config_evaluate import EvaluateConfig
from falcon_h1r.data.tokenisation import encode_prompts
from falcon_h1r.distributed.world import World
from falcon_h1r.rollout.sampler import Prompt, Sampler, SamplingSettings
from falcon_h1r.types import InputError, Problem, Rollout
from falcon_h1r.verifier import Verifier, canonical_answer, extract_answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def evaluate_policy(
    sampler: Sampler,
    tokenizer: PreTrainedTokenizerBase,
    verifier: Verifier,
    problems: Sequence[Problem],
    config: EvaluateConfig,
    system_prompt: str,
    seed: int,
    world: World,
    greedy: bool = True,
) -> list[dict[str, Any]]:
    """`num_samples` samples, and one greedy answer, for every problem.

    Problems are shared over ranks by position and rollouts have seeds of their own, so the rows are the same however
    many ranks there are, up to the rounding of float32, which depends on what shares a batch.

    Returns:
        On every rank all rows, ordered by problem, samples before the greedy one; see `sample_row`.

    Raises:
        StopRequested: on every rank.
    """
    prompts = encode_prompts(tokenizer, problems, system_prompt)
    check_prompt_lengths(problems, prompts, config.limits.prompt_tokens, "evaluate.limits")
    own = world.share(list(zip(problems, prompts, strict=True)))
    own_prompts = [Prompt(problem.uid, ids) for problem, ids in own]
    by_uid = {problem.uid: problem for problem, _ in own}
    passes = [(config.num_samples, config.temperature, False)] + [(1, 0.0, True)] * greedy

    def sample_and_judge() -> list[dict[str, Any]]:
        rows = []
        for num_samples, temperature, is_greedy in passes:
            settings = SamplingSettings(
                num_samples=num_samples,
                max_response_tokens=config.limits.response_tokens,
                temperature=temperature,
                top_p=config.top_p,
                seed=seed,
            )
            rollouts = sampler.generate(own_prompts, settings)
            with world.watch.long("judging"):
                golds = [by_uid[rollout.problem_uid].answer for rollout in rollouts]
                verdicts = verifier.score([rollout.text for rollout in rollouts], golds)
            rows += [
                sample_row(by_uid[rollout.problem_uid], rollout, verdict, is_greedy, verifier.fallbacks)
                for rollout, verdict in zip(rollouts, verdicts, strict=True)
            ]
        return rows

    position = {problem.uid: index for index, problem in enumerate(problems)}
    gathered = [row for rank_rows in gather_unless_stopped(world, sample_and_judge) for row in rank_rows]
    return sorted(gathered, key=lambda row: (position[row["problem_uid"]], row["greedy"], row["sample_index"]))


def sample_row(
    problem: Problem, rollout: Rollout, verdict: Any, is_greedy: bool, fallbacks: Sequence[str] = ()
) -> dict[str, Any]:
    """One judged response, as it stands in samples.jsonl."""
    return {
        "problem_uid": problem.uid,
        "question": problem.question,
        "gold": problem.answer,
        "family": problem.family,
        "difficulty": problem.difficulty,
        "greedy": is_greedy,
        "sample_index": rollout.sample_index,
        "response": rollout.text,
        "prediction": extract_answer(rollout.text, True, fallbacks),
        "answer_key": canonical_answer(rollout.text, True, fallbacks),
        "status": verdict.status,
        "stage": verdict.stage,
        "reason": verdict.reason,
        "response_tokens": len(rollout.response_ids),
        "stop_reason": rollout.stop_reason,
    }


def check_prompt_lengths(problems: Sequence[Problem], prompts: Sequence[list[int]], limit: int, key: str) -> None:
    """A problem that does not fit is a mistake of the limits: leaving it out would change the benchmark.

    Raises:
        InputError: naming the longest.
    """
    lengths = [len(prompt) for prompt in prompts]
    if lengths and max(lengths) > limit:
        worst = problems[lengths.index(max(lengths))]
        raise InputError(
            f"{key}.prompt_tokens={limit}: problem {worst.uid} has {max(lengths)} tokens "
            f"({sum(length > limit for length in lengths)} of {len(lengths)} problems are too long)"
        )


def dev_metrics(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Accuracy on the development problems, for learning curves."""
    metrics = {}
    for name, greedy in (("dev_pass_at_1", False), ("dev_greedy", True)):
        statuses = [row["status"] == "correct" for row in rows if row["greedy"] is greedy]
        if statuses:
            metrics[name] = sum(statuses) / len(statuses)
    return metrics
