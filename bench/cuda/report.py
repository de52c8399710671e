"""What times are worth: bytes that had to be read, the JSON file, and the table."""

import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench.cuda.library import Policy, Shape
from bench.cuda.timing import Times

ELEMENT = 2  # bytes of a key's or a value's element: bf16
RIVALS = ("cudnn", "flashinfer")


def dense_bytes(shape: Shape, batch: int, tokens: int) -> float:
    """All keys and all values, once each."""
    return 2.0 * batch * shape.kv_heads * tokens * shape.head_dim * ELEMENT


def covered(policy: Policy, tokens: int) -> tuple[int, int]:
    """Positions in closed segments and in pages of the open one (include/tactic/cuda.h)."""
    page = 32  # Options::kPage
    indexed = max(0, tokens - policy.recent)
    closed = indexed // policy.segment_size * policy.segment_size
    pages = (indexed - closed) // page * page if policy.mode == "tactic" else 0
    return closed, pages


def index_bytes(shape: Shape, policy: Policy, tokens: int) -> float:
    """About what an index of one sequence takes in memory (src/cuda/layout.h)."""
    dim = shape.head_dim
    of_token = 2.0
    of_cluster = dim + 20 + 2.0
    if policy.mode == "tactic":
        of_token += dim * policy.bits / 8 + 1
        of_cluster += dim + 2
    return shape.kv_heads * tokens * (of_token + of_cluster / policy.cluster_size)


def workspace_bytes(shape: Shape, policy: Policy, batch: int, tokens: int) -> float:
    """About what a decoder takes: lists, tags and logits of rows, levels (src/cuda/step.h)."""
    of_token = {"dense": 0, "paper": 6 + 4 * shape.group, "tactic": 6 + 6 * shape.group}
    return 1.1 * batch * shape.kv_heads * tokens * of_token[policy.mode] + 2**26


def read_bytes(
    shape: Shape,
    policy: Policy,
    batch: int,
    tokens: int,
    union_rows: float,
    kept_clusters: float | None,
    sampled_rows: float | None,
) -> dict[str, float]:
    """What a step of that policy cannot do without, by kind, each byte once. Per KV head:

    clusters  of every cluster the centroid (8-bit elements), its facts and where its members start
    codes     mode tactic: codes and scales of the members of kept_clusters clusters, the number
              that was kept on average; of all clusters when that is unknown (None)
    tail      mode tactic: the mean value of every one of these clusters and of every segment, when
              unread tokens are represented
    rows      keys and values of union_rows rows, the mean of what groups read, and the entry of the
              member list that names a row
    samples   mode paper: keys of the sampled rows, sampled_rows on average, beyond as many as rows
              has
    """
    heads = batch * shape.kv_heads
    dim = shape.head_dim
    if policy.mode == "dense" or tokens < policy.dense_below:
        return {
            "clusters": 0,
            "codes": 0,
            "tail": 0,
            "samples": 0,
            "rows": dense_bytes(shape, batch, tokens),
        }
    closed, pages = covered(policy, tokens)
    clusters = closed / policy.cluster_size + pages / 32
    found = {"clusters": heads * clusters * (dim + 2 + 2.0), "codes": 0.0, "tail": 0.0}
    more = max(0.0, (sampled_rows or 0.0) - union_rows)
    found["samples"] = heads * more * (dim * ELEMENT + 2)
    if policy.mode == "tactic":
        found["clusters"] = heads * clusters * (dim + 20 + 2.0)
        share = 1.0 if kept_clusters is None else min(1.0, kept_clusters / max(1.0, clusters))
        found["codes"] = heads * (closed + pages) * share * (dim * policy.bits / 8 + 1)
        means = clusters * share + closed / policy.segment_size
        found["tail"] = heads * means * (dim + 2) if policy.tail else 0.0
    found["rows"] = heads * union_rows * (2 * dim * ELEMENT + 2)
    return found


def timed(
    times: Times,
    needed: float,
    bandwidth: float,
    scattered: float = 0,
    at_random: float | None = None,
) -> dict[str, Any]:
    """The times of a contender that had to read `needed` bytes, at `bandwidth` bytes per second;
    and against a floor where `scattered` of them, rows that lie anywhere, come at `at_random`."""
    floor = needed / bandwidth * 1e6
    found: dict[str, Any] = {}
    if scattered > 0 and at_random is not None:
        rows_floor = ((needed - scattered) / bandwidth + scattered / at_random) * 1e6
        found = {
            "scattered_floor_us": rows_floor,
            "share_of_scattered_floor": rows_floor / times.median,
        }
    return {
        **found,
        **{f"{name}_us": value for name, value in asdict(times).items() if name != "repeats"},
        "repeats": times.repeats,
        "bytes": needed,
        "floor_us": floor,
        "share_of_floor": floor / times.median,
    }


def add_speedups(contenders: dict[str, dict[str, Any]]) -> None:
    """Over the faster rival, in the same loop."""
    rivals = [
        contenders[name]["median_us"] for name in RIVALS if "median_us" in contenders.get(name, {})
    ]
    if not rivals:
        return
    for found in contenders.values():
        if "median_us" in found:
            found["speedup_vs_best_rival"] = min(rivals) / found["median_us"]


