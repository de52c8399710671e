"""Keys, values and queries of a layer's decode step, made on the GPU, or those of a real trace.

The synthetic ones are bench/layer's model of attention to a long text (bench/synthetic/text.h), for
up to a million tokens and any batch in seconds:

passages   A text is a row of passages of 32 to 256 tokens, each on a new topic (one in two) or on
           one that was there before. All heads and layers of a sequence read the same text.
keys       A KV head has a direction for every topic; a key is its topic's direction and isotropic
           noise 0.6 times as long, which makes the logits of neighbours agree as in real traces
           (0.74 to 0.76).
queries    The query heads of a KV head look for the same six topics, each with weights of its own,
           and more or less for all others.
the rest   The first token (a sink), the newest 64 with falling strength (a window) and four single
           tokens of a KV head have directions of their own, and a query is given as much of each as
           holds a share of its mass drawn from [0, 0.4], [0, 0.4] and [0, 0.04] (the last is half
           of what text.h has: the largest of them then has 4 to 7 %, 3 % in SmolLM2).
sharpness  Found for every query head by bisection: the fewest of the topics' tokens that, with the
           rest, hold 90 % of its mass are as many as were drawn for it, log-normal with a standard
           deviation of the logarithm of 1.5 over KV heads and 0.7 over the heads of one (1.66 in
           all; SmolLM2 has 1.92), cut to [8, tokens / 8], of exactly the mean that was asked for.

needed_at says that mean: 895 at 131,072 tokens, growing with the square root of the length, which
gives 238 at 9,300 tokens; SmolLM2 after 8,000 tokens of a novel needs 238. The order of clusters
(2048 tokens in 64) then needs 2.0K at 131,072 without the open segment, and a group's union is 4 to
5K (K-means in float32, six KV heads, two seeds); the Tactic paper's figures for P = 0.9 are 895 and
1723. facts() measures what came of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bench.cuda.library import Shape

RECENT = 64  # tokens of the local window
HEAVY = 4  # single tokens of a KV head
SINKS = 4  # first tokens that are nothing else
NEEDED_MASS = 0.9
PASSAGE = (32, 256)  # tokens, both included
NEW_TOPIC = 0.5  # chance
TOPICS = 6  # that a query looks for
NOISE = 0.6  # of keys, relative to a topic's direction
MOST_SHARES = (0.4, 0.4, 0.04)  # of sink, window, single tokens
SPREAD_OF_KV_HEADS = 1.5
SPREAD_IN_GROUP = 0.7
LEAST_NEEDED = 8
MOST_NEEDED = 1 / 8  # of all tokens
NEEDED = (895, 131072)  # tokens that a head needs on average, at a length

CHUNK = 2**25  # elements of float32 scratch
CASES = 2**23  # logits that are calibrated at a time
STEPS = 45  # of a bisection


def needed_at(tokens: int, needed: float = NEEDED[0]) -> float:
    """Tokens that hold 90 % of a head's mass, on average, when it is `needed` at 131,072."""
    return float(needed * (tokens / NEEDED[1]) ** 0.5)


@dataclass(frozen=True)
class Attention:
    """What `layers` decode steps read, bf16."""

    shape: Shape
    keys: torch.Tensor  # [layers][batch][kv_heads][tokens][head_dim]
    values: torch.Tensor  # likewise
    queries: torch.Tensor  # [layers][batch][q_heads][head_dim]

    @property
    def layers(self) -> int:
        return int(self.keys.shape[0])

    @property
    def batch(self) -> int:
        return int(self.keys.shape[1])

    @property
    def tokens(self) -> int:
        return int(self.keys.shape[3])


def chunks(total: int, size: int) -> Iterator[slice]:
    for begin in range(0, total, size):
        yield slice(begin, min(total, begin + size))


def passages(tokens: int, random: np.random.Generator) -> tuple[np.ndarray, int]:
    """Topic of every token, int32, and how many there are. Topics are numbered as they come."""
    count = tokens // PASSAGE[0] + 1
    lengths = random.integers(PASSAGE[0], PASSAGE[1] + 1, count)
    lengths = lengths[: int(np.searchsorted(np.cumsum(lengths), tokens)) + 1]
    new = random.random(len(lengths)) < NEW_TOPIC
    new[0] = True
    before: np.ndarray = np.cumsum(new) - new  # topics that a passage finds
    old = (random.random(len(lengths)) * before).astype(np.int64)
    topic = np.where(new, before, old).astype(np.int32)
    return np.repeat(topic, lengths)[:tokens], int(new.sum())


