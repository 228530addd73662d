"""The settings of evaluation: benchmarks, engines, test-time scaling. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from falcon_h1r.config_sources import SourceConfig
from falcon_h1r.config_stage import LimitsConfig

# ruff: noqa: UP045  (OmegaConf reads these annotations at run time)


@dataclass
class BenchmarkConfig:
    """One benchmark of the evaluation protocol; configs/benchmark has them by name."""

    data: SourceConfig = field(default_factory=SourceConfig)
    num_problems: Optional[int] = None  # the first so many; null: all
    prompt: str = "{question}"  # the user's turn
    scorer: str = "math"  # math, choice, code or instructions
    num_samples: int = 1
    max_response_tokens: int = 32_768
    greedy: bool = False  # one greedy answer beside the samples
    leave_out_families: list[str] = field(default_factory=list)  # of data.family_field; how many is said at the start
    num_traces: Optional[int] = None  # budget of online DeepConf; null: scaling.num_traces
    bridge: Optional[str] = None  # the command that runs it elsewhere; {url} and {model} are the endpoint's
    reference_score: Optional[float] = None  # published, in percent: shown beside ours, never as ours
    reference_scaled_score: Optional[float] = None  # published, with DeepConf over 512 traces a problem
    reference_scaled_tokens: Optional[int] = None  # generated for that score, stopped traces included


def traces_of(benchmark: BenchmarkConfig, num_traces: int) -> int:
    """The budget of online DeepConf, where `scaling` has one of `num_traces`; other scorers have nothing to vote on."""
    if benchmark.scorer not in ("math", "choice"):
        return 0
    return num_traces if benchmark.num_traces is None else benchmark.num_traces


@dataclass
class BenchmarkGroupConfig:
    """Benchmarks whose scores are averaged, each counting once."""

    benchmarks: list[str] = field(default_factory=list)
    reference_score: Optional[float] = None  # the published average, in percent: shown beside ours, never as ours


@dataclass
class EndpointConfig:
    """Servers that speak OpenAI's protocol, for evaluate.engine=endpoint; see falcon_h1r.scaling.endpoint."""

    urls: list[str] = field(default_factory=list)  # http://host:port/v1 of each; they serve the same model
    model: Optional[str] = None  # the server's name for it; null: the only one it lists
    api: str = "chat"  # chat: the server applies its template; completions: we apply the tokenizer's at model.path
    api_key_variable: Optional[str] = None  # the environment variable that holds the key
    max_in_flight: int = 64  # traces at once, at each server
    silent_seconds: float = 300.0  # without a word from a server: the request counts as lost
    max_losses: int = 4  # of one trace in a row; then the evaluation ends, with all scores so far kept
    first_pause_seconds: float = 1.0  # before a lost trace is asked for again; doubled each time


@dataclass
class WorkConfig:
    """How the traces of an evaluation are shared by processes that see one folder; see falcon_h1r.evaluation.work."""

    claim_traces: int = 16  # of one problem, claimed at a time
    lost_seconds: float = 120.0  # a claim that shows no sign of life for so long is another's to take
    merge: bool = True  # wait for the others' claims, then write the summary; false: work, and leave


@dataclass
class WatchConfig:
    """Scoring each new checkpoint of a run that is under way, as a job of its own."""

    run: Optional[str] = None  # the run's folder; null: no watching
    poll_seconds: float = 30.0
    idle_minutes: float = 120.0  # without a new checkpoint: the job ends


@dataclass
class EvaluateConfig:
    """Accuracy with intervals, and what it cost in tokens."""

    data: SourceConfig = field(default_factory=SourceConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    num_problems: Optional[int] = 256  # the first so many; null: all
    num_samples: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    greedy: bool = True  # one greedy answer beside the samples
    max_slots: int = 512
    use_graphs: bool = False  # decode steps of engine=torch as CUDA graphs; needs a GPU
    engine: str = "torch"  # torch: the model at model.path, in this process; endpoint: servers elsewhere
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    work: WorkConfig = field(default_factory=WorkConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    compare_with: Optional[str] = None  # another evaluation's folder: differences, paired by problem
    benchmarks: dict[str, BenchmarkConfig] = field(default_factory=dict)  # where there are any, `data` is not read
    only: list[str] = field(default_factory=list)  # of the benchmarks; empty: all
    groups: dict[str, BenchmarkGroupConfig] = field(default_factory=dict)  # averages over several benchmarks


@dataclass
class ScalingConfig:
    """Test-time scaling: DeepConf, voting with confidence (arXiv 2508.15260)."""

    measure_confidence: bool = False  # of every sample drawn, for votes and curves; asked for by num_traces anyway
    num_traces: int = 0  # budget of the online algorithm, a problem; 0: none
    warmup_traces: int = 16  # run to their end; they set the threshold below which later ones are stopped
    wave_traces: int = 16  # drawn together after the warm-up; consensus is looked at between waves
    keep_share: float = 0.1  # of the warm-up traces that lie above the threshold: 0.1 keeps the top tenth
    stop_slack: float = 1e-5  # so far below the threshold a trace is stopped: wider than rounding, which would choose
    measure: str = "top_k"  # a token's confidence: top_k, minus the mean logprob of the best k; sampled, its logprob
    trace_score: str = "lowest_group"  # mean, bottom_10, lowest_group or tail: the weight of a trace's vote
    vote_share: float = 1.0  # only the best so many traces vote
    top_k: int = 20  # tokens in a position's confidence
    window_tokens: int = 2048  # of a group, stride 1
    partial_window: str = "mean"  # before the first whole window: the mean so far, or wait: no group and no stop
    consensus_share: float = 0.95  # of the vote, at which sampling stops
    temperature: float = 0.6
    top_p: float = 0.95
    budgets: list[int] = field(default_factory=lambda: [8, 16, 32])  # of the curves, from traces that were stored
    keep_shares: list[float] = field(default_factory=lambda: [0.1, 0.5, 0.9])  # likewise
