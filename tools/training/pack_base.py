"""The raw quantised tensors of the base model's GGUF -> base.bin + base_index.json."""

import json
import os

import numpy as np
from gguf import GGUFReader

r = GGUFReader(os.environ.get("BASE_GGUF", "SmolLM2-135M-Instruct.Q4_1.gguf"))
o = 0
idx = []
with open("base.bin", "wb") as f:
    for t in r.tensors:
        b = np.ascontiguousarray(t.data).tobytes()
        f.write(b)
        idx.append((t.name, t.tensor_type.name, [int(x) for x in t.shape][::-1], o, len(b)))
        o += len(b)
with open("base_index.json", "w") as f:
    json.dump(idx, f)