def machine() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        driver = f"unknown: {error}"
    return {
        "gpu": properties.name,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "driver": driver.splitlines()[0] if driver else "unknown",
    }


def versions() -> dict[str, Any]:
    cudnn: Any = torch.backends.cudnn
    found = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": cudnn.version(),
    }
    try:
        import flashinfer

        found["flashinfer"] = flashinfer.__version__
    except Exception as error:
        found["flashinfer"] = f"none: {error}"[:200]
    return found


def write_json(path: Path, content: dict[str, Any]) -> None:
    """All of it or nothing: a temporary file that is renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)


def _detail(name: str, found: dict[str, Any]) -> str:
    if "median_us" not in found:
        return f"  {name}: failed: {found.get('error', '?')}"
    line = (
        f"  {name}: {found['median_us']:.1f} us ({found['p10_us']:.1f}-{found['p90_us']:.1f}),"
        f" {100 * found['share_of_floor']:.0f} % of the floor"
    )
    if "share_of_scattered_floor" in found:
        line += f", {100 * found['share_of_scattered_floor']:.0f} % with rows at random"
    if "setting" in found:
        line += f"; {found['setting']} of " + ", ".join(
            f"{setting} {median:.1f}" for setting, median in found["settings_us"].items()
        )
        line += "".join(f"; {setting}: {why}" for setting, why in found["failures"].items())
    if "plan_us" in found:
        line += f"; plan() {found['plan_us']:.0f} us of host time"
    if "quality" in found:
        line += "; " + ", ".join(f"{key} {value:.4g}" for key, value in found["quality"].items())
    return line


def details(record: dict[str, Any]) -> str:
    """All of a record that a reader may want to see as it comes."""
    facts = ", ".join(f"{name} {value:.3g}" for name, value in record["facts"].items())
    lines = [
        f"{record['shape']['name']}, {record['tokens']} tokens, batch {record['batch']},"
        f" {record['layers']} layers, {record['seconds']:.1f} s: {facts}"
    ]
    lines += [_detail(name, found) for name, found in record["contenders"].items()]
    for name, built in record.get("builds", {}).items():
        lines.append(f"  index {name}: " + ", ".join(f"{k} {v:.4g}" for k, v in built.items()))
    return "\n".join(lines)


def _share(value: float) -> str:
    """A share of 1 in three digits: .876"""
    return f"{value:.3f}".removeprefix("0")


def _times(record: dict[str, Any]) -> str:
    parts = []
    for name, found in record["contenders"].items():
        if "median_us" not in found:
            parts.append(f"{name} -")
            continue
        part = f"{name} {found['median_us']:.4g}us {100 * found['share_of_floor']:.0f}%"
        if name not in RIVALS and "speedup_vs_best_rival" in found:
            part += f" {found['speedup_vs_best_rival']:.2f}x"
        parts.append(part)
    shape = record["shape"]
    name = f"{shape['q_heads']}/{shape['kv_heads']} d{shape['head_dim']}"
    return f"{name} {record['context'] // 1024}K b{record['batch']} " + " | ".join(parts)


def _quality(record: dict[str, Any]) -> str:
    parts = []
    for name, found in record["contenders"].items():
        quality = found.get("quality")
        if quality is None or found["mode"] == "dense":
            continue
        part = (
            f"{name} mass {_share(quality['own_mass_mean'])}"
            f" ok {100 * quality['target_reached_share']:.0f}%"
            f" min {_share(quality['own_mass_min'])}"
            f" union {_share(quality['union_mass_mean'])}"
            f" rows {quality['own_rows_mean']:.0f}/{quality['union_rows_mean']:.0f}"
            f" err {_share(quality['output_error_mean'])}/{_share(quality['output_error_max'])}"
        )
        if "overclaims" in quality:
            part += f" over {quality['overclaims']:.0f}/{quality['cases']:.0f}"
        parts.append(part)
    return "   " + " | ".join(parts)


def table(content: dict[str, Any]) -> str:
    """Two lines for each record; the JSON file says more."""
    gpu, peak = content["machine"]["gpu"], content["bandwidth"]["bytes_per_second"]
    at_random = "".join(
        f", rows of {size} bytes at random {speed / 1e12:.2f}"
        for size, speed in content["bandwidth"].get("rows_at_random", {}).items()
        if speed is not None
    )
    lines = [
        f"{gpu}, reads {peak / 1e12:.2f} TB/s{at_random}. Median us per layer step, share of the"
        " byte floor, speed over the faster rival; mass of own selections (mean, share that"
        " reached P, least), of unions, rows own/union, output error mean/max, overclaims/cases."
    ]
    for record in content["records"]:
        lines += [_times(record), _quality(record)]
        for name, built in record.get("builds", {}).items():
            lines.append(f"   index {name}: " + ", ".join(f"{k} {v:.3g}" for k, v in built.items()))
    lines += [f"skipped: {skipped}" for skipped in content["skipped"]]
    return "\n".join(line for line in lines if line.strip())
