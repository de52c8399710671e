"""Makes of a trace what bench/cuda/bench.py --trace reads: a few layers, one step.

    build/release/apps/tactic/tactic trace --depth 8176 --output moby.safetensors
    python3 -m bench.cuda.pack_trace moby.safetensors moby.npz --layers 3,10,17,24

The step is the last at which the number of visible tokens is a multiple of 16 (FlashInfer's pages).
The file has keys and values [layers][kv_heads][tokens][head_dim] in float16 and queries
[layers][q_heads][head_dim] in float32, multiplied so that logits are q . k / sqrt(head_dim).
"""

import argparse
import struct
import sys
from pathlib import Path

import numpy as np

from tools.trace_facts import Trace, TraceError

PAGE = 16


def pack(trace: Trace, layers: list[int]) -> dict[str, np.ndarray]:
    steps = trace.tensor(f"q.{layers[0]}").shape[0]
    step = next((s for s in range(steps - 1, -1, -1) if (trace.depth + s + 1) % PAGE == 0), None)
    if step is None:
        raise TraceError(f"no step of the trace sees a multiple of {PAGE} tokens")
    tokens = trace.depth + step + 1
    keys, values, queries = [], [], []
    for layer in layers:
        scale = trace.scales[trace.layers.index(layer)]
        query = trace.tensor(f"q.{layer}")[step]
        queries.append(query * float(scale) * float(np.sqrt(query.shape[-1])))
        keys.append(trace.tensor(f"k.{layer}")[:, :tokens].astype(np.float16))
        values.append(trace.tensor(f"v.{layer}")[:, :tokens].astype(np.float16))
    return {
        "keys": np.stack(keys),
        "values": np.stack(values),
        "queries": np.stack(queries).astype(np.float32),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trace", type=Path, help="file that tactic trace wrote")
    parser.add_argument("output", type=Path, help="the .npz file")
    parser.add_argument("--layers", help="e.g. 3,10,17,24 [four at even distances]")
    args = parser.parse_args()
    try:
        trace = Trace(args.trace)
        if args.layers is None:
            count = len(trace.layers)
            layers = [trace.layers[(2 * i + 1) * count // 8] for i in range(4)]
        else:
            layers = [int(layer) for layer in args.layers.split(",")]
        missing = [layer for layer in layers if layer not in trace.layers]
        if missing:
            raise TraceError(f"{args.trace} has no layers {missing}, but {trace.layers}")
        content = pack(trace, layers)
        with open(args.output, "wb") as file:
            np.savez_compressed(file, **content)  # type: ignore[arg-type]
    except (TraceError, OSError) as error:
        print(f"pack_trace: {error}", file=sys.stderr)
        return 1
    except (ValueError, KeyError, struct.error) as error:
        print(f"pack_trace: {args.trace}: not a trace: {error!r}", file=sys.stderr)
        return 1
    size = args.output.stat().st_size / 2**20
    print(f"{args.output}: layers {layers}, {content['keys'].shape[2]} tokens, {size:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
