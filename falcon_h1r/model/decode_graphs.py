"""Decode steps recorded as CUDA graphs: a step of a large model launches a thousand kernels, a graph is one launch.

A graph has fixed shapes, so steps are rounded up: the slots to a power of two, the cache entries they attend over to a
power of two of blocks. Slots beyond those in use compute along and are thrown away; what is admitted into one
overwrites all it wrote. The first step of a shape runs as it is, which compiles and warms what recording needs without
moving any slot's state twice; the second is recorded, and from then on the graph is played. Graphs read weights and
caches where they lay: where one of them has moved, all graphs are forgotten.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from falcon_h1r.model.decode import step_over
from falcon_h1r.model.decode_cache import SlotCache, Span
from falcon_h1r.model.decode_weights import DecodeWeights

BLOCK_ENTRIES = 256

Step = Callable[[], Tensor]
Record = Callable[[Step], Step]  # a step -> what repeats it, into the same logits


class DecodeGraphs:
    """The steps of one sampler."""

    def __init__(
        self, weights: DecodeWeights, cache: SlotCache, new_recorder: Callable[[], Record] | None = None
    ) -> None:
        """
        Args:
            new_recorder: makes what records steps; by default as CUDA graphs. Whenever all graphs are forgotten, a new
                one takes over: torch refuses to record into a pool whose graphs are all gone.
        """
        self.weights, self.cache = weights, cache
        self._new_recorder = new_recorder or _CUDARecorder
        self._record = self._new_recorder()
        self._input_ids = torch.zeros(cache.max_slots, dtype=torch.int64, device=cache.lengths.device)
        self._graphs: dict[tuple[int, int], Step | None] = {}  # by slots and entries; None: run once
        self._addresses: tuple[int, ...] = ()

    def step(self, input_ids: Tensor) -> Tensor:
        """As `decode_step`: (B) -> (B, V), which the next step overwrites."""
        cache, num_slots = self.cache, len(input_ids)
        cache.reserve(cache.longest + 1)
        self._forget_what_moved()
        shape = self.shape_of(num_slots, cache.longest + 1)
        self._input_ids[:num_slots] = input_ids

        def run() -> Tensor:
            return step_over(self.weights, cache, self._input_ids[: shape[0]], [Span(0, *shape)])

        if shape not in self._graphs:
            self._graphs[shape] = None
            logits = run()
        else:
            played = self._graphs[shape] or self._record(run)
            self._graphs[shape] = played
            logits = played()
        cache.advanced()
        return logits[:num_slots]

    def shape_of(self, num_slots: int, entries: int) -> tuple[int, int]:
        """The slots and cache entries of the graph for so many."""
        blocks = -(-entries // BLOCK_ENTRIES)
        return (
            min(_power_of_two(num_slots), self.cache.max_slots),
            min(_power_of_two(blocks) * BLOCK_ENTRIES, self.cache.capacity),
        )

    def _forget_what_moved(self) -> None:
        tensors = [*self.weights.model.parameters(), self.cache.lengths]
        for layer, memory in zip(self.weights.layers, self.cache.layers, strict=True):
            tensors += [layer.scan.A, memory.keys, memory.values, memory.conv, memory.ssm]
        addresses = tuple(tensor.data_ptr() for tensor in tensors)
        if addresses != self._addresses:
            if self._graphs:
                self._graphs.clear()
                self._record = self._new_recorder()
            self._addresses = addresses
        if len(self._input_ids) < self.cache.max_slots:
            self._input_ids = self._input_ids.new_zeros(self.cache.max_slots)


class _CUDARecorder:
    """Records into one pool of memory, which all graphs of a sampler share: they never run at once."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Step) -> Step:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            logits = step()

        def play() -> Tensor:
            graph.replay()
            return logits

        return play


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
