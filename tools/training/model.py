"""SmolLM2-135M (llama arch) in plain PyTorch, straight on the GGUF weights: RoPE in llama.cpp's
interleaved ("norm") form, so q/k rows stay in GGUF order and the LoRA matrices export 1:1.
"""

import json
import math
import os

import numpy as np
import torch
import torch.nn.functional as F

L, D, NH, NKV, HD, FF, V, EPS = 30, 576, 9, 3, 64, 1536, 49152, 1e-5
NAMES = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
SHAPE = {
    "attn_q": (D, D),
    "attn_k": (NKV * HD, D),
    "attn_v": (NKV * HD, D),
    "attn_output": (D, D),
    "ffn_gate": (FF, D),
    "ffn_up": (FF, D),
    "ffn_down": (D, FF),
}  # [out,in]
RANK = {
    "attn_q": 64,
    "attn_k": 48,
    "attn_v": 32,
    "attn_output": 32,
    "ffn_gate": 12,
    "ffn_up": 12,
    "ffn_down": 12,
}


def dequant(raw, typ, shape):
    """raw uint8 -> float32 [out,in]"""
    if typ == "F32":
        return np.frombuffer(raw, np.float32).reshape(shape).copy()
    if typ == "Q8_0":
        b = np.frombuffer(raw, np.uint8).reshape(-1, 34)
        d = b[:, :2].copy().view(np.float16).astype(np.float32)
        return (b[:, 2:].view(np.int8).astype(np.float32) * d).reshape(shape)
    if typ == "Q4_1":
        b = np.frombuffer(raw, np.uint8).reshape(-1, 20)
        d = b[:, 0:2].copy().view(np.float16).astype(np.float32)
        m = b[:, 2:4].copy().view(np.float16).astype(np.float32)
        q = np.concatenate([b[:, 4:] & 15, b[:, 4:] >> 4], 1).astype(np.float32)
        return (q * d + m).reshape(shape)
    raise ValueError(typ)


def load_base(folder):
    with open(os.path.join(folder, "base_index.json")) as f:
        idx = json.load(f)
    with open(os.path.join(folder, "base.bin"), "rb") as f:
        raw = f.read()
    return {n: torch.from_numpy(dequant(raw[o : o + z], t, s)) for n, t, s, o, z in idx}


def fake_base():
    w = {"token_embd.weight": torch.randn(V, D) * 0.05, "output_norm.weight": torch.ones(D)}
    for i in range(L):
        for n in NAMES:
            w[f"blk.{i}.{n}.weight"] = torch.randn(*SHAPE[n]) * 0.04
        for n in ("attn_norm", "ffn_norm"):
            w[f"blk.{i}.{n}.weight"] = torch.ones(D)
    return w


def rope_table(S, theta, dev):
    f = theta ** (-torch.arange(0, HD, 2, dtype=torch.float64, device=dev) / HD)
    a = torch.arange(S, dtype=torch.float64, device=dev)[:, None] * f[None]
    return a.cos().float(), a.sin().float()


def rms(x, w):
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + EPS) * w


