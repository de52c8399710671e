"""Times of one layer's decode step on a GPU: this library against the fastest dense attention.

    python3 -m bench.cuda.bench --library build/cuda/libtactic_cuda_bench.so --json out.json

from the root of the project (bench/cuda/run.sh does everything). For every shape, context and
batch: `layers` layers of keys, values and queries (data.py), so many that no step finds its data in
a cache; every contender as one CUDA graph of all layers' steps (timing.py), all replayed in turn;
and each of ours judged against dense attention in double precision (exact.py). A contender that
fails leaves the others. The JSON file is written anew after every configuration.

A context of 32768 has 31,744 tokens: at a multiple of 2048 the open segment would be as long as it
ever gets; 1024 less is its mean.
"""

import argparse
import gc
import math
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.cuda import data, exact, report
from bench.cuda.library import (
    KvCache,
    Library,
    LibraryError,
    Policy,
    Shape,
    page_numbers,
)
from bench.cuda.ours import Ours, prefill_ms
from bench.cuda.rivals import Chosen, FlashInfer, choose, cudnn_settings
from bench.cuda.timing import Graph, Times, interleaved

SHAPES = (Shape(32, 8, 128), Shape(32, 8, 64), Shape(9, 3, 64))
CONTEXTS = (131072, 32768, 1048576, 8192, 524288)  # the most telling first
BATCHES = (1, 8, 32)
SHORT = 1024  # tokens that a context lacks
PAGE = 16
PREFILLS = (32768, 131072)  # tokens at which building an index is compared with prefill attention

# What a contender's graph has to read so that none of it is still in a cache when it runs again.
LEAST_SPARSE_BYTES = 2.0**28
LEAST_DENSE_BYTES = 2.0**30
MOST_LAYERS = 128
# Starting a graph takes some microseconds, which a step of one layer alone would be charged with.
SEVERAL_LAYERS = 4
MOST_BYTES_OF_SEVERAL = 20e9
SCRATCH = 5 * 2**30  # bytes: workspaces, double precision, what PyTorch keeps


@dataclass(frozen=True)
class Configuration:
    shape: Shape
    context: int
    batch: int
    tokens: int  # visible ones

    def __str__(self) -> str:
        return f"{self.shape} {self.context // 1024}K batch {self.batch}"


def configurations(args: argparse.Namespace) -> list[Configuration]:
    """The most important first: a mixture, since time may run out."""

    def rank(of: Configuration) -> tuple[int, int]:
        return (
            2 * args.shapes.index(of.shape)
            + args.contexts.index(of.context)
            + 2 * args.batches.index(of.batch),
            args.shapes.index(of.shape),
        )

    every = [
        Configuration(shape, context, batch, args.trace_tokens or context - SHORT)
        for shape in args.shapes
        for context in args.contexts
        for batch in args.batches
    ]
    return sorted(every, key=rank)


def layers_for(of: Configuration, policies: list[Policy], needed: float, free: float) -> int:
    """How many layers: enough to outgrow the cache, as far as memory goes; 0: not even one fits."""
    dense = report.dense_bytes(of.shape, of.batch, of.tokens)
    units = of.batch * of.shape.kv_heads
    # A cautious guess at what mode tactic reads: half the codes, all centroids, thrice the rows.
    sparse = units * (
        of.tokens * of.shape.head_dim * (0.125 + 2 / 32) + 3 * needed * 4 * of.shape.head_dim
    )
    wanted = math.ceil(max(LEAST_SPARSE_BYTES / sparse, LEAST_DENSE_BYTES / dense))
    wanted = max(wanted, min(SEVERAL_LAYERS, int(MOST_BYTES_OF_SEVERAL / dense)))
    per_layer = dense
    for policy in policies:
        free -= report.workspace_bytes(of.shape, policy, of.batch, of.context)
        if policy.mode != "dense":
            per_layer += of.batch * report.index_bytes(of.shape, policy, of.context)
    return max(0, min(wanted, MOST_LAYERS, math.floor((free - SCRATCH) / per_layer)))


@contextmanager
def errors_into(found: dict[str, Any]) -> Iterator[None]:
    """An exception becomes the contender's error; one that the device does not survive passes."""
    try:
        yield
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}"[:1000]
        traceback.print_exc(limit=4)
        torch.cuda.synchronize()


