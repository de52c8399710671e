"""Long-context LoRA training of SmolLM2-135M-Instruct on one GPU, sized by wall clock.

python3 train.py bench                       tokens/s of attention back ends and lengths
python3 train.py probe  DIR SECS LR...       short runs with several learning rates at 4-8K
python3 train.py train  DIR SECS LR [init]   the real run; keeps DIR/lora.npz, DIR/log.jsonl
"""

import contextlib
import json
import math
import multiprocessing as mp
import os
import random
import sys
import time

import numpy as np
import torch

from data import Data
from model import Model, V, fake_base, load_base

ROOT = os.environ.get("LC_ROOT", "longctx")
T = 65536  # tokens per optimiser step, whatever the sequence length
KLW = 0.5  # weight of the distillation loss on 2K rows
LAM = 0.25  # weight of the haystack/book LM loss next to the answer loss

P0 = float(os.environ.get("P0", "0"))  # a resumed run enters the length curriculum here
_D = None


def winit():
    global _D
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _D = Data(f"{ROOT}/tokenizer.json", f"{ROOT}/books_train.npz", f"{ROOT}/chat.jsonl")


def wbatch(a):
    seed, S = a
    return (S,) + _D.batch(seed, T // S, S)


def pick_S(p, r):
    """sequence length by progress p in [0,1]"""
    p = P0 + (1 - P0) * p
    if p < 0.05:
        c = {2048: 10, 4096: 30, 8192: 60}
    elif p < 0.12:
        c = {2048: 8, 4096: 8, 8192: 40, 16384: 44}
    elif p < 0.22:
        c = {2048: 10, 4096: 4, 8192: 14, 16384: 35, 32768: 37}
    elif p < 0.75:
        c = {2048: 10, 4096: 3, 8192: 9, 16384: 16, 32768: 52, 65536: 10}
    else:
        c = {2048: 14, 4096: 4, 8192: 10, 16384: 13, 32768: 41, 65536: 18}
    return r.choices(list(c), list(c.values()))[0]


def to_dev(b):
    S, ids, m = b
    ids = torch.from_numpy(ids.astype(np.int64)).pin_memory().cuda(non_blocking=True)
    m = torch.from_numpy(m).cuda(non_blocking=True)
    ans = (m == 2).float()
    lm = ((m == 1) & (torch.rand(m.shape, device="cuda") < 0.35)).float()
    ans[:, 0] = 0
    lm[:, 0] = 0
    return S, ids, ans, lm


def run(M, secs, lr, log, seed=0, save=None, pick=pick_S, pool=None, warm=0.03, floor=0.04):
    A, B = M.params()
    opt = torch.optim.AdamW(
        [dict(params=A, lr=lr), dict(params=B, lr=lr)],
        betas=(0.9, 0.95),
        weight_decay=0.0,
        fused=True,
    )
    r = random.Random(seed)
    t0 = time.time()
    pend = []
    step = 0
    last = t0
    recent = []
    toks = 0

    def ask():
        pend.append(
            pool.apply_async(
                wbatch,
                (
                    (
                        seed * 10**7 + step * 37 + len(pend) * 1009 + r.randrange(10**6),
                        pick(min(1, (time.time() - t0) / secs), r),
                    ),
                ),
            )
        )

    while len(pend) < 20:
        ask()
    while True:
        p = (time.time() - t0) / secs
        if p >= 1:
            break
        S, ids, ans, lm = to_dev(pend.pop(0).get())
        ask()
        f = min(1, (p + 1e-4) / warm) * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * p)))
        for g in opt.param_groups:
            g["lr"] = lr * f
        na, nl = ans.sum().clamp(min=1), lm.sum().clamp(min=1)
        if S == 2048:  # short rows: distil from the unadapted model (chat + books), no hard labels
            idx = (torch.rand(T, device="cuda") < 0.3).nonzero()[:, 0]
            l = KLW * M.kl_loss(ids, idx)
            ce = l.detach().expand(len(idx)) / KLW
            ans = torch.ones_like(ans)
        else:
            l, ce, idx = M.loss(ids, ans / na + LAM * lm / nl)
        opt.zero_grad(set_to_none=True)
        l.backward()
        gn = torch.nn.utils.clip_grad_norm_(A + B, 1.0)
        opt.step()
        with torch.no_grad():
            fa = (torch.cat([ans[:, 1:], torch.zeros_like(ans[:, :1])], 1)).reshape(-1)[idx] > 0
            recent.append(
                (
                    S,
                    (ce * fa).sum() / fa.sum().clamp(min=1),
                    (ce * ~fa).sum() / (~fa).sum().clamp(min=1),
                    gn,
                    fa.sum(),
                )
            )
        step += 1
        toks += T
        if step % 20 == 0:
            x = [(s, float(a), float(b), float(g), int(n)) for s, a, b, g, n in recent]
            recent = []
            by = {
                s: round(
                    float(
                        np.average(
                            [q[1] for q in x if q[0] == s],
                            weights=[q[4] + 1e-9 for q in x if q[0] == s],
                        )
                    ),
                    4,
                )
                for s in sorted({q[0] for q in x})
            }
            rec = dict(
                step=step,
                t=round(time.time() - t0, 1),
                lr=lr * f,
                ans=by,
                lm=round(float(np.mean([q[2] for q in x if q[2] > 0] or [0])), 4),
                gn=round(float(np.mean([q[3] for q in x])), 3),
                tps=round(toks / (time.time() - t0)),
            )
            log.write(json.dumps(rec) + "\n")
            log.flush()
            print(json.dumps(rec), flush=True)
        if save and time.time() - last > 45:
            last = time.time()
            np.savez(save + ".tmp.npz", **M.state())
            os.replace(save + ".tmp.npz", save)
    if save:
        np.savez(save + ".tmp.npz", **M.state())
        os.replace(save + ".tmp.npz", save)
    for q in pend:
        with contextlib.suppress(Exception):
            q.wait(20)
    return step


