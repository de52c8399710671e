"""Dense attention in double precision, and what a selection is worth against it."""

from dataclasses import dataclass

import torch

from bench.cuda.data import Attention, chunks

CHUNK = 2**26  # elements of float64 scratch
OVERCLAIM = 0.05  # of mass: how far a claim may be missed
REACHED = 1e-3  # a target counts as reached this far below it, as in `tactic quality`


@dataclass(frozen=True)
class Exact:
    """Of one layer, float64."""

    lse: torch.Tensor  # [batch][q_heads]: log of the sum of exp(logit) over all tokens
    out: torch.Tensor  # [batch][q_heads][head_dim]


def dense(attention: Attention, layer: int) -> Exact:
    """All arithmetic in float64, from the bf16 keys, values and queries."""
    shape, tokens = attention.shape, attention.tokens
    units = attention.batch * shape.kv_heads
    keys = attention.keys[layer].view(units, tokens, shape.head_dim)
    values = attention.values[layer].view(units, tokens, shape.head_dim)
    q = attention.queries[layer].view(units, shape.group, shape.head_dim).double() * shape.scale
    most = torch.full((units, shape.group, 1), -torch.inf, dtype=torch.float64, device=q.device)
    total = torch.zeros_like(most)
    out = torch.zeros_like(q)
    for part in chunks(tokens, max(1, CHUNK // (units * shape.head_dim))):
        logits = q @ keys[:, part].double().transpose(1, 2)
        highest = torch.maximum(most, logits.amax(2, keepdim=True))
        before = torch.exp(most - highest)
        weights = logits.sub_(highest).exp_()
        total = total * before + weights.sum(2, keepdim=True)
        out = out * before + weights @ values[:, part].double()
        most = highest
    lse = (most + total.log()).view(attention.batch, shape.q_heads)
    return Exact(lse, (out / total).view(attention.batch, shape.q_heads, shape.head_dim))


def errors(out: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """|out - exact| / |exact| of each head: out and exact [...][head_dim]."""
    norm: torch.Tensor = (out.double() - exact).norm(dim=-1) / exact.norm(dim=-1)
    return norm


def quality(
    reports: dict[str, torch.Tensor], out: torch.Tensor, exact: Exact, target: float, mode: str
) -> dict[str, float]:
    """Over all cases, a case being a query head of a sequence in a layer: reports, exact.lse
    [layers][batch][q_heads], out [layers][batch][q_heads][head_dim]."""
    of_case = errors(out, exact.out)
    own = torch.exp(reports["own_lse"] - exact.lse)
    union = torch.exp(reports["union_lse"] - exact.lse)
    found = {
        "cases": float(own.numel()),
        "own_mass_mean": float(own.mean()),
        "own_mass_min": float(own.min()),
        "own_mass_max": float(own.max()),
        "target_reached_share": float((own >= target - REACHED).double().mean()),
        "union_mass_mean": float(union.mean()),
        "union_mass_min": float(union.min()),
        "union_reached_share": float((union >= target - REACHED).double().mean()),
        "own_rows_mean": float(reports["own_rows"].mean()),
        "union_rows_mean": float(reports["union_rows"].mean()),
        "output_error_mean": float(of_case.mean()),
        "output_error_max": float(of_case.max()),
    }
    if mode == "tactic":
        claimed, missed = reports["p_hat"] >= target, own < target - OVERCLAIM
        found["p_hat_mean"] = float(reports["p_hat"].mean())
        found["overclaims"] = float((claimed & missed).sum())
        found["extended_share"] = float((reports["rounds"] > 0).double().mean())
    return found