def rot(x, c, s):
    """x [T,H,64], c/s [T,32]: pairs (2i,2i+1)"""
    x = x.float().view(x.shape[0], x.shape[1], HD // 2, 2)
    a, b = x[..., 0], x[..., 1]
    c, s = c[:, None], s[:, None]
    return torch.stack((a * c - b * s, a * s + b * c), -1).flatten(-2)


def lin(x, w, a, b):
    y = F.linear(x, w)
    return y if a is None else y + F.linear(F.linear(x, a.to(x.dtype)), b.to(x.dtype))


def pre_fn(h, n1, wq, wk, wv, aq, bq, ak, bk, av, bv, c, s, expand: bool):
    x = rms(h, n1).to(wq.dtype)
    q = rot(lin(x, wq, aq, bq).view(-1, NH, HD), c, s).to(wq.dtype)
    k = rot(lin(x, wk, ak, bk).view(-1, NKV, HD), c, s).to(wq.dtype)
    v = lin(x, wv, av, bv).view(-1, NKV, HD)
    if expand:
        k = k.repeat_interleave(NH // NKV, 1)
        v = v.repeat_interleave(NH // NKV, 1)
    return q, k, v


def post_fn(h, o, n2, wo, wg, wu, wd, ao, bo, ag, bg, au, bu, ad, bd):
    h = h + lin(o, wo, ao, bo).float()
    x = rms(h, n2).to(wg.dtype)
    y = F.silu(lin(x, wg, ag, bg)) * lin(x, wu, au, bu)
    return h + lin(y, wd, ad, bd).float()


class ChunkedCE(torch.autograd.Function):
    """sum_i w_i * CE_i over selected positions without materialising all logits; also returns per-token CE"""

    @staticmethod
    def forward(ctx, h, E, tgt, w, chunk):
        dh = torch.empty_like(h)
        ce = torch.empty(h.shape[0], device=h.device)
        for i in range(0, h.shape[0], chunk):
            x = h[i : i + chunk]
            z = (x @ E.t()).float()
            lse = z.logsumexp(-1)
            t = tgt[i : i + chunk]
            ce[i : i + chunk] = lse - z.gather(1, t[:, None])[:, 0]
            z.sub_(lse[:, None]).exp_()
            z[torch.arange(len(t), device=t.device), t] -= 1
            z.mul_(w[i : i + chunk, None])
            dh[i : i + chunk] = z.to(E.dtype) @ E
        ctx.save_for_backward(dh)
        ctx.mark_non_differentiable(ce)
        return (ce * w).sum(), ce

    @staticmethod
    def backward(ctx, g, _):
        return ctx.saved_tensors[0] * g, None, None, None, None


class ChunkedKL(torch.autograd.Function):
    """mean soft-target cross-entropy against a teacher's hidden states (same tied head): keeps the short-context behaviour"""

    @staticmethod
    def forward(ctx, h, ht, E, chunk):
        dh = torch.empty_like(h)
        kl = torch.zeros((), device=h.device)
        n = h.shape[0]
        for i in range(0, n, chunk):
            z = (h[i : i + chunk] @ E.t()).float().log_softmax(-1)
            t = (ht[i : i + chunk] @ E.t()).float().log_softmax(-1)
            p = t.exp()
            kl += (p * (t - z)).sum() / n
            dh[i : i + chunk] = ((z.exp() - p) / n).to(E.dtype) @ E
        ctx.save_for_backward(dh)
        return kl

    @staticmethod
    def backward(ctx, g):
        return ctx.saved_tensors[0] * g, None, None, None


class Model:
    def __init__(
        self, w, dev="cuda", dt=torch.bfloat16, theta=1e6, compile=False, seed=0, attn="flash"
    ):
        self.dev, self.dt, self.attn_kind = dev, dt, attn
        self.E = w["token_embd.weight"].to(dev, dt)
        self.on = w["output_norm.weight"].to(dev).float()
        self.W = [
            {n: w[f"blk.{i}.{n}.weight"].to(dev, dt) for n in NAMES}
            | {n: w[f"blk.{i}.{n}.weight"].to(dev).float() for n in ("attn_norm", "ffn_norm")}
            for i in range(L)
        ]
        g = torch.Generator().manual_seed(seed)
        self.A, self.B = [], []
        for _ in range(L):
            a, b = {}, {}
            for n in NAMES:
                o, k = SHAPE[n]
                r = RANK[n]
                bd = 1 / math.sqrt(k)
                a[n] = ((torch.rand(r, k, generator=g) * 2 - 1) * bd).to(dev).requires_grad_()
                b[n] = torch.zeros(o, r, device=dev).requires_grad_()
            self.A.append(a)
            self.B.append(b)
        self.lora = True
        self.set_theta(theta)
        self.pre, self.post = (
            (torch.compile(pre_fn, dynamic=False), torch.compile(post_fn, dynamic=False))
            if compile
            else (pre_fn, post_fn)
        )

    def set_theta(self, theta, S=65536):
        self.theta = theta
        self.cos, self.sin = rope_table(S if self.dev != "cpu" else 4096, theta, self.dev)

    def params(self):
        return [x[n] for x in self.A for n in NAMES], [x[n] for x in self.B for n in NAMES]

    def ab(self, i, n):
        return (self.A[i][n], self.B[i][n]) if self.lora else (None, None)

    def state(self):
        return {
            f"blk.{i}.{n}.{k}": (self.A if k == "a" else self.B)[i][n].detach().cpu().half().numpy()
            for i in range(L)
            for n in NAMES
            for k in "ab"
        }

    def load(self, st):
        for i in range(L):
            for n in NAMES:
                self.A[i][n].data.copy_(torch.from_numpy(st[f"blk.{i}.{n}.a"]).float())
                self.B[i][n].data.copy_(torch.from_numpy(st[f"blk.{i}.{n}.b"]).float())

    def sdpa(self, q, k, v):
        if self.dev == "cpu":
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        from torch.nn.attention import SDPBackend, sdpa_kernel

        be = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}[
            self.attn_kind
        ]
        with sdpa_kernel(be):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def hidden(self, ids, kv=None, fast=True):
        """ids [B,S] -> final normed hidden [B*S, D] in compute dtype; kv: list that receives (k,v) [B,S,3,64] per layer"""
        Bn, S = ids.shape
        pre, post = (self.pre, self.post) if fast else (pre_fn, post_fn)
        h = F.embedding(ids.reshape(-1), self.E).float()
        c = self.cos[:S].repeat(Bn, 1)
        s = self.sin[:S].repeat(Bn, 1)
        for i in range(L):
            W = self.W[i]
            q, k, v = pre(
                h,
                W["attn_norm"],
                W["attn_q"],
                W["attn_k"],
                W["attn_v"],
                *self.ab(i, "attn_q"),
                *self.ab(i, "attn_k"),
                *self.ab(i, "attn_v"),
                c,
                s,
                kv is None,
            )
            if kv is not None:
                kv.append((k.view(Bn, S, NKV, HD), v.view(Bn, S, NKV, HD)))
                k = k.repeat_interleave(NH // NKV, 1)
                v = v.repeat_interleave(NH // NKV, 1)
            o = (
                self.sdpa(*(x.view(Bn, S, NH, HD).transpose(1, 2) for x in (q, k, v)))
                .transpose(1, 2)
                .reshape(Bn * S, D)
            )
            h = post(
                h,
                o,
                W["ffn_norm"],
                W["attn_output"],
                W["ffn_gate"],
                W["ffn_up"],
                W["ffn_down"],
                *self.ab(i, "attn_output"),
                *self.ab(i, "ffn_gate"),
                *self.ab(i, "ffn_up"),
                *self.ab(i, "ffn_down"),
            )
        return rms(h, self.on).to(self.dt)

    def loss(self, ids, wt, chunk=8192):
        """ids [B,S], wt [B,S] weight of predicting token t (float); returns summed weighted CE, per-token CE, their index"""
        h = self.hidden(ids)
        w = wt[:, 1:]
        Bn, S = ids.shape
        full = torch.zeros(Bn, S, device=self.dev)
        full[:, :-1] = w
        tgt = torch.zeros_like(ids)
        tgt[:, :-1] = ids[:, 1:]
        idx = full.reshape(-1).nonzero()[:, 0]
        l, ce = ChunkedCE.apply(h[idx], self.E, tgt.reshape(-1)[idx], full.reshape(-1)[idx], chunk)
        return l, ce, idx

    def kl_loss(self, ids, idx, teacher_theta=1e5, chunk=8192):
        """KL(base at its native theta || adapted) at the flat positions idx; ids [B,S] with S inside the native context"""
        if not hasattr(self, "tcs"):
            self.tcs = rope_table(8192, teacher_theta, self.dev)
        keep = self.cos, self.sin
        with torch.no_grad():
            self.lora = False
            self.cos, self.sin = self.tcs
            try:
                ht = self.hidden(ids, fast=False)[idx]
            finally:
                self.lora = True
                self.cos, self.sin = keep
        return ChunkedKL.apply(self.hidden(ids)[idx], ht, self.E, chunk)

    @torch.no_grad()
    def suffix(self, ids, P, kvp, kvs):
        """ids [B,T] continue after a shared prefix of P tokens (kvp) and own earlier suffix (kvs: list of (k,v) or empty, extended). logits hidden [B,T,D]"""
        Bn, T = ids.shape
        t0 = kvs[0][0].shape[1] if kvs else 0
        new = []
        h = F.embedding(ids.reshape(-1), self.E).float()
        pos = torch.arange(P + t0, P + t0 + T, device=self.dev)
        c = self.cos[pos].repeat(Bn, 1)
        s = self.sin[pos].repeat(Bn, 1)
        mask = (
            torch.arange(t0 + T, device=self.dev)[None, :]
            > (torch.arange(T, device=self.dev) + t0)[:, None]
        )
        for i in range(L):
            W = self.W[i]
            q, k, v = pre_fn(
                h,
                W["attn_norm"],
                W["attn_q"],
                W["attn_k"],
                W["attn_v"],
                *self.ab(i, "attn_q"),
                *self.ab(i, "attn_k"),
                *self.ab(i, "attn_v"),
                c,
                s,
                False,
            )
            k, v = k.view(Bn, T, NKV, HD), v.view(Bn, T, NKV, HD)
            if kvs:
                k = torch.cat([kvs[i][0], k], 1)
                v = torch.cat([kvs[i][1], v], 1)
            new.append((k, v))
            q = q.view(Bn, T, NKV, NH // NKV, HD)
            kp, vp = kvp[i][0][0], kvp[i][1][0]
            sp = torch.einsum("btgrd,pgd->bgrtp", q, kp).float()
            ss = torch.einsum("btgrd,bsgd->bgrts", q, k).float().masked_fill(mask, -1e30)
            p = torch.softmax(torch.cat([sp, ss], -1) / 8, -1).to(self.dt)
            del sp, ss
            o = torch.einsum("bgrtp,pgd->btgrd", p[..., : kp.shape[0]], vp) + torch.einsum(
                "bgrts,bsgd->btgrd", p[..., kp.shape[0] :], v
            )
            h = post_fn(
                h,
                o.reshape(Bn * T, D),
                W["ffn_norm"],
                W["attn_output"],
                W["ffn_gate"],
                W["ffn_up"],
                W["ffn_down"],
                *self.ab(i, "attn_output"),
                *self.ab(i, "ffn_gate"),
                *self.ab(i, "ffn_up"),
                *self.ab(i, "ffn_down"),
            )
        return rms(h, self.on).to(self.dt).view(Bn, T, D), new
