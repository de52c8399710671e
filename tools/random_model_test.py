"""Tests of random_model.py, on small files that it writes: python3 -m unittest FILE"""

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize

PROGRAM = Path(__file__).with_name("random_model.py")
WIDTH, HEADS, KV_HEADS, DIM, FFN, LAYERS, TOKENS = 64, 4, 2, 32, 96, 3, 200
SHAPE = {"layers": LAYERS, "width": WIDTH, "heads": HEADS, "kv-heads": KV_HEADS}
SHAPE |= {"head-dim": DIM, "ffn": FFN, "context": 4096}


def normalised(x: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True))
    return scaled


class RandomModelTest(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.tokens = [f"t{i}" for i in range(TOKENS)]
        self.write_tokenizer(self.tokens)

    def write_tokenizer(self, tokens: list[str]) -> None:
        writer = GGUFWriter(self.folder / "tokenizer.gguf", "gemma")
        writer.add_context_length(77)
        if tokens:
            writer.add_tokenizer_model("gpt2")
            writer.add_token_list(tokens)
            writer.add_token_types([1] * len(tokens))
            writer.add_bos_token_id(3)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    def make(self, *options: str, name: str = "model.gguf") -> subprocess.CompletedProcess[str]:
        shape = [text for key, value in SHAPE.items() for text in (f"--{key}", str(value))]
        files = [str(self.folder / "tokenizer.gguf"), str(self.folder / name)]
        return subprocess.run(
            [sys.executable, str(PROGRAM), *files, "--quiet", *shape, *options],
            capture_output=True,
            text=True,
            check=False,
        )

    def test_writes_the_shape_that_was_asked_for(self) -> None:
        done = self.make()
        self.assertEqual(done.returncode, 0, done.stderr)
        reader = GGUFReader(self.folder / "model.gguf")
        expected = {
            "general.architecture": "llama",
            "llama.block_count": LAYERS,
            "llama.context_length": 4096,
            "llama.embedding_length": WIDTH,
            "llama.feed_forward_length": FFN,
            "llama.attention.head_count": HEADS,
            "llama.attention.head_count_kv": KV_HEADS,
            "llama.attention.key_length": DIM,
            "llama.rope.dimension_count": DIM,
            "tokenizer.ggml.tokens": self.tokens,
            "tokenizer.ggml.bos_token_id": 3,
        }
        for name, value in expected.items():
            self.assertEqual(reader.fields[name].contents(), value, name)
        shapes = {t.name.removesuffix(".weight"): tuple(t.shape.tolist()) for t in reader.tensors}
        wanted = {"token_embd": (WIDTH, TOKENS), "output_norm": (WIDTH,)}
        for layer in range(LAYERS):
            for name, shape in {
                "attn_norm": (WIDTH,),
                "attn_q": (WIDTH, HEADS * DIM),
                "attn_k": (WIDTH, KV_HEADS * DIM),
                "attn_v": (WIDTH, KV_HEADS * DIM),
                "attn_output": (HEADS * DIM, WIDTH),
                "ffn_norm": (WIDTH,),
                "ffn_gate": (WIDTH, FFN),
                "ffn_up": (WIDTH, FFN),
                "ffn_down": (FFN, WIDTH),
            }.items():
                wanted[f"blk.{layer}.{name}"] = shape
        self.assertEqual(shapes, wanted)
        kinds = {t.tensor_type for t in reader.tensors if "norm" not in t.name}
        self.assertEqual(kinds, {GGMLQuantizationType.Q4_0})
        left = {p.name for p in self.folder.iterdir()}
        self.assertEqual(left, {"tokenizer.gguf", "model.gguf"})

    def test_activations_stay_of_order_one(self) -> None:
        self.assertEqual(self.make("--type", "f16", "--layers", "24").returncode, 0)
        reader = GGUFReader(self.folder / "model.gguf")
        w = {
            t.name.removesuffix(".weight"): dequantize(t.data, t.tensor_type)
            for t in reader.tensors
        }
        embeddings = w["token_embd"]
        unit = normalised(embeddings)
        alike = (unit @ unit.T / WIDTH)[np.triu_indices(TOKENS, 1)]
        self.assertAlmostEqual(float(alike.mean()), 0.8, delta=0.1)
        x = embeddings
        for layer in range(24):
            value = normalised(x) @ w[f"blk.{layer}.attn_v"].T
            attended = np.repeat(value.reshape(TOKENS, KV_HEADS, DIM), HEADS // KV_HEADS, axis=1)
            x = x + attended.reshape(TOKENS, -1) @ w[f"blk.{layer}.attn_output"].T
            gate, up = (normalised(x) @ w[f"blk.{layer}.ffn_{n}"].T for n in ("gate", "up"))
            x = x + (gate / (1 + np.exp(-gate)) * up) @ w[f"blk.{layer}.ffn_down"].T
            queries = normalised(x) @ w[f"blk.{layer}.attn_q"].T
            self.assertTrue(0.5 < np.sqrt(np.mean(queries**2)) < 2, layer)
        self.assertTrue(0.7 < np.sqrt(np.mean(x**2)) < 2.5)
        logits = normalised(x) * w["output_norm"] @ embeddings.T
        self.assertTrue(1 < np.std(logits, axis=1).mean() < 9)

    def test_a_seed_is_a_model(self) -> None:
        for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
            self.assertEqual(self.make("--seed", seed, name=name).returncode, 0)
        a, b, c = ((self.folder / name).read_bytes() for name in "abc")
        self.assertEqual(a, b)
        self.assertNotEqual(a, c)

    def test_bad_input_is_named_and_leaves_no_file(self) -> None:
        cases = {
            "--heads is 5, expected a multiple of --kv-heads, 2": ["--heads", "5"],
            "--width is 80, expected a multiple of 32": ["--width", "80"],
            "--head-dim is 12": ["--head-dim", "12"],
            "--layers is 0": ["--layers", "0"],
            "--rope-freq-base": ["--rope-freq-base", "nan"],
        }
        for message, options in cases.items():
            with self.subTest(message):
                self.expect_error(message, *options)
        self.write_tokenizer([])
        self.expect_error("tokenizer.gguf: no tokenizer in it")
        (self.folder / "tokenizer.gguf").write_bytes(b"no GGUF")
        self.expect_error("tokenizer.gguf")

    def expect_error(self, message: str, *options: str) -> None:
        done = self.make(*options)
        self.assertEqual(done.returncode, 1)
        self.assertIn(message, done.stderr)
        self.assertNotIn("Traceback", done.stderr)
        self.assertEqual({p.name for p in self.folder.iterdir()}, {"tokenizer.gguf"})


if __name__ == "__main__":
    unittest.main()
