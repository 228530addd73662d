"""Settings of what stands around training: benchmarks, the plan before a launch, the doctor. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

# ruff: noqa: UP045  (OmegaConf reads these annotations at run time)


@dataclass
class DoctorConfig:
    """recipes/doctor.py: whether an allocation is fit for the run."""

    only: list[str] = field(default_factory=list)  # names of checks; empty: all
    seconds: float = 120.0  # for each check; one that takes longer is red, and the next begins
    full: bool = False  # the run's own model instead of a small one of the same heads; raise `seconds` with it
    collective_mib: list[float] = field(default_factory=list)  # sizes; empty: 0.0625, 1, 16, and on GPUs 256
    least_bus_gigabytes_per_second: float = 0.0  # at the largest size; less is a warning
    file_mib: int = 64  # written and read by every rank


@dataclass
class ThroughputCaseConfig:
    """One line of suite=throughput."""

    input_tokens: int = 512
    output_tokens: int = 32_768
    batch: int = 32


@dataclass
class BenchmarkSuiteConfig:
    """What recipes/benchmark.py measures or collects, and the page it writes; suite=NAME chooses a preset."""

    kind: str = "quickstart"  # quickstart: pooled runs; the others are measured
    page: str = "docs/benchmarks/quickstart.md"
    runs: list[str] = field(default_factory=list)  # of quickstart: run folders of several seeds

    # Of ablations: runs of `experiment` under `folder`, where they go on from.
    experiment: str = "quickstart"
    folder: str = "runs/ablations"
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    ablations: list[str] = field(default_factory=list)  # names of configs/ablation; base is always among them
    overrides: list[str] = field(default_factory=list)  # of every run: key=value

    # Of plan: training steps whose peak memory is measured; name: fields of falcon_h1r.planning.measure.MeasuredRun.
    # Of its also: max_seconds (of one of them), num_layers, vocab_size.
    plan_runs: dict[str, Any] = field(default_factory=dict)

    # Of verifier, and of its also: repeats, max_seconds (of a call), memory_limit_gib, resume.
    pairs: list[str] = field(default_factory=list)  # JSONL files: id, prediction, gold, expected, kind
    peer_python: Optional[str] = None  # an interpreter that has Math-Verify; null: it is not measured
    grpo_problems: int = 1250  # of the batch as GRPO scores it
    grpo_rollouts: int = 8

    # Of curation.
    curation_rows: list[int] = field(default_factory=lambda: [50_000, 200_000])  # sizes of the corpus
    curation_workers: int = 2  # curate.work.num_workers

    # Of checkpoint; model.architecture with random weights, `repeats` rounds.
    checkpoint_steps: int = 12  # between two saves
    checkpoint_row_tokens: int = 512  # a step's one row

    # Of rollouts; random weights of model.architecture, `repeats` rounds. Lengths lie evenly between two bounds.
    rollout_models: dict[str, Any] = field(default_factory=dict)  # name: changes of the architecture
    rollout_prompts: int = 64
    rollout_samples: int = 8  # of each prompt
    rollout_prompt_tokens: list[int] = field(default_factory=lambda: [24, 96])
    rollout_response_tokens: list[int] = field(default_factory=lambda: [16, 512])
    rollout_slots: list[int] = field(default_factory=lambda: [256, 512])  # of our sampler, each measured
    rollout_graphs: bool = False  # our decode steps as CUDA graphs
    rollout_batches: list[int] = field(default_factory=lambda: [64, 128, 512])  # of generate; empty: it is left out

    # Of throughput: the model at model.path, or random weights of model.architecture, on evaluate.engine.
    throughput_cases: list[ThroughputCaseConfig] = field(default_factory=list)
    throughput_scale: float = 1.0  # all lengths are multiplied by it

    # Of scaling: GRPO's models of `runs`, as `evaluate` and `scaling` say, one set of samples for each of `seeds`.
    scaling_warmups: list[int] = field(default_factory=lambda: [16, 8])  # each replayed, its waves as long

    # Of model. The weights are random ones of model.architecture; model.path is not read.
    parts: list[str] = field(default_factory=lambda: ["scan", "scan_alone", "model", "lengths", "row", "loss"])
    num_layers: Optional[int] = None  # fewer layers than the architecture's, to fit; said so on the page
    vocab_size: Optional[int] = None  # of parts model and lengths: small, so that the head does not dominate
    repeats: int = 3
    enough_seconds: float = 300.0  # a case that has run so long repeats no further
    max_seconds: float = 1800.0  # of one process, for one forward and backward; beyond, it is stopped and said so
    memory_limit_gib: Optional[float] = None  # of one process on the CPU; beyond, it fails and its row says so
    interleave: bool = True  # competitors alive together, taking turns; false: one after the other
    resume: bool = False  # keep what the page's figures hold of these parts; other parts' are always kept

    peer_chunk_sizes: list[int] = field(default_factory=lambda: [64])  # tried for transformers; the best is compared
    peer_max_tokens: dict[str, int] = field(default_factory=dict)  # part: transformers is skipped above; none: never
    scan_lengths: list[int] = field(default_factory=lambda: [8192])
    scan_alone_lengths: list[int] = field(default_factory=lambda: [8192])
    model_documents: list[int] = field(default_factory=lambda: [1024] * 8)  # their lengths
    row_lengths: list[int] = field(default_factory=lambda: [8192])  # of part lengths
    row_layouts: list[str] = field(default_factory=lambda: ["one", "eight", "mixed"])  # documents of such a row
    train_row_tokens: int = 49_152  # of part row, a whole training step
    train_row_documents: list[int] = field(default_factory=lambda: [8, 1])  # how many documents share it
    train_row_recompute: list[str] = field(default_factory=lambda: ["layer"])  # engine.activation_checkpointing
    loss_tokens: int = 49_152
    loss_peer_tokens: int = 2048  # at which the naive loss still fits


@dataclass
class GPUConfig:
    """The hardware that a run is planned for; gpu=NAME chooses a preset of configs/gpu."""

    name: str = "H100 SXM 80 GB"
    backend: str = "cuda"  # whose kernels' working memory counts: cuda or cpu
    memory_gib: float = 79.1  # of a GPU, as its driver reports it
    reserved_gib: float = 4.0  # ... of which no tensor can have: the driver's context, NCCL, fragmentation
    flops_per_second: float = 989e12  # dense bfloat16, data sheet
    float32_flops_per_second: float = 67e12  # of a model in float32
    memory_bytes_per_second: float = 3.35e12
    gpus_per_node: int = 8
    intra_node_bytes_per_second: float = 450e9  # of one GPU, each way, to others of its node
    inter_node_bytes_per_second: float = 50e9  # ... and to other nodes
    host_bytes_per_second: float = 50e9  # ... and to the CPU's memory
    host_memory_gib: float = 240.0  # of the CPU's memory, for each GPU
    dollars_per_hour: float = 2.5  # of one GPU. Ours, a round figure: set what you pay


@dataclass
class PlanConfig:
    """What recipes/plan.py reckons with beside the stages' own sections. Shares are assumptions: docs/plan.md."""

    gpu: GPUConfig = field(default_factory=GPUConfig)
    num_gpus: Optional[int] = None  # null: launch.num_nodes x launch.num_processes
    stages: list[str] = field(default_factory=lambda: ["sft", "grpo"])
    tokens: Optional[int] = None  # of the cold start; null: sft.data.expected_tokens x sft.num_epochs
    document_tokens: Optional[int] = None  # a mean document; null: the data's mean, else half of what the limits allow
    utilisation: float = 0.4  # share of the GPU's arithmetic that training's operations reach, recomputed ones included
    overlap: float = 0.5  # share of the reduction of gradients and of ZeRO's gathering that hides behind arithmetic
    decode_utilisation: float = 0.45  # share of the memory's bandwidth that decoding reaches
    response_share: float = 0.5  # a mean rollout, of grpo.limits.response_tokens
    groups_drawn: float = 1.3  # for each group that is kept
    margin: float = 0.1  # an estimate may be so far below what is needed: a layout fits with so much to spare
    num_layouts: int = 8  # shown
