"""Traces drawn by servers elsewhere that speak OpenAI's protocol: vLLM, llama.cpp's, and others; see docs/endpoint.md.

The client watches each stream and drops the connection when confidence falls, whereupon the server stops drawing.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from falcon_h1r.config_evaluate import EndpointConfig
from falcon_h1r.data.tokenisation import prompt_text
from falcon_h1r.distributed.watch import StopRequested, Watch
from falcon_h1r.rollout.http_server import LostAnswer, ModelServer, Refused
from falcon_h1r.rollout.sampler import RolloutKey
from falcon_h1r.scaling.endpoint_protocol import DIALECTS, PATHS, Prompt, ServedModel
from falcon_h1r.scaling.endpoint_streams import Station, TraceStreams
from falcon_h1r.scaling.engine import ConfidenceSettings, DrawnTrace, TraceRequest
from falcon_h1r.types import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ASK_SECONDS = 30.0  # for a server's list of models


class EndpointEngine:
    """A `TraceEngine` over one or several servers. Opened by `open_endpoint`."""

    def __init__(
        self,
        streams: TraceStreams,
        confidence: ConfidenceSettings | None,
        tokenizer: PreTrainedTokenizerBase | None,
        watch: Watch,
    ) -> None:
        """
        Args:
            tokenizer: of the model, for the `completions` API.
        """
        self.confidence = confidence
        self._streams, self._watch = streams, watch
        config = streams.config
        self.model_name = streams.stations[0].served.name  # one for all of them
        self.description = f"endpoint ({config.api}): {self.model_name} at {', '.join(config.urls)}"
        self._prompt = None if tokenizer is None else lru_cache(256)(_renderer(tokenizer))

    @property
    def free_slots(self) -> int:
        """See `TraceEngine.free_slots`. Servers that are set aside have none."""
        return max(0, self._streams.num_slots - len(self._streams))

    def submit(self, requests: Iterable[TraceRequest]) -> None:
        """See `TraceEngine.submit`."""
        requests = list(requests)
        for request in requests:
            self._check(request)
        self._streams.submit([(request, self._prompt_of(request)) for request in requests])

    def advance(self) -> list[DrawnTrace]:
        """See `TraceEngine.advance`. What ended before an error is returned first."""
        try:
            self._look_up()
            return self._streams.advance(self._look_up)
        except StopRequested:
            self.close()
            raise

    def abort(self, keys: Collection[RolloutKey] | None = None) -> list[DrawnTrace]:
        """See `TraceEngine.abort`. Traces that ended, and were not returned yet, come as they are."""
        return self._streams.take_out(keys)

    def close(self) -> None:
        """Drop all connections."""
        self._streams.take_out()

    def _look_up(self) -> None:
        self._watch.beat("sampling")
        self._watch.check()

    def _prompt_of(self, request: TraceRequest) -> Prompt | None:
        return None if self._prompt is None else self._prompt(request.question, request.system_prompt)

    def _check(self, request: TraceRequest) -> None:
        """
        Raises:
            InputError: where no server could draw it so.
        """
        if request.settings.stop_strings:
            raise InputError("stop strings: a server leaves them out of its text; use evaluate.engine=torch")
        stop = request.stop
        if stop is not None and (self.confidence is None or stop.measure not in self.confidence.measures):
            raise InputError(f"a stop by {stop.measure}, which this engine was not opened to measure")


def _renderer(tokenizer: PreTrainedTokenizerBase) -> Any:
    def render(question: str, system_prompt: str) -> Prompt:
        text = prompt_text(tokenizer, question, system_prompt)
        return Prompt(text, list(tokenizer(text, add_special_tokens=False)["input_ids"]))

    return render


def open_endpoint(
    config: EndpointConfig,
    confidence: ConfidenceSettings | None,
    tokenizer: PreTrainedTokenizerBase | None,
    watch: Watch,
    ignore_stop_tokens: bool = False,
) -> EndpointEngine:
    """The engine, once every server has said which model it has.

    Args:
        tokenizer: of the model; read where `config.api` is `completions`, and needed there.
        ignore_stop_tokens: for measuring speed: traces run to their limits, at servers that can be told so.

    Raises:
        InputError: naming the setting, or the server that is not up or has another model.
        StopRequested: where the run is to stop.
    """
    check_endpoint(config)
    if config.api == "completions" and tokenizer is None:
        raise InputError("evaluate.endpoint.api=completions: needs the tokenizer at model.path, for its template")
    key = _api_key(config)
    stations = []
    for url in config.urls:
        watch.beat("asking servers for their models")
        watch.check()
        server = ModelServer(url, config.silent_seconds, key)
        served = replace(served_model(server, config.model), ignore_stop_tokens=ignore_stop_tokens)
        stations.append(Station(server, served))
    names = {station.served.name for station in stations}
    if len(names) > 1:
        raise InputError(f"evaluate.endpoint.urls: these servers have different models: {', '.join(sorted(names))}")
    streams = TraceStreams(stations, config, confidence)
    return EndpointEngine(streams, confidence, tokenizer if config.api == "completions" else None, watch)


def check_endpoint(config: EndpointConfig) -> None:
    """
    Raises:
        InputError: naming the setting that cannot be.
    """
    if not config.urls:
        raise InputError("evaluate.endpoint.urls is not set: evaluate.engine=endpoint needs at least one server")
    for url in config.urls:
        if not _is_address(url):
            raise InputError(f"evaluate.endpoint.urls: {url} is no address like http://host:port/v1")
    if config.api not in PATHS:
        raise InputError(f"evaluate.endpoint.api={config.api}: has to be one of {', '.join(PATHS)}")
    for name in ("max_in_flight", "max_losses"):
        if getattr(config, name) < 1:
            raise InputError(f"evaluate.endpoint.{name}={getattr(config, name)}: has to be at least 1")
    if config.silent_seconds <= 0 or config.first_pause_seconds < 0:
        raise InputError("evaluate.endpoint: silent_seconds has to be above 0, first_pause_seconds at least 0")


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, or too large
        return False


def served_model(server: ModelServer, name: str | None) -> ServedModel:
    """What the server calls its model, and how it is spoken to.

    Raises:
        InputError: where it is not up, or does not have this model, or has several to choose from.
    """
    try:
        listed = server.get("/models", seconds=min(server.silent_seconds, ASK_SECONDS))["data"]
        owners = {str(each["id"]): str(each.get("owned_by")) for each in listed}
    except Refused as refused:
        setting = "api_key_variable" if refused.status in (401, 403) else "urls"
        raise InputError(f"evaluate.endpoint.{setting}: {refused}") from refused
    except LostAnswer as lost:
        raise InputError(f"evaluate.endpoint.urls: a server is not up: {lost}") from lost
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"evaluate.endpoint.urls: {server.address} does not list its models") from error
    if name is None:
        if len(owners) != 1:
            raise InputError(
                f"evaluate.endpoint.model is not set, and {server.address} has {len(owners)} models: "
                f"{', '.join(sorted(owners)[:5])}"
            )
        name = next(iter(owners))
    # Others may load a model that they do not list, and refuse by themselves what they do not have.
    dialect = next((owner for owner in owners.values() if owner in DIALECTS), "")
    if dialect and name not in owners:
        raise InputError(f"evaluate.endpoint.model={name}: {server.address} has {', '.join(sorted(owners)[:5])}")
    return ServedModel(name, dialect)


def _api_key(config: EndpointConfig) -> str:
    if config.api_key_variable is None:
        return ""
    key = os.environ.get(config.api_key_variable, "")
    if not key:
        raise InputError(f"evaluate.endpoint.api_key_variable: the variable {config.api_key_variable} is not set")
    return key