class Bench:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.began = time.monotonic()
        self.library: Library | None = None
        self.policies: list[Policy] = []
        if args.library is not None:
            self.library = Library(args.library)
            self.policies = [self.library.policy(text) for text in args.policies]
        from bench.cuda.stream import peak_bandwidth

        self.content: dict[str, Any] = {
            "command": "bench/cuda",
            "machine": report.machine(),
            "versions": report.versions(),
            "commit": args.commit,
            "bandwidth": peak_bandwidth(),
            "arguments": {
                # Where files are is nobody else's.
                name: value.name if isinstance(value, Path) else str(value)
                for name, value in vars(args).items()
            },
            "policies": [vars(policy) for policy in self.policies],
            "records": [],
            "skipped": [],
        }
        self.prefills: dict[tuple[Shape, int], float] = {}

    def left(self) -> float:
        """Seconds."""
        return float(self.args.minutes) * 60 - (time.monotonic() - self.began)

    def write(self) -> None:
        self.content["seconds"] = time.monotonic() - self.began
        report.write_json(self.args.json, self.content)

    def run(self) -> None:
        self.write()
        for of in configurations(self.args):
            gigabytes = 4 * report.dense_bytes(of.shape, of.batch, of.tokens) / 2**30
            if self.left() < 10 + gigabytes / 4:
                self.content["skipped"].append(f"{of}: out of time")
                continue
            try:
                record = self.measure(of)
            except torch.cuda.OutOfMemoryError as error:
                self.content["skipped"].append(f"{of}: {error}"[:200])
            except Exception as error:
                self.content["skipped"].append(f"{of}: {type(error).__name__}: {error}"[:300])
                traceback.print_exc(limit=6)
            else:
                if record is not None:
                    self.content["records"].append(record)
                    print(report.details(record), flush=True)
            self.write()
            try:
                torch.cuda.synchronize()
            except RuntimeError as error:  # nothing runs on this device any more
                self.content["skipped"].append(f"all that follows: {error}"[:300])
                self.write()
                return

    def measure(self, of: Configuration) -> dict[str, Any] | None:
        began = time.monotonic()
        gc.collect()
        torch.cuda.empty_cache()
        needed = data.needed_at(of.tokens, self.args.needed)
        free, _ = torch.cuda.mem_get_info()
        layers = layers_for(of, self.policies, needed, float(free))
        if self.args.quick:
            layers = min(layers, 2)
        if layers == 0:
            self.content["skipped"].append(f"{of}: does not fit into {free / 2**30:.0f} GiB")
            return None
        if self.args.trace is not None:
            attention = data.from_trace(self.args.trace, of.shape, layers, of.batch)
        else:
            attention = data.synthetic(
                of.shape, layers, of.batch, of.tokens, needed, self.args.seed
            )
        record: dict[str, Any] = {
            "shape": {"name": str(of.shape), **vars(of.shape)},
            "context": of.context,
            "tokens": of.tokens,
            "batch": of.batch,
            "layers": layers,
            "cache": self.args.cache,
            "needed_asked": needed if self.args.trace is None else None,
            "facts": data.facts(attention),
            "contenders": {},
        }
        with ExitStack() as stack:
            self._contend(of, attention, record, stack)
        torch.cuda.synchronize()
        report.add_speedups(record["contenders"])
        record["seconds"] = time.monotonic() - began
        return record

    def _contend(
        self, of: Configuration, attention: data.Attention, record: dict[str, Any], stack: ExitStack
    ) -> None:
        contenders: dict[str, dict[str, Any]] = record["contenders"]
        of_layers = [exact.dense(attention, layer) for layer in range(attention.layers)]
        graphs: dict[str, Graph] = {}
        needed_bytes: dict[str, float] = {}
        scattered: dict[str, float] = {}  # of them, rows that lie anywhere
        dense = report.dense_bytes(of.shape, of.batch, of.tokens)

        def rival(name: str, chosen: Chosen) -> None:
            contenders[name].update(
                setting=chosen.setting,
                settings_us=chosen.medians,
                failures=chosen.failures,
                output_error=chosen.output_error,
                **chosen.facts,
            )
            graphs[name], needed_bytes[name] = chosen.graph, dense

        if "cudnn" in self.args.rivals:
            with errors_into(contenders.setdefault("cudnn", {"mode": "dense"})):
                settings = cudnn_settings(attention, of_layers[0])
                rival("cudnn", choose(settings, attention.layers))
        if "flashinfer" in self.args.rivals:
            with errors_into(contenders.setdefault("flashinfer", {"mode": "dense"})):
                backends = self.args.flashinfer_backends
                flashinfer = FlashInfer(attention, of_layers[0], backends)
                rival("flashinfer", choose(flashinfer.settings(), attention.layers))

        table = None
        if self.args.cache == "paged":
            table = page_numbers(of.batch, of.shape.kv_heads, of.tokens, PAGE)
        caches = [
            KvCache(keys, values, table, PAGE if table is not None else 0)
            for keys, values in zip(attention.keys, attention.values, strict=True)
        ]
        torch.cuda.empty_cache()  # what follows allocates on its own
        for policy in self.policies:
            assert self.library is not None
            found = contenders.setdefault(policy.text, {"mode": policy.mode})
            with errors_into(found):
                ours = Ours(self.library, policy, attention, caches, of.context, stack)
                found["quality"], read = ours.judge(of_layers)
                parts = report.read_bytes(
                    *(of.shape, policy, of.batch, of.tokens),
                    found["quality"]["union_rows_mean"],
                    read["kept_clusters"],
                    read["sampled_rows"],
                )
                found["bytes_by_kind"] = parts
                found.update(read)
                found["workspace_bytes"] = ours.decoder.bytes
                if ours.indexes:
                    found["index_bytes_of_layer"] = sum(i.bytes for i in ours.indexes[0])
                graphs[policy.text] = Graph(ours.step, attention.layers)
                needed_bytes[policy.text] = sum(parts.values())
                if parts["clusters"] > 0:
                    scattered[policy.text] = parts["rows"] + parts["samples"]
                if ours.indexes and of.batch == 1:
                    with errors_into(found):
                        record.setdefault("builds", {})[policy.text] = self._build(of, ours)
        if graphs:
            bandwidth = self.content["bandwidth"]
            row_bytes = report.ELEMENT * of.shape.head_dim
            times: dict[str, Times] = interleaved(graphs, self.args.repeats)
            for name, of_graph in times.items():
                contenders[name].update(
                    report.timed(
                        of_graph,
                        needed_bytes[name],
                        bandwidth["bytes_per_second"],
                        scattered.get(name, 0),
                        bandwidth["rows_at_random"].get(str(row_bytes)),
                    )
                )

    def _build(self, of: Configuration, ours: Ours) -> dict[str, float]:
        built = ours.build_times()
        if of.context in PREFILLS:
            key = (of.shape, of.context)
            if key not in self.prefills:
                self.prefills[key] = prefill_ms(of.shape, of.context)
            built["prefill_attention_ms"] = self.prefills[key]
            built["share_of_prefill_attention"] = built["append_all_ms"] / self.prefills[key]
        return built


