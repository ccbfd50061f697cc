"""The kernels as calls on tensors. Shapes are checked by who calls; here they are only handed on.

Matrices are bf16, rows any distance apart, numbers of a row side by side. N rows, D, K, O widths,
R ranks.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_double, c_float, c_int, c_int64, c_long, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

#: numbers between the end of a row and the next one: rows a power of two apart would all fall
#: into the same lines of a cache
_GAP = 32
_M = (c_void_p, c_long)
_ARGUMENTS = {
    "product": (c_long, c_long, c_long, *_M, *_M, c_int, c_void_p, *_M, *_M, *(c_void_p,) * 3),
    "panels": (c_long, c_long, c_void_p, c_void_p, c_void_p, c_int, c_void_p),
    "low": (
        *(c_long, c_long, *_M, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p),
        *(c_int, *_M, c_void_p, c_long),
    ),
    "gradient": (c_long, *_M, *_M, *(c_void_p,) * 8, c_int),
    "drop": (c_long, c_long, *_M, c_void_p, c_void_p, c_int64, c_void_p, c_int, *_M),
    "attend": (
        *(c_long, c_void_p, c_void_p, c_long, c_long, c_long, *_M, *_M, *_M),
        *(c_float, c_long, *_M, c_void_p),
    ),
    "attend_back": (
        *(c_long, c_void_p, c_void_p, c_long, c_long, c_long, *_M, *_M, *_M, *_M, *_M),
        *(c_void_p, c_float, c_long, *_M, *_M, *_M),
    ),
    "head": (c_long, c_long, c_long, *_M, *_M, c_void_p, c_float, c_float, *(c_void_p,) * 3),
    "norm": (c_long, c_long, *_M, c_void_p, c_float, *_M, *_M, c_void_p),
    "norm_back": (c_long, c_long, *_M, *_M, c_void_p, c_void_p, *_M, *_M),
    "rotate": (*(c_long,) * 3, *_M, c_void_p, c_float, c_void_p, c_void_p, *_M, c_void_p),
    "rotate_back": (*(c_long,) * 3, *_M, *_M, *(c_void_p,) * 4, *_M),
    "gate": (c_long, c_long, *_M, c_int, *_M),
    "gate_back": (c_long, c_long, *_M, *_M, c_int, *_M),
    "add": (c_long, c_long, *_M, *_M, *_M),
    "length": (c_long, c_void_p),
    "nf4": (c_long, *(c_void_p,) * 4),
    "adamw": (c_long, *(c_void_p,) * 4, *(c_float,) * 7, c_void_p),
}


def rows(count: int, width: int) -> Tensor:
    """An empty bf16 [count, width] that products read well."""
    return torch.empty(count, width + _GAP, dtype=torch.bfloat16)[:, :width]


def _m(x: Tensor | None) -> tuple[int | None, int]:
    return (None, 0) if x is None else (x.data_ptr(), x.stride(0))


def _p(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _pointers(of: Sequence[Tensor]) -> ctypes.Array[c_void_p]:
    return (c_void_p * len(of))(*(x.data_ptr() for x in of))


def _longs(of: Sequence[int]) -> ctypes.Array[c_int64]:
    return (c_int64 * len(of))(*of)


def _ints(of: Sequence[int]) -> ctypes.Array[c_int]:
    return (c_int * len(of))(*of)


@dataclass(frozen=True)
class Extra:
    """Adapters as further steps of a product: s [N, R padded to 32], the owner of each 16 rows
    (index into `panels`, or -1), and each adapter's panels and their steps."""

    s: Tensor
    owner: Tensor
    panels: Sequence[Tensor]
    steps: list[int]


