"""What B A is made of, without forming it: its singular values, and its best shorter form.

A [R, D], B [O, R], K ranks kept. With B = Qb Rb and A^T = Qa Ra (QR), the singular values of
B A are those of the small Rb Ra^T [R, R], and its vectors those of it carried over by Qb and Qa.
All of it in float64, whatever A and B come in.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def factored(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """B A as U [O, R] diag(S [R]) V [R, D], S from large to small; float64."""
    q_b, r_b = torch.linalg.qr(b.double())
    q_a, r_a = torch.linalg.qr(a.double().T)
    u, s, v = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return q_b @ u, s, v @ q_a.T


def singular_values(a: Tensor, b: Tensor) -> Tensor:
    """The singular values of B A from large to small, float64 [R]."""
    _, r_b = torch.linalg.qr(b.double(), mode="r")
    _, r_a = torch.linalg.qr(a.double().T, mode="r")
    found: Tensor = torch.linalg.svdvals(r_b @ r_a.T)
    return found


def halves(u: Tensor, s: Tensor, v: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A [K, D] and B [O, K] of the `rank` largest singular values, each half of them (their square
    root); zeros where there are fewer. Of all B A of that rank the nearest one (Eckart and Young,
    "The approximation of one matrix by another of lower rank", 1936)."""
    kept = min(rank, len(s))
    root = s[:kept].sqrt()
    a = torch.zeros(rank, v.shape[1], dtype=v.dtype)
    b = torch.zeros(u.shape[0], rank, dtype=u.dtype)
    a[:kept] = root[:, None] * v[:kept]
    b[:, :kept] = u[:, :kept] * root
    return a, b


def energy_kept(s: Tensor, rank: int) -> float:
    """The share of the squared singular values that the first `rank` have; 1 where all are 0."""
    total = float(s.square().sum())
    return float(s[:rank].square().sum()) / total if total > 0 else 1.0


def rank_for(spectra: Iterable[Tensor], share: float) -> int:
    """The smallest rank, at least 1, that keeps `share` (0 to 1) of the energy of all layers
    together, each cut at that rank."""
    found = list(spectra)
    longest = max((len(s) for s in found), default=1)
    by_place = torch.zeros(longest, dtype=torch.float64)
    for s in found:
        by_place[: len(s)] += s.double().square()
    total = float(by_place.sum())
    if total == 0:
        return 1
    reached = by_place.cumsum(0) >= share * total * (1 - 1e-12)
    return int(reached.int().argmax()) + 1 if bool(reached.any()) else longest


def effective_rank(s: Tensor) -> float:
    """exp of the entropy of the singular values as shares of their sum ("The effective rank: a
    measure of effective dimensionality", Roy and Vetterli, 2007); 0 where all are 0."""
    total = float(s.sum())
    if total == 0:
        return 0.0
    shares = s[s > 0].double() / total
    return float(torch.exp(-(shares * shares.log()).sum()))
