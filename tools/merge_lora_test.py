"""Tests of merge_lora.py, on small files that they write: python3 -m unittest FILE"""

import subprocess
import sys
import tempfile
import unittest
from collections.abc import Callable
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize

PROGRAM = Path(__file__).with_name("merge_lora.py")
Q, K, NORM = "blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_norm.weight"


class MergeTest(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        rng = np.random.default_rng(7)
        self.q = rng.standard_normal((64, 32), np.float32)
        self.k = rng.standard_normal((16, 32), np.float32)
        self.a = rng.standard_normal((4, 32), np.float32)
        self.b = rng.standard_normal((64, 4), np.float32)
        writer = GGUFWriter(self.folder / "model.gguf", "llama")
        writer.add_rope_freq_base(10000.0)
        writer.add_context_length(2048)
        writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
        stored = quantize(self.q, GGMLQuantizationType.Q4_1)
        writer.add_tensor(Q, stored, raw_dtype=GGMLQuantizationType.Q4_1)
        writer.add_tensor(K, self.k)
        writer.add_tensor(NORM, np.ones(32, np.float32))
        self.finish(writer)

    @staticmethod
    def finish(writer: GGUFWriter) -> None:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    def adapter(self, tensor: str, alpha: float, kind: str = "lora") -> None:
        writer = GGUFWriter(self.folder / "adapter.gguf", "llama")
        writer.add_type("adapter")
        writer.add_string("adapter.type", kind)
        writer.add_float32("adapter.lora.alpha", alpha)
        writer.add_tensor(tensor + ".lora_a", self.a)
        writer.add_tensor(tensor + ".lora_b", self.b)
        self.finish(writer)

    def merge(self, *options: str) -> subprocess.CompletedProcess[str]:
        files = [str(self.folder / name) for name in ("model.gguf", "adapter.gguf", "merged.gguf")]
        return subprocess.run(
            [sys.executable, str(PROGRAM), *files, "--quiet", *options],
            capture_output=True,
            text=True,
            check=False,
        )

    def merged(self) -> tuple[GGUFReader, dict[str, np.ndarray]]:
        reader = GGUFReader(self.folder / "merged.gguf")
        return reader, {t.name: dequantize(t.data, t.tensor_type) for t in reader.tensors}

    def test_adds_the_scaled_product_and_leaves_the_rest(self) -> None:
        self.adapter(Q, alpha=8)
        done = self.merge("--type", "f32", "--scale", "0.5", "--rope-freq-base", "1e6")
        self.assertEqual(done.returncode, 0, done.stderr)
        reader, tensors = self.merged()
        q4_1 = GGMLQuantizationType.Q4_1
        before = dequantize(quantize(self.q, q4_1), q4_1)
        np.testing.assert_allclose(tensors[Q], before + 0.5 * (8 / 4) * self.b @ self.a, rtol=1e-5)
        np.testing.assert_array_equal(tensors[K], self.k)
        self.assertEqual(reader.fields["llama.rope.freq_base"].contents(), 1e6)
        self.assertEqual(reader.fields["llama.context_length"].contents(), 2048)
        self.assertEqual(reader.fields["tokenizer.ggml.tokens"].contents(), ["a", "b", "c"])

    def test_the_same_type_is_the_default_and_no_alpha_means_the_rank(self) -> None:
        self.adapter(Q, alpha=0)
        self.assertEqual(self.merge().returncode, 0)
        reader, tensors = self.merged()
        kinds = {t.name: t.tensor_type for t in reader.tensors}
        self.assertEqual(kinds[Q], GGMLQuantizationType.Q4_1)
        exact = self.q + self.b @ self.a
        # Two roundings to 16 levels of a block's range.
        self.assertLess(np.abs(tensors[Q] - exact).max(), np.ptp(exact) / 15)

    def test_bad_input_is_named_and_leaves_no_file(self) -> None:
        cases: dict[str, Callable[[], object]] = {
            "no tensor blk.9": lambda: self.adapter("blk.9.attn_q.weight", 4),
            "in the adapter": lambda: self.adapter(K, 4),
            "not a LoRA adapter": lambda: self.adapter(Q, 4, kind="control"),
            "looked up": lambda: self.adapter("token_embd.weight", 4),
            "adapter.gguf": lambda: (self.folder / "adapter.gguf").write_bytes(b"no GGUF"),
        }
        for message, make in cases.items():
            with self.subTest(message):
                make()
                done = self.merge()
                self.assertEqual(done.returncode, 1)
                self.assertIn(message, done.stderr)
                self.assertNotIn("Traceback", done.stderr)
                left = {p.name for p in self.folder.iterdir()}
                self.assertEqual(left, {"model.gguf", "adapter.gguf"})


if __name__ == "__main__":
    unittest.main()
