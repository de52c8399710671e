"""Evaluation on held-out books and fresh needles.

    python3 evals.py LORA.npz OUT.jsonl ITEMS GREEDY_ITEMS SECONDS

value accuracy  every token of the value is the argmax under teacher forcing (the answer's wording is
                given, as with RULER's answer prefix)
full accuracy   every token of the answer, with <|im_end|>, is the argmax: greedy decoding would
                reproduce the reference answer exactly
greedy          the value occurs in the answer that was really decoded
"""

import json
import os
import sys
import time

import numpy as np
import torch

from data import EVAL_KINDS, Data
from model import Model, load_base

NQ = {"single": 1, "vt": 2, "vt_value": 2, "multivalue": 4, "multiquery": 4}


@torch.no_grad()
def prefix(M, ids):
    kv = []
    M.hidden(torch.tensor([ids], device=M.dev), kv=kv, fast=False)
    return kv


@torch.no_grad()
def tf_item(M, pre, qs, kv):
    P = len(pre)
    mx = max(len(x["qi"]) + len(x["ai"]) for x in qs)
    ids = torch.full((len(qs), mx), 2, dtype=torch.long)
    for j, x in enumerate(qs):
        ids[j, : len(x["qi"]) + len(x["ai"])] = torch.tensor(x["qi"] + x["ai"])
    h, _ = M.suffix(ids.to(M.dev), P, kv, [])
    am = (h @ M.E.t()).argmax(-1).cpu()
    out = []
    for x, row in zip(qs, am, strict=True):
        n = len(x["qi"])
        ok = [int(row[n + i - 1]) == t for i, t in enumerate(x["ai"])]
        out.append(
            (all(ok[i] for i in x["span"]), all(ok), float(np.mean([ok[i] for i in x["span"]])))
        )
    return out


@torch.no_grad()
def greedy(M, pre, qs, kv, mx=110):
    P = len(pre)
    res = []
    for x in qs:
        kvs = []
        cur = torch.tensor([x["qi"]], device=M.dev)
        out = []
        for _ in range(min(mx, len(x["ai"]) + 6)):
            h, kvs = M.suffix(cur, P, kv, kvs)
            t = int((h[0, -1] @ M.E.t()).argmax())
            if t == 2:
                break
            out.append(t)
            cur = torch.tensor([[t]], device=M.dev)
        res.append(out)
    return res


def quick(M, root):
    D = Data(f"{root}/tokenizer.json", f"{root}/books_held.npz")
    r = {}
    for S in (8192, 16384):
        for k in ("facts", "facts_ood", "multikey", "lines", "json"):
            a = []
            for s in range(5):
                pre, qs = D.eval_item(5000 + s, k, S, 6)
                a += tf_item(M, pre, qs, prefix(M, pre))
            r[f"{k}@{S}"] = round(float(np.mean([x[0] for x in a])), 2)
    return r


@torch.no_grad()
def ppl(M, D, S, nseq, buckets):
    starts = np.linspace(0, len(D.books) - S - 1, nseq).astype(int)
    tot = {b: [0.0, 0] for b in buckets}
    for s in starts:
        ids = torch.from_numpy(D.books[s : s + S].astype(np.int64))[None].to(M.dev)
        h = M.hidden(ids, fast=False)
        for i in range(0, S - 1, 8192):
            z = (h[i : min(i + 8192, S - 1)] @ M.E.t()).float()
            ce = torch.nn.functional.cross_entropy(
                z, ids[0, i + 1 : i + 1 + len(z)], reduction="none"
            )
            for b in buckets:
                lo, hi = max(b[0] - i, 0), min(b[1] - i, len(ce))
                if hi > lo:
                    tot[b][0] += float(ce[lo:hi].sum())
                    tot[b][1] += hi - lo
    return {
        f"{b[0] // 1024}-{b[1] // 1024}K": round(float(np.exp(t / max(n, 1))), 3)
        for b, (t, n) in tot.items()
    }


