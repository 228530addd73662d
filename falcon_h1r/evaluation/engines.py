"""What draws an evaluation's traces, opened as `evaluate.engine` says, and what tells its model from others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from falcon_h1r.config import Config, ModelConfig
from falcon_h1r.config_evaluate import ScalingConfig
from falcon_h1r.evaluation.tasks import Task
from falcon_h1r.scaling.engine import ConfidenceSettings, TraceEngine
from falcon_h1r.types import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from falcon_h1r.distributed.world import World

SAMPLE_BYTES = 1 << 20  # read of a file of weights, at five places


def open_engine(config: Config, tasks: Sequence[Task], folder: Path, world: World) -> TraceEngine:
    """The engine, ready to draw all of these tasks.

    Raises:
        InputError: where a prompt is too long or a server is not there, before anything is drawn, or graphs are asked
            for without a GPU.
    """
    from falcon_h1r.model.load import load_tokenizer

    evaluate, confidence = config.evaluate, confidence_settings(config.scaling, tasks)
    if evaluate.engine == "endpoint":
        from falcon_h1r.scaling.endpoint import open_endpoint

        tokenizer = load_tokenizer(config.model) if evaluate.endpoint.api == "completions" else None
        return open_endpoint(evaluate.endpoint, confidence, tokenizer, world.watch)
    from falcon_h1r.checkpoint import open_policy
    from falcon_h1r.scaling.torch_engine import TorchEngine

    if evaluate.use_graphs and world.device.type != "cuda":
        raise InputError(f"evaluate.use_graphs=true: CUDA graphs need a GPU, and this is {world.device.type}")
    check_prompt_lengths(tasks, load_tokenizer(config.model), evaluate.limits.prompt_tokens)
    longest = max(task.settings.max_response_tokens for task in tasks)
    limits = replace(evaluate.limits, response_tokens=longest)  # that the model's context has to hold
    held = replace(config, evaluate=replace(evaluate, limits=limits))
    model, tokenizer = open_policy(held, list, folder, world, "evaluate")
    return TorchEngine(
        model,
        tokenizer,
        evaluate.max_slots,
        confidence,
        watch=world.watch,
        use_graphs=evaluate.use_graphs,
        name=str(config.model.path),
    )


def confidence_settings(scaling: ScalingConfig, tasks: Sequence[Task]) -> ConfidenceSettings | None:
    """None where nobody asks for confidence: measuring it takes time."""
    if not scaling.measure_confidence and not any(task.num_traces for task in tasks):
        return None
    return ConfidenceSettings(
        top_k=scaling.top_k, window_tokens=scaling.window_tokens, partial_window=scaling.partial_window
    )


def check_prompt_lengths(tasks: Sequence[Task], tokenizer: PreTrainedTokenizerBase, limit: int) -> None:
    """A problem that does not fit is a mistake of the limits: leaving it out would change the benchmark.

    Raises:
        InputError: naming the longest of a task.
    """
    from falcon_h1r.data.tokenisation import encode_prompts

    for task in tasks:
        asked = [
            replace(problem, question=task.prompt.replace("{question}", problem.question)) for problem in task.problems
        ]
        lengths = [len(ids) for ids in encode_prompts(tokenizer, asked, task.system_prompt)]
        if lengths and max(lengths) > limit:
            worst = task.problems[lengths.index(max(lengths))]
            raise InputError(
                f"evaluate.limits.prompt_tokens={limit}: problem {worst.uid} of {task.name} has {max(lengths)} tokens "
                f"({sum(length > limit for length in lengths)} of {len(lengths)} problems are too long)"
            )


# -----------------------------------------------------------------------------
# Which model it is


def what_draws_and_judges(config: Config, engine: TraceEngine) -> dict[str, Any]:
    """All that the rows of an evaluation depend on and a task does not know: an evaluation goes on only with the same.

    A folder of weights is known by its content: the next checkpoint may stand at the same path. A server's model is
    known by the name that the server gives it, whether or not the settings do.
    """
    from falcon_h1r.scaling.endpoint import EndpointEngine

    evaluate, model = config.evaluate, config.model
    found: dict[str, Any] = {"evaluate.engine": evaluate.engine, "verifier.fallbacks": list(config.verifier.fallbacks)}
    if isinstance(engine, EndpointEngine):
        found |= {"evaluate.endpoint.model": engine.model_name, "evaluate.endpoint.api": evaluate.endpoint.api}
        return found | ({"model.path": model.path} if evaluate.endpoint.api == "completions" else {})
    return found | {"model.dtype": model.dtype, "model.path": _identity(model)}


def _identity(model: ModelConfig) -> str:
    assert model.path is not None
    folder = Path(model.path).expanduser()
    if not folder.is_dir():
        return f"{model.path}, revision {model.revision}"
    return f"weights {weights_digest(folder)}"


def weights_digest(folder: Path) -> str:
    """Of the sizes of all files of weights and of a sample of their bytes: a step of training changes every weight."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with open(path, "rb") as file:
            for part in range(5):
                file.seek(max(0, size - SAMPLE_BYTES) * part // 4)
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]