def parse_shape(text: str) -> Shape:
    """q_heads:kv_heads:head_dim"""
    q_heads, kv_heads, head_dim = (int(part) for part in text.split(":"))
    if kv_heads < 1 or q_heads % kv_heads != 0:
        raise ValueError(text)
    return Shape(q_heads, kv_heads, head_dim)


def parse_tokens(text: str) -> int:
    """131072, 128K or 1M; a multiple of 1024 of at least 4096"""
    unit = {"K": 1024, "M": 1048576}.get(text[-1:].upper(), 1)
    tokens = int(text[:-1] if unit > 1 else text) * unit
    if tokens < 4096 or tokens % 1024 != 0:
        raise ValueError(text)
    return tokens


def listed(parse: Any) -> Any:
    """Of a comma-separated list."""

    def parse_list(text: str) -> list[Any]:
        return [parse(part) for part in text.split(",") if part]

    return parse_list


def parse_args() -> argparse.Namespace:
    about, _, more = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--library", type=Path, help="libtactic_cuda_bench.so; without, the rivals alone")
    add("--json", type=Path, required=True, help="where to write what was measured")
    add("--commit", default="unknown", help="what the library was built from, for the file")
    add("--minutes", type=float, default=8, help="no configuration is begun that may end later")
    add("--shapes", type=listed(parse_shape), default=list(SHAPES), help="32:8:128,9:3:64")
    add("--contexts", type=listed(parse_tokens), default=list(CONTEXTS), help="8K,128K,1M")
    add("--batches", type=listed(int), default=list(BATCHES), help="1,8,32")
    add(
        "--policies",
        type=listed(str),
        default=["dense", "paper", "tactic"],
        help="modes, with fields of Options as in tactic:bits=3:rounds=1",
    )
    add("--rivals", type=listed(str), default=list(report.RIVALS), help="cudnn,flashinfer")
    add("--flashinfer-backends", type=listed(str), default=["fa2"], help="auto is fa2 for bf16")
    add("--cache", choices=("paged", "contiguous"), default="paged", help="of ours")
    add("--repeats", type=int, default=21, help="replays of each contender's graph")
    add("--needed", type=float, default=data.NEEDED[0], help="tokens of a head at 128K")
    add("--seed", type=int, default=1)
    add("--trace", type=Path, help="attention of a real trace (pack_trace.py), not synthetic")
    add("--quick", action="store_true", help="two layers at most, 5 replays: does it run?")
    args = parser.parse_args()
    if args.quick:
        args.repeats = min(args.repeats, 5)
    args.trace_tokens = 0
    if args.trace is not None:
        args.trace_tokens, head_dim = data.trace_size(args.trace)
        args.contexts = [math.ceil(args.trace_tokens / 1024) * 1024]
        args.shapes = [shape for shape in args.shapes if shape.head_dim == head_dim]
    return args


def main() -> int:
    args = parse_args()
    if not torch.cuda.is_available():
        print("bench: there is no CUDA device", file=sys.stderr)
        return 1
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        bench = Bench(args)
    except (LibraryError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    with torch.inference_mode():
        bench.run()
    print(report.table(bench.content), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
