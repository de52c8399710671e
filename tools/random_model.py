"""Writes a Llama with random weights, to time a shape for which no trained model is at hand.

    scripts/setup.sh --tools
    .venv/bin/python tools/random_model.py TOKENIZER.gguf RANDOM.gguf

The defaults are the shape of a model of 1 billion parameters. Its tokenizer, and with it the number
of tokens, is that of TOKENIZER.gguf; embeddings and output share their weights. What such a model
says is noise, and its attention is flat: `tactic bench --fill synthetic` makes keys to go with its
queries.

Weights are scaled so that activations stay of order 1 in all layers, as in a trained model:
matrices keep the variance of their input, those that add to the residual stream divide it by the
number of additions. Two things that matter to attention are like those of a trained model, too:
embeddings share a direction, so that queries of neighbouring tokens are alike, and heads differ in
how sharp they are.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType
from gguf.quants import quantize
from tqdm import tqdm

FILE_TYPES = {
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "f16": LlamaFileType.MOSTLY_F16,
}
BLOCK = 32  # elements of a quantised block: rows are made of whole ones
# Of an embedding's energy, the part that all tokens share: queries of a head of SmolLM2 for two
# tokens in a row have a cosine of 0.82 on average.
SHARED = 0.8
# Standard deviation of the log of a head's gain.
GAIN_SPREAD = 0.25
# Of the output's logits; so that probabilities are neither flat nor certain.
LOGIT_SIZE = 3.0
# Mean square of silu(a) * b with independent normal a and b.
GATED_ENERGY = 0.356

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


class ModelError(Exception):
    """What is wrong with the input, naming the option or the file."""


def check(args: argparse.Namespace) -> None:
    for name in ("layers", "width", "heads", "kv_heads", "head_dim", "ffn", "context"):
        if getattr(args, name) < 1:
            option = "--" + name.replace("_", "-")
            raise ModelError(f"{option} is {getattr(args, name)}, expected at least 1")
    if args.heads % args.kv_heads != 0:
        raise ModelError(
            f"--heads is {args.heads}, expected a multiple of --kv-heads, {args.kv_heads}"
        )
    if args.head_dim % 8 != 0:
        raise ModelError(f"--head-dim is {args.head_dim}, expected a multiple of 8")
    columns = {"--width": args.width, "--ffn": args.ffn}
    columns["--heads times --head-dim"] = args.heads * args.head_dim
    for option, value in columns.items():
        if args.type != "f16" and value % BLOCK != 0:
            raise ModelError(
                f"{option} is {value}, expected a multiple of {BLOCK} for --type {args.type}"
            )
    if not args.rope_freq_base > 1:
        raise ModelError(f"--rope-freq-base is {args.rope_freq_base}, expected more than 1")


def read_tokenizer(path: Path) -> tuple[GGUFReader, int]:
    """The file, and how many tokens it knows."""
    try:
        reader = GGUFReader(path)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ModelError(f"{path}: {error}") from error
    tokens = reader.get_field("tokenizer.ggml.tokens")
    if tokens is None:
        raise ModelError(f"{path}: no tokenizer in it")
    return reader, len(tokens.data)


def add_fields(args: argparse.Namespace, tokenizer: GGUFReader, writer: GGUFWriter) -> None:
    writer.add_type("model")
    writer.add_name(f"random {args.layers} x {args.width}")
    writer.add_file_type(FILE_TYPES[args.type])
    writer.add_quantization_version(2)
    writer.add_block_count(args.layers)
    writer.add_context_length(args.context)
    writer.add_embedding_length(args.width)
    writer.add_feed_forward_length(args.ffn)
    writer.add_head_count(args.heads)
    writer.add_head_count_kv(args.kv_heads)
    writer.add_key_length(args.head_dim)
    writer.add_value_length(args.head_dim)
    writer.add_rope_dimension_count(args.head_dim)
    writer.add_rope_freq_base(args.rope_freq_base)
    writer.add_layer_norm_rms_eps(1e-5)
    for name, value in tokenizer.fields.items():
        if name.startswith("tokenizer."):
            sub_type = value.types[1] if len(value.types) > 1 else None
            writer.add_key_value(name, value.contents(), value.types[0], sub_type=sub_type)


class Weights:
    """Draws the model's tensors in the order in which they are asked for."""

    def __init__(self, args: argparse.Namespace, writer: GGUFWriter) -> None:
        self.args, self.writer = args, writer
        self.random = np.random.default_rng(args.seed)
        self.kind = GGMLQuantizationType[args.type.upper()]

    def add(self, name: str, values: Floats) -> None:
        self.writer.add_tensor(name + ".weight", quantize(values, self.kind), raw_dtype=self.kind)

    def add_norm(self, name: str, value: float = 1.0) -> None:
        self.writer.add_tensor(name + ".weight", np.full(self.args.width, value, np.float32))

    def matrix(self, rows: int, columns: int, energy: float = 1.0) -> Floats:
        """Gives outputs a variance of `energy` where inputs have a variance of 1."""
        values: Floats = self.random.standard_normal((rows, columns), np.float32)
        values *= np.float32(np.sqrt(energy / columns))
        return values

    def embeddings(self, tokens: int) -> Floats:
        width = self.args.width
        shared = self.random.standard_normal(width, np.float32)
        values: Floats = self.random.standard_normal((tokens, width), np.float32)
        values *= np.float32(np.sqrt(1 - SHARED))
        values += np.float32(np.sqrt(SHARED)) * shared
        return values

    def queries(self) -> Floats:
        heads, dim, width = self.args.heads, self.args.head_dim, self.args.width
        gains = np.exp(GAIN_SPREAD * self.random.standard_normal(heads, np.float32))
        values = self.matrix(heads * dim, width)
        values *= np.repeat(gains, dim)[:, np.newaxis]
        return values

    def add_layer(self, layer: int) -> None:
        args = self.args
        # Attention and feed-forward network of each layer add to the stream: once as much as the
        # embedding had, all of them together.
        added = 1 / (2 * args.layers)
        prefix = f"blk.{layer}."
        q_rows, kv_rows = args.heads * args.head_dim, args.kv_heads * args.head_dim
        self.add_norm(prefix + "attn_norm")
        self.add(prefix + "attn_q", self.queries())
        self.add(prefix + "attn_k", self.matrix(kv_rows, args.width))
        self.add(prefix + "attn_v", self.matrix(kv_rows, args.width))
        self.add(prefix + "attn_output", self.matrix(args.width, q_rows, added))
        self.add_norm(prefix + "ffn_norm")
        self.add(prefix + "ffn_gate", self.matrix(args.ffn, args.width))
        self.add(prefix + "ffn_up", self.matrix(args.ffn, args.width))
        self.add(prefix + "ffn_down", self.matrix(args.width, args.ffn, added / GATED_ENERGY))


