"""How fast this GPU reads memory when it does nothing else: what bytes are divided by."""
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


@triton.jit
def _read(words, out, BLOCK: tl.constexpr, ROUNDS: tl.constexpr):  # noqa: N803
    """Program p reads ROUNDS blocks, the p-th of every gridDim blocks."""
    place = tl.program_id(0).to(tl.int64) * ROUNDS * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.int32)
    for i in tl.static_range(ROUNDS):
        total ^= tl.load(words + place + i * BLOCK)
    tl.store(out + tl.program_id(0), tl.sum(total, 0))


def peak_bandwidth() -> dict[str, object]:
    """Bytes per second of the fastest of several read-only loops over 4 GiB (median of each), and
    of all of them by name."""
    words = torch.randint(-(2**31), 2**31, (WORDS,), dtype=torch.int32, device="cuda")
    speeds: dict[str, float] = {}

    def time(name: str, run) -> None:
        try:
            run()
            times = sorted(event_times(run, REPEATS))
            speeds[name] = WORDS * 4 / (times[len(times) // 2] * 1e-6)
        except Exception as error:  # one that does not run leaves the others
            print(f"stream {name}: {error!r}"[:300], flush=True)

    for block, rounds, warps in LOOPS:
        programs = WORDS // (block * rounds)
        out = torch.empty(programs, dtype=torch.int32, device="cuda")

        def run(block=block, rounds=rounds, warps=warps, programs=programs, out=out) -> None:
            _read[(programs,)](words, out, BLOCK=block, ROUNDS=rounds, num_warps=warps)

        time(f"triton {block}x{rounds} warps {warps}", run)
    floats = words.view(torch.float32)
    time("torch amax", lambda: torch.amax(floats))
    time("torch sum int64", lambda: torch.sum(words.view(torch.int64)))
    if not speeds:
        raise RuntimeError("no read-only loop ran")
    best = max(speeds, key=lambda name: speeds[name])
    return {"bytes_per_second": speeds[best], "loop": best, "loops": speeds}
