"""Plots of the measurements: bench/plot.py [RESULTS] [-o FOLDER]

Reads the JSON files in RESULTS (bench/results) and writes SVG files into FOLDER (build/plots):

roofline.svg    from roofline.json: each stage's bandwidth as a share of that of the bare loop that
                reads in the same way, by size of the data, and (dots) its multiply-adds per second
                as a share of those of a bare loop
decode_*.svg    from decode_*.json (`tactic bench`): how often each policy is faster than llama.cpp,
                by depth
layer*.svg      from layer*.json (bench/layer): the same for one layer, against its first policy

A file that is not there has no plot; one that cannot be understood is an error.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

# Stages that read rows here and there; the others read one after the other (bench/README.md).
SPARSE_STAGES = {"score_rows", "attend_scored"}
# Stages that multiply floats; the others multiply bytes.
FLOAT_STAGES = {"score_rows", "attend_scored", "attend_dense"}
BARE_LOOPS = {"stream", "rows"}
SIZES = ("L2", "L3", "memory")


@dataclass(frozen=True)
class Share:
    """What a stage makes of the machine: its speed over that of bare loops."""

    stage: str
    model: str  # the shape it is of: d64, d128
    size: str  # where the data fit
    threads: int
    bandwidth: float
    arithmetic: float | None  # where the file says it


def shares_of_peak(roofline: dict[str, Any]) -> list[Share]:
    """In the order of the file. Stages that have no size (index building) are left out."""
    # Names are stage[/model][/size]/real_time/threads:n.
    speeds: dict[tuple[str, str, str, int], float] = {}
    products: dict[tuple[str, str, str, int], float] = {}
    for run in roofline["benchmarks"]:
        if run.get("run_type", "iteration") != "iteration":
            continue
        *name, _, threads = run["name"].split("/")
        size = name.pop() if name[-1] in SIZES else ""
        model = name[1] if len(name) > 1 else ""
        key = (name[0], model, size, int(threads.removeprefix("threads:")))
        if "products" in run:
            products[key] = run["products"]
        if size:
            speeds[key] = run["bytes_per_second"]
    shares = []
    for (stage, model, size, count), speed in speeds.items():
        if stage in BARE_LOOPS:
            continue
        sparse = stage in SPARSE_STAGES
        bare = ("rows", model, size, count) if sparse else ("stream", "", size, count)
        if bare not in speeds:
            raise KeyError(f"{stage}/{model}/{size} has no {bare[0]} to be compared with")
        loop = ("multiply_floats" if stage in FLOAT_STAGES else "multiply_bytes", "", "", count)
        done = products.get((stage, model, size, count))
        arithmetic = done / products[loop] if done is not None else None
        shares.append(Share(stage, model, size, count, speed / speeds[bare], arithmetic))
    return shares


@dataclass(frozen=True)
class Curve:
    """How often something is faster, by number of tokens."""

    name: str
    tokens: list[int]
    speedups: list[float]


def curves(points: Iterable[tuple[str, int, float]]) -> list[Curve]:
    """From (name, tokens, speedup), names in their first order, tokens ascending."""
    by_name: dict[str, list[tuple[int, float]]] = {}
    for name, tokens, speedup in points:
        by_name.setdefault(name, []).append((tokens, speedup))
    return [Curve(name, *map(list, zip(*sorted(at), strict=True))) for name, at in by_name.items()]


def decode_curves(records: list[dict[str, Any]]) -> tuple[str, list[Curve]]:
    """Of the records of `tactic bench`, and what they are faster than: stock, else dense."""
    stock = all(record["speedup_vs_stock"] is not None for record in records)
    base = "stock" if stock else "dense"
    return base, curves((r["policy"], r["depth"], r[f"speedup_vs_{base}"]) for r in records)


def layer_curves(layer: dict[str, Any]) -> tuple[str, list[Curve]]:
    """Of the policies of bench/layer, and the first, which the others are compared with."""
    lines = curves((r["policy"], r["tokens"], r["speedup"]) for r in layer["results"])
    return lines[0].name, lines


def draw_shares(shares: list[Share]) -> Figure:
    models = sorted({s.model for s in shares}, key=lambda model: (len(model), model))
    threads = sorted({s.threads for s in shares})
    stages = list(dict.fromkeys(s.stage for s in shares))
    sizes = [size for size in SIZES if any(s.size == size for s in shares)]
    found = {(s.stage, s.model, s.size, s.threads): s for s in shares}
    figure = Figure(figsize=(5.5 * len(threads), 3.2 * len(models)), layout="constrained")
    plots = figure.subplots(len(models), len(threads), sharey=True, squeeze=False)
    width = 0.8 / len(sizes)
    for row, model in enumerate(models):
        for column, count in enumerate(threads):
            axes: Axes = plots[row][column]
            for i, size in enumerate(sizes):
                at = [x + (i - (len(sizes) - 1) / 2) * width for x in range(len(stages))]
                here = [found.get((stage, model, size, count)) for stage in stages]
                axes.bar(at, [s.bandwidth if s else 0.0 for s in here], width, label=size)
                dots = [s.arithmetic if s and s.arithmetic else float("nan") for s in here]
                axes.plot(at, dots, "k.", markersize=4, label="multiply-adds" if i == 0 else None)
            axes.axhline(1, color="black", linewidth=0.8)
            axes.set_title(f"{model}, {count} thread{'s' if count > 1 else ''}")
            axes.set_xticks(range(len(stages)), stages, rotation=45, ha="right", fontsize=8)
            axes.yaxis.set_major_formatter(PercentFormatter(1))
            if column == 0:
                axes.set_ylabel("of the bare loops")
    plots[0][0].legend(title="data fit", fontsize=8)
    return figure


def draw_curves(title: str, base: str, lines: list[Curve]) -> Figure:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for line in lines:
        axes.plot(line.tokens, line.speedups, marker="o", label=line.name)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: f"{tokens:,.0f}"))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tokens")
    axes.set_ylabel(f"speed, {base} = 1")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def draw_all(results: Path, folder: Path) -> list[Path]:
    """The files that were written."""
    folder.mkdir(parents=True, exist_ok=True)
    # The same plots are the same bytes.
    matplotlib.rcParams["svg.hashsalt"] = "tactic"
    kinds: list[tuple[str, Callable[[str, Any], Figure]]] = [
        ("roofline.json", lambda _, data: draw_shares(shares_of_peak(data))),
        ("decode_*.json", lambda name, data: draw_curves(name, *decode_curves(data))),
        ("layer*.json", lambda name, data: draw_curves(name, *layer_curves(data))),
    ]
    written = []
    for pattern, draw in kinds:
        for source in sorted(results.glob(pattern)):
            try:
                figure = draw(source.stem, json.loads(source.read_text()))
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise ValueError(f"{source} is not what was expected: {error!r}") from error
            target = folder / f"{source.stem}.svg"
            figure.savefig(target, metadata={"Date": None})
            written.append(target)
    return written


def main() -> int:
    about, _, more = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    here = Path(__file__).resolve().parent
    parser.add_argument("results", nargs="?", type=Path, default=here / "results")
    parser.add_argument("-o", "--output", type=Path, default=here.parent / "build" / "plots")
    args = parser.parse_args()
    try:
        written = draw_all(args.results, args.output)
    except (OSError, ValueError) as error:
        print(f"plot.py: {error}", file=sys.stderr)
        return 1
    if not written:
        print(f"plot.py: there are no measurements in {args.results}", file=sys.stderr)
        return 1
    for path in written:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
