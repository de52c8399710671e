"""Tests of trace_facts.py, on a small trace that they write: python3 -m unittest FILE"""

import json
import struct
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import numpy as np

PROGRAM = Path(__file__).with_name("trace_facts.py")
DEPTH, STEPS, DIM = 299, 2, 8


class TraceFactsTest(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "trace.safetensors"

    def write(self, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
        header: dict[str, object] = {"__metadata__": metadata}
        at = 0
        for name, tensor in tensors.items():
            kind = {"float16": "F16", "float32": "F32"}[tensor.dtype.name]
            offsets = [at, at + tensor.nbytes]
            header[name] = {"dtype": kind, "shape": tensor.shape, "data_offsets": offsets}
            at += tensor.nbytes
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        data = b"".join(tensor.tobytes() for tensor in tensors.values())
        self.path.write_bytes(struct.pack("<Q", len(text)) + text + data)

    def run_tool(self, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(PROGRAM), str(self.path), *options],
            capture_output=True,
            text=True,
            check=False,
        )

    def test_of_masses_that_are_known(self) -> None:
        # Half of the mass on the first token, a quarter on one in the middle, the rest on the
        # newest, in a single KV head with two query heads that want the same.
        keys = np.full((1, DEPTH + STEPS, DIM), -20, np.float16)
        keys[0, 0] = np.log(0.5)
        keys[0, 100] = np.log(0.25)
        keys[0, DEPTH] = np.log(0.25)
        keys[0, 150:170] = -12
        queries = np.full((STEPS, 2, DIM), 1 / DIM, np.float32)
        queries[1] *= 2
        metadata = {"format": "tactic-trace-1", "depth": str(DEPTH), "layers": "[4]", "scale": "1"}
        self.write({"k.4": keys, "q.4": queries}, metadata)
        done = self.run_tool()
        self.assertEqual(done.returncode, 0, done.stderr)
        facts = json.loads(done.stdout)
        expected = {
            "needed_mean": 3,
            "needed_log_sd": 0,
            "sink_mass_mean": 0.5,
            "recent_mass_mean": 0.25,
            "largest_mass_mean": 0.25,
            "group_correlation": 1,
            "step_cosine": 1,
            "cases": 2,
            "tokens": DEPTH,
        }
        for name, value in expected.items():
            self.assertAlmostEqual(facts[name], value, delta=1e-3, msg=name)
        self.assertGreater(facts["neighbour_correlation"], 0.5)

    def test_bad_input_is_named(self) -> None:
        self.write({}, {"format": "something else"})
        cases = {"not written by tactic trace": [], "--every is 0": ["--every", "0"]}
        for message, options in cases.items():
            self.expect_error(message, *options)
        self.path.write_bytes(b"{}")
        self.expect_error("not a trace")
        self.path.unlink()
        self.expect_error("No such file")

    def expect_error(self, message: str, *options: str) -> None:
        done = self.run_tool(*options)
        self.assertEqual(done.returncode, 1)
        self.assertIn(message, done.stderr)
        self.assertNotIn("Traceback", done.stderr)


if __name__ == "__main__":
    unittest.main()