def evaluate(M, D, kinds, lens, items, tag, out, greedy_items=0, tlimit=1e9):
    t0 = time.time()
    samples = []
    for S in lens:
        for k in kinds:
            nq = NQ.get(k, 6)
            a = []
            g = []
            for s in range(items if k != "single" else items * 2):
                if time.time() - t0 > tlimit:
                    break
                pre, qs = D.eval_item(90000 + s * 7 + S, k, S, nq)
                kv = prefix(M, pre)
                a += tf_item(M, pre, qs, kv)
                if S in (8192, 16384, 32768) and s < greedy_items * (3 if k == "single" else 1):
                    for x, o in zip(qs[:3], greedy(M, pre, qs[:3], kv), strict=True):
                        o = D.decode(o)
                        g.append(x["value"] in o)
                        if len(samples) < 4000:
                            samples.append(
                                dict(task=k, S=S, q=x["q"], ref=x["ans"], out=o, ok=bool(g[-1]))
                            )
            if a:
                rec = dict(
                    model=tag,
                    task=k,
                    S=S,
                    n=len(a),
                    value=round(float(np.mean([x[0] for x in a])), 3),
                    full=round(float(np.mean([x[1] for x in a])), 3),
                    tok=round(float(np.mean([x[2] for x in a])), 3),
                    greedy=round(float(np.mean(g)), 3) if g else None,
                    ng=len(g),
                )
                out.write(json.dumps(rec) + "\n")
                out.flush()
        print(tag, S, round(time.time() - t0, 1), "s", flush=True)
    return samples


def table(path):
    with open(path) as f:
        R = [json.loads(line) for line in f]
    R = [r for r in R if "task" in r]
    for tag in dict.fromkeys(r["model"] for r in R):
        Q = [r for r in R if r["model"] == tag]
        Ss = sorted({r["S"] for r in Q})
        print("##", tag, " value-acc% / exact-answer% / greedy%")
        print("task", *[f"{s // 1024}K" for s in Ss], sep="\t")
        for k in dict.fromkeys(r["task"] for r in Q):
            print(
                k,
                *[
                    "/".join(
                        "-" if r[m] is None else f"{100 * r[m]:.0f}"
                        for m in ("value", "full", "greedy")
                    )
                    for s in Ss
                    for r in Q
                    if r["task"] == k and r["S"] == s
                ],
                sep="\t",
            )


def perplexities(M, D, tag, out):
    whole = (0, 32768)
    r = dict(
        model=tag,
        ppl8=ppl(M, D, 8192, 12, [(0, 2048), (2048, 8192), (0, 8192)]),
        ppl32=ppl(M, D, 32768, 8, [(0, 8192), (8192, 16384), (16384, 32768), whole]),
    )
    out.write(json.dumps(r) + "\n")
    out.flush()
    print(r, flush=True)


def main(lora, path, items, greedy_items, limit):
    root = os.environ.get("LC_ROOT", "longctx")
    D = Data(f"{root}/tokenizer.json", f"{root}/books_held.npz")
    M = Model(load_base(root), attn=os.environ.get("ATTN", "flash"))
    M.load(np.load(lora))
    t0 = time.time()
    lens = [4096, 8192, 16384, 32768, 49152]
    with open(path, "w") as out:
        tag = "adapted(theta 1e6)"
        samples = evaluate(M, D, EVAL_KINDS, lens, items, tag, out, greedy_items, limit * 0.7)
        with open(path + ".samples.json", "w") as f:
            json.dump(samples, f, indent=0)
        perplexities(M, D, "adapted", out)
        M.lora = False
        perplexities(M, D, "base theta 1e6", out)
        M.set_theta(1e5)
        perplexities(M, D, "base theta 1e5", out)
        left = limit - (time.time() - t0)
        if left > 0:
            few = max(2, items // 2)
            evaluate(M, D, EVAL_KINDS, lens[:3], few, "base(theta 1e5)", out, 0, left)
    table(path)
    print("eval", time.time() - t0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
