"""The CUDA backend as Python objects: ctypes over bench/cuda/shim.cc.

Everything is enqueued on torch's current stream, so calls may be captured into a CUDA graph.
Objects are freed when they are closed, not by the garbage collector: device memory is scarce.
"""

import ctypes
import math
from dataclasses import dataclass
from pathlib import Path

import torch

ELEMENTS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float8_e4m3fn: 3}
MODES = ("dense", "paper", "tactic")
REPORT_FIELDS = ("own_rows", "union_rows", "own_lse", "union_lse", "p_hat", "rounds")
REPORT_INTEGERS = ("own_rows", "union_rows", "rounds")


class LibraryError(Exception):
    """What the library says is wrong."""


class _Cache(ctypes.Structure):
    _fields_ = [
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("block_stride", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
        ("head_stride", ctypes.c_int64),
        ("block_table", ctypes.c_void_p),
        ("max_blocks", ctypes.c_int32),
        ("page_size", ctypes.c_int32),
        ("type", ctypes.c_int32),
        ("key_scale", ctypes.c_float),
        ("value_scale", ctypes.c_float),
    ]


class _Request(ctypes.Structure):
    _fields_ = [
        ("q", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("lengths", ctypes.c_void_p),
        ("indexes", ctypes.c_void_p),
        ("max_length", ctypes.c_int64),
        ("batch", ctypes.c_int32),
        ("q_type", ctypes.c_int32),
        ("out_type", ctypes.c_int32),
        ("scale", ctypes.c_float),
    ]


class _Facts(ctypes.Structure):
    _fields_ = [
        ("mode", ctypes.c_int32),
        ("segment_size", ctypes.c_int32),
        ("cluster_size", ctypes.c_int32),
        ("bits", ctypes.c_int32),
        ("sinks", ctypes.c_int32),
        ("recent", ctypes.c_int32),
        ("dense_below", ctypes.c_int32),
        ("tail", ctypes.c_int32),
        ("target", ctypes.c_double),
    ]


@dataclass(frozen=True)
class Shape:
    """Heads of one layer; values have head_dim elements, too."""

    q_heads: int
    kv_heads: int
    head_dim: int

    @property
    def group(self) -> int:
        return self.q_heads // self.kv_heads

    @property
    def scale(self) -> float:
        """What products of queries and keys are multiplied by."""
        return 1 / math.sqrt(self.head_dim)

    def __str__(self) -> str:
        return f"{self.q_heads}q/{self.kv_heads}kv d{self.head_dim}"


@dataclass(frozen=True)
class Policy:
    """What of a policy's options decides how much is read."""

    text: str
    mode: str
    segment_size: int
    cluster_size: int
    bits: int
    sinks: int
    recent: int
    dense_below: int
    tail: bool
    target: float


@dataclass(frozen=True)
class KvCache:
    """Keys and values of one layer, [batch][kv_heads][tokens][head_dim] each, and how they are said
    to lie: with a block table [batch][blocks], in pages of page_size tokens; else contiguous."""

    keys: torch.Tensor
    values: torch.Tensor
    block_table: torch.Tensor | None = None
    page_size: int = 0

    def c(self) -> _Cache:
        _, _, tokens, dim = self.keys.shape
        paged = self.block_table is not None
        return _Cache(
            keys=self.keys.data_ptr(),
            values=self.values.data_ptr(),
            block_stride=self.page_size * dim if paged else self.keys.stride(0),
            row_stride=dim,
            head_stride=tokens * dim,
            block_table=self.block_table.data_ptr() if self.block_table is not None else None,
            max_blocks=self.block_table.shape[1] if self.block_table is not None else 0,
            page_size=self.page_size,
            type=ELEMENTS[self.keys.dtype],
            key_scale=1,
            value_scale=1,
        )


def page_numbers(batch: int, kv_heads: int, tokens: int, page_size: int) -> torch.Tensor:
    """[batch][blocks] int32: [batch][kv_heads][tokens][head_dim] as pages, without moving a row.

    A page is the page_size rows of one head; its number counts them over the whole tensor, so the
    rows of the next head are head_stride = tokens * head_dim elements further, whatever the page.
    REQUIRES: tokens is a multiple of page_size.
    """
    of_head = tokens // page_size
    first = torch.arange(batch, dtype=torch.int64, device="cuda") * kv_heads * of_head
    own = torch.arange(of_head, dtype=torch.int64, device="cuda")
    return (first[:, None] + own).to(torch.int32).contiguous()


class _DeviceArray:
    """Device memory that torch is to see as a tensor."""

    def __init__(self, pointer: int, shape: tuple[int, ...], typestr: str) -> None:
        self.__cuda_array_interface__ = {
            "data": (pointer, False),
            "shape": shape,
            "typestr": typestr,
            "version": 2,
        }


def device_tensor(pointer: int, shape: tuple[int, ...], typestr: str) -> torch.Tensor:
    return torch.as_tensor(_DeviceArray(pointer, shape, typestr), device="cuda")


def _stream() -> int:
    return int(torch.cuda.current_stream().cuda_stream)


class Library:
    def __init__(self, path: Path) -> None:
        self.c = ctypes.CDLL(str(path))
        pointer, integer, wide = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
        text, out = ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p)
        cache = ctypes.POINTER(_Cache)
        functions: dict[str, tuple[type | None, list[object]]] = {
            "error": (text, []),
            "available": (integer, []),
            "policy": (integer, [text, ctypes.POINTER(_Facts)]),
            "index_create": (integer, [integer] * 3 + [text, wide, out]),
            "index_destroy": (None, [pointer]),
            "index_append": (integer, [pointer, cache, integer, wide, pointer]),
            "index_truncate": (integer, [pointer, wide, pointer]),
            "index_size": (wide, [pointer]),
            "index_bytes": (wide, [pointer]),
            "index_view": (pointer, [pointer]),
            "decoder_create": (integer, [integer] * 3 + [text, integer, wide, out]),
            "decoder_destroy": (None, [pointer]),
            "decode": (integer, [pointer, cache, ctypes.POINTER(_Request), pointer]),
            "reports": (pointer, [pointer]),
            "decoder_bytes": (wide, [pointer]),
            "selected_rows": (
                integer,
                [pointer, integer, integer, ctypes.POINTER(ctypes.c_int32), wide]
                + [ctypes.POINTER(wide)],
            ),
            "kept": (pointer, [pointer, ctypes.POINTER(ctypes.c_int32)]),
            "sampled": (pointer, [pointer]),
        }
        for name, (result, arguments) in functions.items():
            function = getattr(self.c, f"tactic_bench_{name}")
            function.restype = result
            function.argtypes = arguments
        self.check(self.c.tactic_bench_available())

    def check(self, code: int) -> None:
        if code != 0:
            message: bytes = self.c.tactic_bench_error()
            raise LibraryError(message.decode())

    def policy(self, text: str) -> Policy:
        facts = _Facts()
        self.check(self.c.tactic_bench_policy(text.encode(), ctypes.byref(facts)))
        return Policy(
            text=text,
            mode=MODES[facts.mode],
            segment_size=facts.segment_size,
            cluster_size=facts.cluster_size,
            bits=facts.bits,
            sinks=facts.sinks,
            recent=facts.recent,
            dense_below=facts.dense_below,
            tail=bool(facts.tail),
            target=facts.target,
        )


class Index:
    """What is indexed of one sequence in one layer."""

    def __init__(self, library: Library, shape: Shape, policy: str, max_tokens: int) -> None:
        self._library = library
        handle = ctypes.c_void_p()
        library.check(
            library.c.tactic_bench_index_create(
                *(shape.q_heads, shape.kv_heads, shape.head_dim),
                *(policy.encode(), max_tokens, ctypes.byref(handle)),
            )
        )
        self._handle: int | None = handle.value

    def append(self, cache: KvCache, sequence: int, tokens: int) -> None:
        c = cache.c()
        self._library.check(
            self._library.c.tactic_bench_index_append(
                self._handle, ctypes.byref(c), sequence, tokens, _stream()
            )
        )

    def truncate(self, tokens: int) -> None:
        self._library.check(
            self._library.c.tactic_bench_index_truncate(self._handle, tokens, _stream())
        )

    @property
    def bytes(self) -> int:
        return int(self._library.c.tactic_bench_index_bytes(self._handle))

    @property
    def view(self) -> int:
        return int(self._library.c.tactic_bench_index_view(self._handle))

    def close(self) -> None:
        if self._handle is not None:
            self._library.c.tactic_bench_index_destroy(self._handle)
            self._handle = None


class Decoder:
    """The buffers of a step of up to max_batch sequences of up to max_tokens positions."""

    def __init__(
        self, library: Library, shape: Shape, policy: str, max_batch: int, max_tokens: int
    ) -> None:
        self._library, self._shape, self._batch = library, shape, max_batch
        handle = ctypes.c_void_p()
        library.check(
            library.c.tactic_bench_decoder_create(
                *(shape.q_heads, shape.kv_heads, shape.head_dim),
                *(policy.encode(), max_batch, max_tokens, ctypes.byref(handle)),
            )
        )
        self._handle: int | None = handle.value

    def decode(
        self,
        q: torch.Tensor,
        out: torch.Tensor,
        cache: KvCache,
        lengths: torch.Tensor,
        indexes: torch.Tensor | None,
        max_length: int,
    ) -> None:
        """q and out [batch][q_heads][head_dim], lengths [batch] int32, indexes [batch] int64:
        Index.view of each sequence."""
        c = cache.c()
        request = _Request(
            q=q.data_ptr(),
            out=out.data_ptr(),
            lengths=lengths.data_ptr(),
            indexes=indexes.data_ptr() if indexes is not None else None,
            max_length=max_length,
            batch=q.shape[0],
            q_type=ELEMENTS[q.dtype],
            out_type=ELEMENTS[out.dtype],
            scale=self._shape.scale,
        )
        self._library.check(
            self._library.c.tactic_bench_decode(
                self._handle, ctypes.byref(c), ctypes.byref(request), _stream()
            )
        )

    def reports(self) -> dict[str, torch.Tensor]:
        """Of the last step, each [batch][q_heads] float64; rows and rounds are whole numbers."""
        pointer = int(self._library.c.tactic_bench_reports(self._handle))
        shape = (self._batch, self._shape.q_heads, len(REPORT_FIELDS))
        words = device_tensor(pointer, shape, "<i4").clone()
        floats = words.view(torch.float32)
        return {
            name: (words if name in REPORT_INTEGERS else floats)[..., i].double()
            for i, name in enumerate(REPORT_FIELDS)
        }

    def kept_clusters(self) -> float | None:
        """Clusters whose codes the last step read, on average over KV heads; None when unknown."""
        spans = ctypes.c_int32()
        pointer = self._library.c.tactic_bench_kept(self._handle, ctypes.byref(spans))
        if pointer is None:
            return None
        units = self._batch * self._shape.kv_heads
        kept = device_tensor(int(pointer), (units, spans.value), "<i4")
        return float(kept.double().sum(1).mean())

    def sampled_rows(self) -> float | None:
        """Rows that the last step of mode paper sampled, likewise."""
        pointer = self._library.c.tactic_bench_sampled(self._handle)
        if pointer is None:
            return None
        sampled = device_tensor(int(pointer), (self._batch * self._shape.kv_heads, 3), "<i4")
        return float(sampled[:, 0].double().mean())

    def selected_rows(self, sequence: int, kv_head: int, room: int) -> list[int]:
        """Positions that a KV head read in the last step, ascending; waits for the device."""
        rows = (ctypes.c_int32 * room)()
        count = ctypes.c_int64()
        self._library.check(
            self._library.c.tactic_bench_selected_rows(
                self._handle, sequence, kv_head, rows, room, ctypes.byref(count)
            )
        )
        return list(rows[: min(count.value, room)])

    @property
    def bytes(self) -> int:
        return int(self._library.c.tactic_bench_decoder_bytes(self._handle))

    def close(self) -> None:
        if self._handle is not None:
            self._library.c.tactic_bench_decoder_destroy(self._handle)
            self._handle = None
