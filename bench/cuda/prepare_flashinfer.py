"""Compiles what bench/cuda/rivals.py uses of FlashInfer: python3 -m bench.cuda.prepare_flashinfer

FlashInfer compiles its kernels where they are first used. This does it ahead, all files at once,
for attention over bf16 pages with tensor cores (batch decode uses the kernels of prefill). It needs
nvcc and ninja, and no GPU. With --wheel FOLDER the result becomes flashinfer_jit_cache, the package
in which FlashInfer looks for compiled kernels before it compiles, so that other machines need not.

Where there is no driver, or CUDA's libraries are not in $CUDA_HOME/lib64, the linker is told so by
FLASHINFER_EXTRA_LDFLAGS="-L..."; of libcuda.so a stub is enough.
"""

import argparse
import base64
import hashlib
import os
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

# Before FlashInfer is imported, which reads them then. Hopper; no extension of tvm_ffi's.
os.environ.setdefault("FLASHINFER_CUDA_ARCH_LIST", "9.0a")
os.environ.setdefault("TVM_FFI_DISABLE_TORCH_C_DLPACK", "1")

CACHE_PACKAGE = '''"""Kernels of FlashInfer that bench/cuda/prepare_flashinfer.py compiled."""

import pathlib

__version__ = "{version}"


def get_jit_cache_dir() -> str:
    return str(pathlib.Path(__file__).parent / "jit_cache")
'''


def modules(head_dims: list[int], backends: list[str]) -> list[Any]:
    """What BatchDecodeWithPagedKVCacheWrapper.plan asks for."""
    import torch
    from flashinfer.jit import gen_batch_prefill_module

    bf16 = torch.bfloat16
    return [
        gen_batch_prefill_module(
            *(backend, bf16, bf16, bf16, torch.int32, head_dim, head_dim),
            pos_encoding_mode=0,
            use_sliding_window=False,
            use_logits_soft_cap=False,
            use_fp16_qk_reduction=False,
        )
        for backend in backends
        for head_dim in head_dims
    ]


def write_wheel(folder: Path, specs: list[Any]) -> Path:
    import flashinfer

    name, version = "flashinfer_jit_cache", str(flashinfer.__version__)
    info = f"{name}-{version}.dist-info"
    files: dict[str, bytes] = {
        f"{name}/__init__.py": CACHE_PACKAGE.format(version=version).encode()
    }
    for spec in specs:
        library = Path(spec.jit_library_path)
        files[f"{name}/jit_cache/{spec.name}/{library.name}"] = library.read_bytes()
    files[f"{info}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
    )
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: tactic\nRoot-Is-Purelib: false\n"
        b"Tag: py3-none-linux_x86_64\n"
    )
    lines = []
    for path, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(content)}")
    files[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,", ""]).encode()
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}-{version}-py3-none-linux_x86_64.whl"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path, content in files.items():
            wheel.writestr(path, content)
    return target


def main() -> int:
    about, _, more = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--head-dims", default="128,64")
    parser.add_argument("--backends", default="fa2", help="fa2,fa3")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilers at a time")
    parser.add_argument("--wheel", type=Path, metavar="FOLDER", help="write the package there")
    args = parser.parse_args()
    os.environ["MAX_JOBS"] = str(args.jobs)
    began = time.monotonic()
    try:
        from flashinfer.jit import build_jit_specs
    except ImportError as error:
        print(f"prepare_flashinfer: {error}", file=sys.stderr)
        return 1
    specs = modules([int(dim) for dim in args.head_dims.split(",")], args.backends.split(","))
    print(f"flashinfer imported in {time.monotonic() - began:.1f} s", flush=True)
    there = [spec for spec in specs if spec.is_aot]
    began = time.monotonic()
    # One call for all, so that the compilers of one module need not wait for another's.
    build_jit_specs([spec for spec in specs if not spec.is_aot], verbose=False)
    print(
        f"flashinfer: {len(specs)} modules, {len(there)} of them compiled before,"
        f" in {time.monotonic() - began:.1f} s",
        flush=True,
    )
    if args.wheel is not None:
        print(write_wheel(args.wheel, specs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
