"""What the schema's types cannot say of curation's settings. Imports no torch."""

from __future__ import annotations

from falcon_h1r.config_data import CurateConfig, DifficultyWeightsConfig, DuplicatesConfig, MixConfig, WorkConfig
from falcon_h1r.config_rules import at_least, one_of, share
from falcon_h1r.types import InputError

SHARES_TOLERANCE = 0.01  # the report's shares, as printed, add up to 1.001
UNPROVED_KINDS = ("very_hard", "proof")


def check_curate(curate: CurateConfig) -> None:
    """
    Raises:
        InputError: naming the key.
    """
    one_of("curate.on_error", curate.on_error, ("raise", "skip"))
    for key, number in (
        ("synthetic.num_problems", curate.synthetic.num_problems),
        ("traces_per_problem", curate.traces_per_problem),
        ("filters.max_prompt_tokens", curate.filters.max_prompt_tokens),
        ("filters.max_response_tokens", curate.filters.max_response_tokens),
    ):
        if number is not None:
            at_least(f"curate.{key}", number, 1)
    at_least("curate.max_row_megabytes", curate.max_row_megabytes, 0.001)
    at_least("curate.characters_per_token", curate.characters_per_token, 0.1)
    if curate.filters.second_check is not None:
        one_of("curate.filters.second_check", curate.filters.second_check, ("given", "llm"))
    at_least("curate.second_check.concurrency", curate.second_check.concurrency, 1)
    at_least("curate.second_check.max_tokens", curate.second_check.max_tokens, 1)
    at_least("curate.second_check.timeout_seconds", curate.second_check.timeout_seconds, 0.001)
    url = curate.second_check.url
    if url is not None and not url.startswith(("http://", "https://")):
        raise InputError(f"curate.second_check.url={url}: has to begin with http:// or https://")
    for name in curate.filters.keep_unproved:
        one_of("curate.filters.keep_unproved", name, UNPROVED_KINDS)
    _check_weights(curate.weights)
    _check_decontamination(curate)
    _check_duplicates(curate.duplicates)
    _check_mix(curate.mix)
    _check_work(curate.work)
    hub = [name for name, source in curate.sources.items() if source.format == "hub"]
    if hub and curate.work.spool is None and (curate.work.shard is not None or curate.work.merge is not None):
        raise InputError(f"curate.work.spool is not set: the shards have to share what they read of {hub[0]}")


def _check_weights(weights: DifficultyWeightsConfig) -> None:
    key = "curate.weights"
    one_of(f"{key}.measured_by", weights.measured_by, ("label", "pass_rate", "trace_tokens"))
    for name in ("easy", "medium", "hard_low", "hard_high"):
        at_least(f"{key}.{name}", getattr(weights, name), 0.0)
    share(f"{key}.easy_pass_rate", weights.easy_pass_rate)
    share(f"{key}.hard_pass_rate", weights.hard_pass_rate)
    for low, high in (
        ("hard_low", "hard_high"),
        ("hard_pass_rate", "easy_pass_rate"),
        ("medium_tokens", "hard_tokens"),
        ("hard_tokens", "hardest_tokens"),
    ):
        least, most = getattr(weights, low), getattr(weights, high)
        if least > most or (least == most and low == "hard_tokens"):
            raise InputError(f"{key}.{low}={least} is above {high}={most}")


def _check_decontamination(curate: CurateConfig) -> None:
    settings = curate.decontamination
    share("curate.decontamination.min_overlap", settings.min_overlap)
    at_least("curate.decontamination.ngram_characters", settings.ngram_characters, 8)
    for name in settings.switched_off:
        if name not in settings.sets:
            raise InputError(
                f"curate.decontamination.switched_off={name}: not one of the sets, {', '.join(settings.sets) or 'none'}"
            )


def _check_duplicates(duplicates: DuplicatesConfig) -> None:
    key = "curate.duplicates"
    if duplicates.of is not None:
        one_of(f"{key}.of", duplicates.of, ("trace", "question"))
    share(f"{key}.threshold", duplicates.threshold)
    at_least(f"{key}.shingle_words", duplicates.shingle_words, 1)
    at_least(f"{key}.num_bands", duplicates.num_bands, 1)
    if duplicates.num_hashes % duplicates.num_bands:
        raise InputError(
            f"{key}.num_hashes={duplicates.num_hashes}: not a multiple of num_bands={duplicates.num_bands}"
        )


def _check_mix(mix: MixConfig) -> None:
    key = "curate.mix"
    for domain, value in mix.domain_token_shares.items():
        share(f"{key}.domain_token_shares.{domain}", value)
    total = sum(mix.domain_token_shares.values())
    if mix.domain_token_shares and abs(total - 1) > SHARES_TOLERANCE:
        raise InputError(f"{key}.domain_token_shares: add up to {total:g}, not to 1")
    for domain, samples in mix.domain_samples.items():
        at_least(f"{key}.domain_samples.{domain}", samples, 1)
    at_least(f"{key}.max_repeats", mix.max_repeats, 1.0)
    if mix.total_tokens is not None:
        at_least(f"{key}.total_tokens", mix.total_tokens, 1)
        if not mix.domain_token_shares:
            raise InputError(f"{key}.total_tokens={mix.total_tokens}: does nothing without domain_token_shares")


def _check_work(work: WorkConfig) -> None:
    key = "curate.work"
    at_least(f"{key}.num_workers", work.num_workers, 1)
    at_least(f"{key}.chunk_megabytes", work.chunk_megabytes, 0.001)
    at_least(f"{key}.num_shards", work.num_shards, 1)
    if work.shard is not None and not 0 <= work.shard < work.num_shards:
        raise InputError(f"{key}.shard={work.shard}: has to be from 0 to num_shards - 1 = {work.num_shards - 1}")
    if work.shard is not None and work.merge is not None:
        raise InputError(f"{key}.merge={work.merge}: a job is either a shard or the one that merges them")