def bench():
    print(torch.__version__, torch.cuda.get_device_name())
    M = Model(fake_base(), compile=True)
    for at in ("flash", "cudnn"):
        M.attn_kind = at
        for S in (8192, 32768):
            try:
                for k in range(4):
                    if k == 2:
                        torch.cuda.synchronize()
                        t0 = time.time()
                    tc = time.time()
                    ids = torch.randint(0, V, (T // S, S), device="cuda")
                    w = (torch.rand(ids.shape, device="cuda") < 0.3).float()
                    l, ce, idx = M.loss(ids, w / w.sum())
                    l.backward()
                    torch.cuda.synchronize()
                    if k == 0:
                        print("first", round(time.time() - tc, 1), flush=True)
                dt = (time.time() - t0) / 2
                print(
                    at,
                    S,
                    f"{dt:.3f} s/step {T / dt:.0f} tok/s loss {float(l.detach()):.3f} mem {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB",
                    flush=True,
                )
            except Exception as e:
                print(at, S, "FAILED", repr(e)[:300], flush=True)
    # raw attention speed
    for at in ("flash", "cudnn"):
        M.attn_kind = at
        q, k, v = (
            torch.randn(2, 32768, 9, 64, device="cuda", dtype=torch.bfloat16)
            .transpose(1, 2)
            .requires_grad_()
            for _ in range(3)
        )
        try:
            for i in range(4):
                if i == 1:
                    torch.cuda.synchronize()
                    t0 = time.time()
                o = M.sdpa(q, k, v)
            torch.cuda.synchronize()
            tf = (time.time() - t0) / 3
            g = torch.randn_like(o)
            o.backward(g)
            o = M.sdpa(q, k, v)
            torch.cuda.synchronize()
            t0 = time.time()
            o.backward(g)
            torch.cuda.synchronize()
            tb = time.time() - t0
            fl = 4 * 32768**2 / 2 * 576 * 2
            print(
                at,
                f"fwd {tf * 1e3:.1f} ms {fl / tf / 1e12:.0f} TF/s, bwd {tb * 1e3:.1f} ms {2.5 * fl / tb / 1e12:.0f} TF/s",
                flush=True,
            )
        except Exception as e:
            print(at, "attn FAILED", repr(e)[:200])


if __name__ == "__main__":
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    mode = sys.argv[1]
    if mode == "bench":
        bench()
        sys.exit()
    d, secs = sys.argv[2], float(sys.argv[3])
    os.makedirs(d, exist_ok=True)
    pool = mp.get_context("fork").Pool(13, winit)  # before CUDA starts
    base = fake_base() if os.environ.get("FAKE") else load_base(ROOT)
    at = os.environ.get("ATTN", "flash")
    if mode == "probe":
        from evals import quick

        for lr in map(float, sys.argv[4:]):
            M = Model(base, compile=True, attn=at)
            b = to_dev(pool.apply(wbatch, ((1, 8192),)))
            M.loss(b[1], b[2])[0].backward()  # compile outside the clock
            for x in sum(M.params(), []):
                x.grad = None
            with open(f"{d}/probe_{lr}.jsonl", "w") as log:
                n = run(
                    M, secs, lr, log, 1, pick=lambda p, r: r.choice([4096, 8192, 8192]), pool=pool
                )
            print("PROBE", lr, "steps", n, "eval", quick(M, ROOT), flush=True)
    else:
        lr = float(sys.argv[4])
        M = Model(base, compile=True, attn=at)
        if len(sys.argv) > 5:
            M.load(np.load(sys.argv[5]))
        t0 = time.time()
        seed = int(os.environ.get("SEED", "11"))
        with open(f"{d}/log.jsonl", "a") as log:
            run(M, secs, lr, log, seed, save=f"{d}/lora.npz", pool=pool)
        print("TRAINED", time.time() - t0, flush=True)
    pool.terminate()
