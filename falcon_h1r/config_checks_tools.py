"""Checks of the settings of benchmarks, the plan and the doctor; see falcon_h1r.config_checks."""

from __future__ import annotations

from falcon_h1r.config_rules import at_least, one_of, share
from falcon_h1r.config_tools import BenchmarkSuiteConfig, DoctorConfig, PlanConfig
from falcon_h1r.types import InputError

BENCHMARK_KINDS = (
    *("quickstart", "model", "verifier", "distributed", "plan", "checkpoint", "curation", "packing"),
    *("rollouts", "grpo_step", "long_tail", "ablations", "throughput", "scaling", "intervals"),
)
BENCHMARK_PARTS = ("scan", "scan_alone", "model", "lengths", "row", "loss")  # of suite=model
BENCHMARK_LAYOUTS = ("one", "eight", "mixed")
DOCTOR_CHECKS = (
    *("versions", "host", "checkpoint", "file system", "verifier"),
    *("kernels", "collectives", "engine", "sampler", "resume"),
)


def check_benchmark(benchmark: BenchmarkSuiteConfig) -> None:
    one_of("benchmark.kind", benchmark.kind, BENCHMARK_KINDS)
    for key, names, choices in (
        ("parts", benchmark.parts, BENCHMARK_PARTS),
        ("peer_max_tokens", benchmark.peer_max_tokens, BENCHMARK_PARTS),
        ("row_layouts", benchmark.row_layouts, BENCHMARK_LAYOUTS),
    ):
        for name in names:
            one_of(f"benchmark.{key}", name, choices)
    for key in ("scan_lengths", "scan_alone_lengths", "model_documents", "train_row_documents", "peer_chunk_sizes"):
        for number in getattr(benchmark, key):
            at_least(f"benchmark.{key}", number, 1 if key == "train_row_documents" else 2)
    for key in ("rollout_prompt_tokens", "rollout_response_tokens"):
        if len(bounds := getattr(benchmark, key)) != 2 or not 1 <= bounds[0] <= bounds[1]:
            raise InputError(f"benchmark.{key}={bounds}: has to be the least and the most, from 1 up")
    for key in ("rollout_prompts", "rollout_samples"):
        at_least(f"benchmark.{key}", getattr(benchmark, key), 1)
    for index, case in enumerate(benchmark.throughput_cases):
        for name, least in (("input_tokens", 2), ("output_tokens", 2), ("batch", 1)):
            at_least(f"benchmark.throughput_cases[{index}].{name}", getattr(case, name), least)
    if not 0 < benchmark.throughput_scale <= 1:
        raise InputError(f"benchmark.throughput_scale={benchmark.throughput_scale}: has to be above 0 and at most 1")
    for length in benchmark.row_lengths:
        at_least("benchmark.row_lengths", length, 64)  # of up to 16 documents


def check_plan(plan: PlanConfig) -> None:
    for stage in plan.stages:
        one_of("plan.stages", stage, ("sft", "grpo"))
    one_of("plan.gpu.backend", plan.gpu.backend, ("cuda", "cpu"))
    for name in ("utilisation", "overlap", "decode_utilisation", "response_share", "margin"):
        share(f"plan.{name}", getattr(plan, name))
    rates = (
        "memory_gib",
        "flops_per_second",
        "float32_flops_per_second",
        "memory_bytes_per_second",
        "intra_node_bytes_per_second",
    )
    for name in (*rates, "inter_node_bytes_per_second", "host_bytes_per_second"):
        if getattr(plan.gpu, name) <= 0:
            raise InputError(f"plan.gpu.{name}={getattr(plan.gpu, name)}: has to be above 0")
    for name in ("utilisation", "decode_utilisation", "response_share"):
        if getattr(plan, name) == 0:
            raise InputError(f"plan.{name}=0: nothing would ever be done")
    if plan.gpu.reserved_gib >= plan.gpu.memory_gib:
        raise InputError(
            f"plan.gpu.reserved_gib={plan.gpu.reserved_gib}: leaves nothing of memory_gib={plan.gpu.memory_gib}"
        )
    for name, value in (("tokens", plan.tokens), ("num_gpus", plan.num_gpus), ("groups_drawn", plan.groups_drawn)):
        if value is not None:
            at_least(f"plan.{name}", value, 1)
    at_least("plan.gpu.gpus_per_node", plan.gpu.gpus_per_node, 1)
    at_least("plan.num_layouts", plan.num_layouts, 1)
    if plan.document_tokens is not None:
        at_least("plan.document_tokens", plan.document_tokens, 2)


def check_doctor(doctor: DoctorConfig) -> None:
    for name in doctor.only:
        one_of("doctor.only", name, DOCTOR_CHECKS)
    at_least("doctor.seconds", doctor.seconds, 1.0)
    at_least("doctor.file_mib", doctor.file_mib, 4)  # written in blocks of so many
    at_least("doctor.least_bus_gigabytes_per_second", doctor.least_bus_gigabytes_per_second, 0.0)
    for size in doctor.collective_mib:
        at_least("doctor.collective_mib", size, 1 / 1024)
