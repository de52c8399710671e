"""Tests of plot.py and pack_trace.py: python3 -m unittest FILE"""

import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

import numpy as np

from bench.cuda import plot

ROOT = Path(plot.__file__).resolve().parents[2]


def record(batch: int, context: int, speedup: float) -> dict[str, Any]:
    return {
        "shape": {"name": "32q/8kv d128"},
        "batch": batch,
        "context": context,
        "contenders": {
            "cudnn": {"mode": "dense", "speedup_vs_best_rival": 1.0},
            "tactic": {"mode": "tactic", "speedup_vs_best_rival": speedup},
            "paper": {"mode": "paper", "error": "it failed"},
        },
    }


RESULT = {
    "machine": {"gpu": "a GPU"},
    "records": [record(1, 131072, 4.0), record(1, 8192, 0.5), record(8, 8192, 1.5)],
}


def run(name: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"bench.cuda.{name}", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


class PlotTest(unittest.TestCase):
    def test_lines_are_of_what_ran_and_is_not_dense(self) -> None:
        figure = plot.draw_speedups(RESULT)
        lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
        self.assertEqual(
            [label for label in lines if "batch" in str(label)],
            ["tactic, batch 1", "tactic, batch 8"],
        )
        self.assertEqual(np.asarray(lines["tactic, batch 1"].get_xdata()).tolist(), [8192, 131072])
        self.assertEqual(np.asarray(lines["tactic, batch 1"].get_ydata()).tolist(), [0.5, 4.0])

    def test_program_writes_the_same_bytes_again(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "result.json")
            source.write_text(json.dumps(RESULT))
            drawn = []
            for _ in range(2):
                ran = run("plot", source)
                self.assertEqual(ran.returncode, 0, ran.stderr)
                drawn.append(source.with_suffix(".svg").read_bytes())
            self.assertEqual(drawn[0], drawn[1])

    def test_what_is_no_result_is_named(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "other.json")
            source.write_text("{}")
            ran = run("plot", source)
            self.assertEqual(ran.returncode, 1)
            self.assertIn("other.json", ran.stderr)


class PackTraceTest(unittest.TestCase):
    def test_step_is_the_last_with_whole_pages(self) -> None:
        random = np.random.default_rng(1)
        depth, steps = 28, 8  # steps see 29 to 36 tokens
        keys = random.standard_normal((2, depth + steps, 8)).astype(np.float16)
        queries = random.standard_normal((steps, 6, 8)).astype(np.float32)
        tensors: dict[str, np.ndarray] = {"q.3": queries, "k.3": keys, "v.3": -keys}
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, "trace.safetensors"), Path(folder, "packed.npz")
            source.write_bytes(trace_file(tensors, depth, scale=0.5))
            ran = run("pack_trace", source, target, "--layers", "3")
            self.assertEqual(ran.returncode, 0, ran.stderr)
            with np.load(target) as packed:
                np.testing.assert_array_equal(packed["keys"][0], keys[:, :32])
                np.testing.assert_array_equal(packed["values"][0], -keys[:, :32])
                wanted = queries[3] * 0.5 * np.sqrt(8)
                np.testing.assert_allclose(packed["queries"][0], wanted, rtol=1e-6)

    def test_layers_that_are_not_there_are_named(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "trace.safetensors")
            source.write_bytes(trace_file({}, 28, scale=0.5))
            ran = run("pack_trace", source, Path(folder, "packed.npz"), "--layers", "7")
            self.assertEqual(ran.returncode, 1)
            self.assertIn("7", ran.stderr)


def trace_file(tensors: dict[str, np.ndarray], depth: int, scale: float) -> bytes:
    """As `tactic trace` writes it, of layer 3 alone."""
    names = {np.dtype(np.float16): "F16", np.dtype(np.float32): "F32"}
    metadata = {"format": "tactic-trace", "depth": str(depth), "layers": "[3]", "scale": str(scale)}
    header: dict[str, Any] = {"__metadata__": metadata}
    data = b""
    for name, values in tensors.items():
        offsets = [len(data), len(data) + values.nbytes]
        header[name] = {
            "dtype": names[values.dtype],
            "shape": list(values.shape),
            "data_offsets": offsets,
        }
        data += values.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


if __name__ == "__main__":
    unittest.main()
