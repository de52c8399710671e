"""Says what the attention in a trace is like, in the numbers that synthetic attention goes by.

    build/release/apps/tactic/tactic trace --depth 8000 --output moby.safetensors
    .venv/bin/python tools/trace_facts.py moby.safetensors

Cases are the query heads of every layer in every --every-th step; the names are those of
`tactic bench --fill synthetic --json`. Prints JSON.
"""

import argparse
import json
import struct
import sys
from pathlib import Path

import numpy as np

NEEDED_MASS = 0.9
RECENT = 64  # newest tokens
SINKS = 4  # first tokens
BEGINNING = 16  # first tokens, which are left out of correlations
TYPES = {"F16": np.float16, "F32": np.float32}


class TraceError(Exception):
    """What is wrong with the file."""


class Trace:
    def __init__(self, path: Path) -> None:
        data = np.memmap(path, mode="r")
        (size,) = struct.unpack("<Q", data[:8].tobytes())
        header = json.loads(data[8 : 8 + size].tobytes())
        metadata = header.get("__metadata__", {})
        if not metadata.get("format", "").startswith("tactic-trace"):
            raise TraceError(f"{path}: not written by tactic trace")
        self.header, self.data = header, data[8 + size :]
        self.depth = int(metadata["depth"])
        self.layers: list[int] = json.loads(metadata["layers"])
        scales = json.loads(metadata["scale"])
        self.scales = scales if isinstance(scales, list) else [scales] * len(self.layers)

    def tensor(self, name: str) -> np.ndarray:
        entry = self.header[name]
        if entry["dtype"] not in TYPES:
            raise TraceError(f"{name} is {entry['dtype']}, expected one of {', '.join(TYPES)}")
        begin, end = entry["data_offsets"]
        values = self.data[begin:end].view(TYPES[entry["dtype"]])
        return values.reshape(entry["shape"]).astype(np.float32)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def facts_of(logits: np.ndarray) -> dict[str, float]:
    mass = np.exp(logits.astype(np.float64) - logits.max())
    mass /= mass.sum()
    most_first = np.sort(mass)[::-1]
    middle = logits[BEGINNING:-RECENT].astype(np.float64)
    middle -= middle.mean()
    return {
        "needed": float(np.searchsorted(np.cumsum(most_first), NEEDED_MASS) + 1),
        "sink_mass_mean": mass[0],
        "recent_mass_mean": mass[-RECENT:].sum(),
        "largest_mass_mean": mass[SINKS:-RECENT].max(),
        "neighbour_correlation": (middle[:-1] @ middle[1:]) / (middle @ middle),
    }


def summarise(trace: Trace, every: int) -> dict[str, float]:
    cases: list[dict[str, float]] = []
    logs_of_kv_heads: list[float] = []
    of_group: list[float] = []  # correlations of the logits of two queries of a group
    of_steps: list[float] = []  # cosines of a head's queries in two steps in a row
    for layer, scale in zip(trace.layers, trace.scales, strict=True):
        queries, keys = trace.tensor(f"q.{layer}"), trace.tensor(f"k.{layer}")
        steps, q_heads, _ = queries.shape
        group = q_heads // len(keys)
        norms = np.linalg.norm(queries, axis=-1)
        cosines = (queries[:-1] * queries[1:]).sum(-1) / (norms[:-1] * norms[1:])
        of_steps.extend(cosines.ravel().tolist())
        for head, rows in enumerate(keys):
            logs = []
            for step in range(0, steps, every):
                seen = rows[: trace.depth + step + 1]
                own = queries[step, head * group : (head + 1) * group]
                logits = own @ seen.T * float(scale)
                for of_query in logits:
                    cases.append(facts_of(of_query))
                    logs.append(np.log(cases[-1]["needed"]))
                middle = logits[:, BEGINNING:-RECENT]
                of_group.extend(correlation(middle[0], other) for other in middle[1:])
            logs_of_kv_heads.append(float(np.mean(logs)))
    means = {name: float(np.mean([case[name] for case in cases])) for name in cases[0]}
    return {
        "tokens": trace.depth,
        "needed_mean": means.pop("needed"),
        "needed_log_sd": float(np.std([np.log(case["needed"]) for case in cases])),
        "needed_log_sd_of_kv_heads": float(np.std(logs_of_kv_heads)),
        **means,
        "group_correlation": float(np.mean(of_group)) if of_group else 1.0,
        "step_cosine": float(np.mean(of_steps)) if of_steps else 1.0,
        "cases": len(cases),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trace", type=Path, help="file that tactic trace wrote")
    parser.add_argument("--every", type=int, default=6, help="steps from one case to the next")
    args = parser.parse_args()
    try:
        if args.every < 1:
            raise TraceError(f"--every is {args.every}, expected at least 1")
        print(json.dumps(summarise(Trace(args.trace), args.every), indent=1))
    except (TraceError, OSError) as error:
        print(f"trace_facts: {error}", file=sys.stderr)
        return 1
    except (ValueError, KeyError, struct.error) as error:
        print(f"trace_facts: {args.trace}: not a trace: {error!r}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
