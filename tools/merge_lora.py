"""Merges a LoRA adapter into a GGUF model, so that no step pays for the adapter's multiplications.

    scripts/setup.sh --tools
    .venv/bin/python tools/merge_lora.py MODEL.gguf ADAPTER.gguf MERGED.gguf

What llama.cpp computes as W x + s B (A x), with s = scale * alpha / rank, becomes (W + s B A) x.
Sums are made in single precision. Tensors that the adapter changes are stored as --type: "same" as
before, which keeps the model's size and speed and rounds the adapter to the grid of the weights; a
larger type keeps more of it. All other tensors are copied as they are.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, Keys
from gguf.quants import dequantize, quantize
from tqdm import tqdm

TYPES = ["same", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "f16", "bf16", "f32"]
SUFFIX_A, SUFFIX_B = ".lora_a", ".lora_b"


class MergeError(Exception):
    """What is wrong with the input, naming the file."""


def read(path: Path) -> GGUFReader:
    try:
        return GGUFReader(path)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise MergeError(f"{path}: {error}") from error


def field(reader: GGUFReader, name: str) -> object:
    found = reader.get_field(name)
    return None if found is None else found.contents()


def low_rank_sums(path: Path, adapter: GGUFReader, scale: float) -> dict[str, np.ndarray]:
    """By name of the tensor: s B A, of shape [rows, columns] as the tensor's data, f32."""
    kinds = field(adapter, Keys.General.TYPE), field(adapter, Keys.Adapter.TYPE)
    if kinds != ("adapter", "lora"):
        raise MergeError(f"{path}: not a LoRA adapter")
    alpha = field(adapter, Keys.Adapter.LORA_ALPHA)
    factors = {t.name: dequantize(t.data, t.tensor_type) for t in adapter.tensors}
    sums = {}
    for name, a in factors.items():
        if name.endswith(SUFFIX_B):
            continue
        base = name.removesuffix(SUFFIX_A)
        b = factors.get(base + SUFFIX_B)
        if base == name or b is None or b.ndim != 2 or a.ndim != 2 or b.shape[1] != a.shape[0]:
            raise MergeError(f"{path}: {name} is not one of two factors that fit")
        if base == "token_embd.weight":
            raise MergeError(f"{path}: changes {base}, which is looked up, not multiplied")
        rank = a.shape[0]
        # As llama.cpp has it: an alpha of zero, or none, stands for the rank.
        strength = scale * (float(alpha) / rank if alpha else 1.0)  # type: ignore[arg-type]
        sums[base] = np.float32(strength) * (b @ a)
    if not sums:
        raise MergeError(f"{path}: no factors in it")
    return sums


def copy_fields(model: GGUFReader, writer: GGUFWriter, changed: dict[str, object]) -> None:
    architecture = field(model, Keys.General.ARCHITECTURE)
    for name, value in model.fields.items():
        # The first the writer has written already; the others describe the file.
        if name == Keys.General.ARCHITECTURE or name.startswith("GGUF."):
            continue
        key = name.removeprefix(f"{architecture}.")
        writer.add_key_value(
            name,
            changed.pop(key, value.contents()),
            value.types[0],
            sub_type=value.types[1] if len(value.types) > 1 else None,
        )
    if changed:
        raise MergeError(f"the model has no {architecture}.{next(iter(changed))} to change")


def merge(args: argparse.Namespace) -> None:
    model, adapter = read(args.model), read(args.adapter)
    sums = low_rank_sums(args.adapter, adapter, args.scale)
    architecture = field(model, Keys.General.ARCHITECTURE)
    if architecture != field(adapter, Keys.General.ARCHITECTURE):
        raise MergeError(f"{args.adapter}: not made for a model of architecture {architecture}")

    temporary = args.output.with_name(args.output.name + ".new")
    writer = GGUFWriter(temporary, str(architecture))
    try:
        changed = {
            "rope.freq_base": args.rope_freq_base,
            "context_length": args.context_length,
        }
        copy_fields(model, writer, {k: v for k, v in changed.items() if v is not None})
        for tensor in tqdm(model.tensors, "Merging", unit=" tensors", disable=args.quiet):
            data, kind = tensor.data, tensor.tensor_type
            if (change := sums.pop(tensor.name, None)) is not None:
                weights = dequantize(data, kind)
                if weights.shape != change.shape:
                    shapes = f"{weights.shape} in the model, {change.shape} in the adapter"
                    raise MergeError(f"{tensor.name} is {shapes}")
                if args.type != "same":
                    kind = GGMLQuantizationType[args.type.upper()]
                data = quantize(weights + change, kind)
            writer.add_tensor(tensor.name, data, raw_dtype=kind)
        if sums:
            raise MergeError(f"{args.adapter}: the model has no tensor {next(iter(sums))}")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(temporary, args.output)
    except NotImplementedError as error:
        raise MergeError(f"no way to write that type: {error}; choose another --type") from error
    finally:
        temporary.unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="GGUF file of the model")
    parser.add_argument("adapter", type=Path, help="GGUF file of the LoRA adapter")
    parser.add_argument("output", type=Path, help="GGUF file to write")
    parser.add_argument("--type", choices=TYPES, default="same", help="of the changed tensors")
    parser.add_argument("--scale", type=float, default=1.0, help="strength of the adapter")
    parser.add_argument("--rope-freq-base", type=float, help="RoPE base to write into the model")
    parser.add_argument("--context-length", type=int, help="context length to write into the model")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args()
    try:
        merge(args)
    except (MergeError, OSError) as error:
        print(f"merge_lora: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