def write(args: argparse.Namespace) -> None:
    check(args)
    tokenizer, tokens = read_tokenizer(args.tokenizer)
    temporary = args.output.with_name(args.output.name + ".new")
    try:
        writer = GGUFWriter(temporary, "llama")
        add_fields(args, tokenizer, writer)
        weights = Weights(args, writer)
        weights.add("token_embd", weights.embeddings(tokens))
        # The output's weights are the embeddings: rows of norm sqrt(width).
        weights.add_norm("output_norm", LOGIT_SIZE / float(np.sqrt(args.width)))
        for layer in tqdm(range(args.layers), "Drawing", unit=" layers", disable=args.quiet):
            weights.add_layer(layer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(temporary, args.output)
    finally:
        temporary.unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tokenizer", type=Path, help="GGUF file whose tokenizer is copied")
    parser.add_argument("output", type=Path, help="GGUF file to write")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=2048, help="of the residual stream")
    parser.add_argument("--heads", type=int, default=32, help="query heads")
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--ffn", type=int, default=8192, help="width of the feed-forward network")
    parser.add_argument("--context", type=int, default=131072, help="context length, in tokens")
    parser.add_argument("--rope-freq-base", type=float, default=500000.0)
    parser.add_argument("--type", choices=FILE_TYPES, default="q4_0", help="of the matrices")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args()
    try:
        write(args)
    except (ModelError, OSError) as error:
        print(f"random_model: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