def needed_tokens(
    units: int, group: int, mean: float, tokens: int, random: np.random.Generator
) -> np.ndarray:
    """[units * group], log-normal, cut to [LEAST_NEEDED, MOST_NEEDED], of exactly that mean."""
    logs = SPREAD_OF_KV_HEADS * random.standard_normal((units, 1))
    logs = logs + SPREAD_IN_GROUP * random.standard_normal((units, group))
    drawn = np.exp(logs).ravel()
    low, high = 0.0, tokens / float(drawn.min())
    for _ in range(60):
        factor = (low + high) / 2
        above = np.clip(drawn * factor, LEAST_NEEDED, tokens * MOST_NEEDED).mean() > mean
        low, high = (low, factor) if above else (factor, high)
    return np.clip(drawn * high, LEAST_NEEDED, tokens * MOST_NEEDED)


def fewest(
    sorted_logits: torch.Tensor, sharpness: torch.Tensor, share: torch.Tensor
) -> torch.Tensor:
    """[cases]: how many of the logits [cases][tokens], largest first, hold `share` [cases] of the
    sum of exp(sharpness * logit)."""
    mass = torch.exp(sharpness[:, None] * (sorted_logits - sorted_logits[:, :1]))
    sums = torch.cumsum(mass, 1)
    return (sums < share[:, None] * sums[:, -1:]).sum(1) + 1


@dataclass(frozen=True)
class Shares:
    """Of the mass of each case that is not the topics', [cases] float64."""

    sink: torch.Tensor
    recent: torch.Tensor
    single: torch.Tensor

    @property
    def topics(self) -> torch.Tensor:
        return 1 - self.sink - self.recent - self.single

    @property
    def of_topics_needed(self) -> torch.Tensor:
        """What of the topics' mass has to be read for 90 % of all, when everything else is."""
        return (1 - (1 - NEEDED_MASS) / self.topics).clamp(min=0)


def calibrate(
    logits: torch.Tensor, heavy: torch.Tensor, needed: torch.Tensor, shares: Shares
) -> tuple[torch.Tensor, torch.Tensor]:
    """How sharp queries are, [cases], and how much of the sink's, the window's and the single
    tokens' direction they have, [cases][3]; from logits [cases][tokens] of sharpness 1 and the
    places of the single tokens, [cases][HEAVY]."""
    cases = logits.shape[0]
    logits = logits.double()
    ordered = torch.sort(logits, 1, descending=True).values
    low = torch.zeros(cases, dtype=torch.float64, device=logits.device)
    high = torch.full_like(low, 400.0)
    share = shares.of_topics_needed
    for _ in range(STEPS):
        middle = (low + high) / 2
        many = fewest(ordered, middle, share) > needed
        low, high = torch.where(many, middle, low), torch.where(many, high, middle)
    sharpness = high
    del ordered
    logits = logits * sharpness[:, None]
    total = torch.logsumexp(logits, 1) - torch.log(shares.topics)  # of all mass, its logarithm
    sink = torch.log(shares.sink) + total - logits[:, 0]
    single = torch.log(shares.single) + total - torch.logsumexp(torch.gather(logits, 1, heavy), 1)
    newest = logits[:, -RECENT:] - total[:, None]
    near = nearness(logits.device).double()
    low, high = torch.zeros_like(low), torch.full_like(low, 200.0)
    for _ in range(STEPS):
        middle = (low + high) / 2
        mass = torch.exp(newest + middle[:, None] * near).sum(1)
        less = mass < shares.recent
        low, high = torch.where(less, middle, low), torch.where(less, high, middle)
    along = torch.stack([sink.clamp(min=0), high, single.clamp(min=0)], 1)
    return sharpness, along


def nearness(device: torch.device) -> torch.Tensor:
    """[RECENT]: how much of the window's strength the newest tokens have; 1 for the last."""
    near: torch.Tensor = torch.arange(1, RECENT + 1, device=device, dtype=torch.float32) / RECENT
    return near


def unit_rows(rows: torch.Tensor) -> torch.Tensor:
    of: torch.Tensor = rows / rows.norm(dim=1, keepdim=True)
    return of


