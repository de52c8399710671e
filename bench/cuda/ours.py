"""What is measured: a policy of this library on the data of one configuration."""

import math
from contextlib import ExitStack

import torch

from bench.cuda import data, exact
from bench.cuda.library import Decoder, Index, KvCache, Library, Policy, Shape
from bench.cuda.rivals import cudnn
from bench.cuda.timing import event_times

BLOCK = 2048  # tokens that are appended at once


class Ours:
    """A policy on one configuration's data: its indexes, built, and its decoder."""

    def __init__(
        self,
        library: Library,
        policy: Policy,
        attention: data.Attention,
        caches: list[KvCache],
        context: int,
        stack: ExitStack,
    ) -> None:
        self.policy, self.attention, self.caches = policy, attention, caches
        self.indexes: list[list[Index]] = []  # [layer][sequence]
        self.views: list[torch.Tensor | None] = [None] * attention.layers
        shape, batch, tokens = attention.shape, attention.batch, attention.tokens
        if policy.mode != "dense":
            for layer, cache in enumerate(caches):
                self.indexes.append([])
                for sequence in range(batch):
                    index = Index(library, shape, policy.text, context)
                    stack.callback(index.close)
                    index.append(cache, sequence, tokens)
                    self.indexes[-1].append(index)
                self.views[layer] = torch.tensor(
                    [index.view for index in self.indexes[-1]], dtype=torch.int64, device="cuda"
                )
        self.decoder = Decoder(library, shape, policy.text, batch, context)
        stack.callback(self.decoder.close)
        self.lengths = torch.full((batch,), tokens, dtype=torch.int32, device="cuda")
        self.out = torch.empty_like(attention.queries)

    def step(self, layer: int) -> None:
        self.decoder.decode(
            self.attention.queries[layer],
            self.out[layer],
            self.caches[layer],
            self.lengths,
            self.views[layer],
            self.attention.tokens,
        )

    def judge(
        self, of_layers: list[exact.Exact]
    ) -> tuple[dict[str, float], dict[str, float | None]]:
        """Quality over all layers, and what the selection read, where that is known."""
        self.out.fill_(math.nan)
        reports = []
        read: dict[str, list[float]] = {"kept_clusters": [], "sampled_rows": []}
        for layer in range(self.attention.layers):
            self.step(layer)
            reports.append(self.decoder.reports())
            for name, found in read.items():
                mean = getattr(self.decoder, name)()
                if mean is not None:
                    found.append(mean)
        expected = exact.Exact(
            torch.stack([e.lse for e in of_layers]), torch.stack([e.out for e in of_layers])
        )
        stacked = {name: torch.stack([r[name] for r in reports]) for name in reports[0]}
        quality = exact.quality(stacked, self.out, expected, self.policy.target, self.policy.mode)
        if not math.isfinite(quality["output_error_max"]):
            raise ArithmeticError("an output is not finite or was not written")
        means = {name: sum(of) / len(of) if of else None for name, of in read.items()}
        return quality, means

    def build_times(self) -> dict[str, float]:
        """Milliseconds to index one sequence of one layer, all at once and its newest block."""
        index, cache, tokens = self.indexes[0][0], self.caches[0], self.attention.tokens
        times: dict[str, list[float]] = {"append_all_ms": [], "append_block_ms": []}
        for name, kept in (("append_all_ms", 0), ("append_block_ms", tokens - BLOCK)):
            for _ in range(4):
                index.truncate(kept)
                (time_us,) = event_times(lambda: index.append(cache, 0, tokens), 1)
                times[name].append(time_us / 1e3)
        return {name: sorted(found[1:])[1] for name, found in times.items()}


def prefill_ms(shape: Shape, tokens: int) -> float:
    """Dense causal attention of one layer's prompt of that many tokens by cuDNN: milliseconds."""
    q, k, v = (
        torch.randn((1, heads, tokens, shape.head_dim), dtype=torch.bfloat16, device="cuda")
        for heads in (shape.q_heads, shape.kv_heads, shape.kv_heads)
    )
    cudnn(q, k, v, is_causal=True, enable_gqa=True)
    times = event_times(lambda: cudnn(q, k, v, is_causal=True, enable_gqa=True), 3)
    return sorted(times)[1] / 1e3
