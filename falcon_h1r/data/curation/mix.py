"""The mix: which traces make up the shares of the domains, and in which order they are laid down.

With shares s_d of the tokens and A_d tokens at hand (times `max_repeats`), the mix has

    T = total_tokens, or min over d of A_d / s_d,    and of domain d the tokens s_d * T,

made up of traces drawn without regard to where they stand. Laid down, a domain's k-th trace comes at the place
(tokens of the k before it + half its own) / (tokens of the domain), all domains merged by place: then every
stretch of the file has the shares of the whole, and each domain is read once, from its beginning to its end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from falcon_h1r.config_data import MixConfig
from falcon_h1r.data.curation.facts import CorpusFacts
from falcon_h1r.types import InputError

ENOUGH_OF_DOMAIN = "enough_of_domain"


@dataclass(frozen=True, slots=True)
class Mix:
    """Places in the corpus in the order in which they are written; one stands there twice where it is repeated."""

    order: NDArray[np.int64]
    targets: dict[str, float]  # share of the tokens that each domain was to have; empty: none was asked for


def mix_domains(corpus: CorpusFacts, config: MixConfig, seed: int) -> Mix:
    """Choose and order traces that are alive; others of theirs are dropped.

    Raises:
        InputError: for a domain of a share that has no traces, or too few for `total_tokens`.
    """
    scores = _scores(len(corpus.facts), seed)
    for domain, most in config.domain_samples.items():
        members = _members(corpus, domain)
        keep = members[np.argsort(scores[members], kind="stable")[:most]]
        _drop_others(corpus, domain, keep)
    if not config.domain_token_shares:
        return Mix(np.flatnonzero(corpus.alive()), {})
    total = sum(config.domain_token_shares.values())
    shares = {domain: share / total for domain, share in config.domain_token_shares.items() if share > 0}
    wanted = _wanted_tokens(corpus, config, shares)
    places, positions = [], []
    for domain in corpus.names["domain"]:
        drawn = _draw(corpus, domain, wanted.get(domain, 0.0), scores)
        tokens = _tokens(corpus)[drawn]
        places.append(drawn)
        positions.append((np.cumsum(tokens) - tokens / 2) / max(1, tokens.sum()))
        _drop_others(corpus, domain, drawn)
    order = np.argsort(np.concatenate(positions), kind="stable")
    return Mix(np.concatenate(places)[order], shares)


def _wanted_tokens(corpus: CorpusFacts, config: MixConfig, shares: dict[str, float]) -> dict[str, float]:
    tokens = _tokens(corpus)
    at_hand = {domain: float(tokens[_members(corpus, domain)].sum()) for domain in shares}
    for domain, number in at_hand.items():
        if not number:
            left = [name for name in corpus.names["domain"] if len(_members(corpus, name))]
            raise InputError(
                f"curate.mix.domain_token_shares.{domain}: no trace of that domain is left (there are: "
                f"{', '.join(left) or 'none'})"
            )
    most = min(at_hand[domain] * config.max_repeats / share for domain, share in shares.items())
    if config.total_tokens is not None and config.total_tokens > most:
        scarcest = min(shares, key=lambda domain: at_hand[domain] / shares[domain])
        raise InputError(
            f"curate.mix.total_tokens={config.total_tokens:,}: {scarcest} has {at_hand[scarcest]:,.0f} tokens, which "
            f"with max_repeats={config.max_repeats:g} make a share of {shares[scarcest]:.1%} of {most:,.0f} at most"
        )
    total = config.total_tokens or most
    return {domain: share * total for domain, share in shares.items()}


def _draw(corpus: CorpusFacts, domain: str, wanted: float, scores: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Traces of a domain of about so many tokens together, in the corpus' order: all of it as often as it goes."""
    members = _members(corpus, domain)
    tokens = _tokens(corpus)[members]
    if not len(members) or wanted <= 0:
        return np.empty(0, np.int64)
    whole, rest = divmod(wanted, float(tokens.sum()))
    by_score = np.argsort(scores[members], kind="stable")
    reached = np.cumsum(tokens[by_score])
    number = int(np.searchsorted(reached - tokens[by_score] / 2, rest))  # to whichever side is nearer
    drawn = np.sort(by_score[:number])
    return np.concatenate([*[members] * int(whole), members[drawn]])


def _scores(num_traces: int, seed: int) -> NDArray[np.uint64]:
    """(N): numbers as if drawn, from seed and place alone (splitmix64; Steele, Lea and Flood, 2014)."""
    start = ((seed << 32) ^ (seed >> 32)) % (1 << 64)  # of a seed of any size and sign
    with np.errstate(over="ignore"):
        mixed = (np.arange(1, num_traces + 1, dtype=np.uint64) + np.uint64(start)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _members(corpus: CorpusFacts, domain: str) -> NDArray[np.int64]:
    return np.flatnonzero(corpus.alive() & (corpus.facts["domain"] == corpus.place("domain", domain)))


def _drop_others(corpus: CorpusFacts, domain: str, kept: NDArray[np.int64]) -> None:
    others = corpus.facts["domain"] == corpus.place("domain", domain)
    others[kept] = False
    corpus.drop(others, ENOUGH_OF_DOMAIN)


def _tokens(corpus: CorpusFacts) -> NDArray[np.int64]:
    return corpus.facts["prompt_tokens"].astype(np.int64) + corpus.facts["response_tokens"]
