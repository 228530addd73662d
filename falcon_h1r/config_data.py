"""The settings of curation: filters, decontamination, duplicates, difficulty, the mix, and how the work is divided."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from falcon_h1r.config_sources import SourceConfig

# Optional[...] rather than `... | None`, and no Literal: OmegaConf reads these annotations at run time.
# ruff: noqa: UP045


@dataclass
class SyntheticConfig:
    """Generated maths problems and the teachers who solve them (falcon_h1r.data.problems)."""

    num_problems: int = 60_000
    families: Optional[list[str]] = None  # null: all
    difficulty_shares: dict[str, float] = field(default_factory=lambda: {"easy": 0.25, "medium": 0.4, "hard": 0.35})
    split_fractions: dict[str, float] = field(
        default_factory=lambda: {"sft": 0.6, "rl": 0.3, "dev": 0.03, "eval": 0.07}
    )
    teachers: list[str] = field(default_factory=lambda: ["verbose", "terse", "careless"])
    leap_rates: dict[str, float] = field(  # of terse, by difficulty: share of traces that show no working
        default_factory=lambda: {"easy": 0.6, "medium": 0.3, "hard": 0.1}
    )
    slip_rate: float = 0.3  # of careless: share of its traces with one wrong digit
    sympy_check_share: float = 1.0  # of the answers, recomputed by sympy from the question's text


@dataclass
class DifficultyWeightsConfig:
    """Loss weight by difficulty. Hard interpolates from `hard_low` to `hard_high`; 0 drops."""

    measured_by: str = "label"  # label: as the problem says; pass_rate; trace_tokens: the problem's shortest trace
    pass_rates: str = "traces"  # with pass_rate: of the problem's own traces, "rows" as they say, or a file of select
    easy_pass_rate: float = 0.75  # with pass_rate: easy from here up
    hard_pass_rate: float = 0.25  # ... and hard up to here; hardest at 0
    medium_tokens: int = 4_000  # with trace_tokens: medium from here up
    hard_tokens: int = 12_000  # ... hard from here up
    hardest_tokens: int = 32_000  # ... and hardest from here up

    easy: float = 0.5
    medium: float = 1.0
    hard_low: float = 1.25
    hard_high: float = 1.75


@dataclass
class TraceFiltersConfig:
    """Which traces are dropped. Wrong ones always are, but for `keep_unproved`."""

    require_reasoning: bool = True  # and an answer
    require_boxed: bool = True  # maths without a final \boxed{}
    require_compiling_code: bool = False  # code with a syntax error, or not in the language asked for
    require_reliable_tools: bool = False  # tool calls whose outputs cannot be trusted
    scripts: list[str] = field(default_factory=list)  # of the text's letters: latin, cyrillic, han, ...; empty: any
    max_other_scripts: float = 0.1  # share of the letters of question, reasoning or response that may be of others
    max_prompt_tokens: Optional[int] = None
    max_response_tokens: Optional[int] = None  # reasoning included
    second_check: Optional[str] = None  # what else has to call a trace correct: given (the rows' own verdict), or llm
    keep_unproved: list[str] = field(default_factory=list)  # kinds kept though unproved: very_hard, proof


@dataclass
class SecondCheckConfig:
    """The model behind filters.second_check=llm; see falcon_h1r.data.curation.second_check."""

    url: Optional[str] = None  # of an OpenAI-compatible endpoint: http://host:8000/v1
    model: Optional[str] = None
    api_key_variable: str = "OPENAI_API_KEY"  # of the environment; no key is sent where it is not set
    concurrency: int = 16  # requests at once, of each process
    max_tokens: int = 4096  # of a reply
    timeout_seconds: float = 300.0


@dataclass
class DecontaminationConfig:
    """Problems that evaluation asks are not learnt from; see falcon_h1r.data.decontamination."""

    sets: dict[str, SourceConfig] = field(default_factory=dict)  # evaluation problems, by name
    switched_off: list[str] = field(default_factory=list)  # names of sets that this run is not checked against
    ngram_characters: int = 20  # letters and digits alone are counted
    min_overlap: float = 0.5  # share of an evaluation problem's n-grams found in a trace


@dataclass
class DuplicatesConfig:
    """Near-duplicates by MinHash; see falcon_h1r.data.duplicates."""

    of: Optional[str] = None  # trace: question, reasoning and response; question: one problem of several; null: off
    threshold: float = 0.8  # Jaccard similarity of their shingles, from which two are the same
    shingle_words: int = 5
    num_hashes: int = 120
    num_bands: int = 20  # of as many hashes each; a pair of similarity s is compared with P = 1 - (1 - s^6)^20


@dataclass
class MixConfig:
    """What share of the tokens each domain has; see falcon_h1r.data.mix."""

    domain_token_shares: dict[str, float] = field(default_factory=dict)  # empty: as it comes
    domain_samples: dict[str, int] = field(default_factory=dict)  # at most so many traces of a domain
    total_tokens: Optional[int] = None  # null: as many as the scarcest domain allows
    max_repeats: float = 1.0  # a scarce domain's traces may stand there so many times


@dataclass
class WorkConfig:
    """How curation is divided over processes and jobs. No setting here changes what comes out."""

    num_workers: int = 1  # processes
    chunk_megabytes: float = 16.0  # of a source: what one process takes at a time, and a kill costs
    num_shards: int = 1  # jobs of a slurm array
    shard: Optional[int] = None  # which of them this is, from 0; it leaves chunks for the one that merges
    merge: Optional[str] = None  # run folders of the shards, a pattern with *
    spool: Optional[str] = None  # where hub datasets are kept as they are read; null: in the run's folder


@dataclass
class CurateConfig:
    """From traces to what SFT and GRPO read."""

    sources: dict[str, SourceConfig] = field(default_factory=dict)  # by name; none: synthetic problems
    on_error: str = "raise"  # rows that cannot be read: raise, or skip and count
    max_row_megabytes: float = 32.0
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    keep_teacher: Optional[str] = None  # one teacher's traces; by_coverage: of most solved problems; null keeps all
    traces_per_problem: Optional[int] = None  # the first so many of each problem are kept; null: all
    tokenizer: Optional[str] = None  # whose tokens are counted; null: model.path's, or an estimate
    characters_per_token: float = 3.0  # of that estimate
    filters: TraceFiltersConfig = field(default_factory=TraceFiltersConfig)
    second_check: SecondCheckConfig = field(default_factory=SecondCheckConfig)
    decontamination: DecontaminationConfig = field(default_factory=DecontaminationConfig)
    duplicates: DuplicatesConfig = field(default_factory=DuplicatesConfig)
    weights: DifficultyWeightsConfig = field(default_factory=DifficultyWeightsConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    work: WorkConfig = field(default_factory=WorkConfig)
