"""How fast this GPU reads memory when it does nothing else, in order and rows at random: what bytes
are divided by."""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False, disallow-untyped-calls=False
# Triton reads the annotations of a kernel: types for mypy have no place there.

import torch
import triton
import triton.language as tl

from bench.cuda.timing import event_times

WORDS = 2**30  # of 4 bytes: far more than a cache holds
REPEATS = 12
# Words that a program reads at once, how often, and its warps.
LOOPS = ((1024, 8, 4), (2048, 8, 4), (4096, 4, 8), (4096, 8, 8), (8192, 4, 8))
# Rows that are read at random, as many as a step of eight long sequences reads; rows that a program
# reads at once, and its warps.
ROWS = 2**20
ROW_LOOPS = ((16, 1), (16, 2), (32, 2), (32, 4), (64, 4))


@triton.jit
def _read(words, out, BLOCK: tl.constexpr, ROUNDS: tl.constexpr):  # noqa: N803
    """Program p reads ROUNDS blocks, the p-th of every gridDim blocks."""
    place = tl.program_id(0).to(tl.int64) * ROUNDS * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.int32)
    for i in tl.static_range(ROUNDS):
        total ^= tl.load(words + place + i * BLOCK)
    tl.store(out + tl.program_id(0), tl.sum(total, 0))


@triton.jit
def _read_rows(words, rows, out, ROW: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    """Program p reads the p-th BLOCK of the rows that are named, of ROW words each."""
    which = tl.load(rows + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    found = tl.load(words + which[:, None] * ROW + tl.arange(0, ROW)[None, :])
    tl.store(out + tl.program_id(0), tl.sum(tl.sum(found, 1), 0))


def _time(name: str, read: int, run, speeds: dict[str, float]) -> None:
    """Bytes per second of run(), which reads `read` bytes: the median, to speeds[name]."""
    try:
        run()
        times = sorted(event_times(run, REPEATS))
        speeds[name] = read / (times[len(times) // 2] * 1e-6)
    except Exception as error:  # one that does not run leaves the others
        print(f"stream {name}: {error!r}"[:300], flush=True)


def _rows_at_random(words: torch.Tensor, row_bytes: int) -> float | None:
    """Bytes per second of the fastest loop over rows of that size, none of them twice."""
    row = row_bytes // 4
    rows = torch.randperm(WORDS // row, device="cuda")[:ROWS].to(torch.int32)
    speeds: dict[str, float] = {}
    for block, warps in ROW_LOOPS:
        out = torch.empty(ROWS // block, dtype=torch.int32, device="cuda")

        def run(block=block, warps=warps, out=out) -> None:
            _read_rows[(ROWS // block,)](words, rows, out, ROW=row, BLOCK=block, num_warps=warps)

        name = f"{block} rows of {row_bytes} bytes, warps {warps}"
        _time(name, ROWS * row_bytes, run, speeds)
    return max(speeds.values(), default=None)


def peak_bandwidth() -> dict[str, object]:
    """Bytes per second of the fastest of several read-only loops over 4 GiB (median of each), of
    all of them by name, and of rows at random by their bytes (those of keys in 16 bits)."""
    words = torch.randint(-(2**31), 2**31, (WORDS,), dtype=torch.int32, device="cuda")
    speeds: dict[str, float] = {}

    for block, rounds, warps in LOOPS:
        programs = WORDS // (block * rounds)
        out = torch.empty(programs, dtype=torch.int32, device="cuda")

        def run(block=block, rounds=rounds, warps=warps, programs=programs, out=out) -> None:
            _read[(programs,)](words, out, BLOCK=block, ROUNDS=rounds, num_warps=warps)

        _time(f"triton {block}x{rounds} warps {warps}", WORDS * 4, run, speeds)
    floats = words.view(torch.float32)
    _time("torch amax", WORDS * 4, lambda: torch.amax(floats), speeds)
    _time("torch sum int64", WORDS * 4, lambda: torch.sum(words.view(torch.int64)), speeds)
    if not speeds:
        raise RuntimeError("no read-only loop ran")
    best = max(speeds, key=lambda name: speeds[name])
    at_random = {str(size): _rows_at_random(words, size) for size in (128, 256)}
    return {
        "bytes_per_second": speeds[best],
        "loop": best,
        "loops": speeds,
        "rows_at_random": at_random,
    }