class _Unit:
    """One KV head of one sequence in one layer: writes its rows, and says what queries see."""

    def __init__(self, shape: Shape, topics: int, generator: torch.Generator) -> None:
        self.shape, self.generator = shape, generator
        dim = shape.head_dim
        # Directions of the sink, the window and the single tokens, orthogonal to all else.
        self.specials = torch.linalg.qr(self._normal(dim, 3)).Q.T.contiguous()
        self.directions = unit_rows(self._without_specials(self._normal(topics, dim)))
        self.means = unit_rows(self._normal(topics, dim))
        wanted = torch.randint(topics, (TOPICS,), generator=generator, device=generator.device)
        weights = 0.8 + 0.2 * torch.rand(
            (shape.group, TOPICS), generator=generator, device=generator.device
        )
        self.query = weights @ self.directions[wanted]  # [group][dim], of logits without a scale

    def _normal(self, rows: int, columns: int) -> torch.Tensor:
        return torch.randn((rows, columns), generator=self.generator, device=self.generator.device)

    def _without_specials(self, rows: torch.Tensor) -> torch.Tensor:
        rest: torch.Tensor = rows - (rows @ self.specials.T) @ self.specials
        return rest

    def write(
        self, keys: torch.Tensor, values: torch.Tensor, topic_of: torch.Tensor, logits: torch.Tensor
    ) -> torch.Tensor:
        """Fills keys and values [tokens][dim], and logits [group][tokens] of self.query; returns
        where the single tokens are."""
        tokens, dim = keys.shape
        size = dim**-0.5
        for part in chunks(tokens, CHUNK // dim):
            topic = topic_of[part]
            noise = self._without_specials(self._normal(len(topic), dim))
            rows = noise.mul_(NOISE * size).add_(self.directions[topic])
            keys[part] = rows
            logits[:, part] = self.query @ keys[part].float().T
            noise = self._normal(len(topic), dim)
            values[part] = noise.mul_(size).add_(self.means[topic])
        heavy = torch.randint(
            SINKS,
            tokens - RECENT,
            (HEAVY,),
            generator=self.generator,
            device=self.generator.device,
        )
        sink, new, single = self.specials
        keys[heavy] = (keys[heavy].float() + single).to(keys.dtype)
        keys[0] = (keys[0].float() + sink).to(keys.dtype)
        near = nearness(keys.device)[:, None]
        keys[-RECENT:] = (keys[-RECENT:].float() + near * new).to(keys.dtype)
        return heavy


def synthetic(
    shape: Shape,
    layers: int,
    batch: int,
    tokens: int,
    needed: float,
    seed: int,
    device: str = "cuda",
) -> Attention:
    """REQUIRES: tokens >= 1024, LEAST_NEEDED < needed < tokens / 8."""
    random = np.random.default_rng([seed, tokens, batch, shape.head_dim, shape.kv_heads])
    generator = torch.Generator(device)
    generator.manual_seed(int(random.integers(2**62)))
    size = (layers, batch, shape.kv_heads, tokens, shape.head_dim)
    keys = torch.empty(size, dtype=torch.bfloat16, device=device)
    values = torch.empty(size, dtype=torch.bfloat16, device=device)
    queries = torch.empty(
        (layers, batch, shape.q_heads, shape.head_dim), dtype=torch.bfloat16, device=device
    )
    texts = [passages(tokens, random) for _ in range(batch)]
    topics_of = [torch.from_numpy(topic).to(device, torch.int64) for topic, _ in texts]
    units = layers * batch * shape.kv_heads
    wanted = needed_tokens(units, shape.group, needed, tokens, random)
    drawn = random.random((3, units * shape.group)) * np.array(MOST_SHARES)[:, None]
    shares = [torch.from_numpy(x).to(device).clamp(min=1e-4) for x in drawn]
    wanted_there = torch.from_numpy(wanted).to(device)

    flat_keys = keys.view(units, tokens, shape.head_dim)
    flat_values = values.view(units, tokens, shape.head_dim)
    flat_queries = queries.view(units, shape.group, shape.head_dim)
    group = shape.group
    for some in chunks(units, max(1, CASES // (tokens * group))):
        numbers = range(some.start, some.stop)
        logits = torch.empty((len(numbers), group, tokens), device=device)
        of: list[_Unit] = []
        heavy = []
        for i, unit in enumerate(numbers):
            sequence = unit // shape.kv_heads % batch
            of.append(_Unit(shape, texts[sequence][1], generator))
            heavy.append(
                of[-1].write(flat_keys[unit], flat_values[unit], topics_of[sequence], logits[i])
            )
        cases = slice(some.start * group, some.stop * group)
        sharpness, along = calibrate(
            logits.view(-1, tokens),
            torch.stack(heavy).repeat_interleave(group, 0),
            wanted_there[cases],
            Shares(*(x[cases] for x in shares)),
        )
        query = torch.stack([u.query for u in of]) * sharpness.view(-1, group, 1).float()
        specials = torch.stack([u.specials for u in of])
        query = query + along.view(-1, group, 3).float() @ specials
        flat_queries[some] = (query / shape.scale).to(queries.dtype)
    return Attention(shape, keys, values, queries)


def trace_size(path: Path) -> tuple[int, int]:
    """Tokens and elements of a head of what pack_trace.py wrote."""
    with np.load(path) as file:
        _, _, tokens, dim = file["keys"].shape
    return tokens, dim


def from_trace(path: Path, shape: Shape, layers: int, batch: int) -> Attention:
    """What pack_trace.py wrote, its heads and layers repeated as often as it takes: sequence b of
    layer l is layer (l * batch + b) of the trace, KV head h its KV head h, and the heads of a group
    those of the group there."""
    with np.load(path) as file:
        keys, values, queries = (file[name] for name in ("keys", "values", "queries"))
    count, kv_heads, tokens, dim = keys.shape
    if dim != shape.head_dim:
        raise ValueError(f"{path} has heads of {dim} elements, not {shape.head_dim}")
    group = queries.shape[1] // kv_heads
    heads = np.arange(shape.kv_heads) % kv_heads
    q_heads = (heads[:, None] * group + np.arange(shape.group) % group).ravel()
    size = (layers, batch, shape.kv_heads, tokens, dim)
    out = [torch.empty(size, dtype=torch.bfloat16, device="cuda") for _ in range(2)]
    q = torch.empty((layers, batch, shape.q_heads, dim), dtype=torch.bfloat16, device="cuda")
    for layer in range(layers):
        for sequence in range(batch):
            source = (layer * batch + sequence) % count
            for to, rows in zip(out, (keys, values), strict=True):
                to[layer, sequence] = torch.from_numpy(rows[source][heads]).to("cuda")
            q[layer, sequence] = torch.from_numpy(queries[source][q_heads]).to("cuda")
    return Attention(shape, out[0], out[1], q)


def facts(attention: Attention, most: int = 32) -> dict[str, float]:
    """What attention is like, on average over at most that many KV heads at even distances: tokens
    with 90 % of the mass and the deviation of their logarithm, and the mass of the first token, of
    the newest 64, of the largest of the others; the correlation of logits of neighbours."""
    shape, tokens = attention.shape, attention.tokens
    keys = attention.keys.view(-1, tokens, shape.head_dim)
    queries = attention.queries.view(-1, shape.group, shape.head_dim)
    rows = []
    for unit in range(0, len(keys), max(1, len(keys) // most)):
        logits = torch.empty((shape.group, tokens), dtype=torch.float64, device=keys.device)
        for part in chunks(tokens, CHUNK // shape.head_dim):
            logits[:, part] = queries[unit].float() @ keys[unit, part].float().T
        logits *= shape.scale
        mass = torch.softmax(logits, 1)
        sums = torch.cumsum(torch.sort(mass, 1, descending=True).values, 1)
        middle = logits[:, 16:-RECENT]
        middle = middle - middle.mean(1, keepdim=True)
        rows.append(
            torch.stack(
                [
                    ((sums < NEEDED_MASS).sum(1) + 1).double(),
                    mass[:, 0],
                    mass[:, -RECENT:].sum(1),
                    mass[:, SINKS:-RECENT].amax(1),
                    (middle[:, 1:] * middle[:, :-1]).sum(1) / middle.square().sum(1),
                ],
                1,
            )
        )
    all_rows = torch.cat(rows)
    means = [float(x) for x in all_rows.mean(0)]
    return {
        "needed_mean": means[0],
        "needed_log_sd": float(all_rows[:, 0].log().std(correction=0)),
        "sink_mass_mean": means[1],
        "recent_mass_mean": means[2],
        "largest_mass_mean": means[3],
        "neighbour_correlation": means[4],
        "cases": float(len(all_rows)),
    }