class Kernels:
    """The functions of one loaded library; `name` stands for its machine code."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self.name = name
        for each, arguments in _ARGUMENTS.items():
            getattr(library, each).argtypes = arguments
        library.length.restype = c_double
        self._c = library

    def product(
        self,
        x: Tensor,
        weight: Tensor,
        out: Tensor,
        *,
        by_rows: bool,
        bias: Tensor | None = None,
        extra: Extra | None = None,
    ) -> Tensor:
        """x [N, K] times weight ([O, K] `by_rows`, else [K, O]) plus bias float [O], into out."""
        width = out.shape[1]
        more = (None, 0, None, None, None)
        if extra is not None:
            held = (_p(extra.owner), _pointers(extra.panels), _ints(extra.steps))
            more = (*_m(extra.s), *held)  # type: ignore[assignment]
        poor = self._c.product(
            *(out.shape[0], x.shape[1], width, *_m(x), *_m(weight), by_rows, _p(bias)),
            *(*_m(out), *more),
        )
        if poor:
            raise MemoryError(f"no memory for {x.shape[0]} rows of {x.shape[1]}")
        return out

    def panels(self, weights: Sequence[Tensor], width: int, *, by_rows: bool) -> Sequence[Tensor]:
        """Adapters' B [width, R] (`by_rows`) or A [R, width] as panels for `Extra`."""
        if not weights:
            return []
        ranks = [w.shape[1] if by_rows else w.shape[0] for w in weights]
        sizes = [width * (-(-rank // 32) * 32) for rank in ranks]
        made = torch.split(torch.empty(sum(sizes), dtype=torch.bfloat16), sizes)
        self._c.panels(
            *(len(weights), width, _pointers(weights), _longs([w.stride(0) for w in weights])),
            *(_ints(ranks), by_rows, _pointers(made)),
        )
        return made

    def low(
        self,
        x: Tensor,
        spans: Sequence[tuple[int, int]],
        weights: Sequence[Tensor],
        scales: Sequence[float],
        out: Tensor,
        *,
        by_rows: bool,
        columns: Sequence[int],
        fill: int = 0,
    ) -> None:
        """out[rows of a span, its columns] = scale x A; A is [R, K] `by_rows`, else [K, R]."""
        ranks = [w.shape[0] if by_rows else w.shape[1] for w in weights]
        self._c.low(
            *(len(spans), x.shape[1], *_m(x), _longs([a for a, _ in spans])),
            *(_longs([b for _, b in spans]), _pointers(weights)),
            *(_longs([w.stride(0) for w in weights]), _ints(ranks)),
            *((c_float * len(scales))(*scales), by_rows, *_m(out), _ints(columns), fill),
        )

    def times(self, x: Tensor, a: Tensor) -> Tensor:
        """x a^T for bf16 [N, K] and [R, K] of any size, rounded to bf16 [N, R]."""
        count, rank = len(x), len(a)
        tall, deep = -(-count // 16) * 16, -(-x.shape[1] // 32) * 32
        if (tall, deep) != x.shape or x.stride(1) != 1:
            padded = x.new_zeros(tall, deep)
            padded[:count, : x.shape[1]] = x
            x = padded
        if deep != a.shape[1] or a.stride(1) != 1:
            wide = a.new_zeros(rank, deep)
            wide[:, : a.shape[1]] = a
            a = wide
        out = torch.empty(tall, rank, dtype=torch.bfloat16)
        self.low(x, [(0, tall)], [a], [1.0], out, by_rows=True, columns=[0])
        return out[:count]

    def gradient(
        self,
        s: Tensor,
        x: Tensor,
        spans: Sequence[tuple[int, int]],
        ranks: Sequence[slice],
        places: Sequence[slice],
        sums: Sequence[Tensor],
        *,
        turned: bool = False,
    ) -> None:
        """sums += s[span, ranks]^T x[span, places], float [R, W], or [W, R] `turned`."""
        poor = self._c.gradient(
            *(len(spans), *_m(s), *_m(x), _longs([a for a, _ in spans])),
            *(_longs([b for _, b in spans]), _ints([r.start for r in ranks])),
            *(_ints([r.stop - r.start for r in ranks]), _longs([p.start for p in places])),
            *(_longs([p.stop for p in places]), _pointers(sums)),
            *(_longs([g.stride(0) for g in sums]), turned),
        )
        if poor:
            raise MemoryError("no memory for a gradient's tiles")

    def drop(
        self,
        x: Tensor,
        keys: Tensor,
        positions: Tensor,
        layer: int,
        rates: Tensor,
        out: Tensor,
        *,
        add: bool = False,
    ) -> None:
        """Dropout of x [N, D] into out, or `add`ed to it; rates float [N]."""
        self._c.drop(
            *(x.shape[0], x.shape[1], *_m(x), _p(keys), _p(positions), layer, _p(rates), add),
            *_m(out),
        )

    def attend(
        self,
        starts: Tensor,
        lengths: Tensor,
        heads: int,
        groups: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        window: int,
        out: Tensor,
    ) -> Tensor:
        """Attention of q [N, heads E] into out; returns each row's log-sum-exp [N, heads]."""
        lse = torch.empty(q.shape[0], heads, dtype=torch.float32)
        width = q.shape[1] // heads
        self._c.attend(
            *(len(starts), _p(starts), _p(lengths), heads, groups, width, *_m(q), *_m(k), *_m(v)),
            *(scale, window, *_m(out), _p(lse)),
        )
        return lse

    def attend_back(
        self,
        starts: Tensor,
        lengths: Tensor,
        heads: int,
        groups: int,
        given: Tensor,
        out: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lse: Tensor,
        scale: float,
        window: int,
        slopes: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        """The slopes of q, k and v for that of `attend`'s output."""
        width = q.shape[1] // heads
        dq, dk, dv = slopes
        self._c.attend_back(
            *(len(starts), _p(starts), _p(lengths), heads, groups, width, *_m(given), *_m(out)),
            *(*_m(q), *_m(k), *_m(v), _p(lse), scale, window, *_m(dq), *_m(dk), *_m(dv)),
        )

    def head(
        self,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        *,
        scale: float,
        softcap: float | None,
        wanted: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Losses float [M], hits bool [M] and the slope bf16 [M, D] of hidden [M, D]."""
        count, width = hidden.shape
        losses = torch.empty(count, dtype=torch.float32)
        hits = torch.empty(count, dtype=torch.bool)
        slope = torch.empty(count, width, dtype=torch.bfloat16) if wanted else None
        poor = self._c.head(
            *(count, width, weight.shape[0], *_m(hidden), *_m(weight), _p(labels), scale),
            *(softcap or 0.0, _p(losses), _p(hits), _p(slope)),
        )
        if poor:
            raise MemoryError("no memory for the head's sums")
        return losses, hits, slope

    def norm(
        self, x: Tensor, weight: Tensor, eps: float, out: Tensor, left: Tensor | None = None
    ) -> Tensor:
        """out = (left +) the RMS norm of x; returns float [N] for the way back."""
        inverse = torch.empty(x.shape[0], dtype=torch.float32)
        self._c.norm(
            *(x.shape[0], x.shape[1], *_m(x), _p(weight), eps, *_m(left), *_m(out), _p(inverse))
        )
        return inverse

    def norm_back(
        self,
        slope: Tensor,
        x: Tensor,
        weight: Tensor,
        inverse: Tensor,
        out: Tensor,
        left: Tensor | None = None,
    ) -> None:
        """out = (left +) the slope of `norm`'s x."""
        self._c.norm_back(
            *(x.shape[0], x.shape[1], *_m(slope), *_m(x), _p(weight), _p(inverse), *_m(left)),
            *_m(out),
        )

    def rotate(
        self,
        x: Tensor,
        heads: int,
        weight: Tensor | None,
        eps: float,
        angles: tuple[Tensor, Tensor],
        out: Tensor,
    ) -> Tensor:
        """Heads of x normed (with a weight) and rotated by cos, sin float [N, E], into out."""
        inverse = torch.empty(x.shape[0], heads, dtype=torch.float32)
        cosine, sine = angles
        self._c.rotate(
            *(x.shape[0], heads, x.shape[1] // heads, *_m(x), _p(weight), eps, _p(cosine)),
            *(_p(sine), *_m(out), _p(inverse)),
        )
        return inverse

    def rotate_back(
        self,
        slope: Tensor,
        x: Tensor,
        heads: int,
        weight: Tensor | None,
        inverse: Tensor,
        angles: tuple[Tensor, Tensor],
        out: Tensor,
    ) -> None:
        """The slope of `rotate`'s x."""
        cosine, sine = angles
        self._c.rotate_back(
            *(x.shape[0], heads, x.shape[1] // heads, *_m(slope), *_m(x), _p(weight)),
            *(_p(inverse), _p(cosine), _p(sine), *_m(out)),
        )

    def gate(self, x: Tensor, kind: int, out: Tensor) -> Tensor:
        """act(gate) up of x [N, 2 D] into out [N, D]; kind 0 is SiLU, 1 GELU by tanh."""
        self._c.gate(out.shape[0], out.shape[1], *_m(x), kind, *_m(out))
        return out

    def gate_back(self, slope: Tensor, x: Tensor, kind: int, out: Tensor) -> Tensor:
        """The slope [N, 2 D] of `gate`'s x, into out (which may be x)."""
        self._c.gate_back(slope.shape[0], slope.shape[1], *_m(slope), *_m(x), kind, *_m(out))
        return out

    def add(self, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        """a + b into out."""
        self._c.add(out.shape[0], out.shape[1], *_m(a), *_m(b), *_m(out))
        return out

    def nf4(self, codes: Tensor, levels: Tensor, scales: Tensor, out: Tensor) -> Tensor:
        """levels[codes] times their block's scale into bf16 out; numbers a multiple of 64."""
        self._c.nf4(out.numel(), _p(codes), _p(levels), _p(scales), _p(out))
        return out

    def length(self, x: Tensor) -> float:
        """The 2-norm of float [P]."""
        found = float(self._c.length(x.numel(), _p(x)))
        if found < 0:
            raise MemoryError("no memory for a norm")
        return found

    def adamw(
        self,
        master: Tensor,
        gradient: Tensor,
        moments: tuple[Tensor, Tensor],
        *,
        scale: float,
        betas: tuple[float, float],
        decay: float,
        rate: float,
        correction: float,
        eps: float,
        low: Tensor | None,
    ) -> None:
        """One update of float [P] by `scale` times its gradient; `correction` multiplies the root
        of the second moment, `decay` the numbers, and `low` bf16 [P] gets a copy."""
        mean, square = moments
        self._c.adamw(
            *(master.numel(), _p(master), _p(gradient), _p(mean), _p(square), scale, *betas),
            *(decay, rate, correction, eps, _p(low)),
        )
