"""The rivals: dense attention of cuDNN, through PyTorch, and of FlashInfer, each in the setting
that is fastest for the shape at hand.

cuDNN       keys and values contiguous, [batch][kv_heads][tokens][head_dim]; the query heads of a KV
            head as heads of their own (enable_gqa) or as queries of one head
FlashInfer  BatchDecodeWithPagedKVCacheWrapper with tensor cores, planned once for all layers; pages
            of 16 tokens or of 1, layouts HND and NHD, in order. HND pages are those of the same
            memory (library.page_numbers); NHD reads that memory as
            [batch][tokens][kv_heads][head_dim], so its tokens are others, as fast to read.
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.cuda.data import Attention
from bench.cuda.exact import Exact, errors
from bench.cuda.library import page_numbers
from bench.cuda.timing import Graph

# Its first import would otherwise compile an extension that only makes host calls cheaper.
os.environ.setdefault("TVM_FFI_DISABLE_TORCH_C_DLPACK", "1")

WORKSPACE = 256 * 2**20  # bytes; FlashInfer recommends 128 MB
PLANS = 11
MOST_ERROR = 0.02  # of outputs in bf16, relative


@dataclass(frozen=True)
class Setting:
    step: Callable[[int], torch.Tensor]  # of a layer; the output [batch][q_heads][head_dim]
    expected: Callable[[], torch.Tensor]  # output of layer 0, in any precision
    facts: dict[str, float] = field(default_factory=dict)


@dataclass
class Chosen:
    """A rival in its fastest setting, and what the others took."""

    graph: Graph
    setting: str
    medians: dict[str, float]  # microseconds, by setting
    failures: dict[str, str]
    output_error: float  # of layer 0, mean over heads
    facts: dict[str, float]


def cudnn(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, **more: Any) -> torch.Tensor:
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION]):
        out: torch.Tensor = F.scaled_dot_product_attention(q, keys, values, **more)
    return out


# Makes a setting; what it does not support it says then or when it runs.
Settings = dict[str, Callable[[], Setting]]


def cudnn_settings(attention: Attention, exact: Exact) -> Settings:
    shape, batch = attention.shape, attention.batch
    k, v, q = attention.keys, attention.values, attention.queries

    def heads(layer: int) -> torch.Tensor:
        of = q[layer].view(batch, shape.q_heads, 1, shape.head_dim)
        return cudnn(of, k[layer], v[layer], enable_gqa=True)

    def folded(layer: int) -> torch.Tensor:
        of = q[layer].view(batch, shape.kv_heads, shape.group, shape.head_dim)
        return cudnn(of, k[layer], v[layer])

    steps = {"enable_gqa": heads, "folded": folded}
    return {name: partial(Setting, step, lambda: exact.out) for name, step in steps.items()}


class FlashInfer:
    """Settings of one shape; what they share is made once."""

    def __init__(self, attention: Attention, exact: Exact, backends: list[str]) -> None:
        import flashinfer

        self.wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper
        self.attention, self.exact, self.backends = attention, exact, backends
        self.workspace = torch.zeros(WORKSPACE, dtype=torch.uint8, device="cuda")

    def settings(self) -> Settings:
        return {
            f"{backend} {layout} pages of {page_size}": partial(
                self._setting, backend, layout, page_size
            )
            for backend in self.backends
            for layout in ("HND", "NHD")
            for page_size in (16, 1)
        }

    def _pages(self, rows: torch.Tensor, layout: str, page_size: int) -> torch.Tensor:
        """Keys or values of a layer as FlashInfer's pages; no row is moved."""
        batch, heads, tokens, dim = rows.shape
        if layout == "NHD":
            return rows.view(batch * tokens // page_size, page_size, heads, dim)
        pages = ((batch - 1) * heads + 1) * tokens // page_size
        return rows.as_strided(
            (pages, heads, page_size, dim), (page_size * dim, tokens * dim, dim, 1)
        )

    def _setting(self, backend: str, layout: str, page_size: int) -> Setting:
        attention, shape = self.attention, self.attention.shape
        batch, tokens = attention.batch, attention.tokens
        of_sequence = tokens // page_size
        first = torch.arange(batch + 1, dtype=torch.int32) * of_sequence
        last = torch.full((batch,), page_size, dtype=torch.int32)
        if layout == "HND":
            pages = page_numbers(batch, shape.kv_heads, tokens, page_size).view(-1)
        else:
            pages = torch.arange(batch * of_sequence, dtype=torch.int32, device="cuda")
        wrapper = self.wrapper(self.workspace, layout, use_tensor_cores=True, backend=backend)

        def plan() -> float:
            begin = time.perf_counter()
            wrapper.plan(
                *(first, pages, last, shape.q_heads, shape.kv_heads, shape.head_dim, page_size),
                q_data_type=torch.bfloat16,
                kv_data_type=torch.bfloat16,
            )
            return (time.perf_counter() - begin) * 1e6

        plan()
        torch.cuda.synchronize()
        plan_us = statistics.median(plan() for _ in range(PLANS))
        torch.cuda.synchronize()
        caches = [
            (self._pages(k, layout, page_size), self._pages(v, layout, page_size))
            for k, v in zip(attention.keys, attention.values, strict=True)
        ]
        out = torch.empty_like(attention.queries[0])

        def step(layer: int) -> torch.Tensor:
            wrapper.run(attention.queries[layer], caches[layer], out=out)
            return out

        def as_read() -> torch.Tensor:
            size = (batch, tokens, shape.kv_heads, shape.head_dim)
            k, v = (x[0].view(size).transpose(1, 2) for x in (attention.keys, attention.values))
            q = attention.queries[0].view(batch, shape.kv_heads, shape.group, shape.head_dim)
            return cudnn(q, k, v)

        return Setting(
            step,
            (lambda: self.exact.out) if layout == "HND" else as_read,
            {"plan_us": plan_us},
        )


def choose(settings: Settings, layers: int) -> Chosen:
    """Captures each, checks what it computes, and keeps the fastest."""
    best: Chosen | None = None
    medians: dict[str, float] = {}
    failures: dict[str, str] = {}
    for name, make in settings.items():
        try:
            setting = make()
            out = setting.step(0)
            dim = out.shape[-1]
            expected = setting.expected().reshape(-1, dim).double()
            off = float(errors(out.reshape(-1, dim), expected).mean())
            if not off < MOST_ERROR:
                raise ArithmeticError(f"its output is off by {off}")
            graph = Graph(setting.step, layers)
            medians[name] = graph.quick()
            if best is None or medians[name] < medians[best.setting]:
                best = Chosen(graph, name, medians, failures, off, setting.facts)
        except Exception as error:  # a setting that does not run leaves the others
            failures[name] = f"{type(error).__name__}: {error}"[:400]
            torch.cuda.synchronize()
    if best is None:
        raise RuntimeError(f"no setting ran: {failures}")
    return best
