"""Tests of plot.py, on small files that they write: python3 -m unittest FILE"""

import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

from bench import plot

PROGRAM = Path(plot.__file__)


def run(name: str, speed: float, products: float | None = None) -> dict[str, Any]:
    found = {"name": f"{name}/real_time/threads:2", "bytes_per_second": speed}
    return found if products is None else {**found, "products": products}


ROOFLINE = {
    "benchmarks": [
        run("multiply_floats", 0, 1000),
        run("multiply_bytes", 0, 4000),
        run("stream/L2", 100),
        run("rows/d64/L2", 80),
        run("score_rows/d64/L2", 40),
        run("attend_dense/d64/L2", 50, 750),
        run("scan_codes_2/d64/L2", 10, 1000),
        run("encode_2/d64", 1),
    ]
}


def record(policy: str, depth: int, stock: float | None, dense: float) -> dict[str, Any]:
    return {
        "policy": policy,
        "depth": depth,
        "speedup_vs_stock": stock,
        "speedup_vs_dense": dense,
    }


DECODE = [record("stock", 4096, 1, 0.5), record("tactic", 4096, 3, 1.5)]


class PlotTest(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def write(self, name: str, data: object) -> None:
        (self.folder / name).write_text(json.dumps(data))

    def plot(self) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, str(PROGRAM), str(self.folder), "-o", str(self.folder / "out")],
            capture_output=True,
            text=True,
            check=False,
            env={"HOME": str(self.folder)},  # no display
        )

    def test_a_stage_is_compared_with_the_loops_that_do_likewise(self) -> None:
        shares = plot.shares_of_peak(ROOFLINE)
        self.assertEqual(
            shares,
            [
                plot.Share("score_rows", "d64", "L2", 2, 0.5, None),
                plot.Share("attend_dense", "d64", "L2", 2, 0.5, 0.75),
                plot.Share("scan_codes_2", "d64", "L2", 2, 0.1, 0.25),
            ],
        )

    def test_curves_are_sorted_by_tokens(self) -> None:
        records = [record("dense", 8, 2, 1), record("paper", 8, 4, 2), record("dense", 4, 3, 1)]
        self.assertEqual(
            plot.decode_curves(records),
            ("stock", [plot.Curve("dense", [4, 8], [3, 2]), plot.Curve("paper", [8], [4])]),
        )

    def test_without_stock_the_comparison_is_with_dense(self) -> None:
        records = [record("dense", 8, None, 1), record("paper", 8, None, 2)]
        base, (_, paper) = plot.decode_curves(records)
        self.assertEqual((base, paper.speedups), ("dense", [2]))

    def test_every_file_gets_its_plot_and_the_same_one_each_time(self) -> None:
        layer = {"results": [{"policy": "dense", "tokens": 16384, "speedup": 1.0}]}
        self.write("roofline.json", ROOFLINE)
        self.write("decode_some.json", DECODE)
        self.write("layer_8b.json", layer)
        self.write("quality_other.json", [])
        images = []
        for _ in range(2):
            done = self.plot()
            self.assertEqual(done.returncode, 0, done.stderr)
            images.append({p.name: p.read_bytes() for p in (self.folder / "out").iterdir()})
        self.assertEqual(set(images[0]), {"roofline.svg", "decode_some.svg", "layer_8b.svg"})
        self.assertEqual(images[0], images[1])
        self.assertIn(b"<svg", images[0]["roofline.svg"])

    def test_bad_input_is_named(self) -> None:
        done = self.plot()
        self.assertEqual(done.returncode, 1)
        self.assertIn("no measurements", done.stderr)
        without_loop = {"benchmarks": [run("score_rows/d64/L2", 40)]}
        cases: list[object] = [without_loop, {}, [], {"benchmarks": []}, {"benchmarks": [1]}]
        for data in cases:
            with self.subTest(str(data)):
                self.write("roofline.json", data)
                done = self.plot()
                self.assertEqual(done.returncode, 1)
                self.assertIn("roofline.json", done.stderr)
                self.assertNotIn("Traceback", done.stderr)


if __name__ == "__main__":
    unittest.main()
