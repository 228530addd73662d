"""The mix has the shares asked for, in every stretch of what is laid down, and repeats only as far as allowed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon_h1r.config_data import MixConfig
from falcon_h1r.data.curation.facts import FACTS, CorpusFacts
from falcon_h1r.data.curation.mix import ENOUGH_OF_DOMAIN, _scores, mix_domains
from falcon_h1r.types import InputError

REPORTED = {"math": 0.568, "code": 0.298, "science": 0.071, "other": 0.064}


def corpus_of(domains: list[str], tokens: list[int]) -> CorpusFacts:
    facts = np.zeros(len(domains), FACTS)
    names = sorted(set(domains))
    facts["domain"] = [names.index(domain) for domain in domains]
    facts["response_tokens"] = tokens
    return CorpusFacts(facts, {"domain": names, "reason": [""]}, np.array([0, len(domains)]))


def drawn_corpus(seed: int, size: int, weights: dict[str, float]) -> CorpusFacts:
    rng = np.random.default_rng(seed)
    chances = np.array(list(weights.values())) / sum(weights.values())
    domains = rng.choice(list(weights), size, p=chances).tolist()
    return corpus_of(domains, np.minimum(rng.lognormal(8.6, 1.0, size), 49_152).astype(int).tolist())


def shares_of(corpus: CorpusFacts, order: np.ndarray) -> dict[str, float]:
    tokens = corpus.facts["response_tokens"][order].astype(float)
    domains = corpus.facts["domain"][order]
    return {name: tokens[domains == place].sum() / tokens.sum() for place, name in enumerate(corpus.names["domain"])}


@pytest.mark.parametrize("at_hand", [REPORTED, {"math": 1, "code": 1, "science": 1, "other": 1}])
def test_the_reports_shares_are_reached_within_half_a_point(at_hand: dict[str, float]) -> None:
    corpus = drawn_corpus(0, 20_000, at_hand)
    mix = mix_domains(corpus, MixConfig(domain_token_shares=dict(REPORTED)), seed=0)
    total = sum(REPORTED.values())
    for domain, share in shares_of(corpus, mix.order).items():
        assert abs(share - REPORTED[domain] / total) < 0.001
        assert abs(share - REPORTED[domain]) < 0.005


def test_every_stretch_has_the_shares_of_the_whole() -> None:
    corpus = drawn_corpus(1, 20_000, REPORTED)
    order = mix_domains(corpus, MixConfig(domain_token_shares=dict(REPORTED)), seed=0).order
    for start in range(0, len(order) - 4000, 2000):
        for domain, share in shares_of(corpus, order[start : start + 4000]).items():
            assert abs(share - REPORTED[domain]) < 0.02


def test_a_domain_is_read_once_from_its_beginning_to_its_end() -> None:
    corpus = drawn_corpus(2, 5000, REPORTED)
    order = mix_domains(corpus, MixConfig(domain_token_shares=dict(REPORTED)), seed=0).order
    for place in range(len(corpus.names["domain"])):
        own = order[corpus.facts["domain"][order] == place]
        assert (np.diff(own) > 0).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 50)), min_size=3, max_size=60), st.integers(0, 3))
def test_what_is_written_is_alive_and_what_is_not_has_its_reason(rows: list[tuple[str, int]], seed: int) -> None:
    domains = [domain for domain, _ in rows]
    corpus = corpus_of(domains, [tokens for _, tokens in rows])
    shares = {domain: 1 / len(set(domains)) for domain in set(domains)}
    mix = mix_domains(corpus, MixConfig(domain_token_shares=shares), seed)
    assert len(set(mix.order.tolist())) == len(mix.order)
    assert sorted(mix.order.tolist()) == np.flatnonzero(corpus.alive()).tolist()
    reasons = {corpus.names["reason"][place] for place in corpus.facts["reason"][~corpus.alive()]}
    assert reasons <= {ENOUGH_OF_DOMAIN}


def test_a_scarce_domain_repeats_as_often_as_it_may_and_no_trace_more_than_once_beyond_the_others() -> None:
    corpus = corpus_of(["a"] * 100 + ["b"] * 10, [10] * 110)
    shares = {"a": 0.5, "b": 0.5}
    once = mix_domains(corpus, MixConfig(domain_token_shares=shares), seed=0)
    assert len(once.order) == 20
    corpus = corpus_of(["a"] * 100 + ["b"] * 10, [10] * 110)
    often = mix_domains(corpus, MixConfig(domain_token_shares=shares, max_repeats=3.5), seed=0)
    counts = np.bincount(often.order, minlength=110)
    assert len(often.order) == 70
    assert set(counts[:100]) == {0, 1} and set(counts[100:]) == {3, 4}


def test_samples_of_a_domain_are_capped_without_regard_to_where_they_stand() -> None:
    corpus = corpus_of(["a"] * 1000 + ["b"] * 5, [1] * 1005)
    order = mix_domains(corpus, MixConfig(domain_samples={"a": 100}), seed=0).order
    own = order[order < 1000]
    assert len(own) == 100 and len(order) == 105
    assert 350 < own.mean() < 650
    other = mix_domains(corpus_of(["a"] * 1000, [1] * 1000), MixConfig(domain_samples={"a": 100}), seed=1).order
    assert set(other.tolist()) != set(own.tolist())


def test_without_shares_order_is_kept() -> None:
    corpus = drawn_corpus(3, 100, REPORTED)
    assert mix_domains(corpus, MixConfig(), seed=0).order.tolist() == list(range(100))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MixConfig(domain_token_shares={"a": 0.5, "c": 0.5}), r"domain_token_shares\.c: no trace of that domain"),
        (
            MixConfig(domain_token_shares={"a": 0.5, "b": 0.5}, total_tokens=300),
            "total_tokens=300: b has 100 tokens, which with max_repeats=1 make a share of 50.0% of 200 at most",
        ),
    ],
)
def test_shares_that_cannot_be_had_are_a_mistake(config: MixConfig, message: str) -> None:
    with pytest.raises(InputError, match=message):
        mix_domains(corpus_of(["a"] * 100 + ["b"] * 10, [10] * 110), config, seed=0)


def test_a_seed_may_be_of_any_size_and_sign() -> None:
    draws = [tuple(_scores(3, seed).tolist()) for seed in (0, 1, -1, 2**32, 2**40)]
    assert len(set(draws)) == len(draws)
