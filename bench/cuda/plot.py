"""Draws a file of bench/cuda/bench.py: python3 -m bench.cuda.plot RESULT.json [-o FILE.svg]

Speed over the faster of cuDNN and FlashInfer by context, a panel for each shape, a line for each
batch and mode. Dense attention of ours has no line: it is near 1.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

STYLES = ("-", "--", ":", "-.")  # of modes
MARKERS = ("o", "s", "^", "D")  # of batches
ROOM = 1.15  # above the highest point


def points(content: dict[str, Any]) -> Iterator[tuple[str, str, int, int, float]]:
    """Shape, policy, batch, context, speed-up; without what failed and what is dense."""
    for record in content["records"]:
        for name, found in record["contenders"].items():
            if found["mode"] != "dense" and "speedup_vs_best_rival" in found:
                at = (record["batch"], record["context"], found["speedup_vs_best_rival"])
                yield record["shape"]["name"], name, *at


def tokens_text(tokens: float, _: object = None) -> str:
    return f"{tokens / 2**20:.0f}M" if tokens >= 2**20 else f"{tokens / 2**10:.0f}K"


def draw_speedups(content: dict[str, Any]) -> Figure:
    every = list(points(content))
    if not every:
        raise ValueError("no record has a speed-up")
    shapes = list(dict.fromkeys(shape for shape, *_ in every))
    policies = list(dict.fromkeys(policy for _, policy, *_ in every))
    batches = sorted({batch for _, _, batch, _, _ in every})
    figure = Figure(figsize=(5 * len(shapes) + 1, 4.2), layout="constrained")
    panels = figure.subplots(1, len(shapes), squeeze=False, sharey=True)
    for panel, shape in zip(panels[0], shapes, strict=True):
        axes: Axes = panel
        for i, policy in enumerate(policies):
            for j, batch in enumerate(batches):
                line = sorted(p[3:] for p in every if p[:3] == (shape, policy, batch))
                if line:
                    axes.plot(
                        *zip(*line, strict=True),
                        color=f"C{j}",
                        linestyle=STYLES[i % len(STYLES)],
                        marker=MARKERS[j % len(MARKERS)],
                        markersize=4,
                        label=f"{policy}, batch {batch}",
                    )
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xticks(sorted({p[3] for p in every}))
        axes.xaxis.set_major_formatter(FuncFormatter(tokens_text))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda speed, _: f"{speed:g}x"))
        axes.set_xlabel("context")
        axes.set_title(shape)
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("speed, the faster of cuDNN and FlashInfer = 1")
    panels[0][0].set_ylim(top=max(p[4] for p in every) * ROOM)
    panels[0][0].legend(fontsize=8)
    figure.suptitle(f"One layer's decode step, {content['machine']['gpu']}", fontsize=11)
    return figure


def main() -> int:
    about, _, more = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("result", type=Path)
    parser.add_argument("-o", "--output", type=Path, help="[the file's name, with .svg]")
    args = parser.parse_args()
    output = args.output or args.result.with_suffix(".svg")
    matplotlib.rcParams["svg.hashsalt"] = "tactic"  # the same plots are the same bytes
    try:
        figure = draw_speedups(json.loads(args.result.read_text()))
        figure.savefig(output, metadata={"Date": None})
    except OSError as error:
        print(f"plot: {error}", file=sys.stderr)
        return 1
    except (ValueError, LookupError, TypeError) as error:
        print(f"plot: {args.result} is not what was expected: {error!r}", file=sys.stderr)
        return 1
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
