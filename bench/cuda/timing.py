"""Times of CUDA graphs: one graph for each contender, replayed in turn."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Event: Any = torch.cuda.Event
Stream: Any = torch.cuda.Stream


@dataclass(frozen=True)
class Times:
    """Microseconds of one layer's step."""

    median: float
    p10: float
    p90: float
    repeats: int

    @staticmethod
    def of(samples: list[float]) -> "Times":
        ordered = sorted(samples)
        last = len(ordered) - 1
        median, p10, p90 = (ordered[round(share * last)] for share in (0.5, 0.1, 0.9))
        return Times(median, p10, p90, len(ordered))


def event_times(run: Callable[[], object], repeats: int) -> list[float]:
    """Microseconds of each of `repeats` runs, enqueued one after the other."""
    pairs = []
    for _ in range(repeats):
        begin, end = (Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        pairs.append((begin, end))
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) * 1e3 for begin, end in pairs]


class Graph:
    """step(0), ..., step(layers - 1) as one CUDA graph."""

    def __init__(self, step: Callable[[int], object], layers: int) -> None:
        self.layers = layers
        self._step = step  # keeps alive what the graph reads and writes
        # What is loaded, compiled or allocated at first use must not be in the graph.
        side = Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for layer in range(min(layers, 2)):
                step(layer)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            for layer in range(layers):
                step(layer)
        self._graph.replay()
        torch.cuda.synchronize()

    def replay(self) -> None:
        self._graph.replay()

    def quick(self) -> float:
        """Median microseconds of one layer's step over a few replays: to choose a setting by."""
        return sorted(event_times(self.replay, 7))[3] / self.layers


def interleaved(graphs: dict[str, Graph], repeats: int) -> dict[str, Times]:
    """All graphs in turn, `repeats` rounds after two that do not count, each round beginning with
    the next one: what the machine does meanwhile hits all alike. Nothing waits in between."""
    names = list(graphs)
    events: dict[str, list[tuple[Any, Any]]] = {n: [] for n in names}
    for round_number in range(-2, repeats):
        first = round_number % len(names)
        for name in names[first:] + names[:first]:
            begin, end = (Event(enable_timing=True) for _ in range(2))
            begin.record()
            graphs[name].replay()
            end.record()
            if round_number >= 0:
                events[name].append((begin, end))
    torch.cuda.synchronize()
    return {
        name: Times.of([a.elapsed_time(b) * 1e3 / graphs[name].layers for a, b in pairs])
        for name, pairs in events.items()
    }
