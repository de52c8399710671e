"""lora.npz (A [r,in], B [out,r], scale 1) -> a GGUF adapter for llama.cpp.

    python3 export.py LORA.npz ADAPTER.gguf

llama.cpp computes W x + (alpha/rank) B (A x) with one alpha for all tensors, which have ranks of
their own here: so B is multiplied by rank/alpha.
"""

import sys

import numpy as np
from gguf import GGUFWriter

from model import NAMES, RANK, L

ALPHA = 12.0


def main(src, dst):
    z = np.load(src)
    w = GGUFWriter(dst, "llama")
    w.add_type("adapter")
    w.add_string("adapter.type", "lora")
    w.add_float32("adapter.lora.alpha", ALPHA)
    w.add_name("SmolLM2-135M-Instruct 32K long-context LoRA")
    w.add_description("Long-context LoRA; run with --rope-freq-base 1000000")
    mx = 0
    tot = 0
    for i in range(L):
        for n in NAMES:
            a = z[f"blk.{i}.{n}.a"].astype(np.float32)
            b = z[f"blk.{i}.{n}.b"].astype(np.float32) * RANK[n] / ALPHA
            mx = max(mx, abs(a).max(), abs(b).max())
            tot += a.size + b.size
            w.add_tensor(f"blk.{i}.{n}.weight.lora_a", a.astype(np.float16))
            w.add_tensor(f"blk.{i}.{n}.weight.lora_b", b.astype(np.float16))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    print("params", tot, "max abs", mx)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
