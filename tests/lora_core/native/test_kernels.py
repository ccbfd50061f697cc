"""Each kernel against float32 torch, and a row's bits against other neighbours and threads."""

import pytest
import torch
from torch.nn import functional as F

from lora_core import rng
from lora_core.native.kernels import Extra, rows


def drawn(*shape, seed=0, scale=1.0):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).bfloat16()


def matrix(n, width, seed=0, scale=1.0):
    made = rows(n, width)
    made.copy_(drawn(n, width, seed=seed, scale=scale))
    return made


def near(made, wanted, slack=6e-3):
    error = (made.float() - wanted).norm() / wanted.norm()
    assert error < slack, float(error)


@pytest.mark.parametrize("by_rows", [True, False])
@pytest.mark.parametrize(("n", "k", "o"), [(16, 32, 32), (48, 96, 64), (1136, 352, 224)])
def test_product(kernels, n, k, o, by_rows):
    x, bias = matrix(n, k, 1), torch.linspace(-1, 1, o)
    w = drawn(o, k, seed=2, scale=k**-0.5)
    weight = w if by_rows else w.t().contiguous()
    out = rows(n, o)
    kernels.product(x, weight, out, by_rows=by_rows, bias=bias)
    near(out, x.float() @ w.float().t() + bias)


def test_a_products_rows_are_their_own(kernels):
    x, w = matrix(640, 352, 1), drawn(96, 352, seed=2)
    whole = kernels.product(x, w, rows(640, 96), by_rows=True)
    for start, stop in ((0, 16), (16, 64), (304, 640)):
        for threads in (1, 3):
            torch.set_num_threads(threads)
            part = kernels.product(x[start:stop], w, rows(stop - start, 96), by_rows=True)
            assert torch.equal(part, whole[start:stop])


@pytest.mark.parametrize("by_rows", [True, False])
def test_adapters_are_further_steps(kernels, by_rows):
    n, k, o = 96, 64, 96
    x, w = matrix(n, k, 1), drawn(o, k, seed=2, scale=0.1)
    spans, ranks = [(0, 16), (16, 80)], [8, 40]
    b = [drawn(o, r, seed=3 + r, scale=0.3) for r in ranks]
    s = torch.zeros(n, 64, dtype=torch.bfloat16)
    for (start, stop), r in zip(spans, ranks, strict=True):
        s[start:stop, :r] = drawn(stop - start, r, seed=r)
    owner = torch.tensor([0, 1, 1, 1, 1, -1], dtype=torch.int32)
    held = b if by_rows else [each.t().contiguous() for each in b]
    panels = kernels.panels(held, o, by_rows=by_rows)
    made = kernels.product(x, w, rows(n, o), by_rows=True, extra=Extra(s, owner, panels, [1, 2]))
    wanted = x.float() @ w.float().t()
    for (start, stop), r, each in zip(spans, ranks, b, strict=True):
        wanted[start:stop] += s[start:stop, :r].float() @ each.float().t()
    near(made, wanted)


@pytest.mark.parametrize("by_rows", [True, False])
def test_low(kernels, by_rows):
    x = matrix(208, 96, 1)
    spans, ranks, scales = [(0, 144), (160, 208)], [5, 33], [0.5, 2.0]
    a = [drawn(r, 96, seed=r) for r in ranks]
    out = torch.full((208, 64), 7.0, dtype=torch.bfloat16)
    held = a if by_rows else [each.t().contiguous() for each in a]
    kernels.low(x, spans, held, scales, out, by_rows=by_rows, columns=[0, 0], fill=64)
    for (start, stop), r, scale, each in zip(spans, ranks, scales, a, strict=True):
        near(out[start:stop, :r], x[start:stop].float() @ each.float().t() * scale)
        assert not out[start:stop, r:].any()
    assert (out[144:160] == 7).all()
    kernels.low(x, spans[:1], held[:1], scales, out, by_rows=by_rows, columns=[40])
    near(out[:144, 40:45], x[:144].float() @ a[0].float().t() * 0.5)
    assert not out[:144, 45:].any()


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("rank", [1, 8, 24, 40])
def test_gradient(kernels, rank, turned):
    s, x = matrix(112, 64, 1), matrix(112, 160, 2)
    spans = [(0, 48), (64, 112)]
    sums = [torch.ones(64, rank) if turned else torch.ones(rank, 64) for _ in spans]
    x[48:64] = float("nan")  # between the spans: nobody's
    kernels.gradient(
        s, x, spans, [slice(4, 4 + rank)] * 2, [slice(32, 96)] * 2, sums, turned=turned
    )
    for (start, stop), made in zip(spans, sums, strict=True):
        wanted = 1 + s[start:stop, 4 : 4 + rank].float().t() @ x[start:stop, 32:96].float()
        near(made, wanted.t() if turned else wanted, 1e-5)


def test_a_neighbour_that_is_no_number_stays_out(kernels):
    s, x = matrix(64, 32, 1), matrix(64, 64, 2)
    sums = [torch.zeros(8, 64)]
    kernels.gradient(s, x, [(0, 16)], [slice(0, 8)], [slice(0, 64)], sums)
    before = sums[0].clone()
    x[16:] = float("inf")
    s[16:] = float("nan")
    sums[0].zero_()
    kernels.gradient(s, x, [(0, 16)], [slice(0, 8)], [slice(0, 64)], sums)
    assert torch.equal(sums[0], before)


def test_dropout_draws_what_rng_draws(kernels):
    n, width, layer = 48, 96, rng.seed_of(("layer", 1))
    x, keys = matrix(n, width, 1), torch.arange(n) * 977 - 5
    positions, rates = torch.arange(n) % 7, torch.full((n,), 0.3)
    rates[32:] = 0.0
    keep = rng.uniform_at(rng.mix(keys ^ layer), positions * width, width) >= 0.3
    keep[32:] = True
    wanted = x.float() * keep / torch.where(rates > 0, 0.7, 1.0)[:, None]
    out = rows(n, width)
    kernels.drop(x, keys, positions, layer, rates, out)
    assert torch.equal(out != 0, wanted.bfloat16() != 0)
    near(out, wanted)
    more = matrix(n, width, 2)
    before = more.float()
    kernels.drop(x, keys, positions, layer, rates, more, add=True)
    wanted[32:] = 0
    near(more, before + wanted)


@pytest.mark.parametrize("window", [0, 40])
@pytest.mark.parametrize(("heads", "groups", "width"), [(4, 1, 64), (6, 3, 32)])
def test_attention(kernels, heads, groups, width, window):
    lengths = [1, 33, 96, 130]
    starts = [0, 16, 64, 160]
    n, e = 304, width
    q, k, v = (matrix(n, h * e, i) for i, h in enumerate((heads, groups, groups)))
    out, scale = rows(n, heads * e), e**-0.5
    at = (torch.tensor(starts), torch.tensor(lengths))
    lse = kernels.attend(*at, heads, groups, q, k, v, scale, window, out)
    given = matrix(n, heads * e, 9)
    slopes = tuple(rows(*each.shape) for each in (q, k, v))
    kernels.attend_back(*at, heads, groups, given, out, q, k, v, lse, scale, window, slopes)
    for start, length in zip(starts, lengths, strict=True):
        own = slice(start, start + length)
        parts = [
            each[own].float().view(length, -1, e).transpose(0, 1).requires_grad_()
            for each in (q, k, v)
        ]
        share = heads // groups
        keys, values = (each.repeat_interleave(share, 0) for each in parts[1:])
        far = torch.arange(length)[:, None] - torch.arange(length)[None]
        seen = (far >= 0) & (far < window) if window else far >= 0
        z = (parts[0] @ keys.transpose(1, 2) * scale).masked_fill(~seen, -torch.inf)
        wanted = (torch.softmax(z, -1) @ values).transpose(0, 1).reshape(length, -1)
        near(out[own], wanted.detach(), 1e-2)
        wanted.backward(given[own].float())
        for made, part in zip(slopes, parts, strict=True):
            if length > 1 or made is slopes[2]:
                near(made[own], part.grad.transpose(0, 1).reshape(length, -1), 2e-2)


def test_a_sequences_attention_is_its_own(kernels):
    q, k, v = (matrix(160, h * 32, h) for h in (4, 2, 2))
    given = matrix(160, 128, 7)

    def taken(starts, lengths, n=slice(None)):
        parts = [each[n] for each in (q, k, v)]
        out, at = rows(len(parts[0]), 128), (torch.tensor(starts), torch.tensor(lengths))
        lse = kernels.attend(*at, 4, 2, *parts, 0.2, 0, out)
        slopes = tuple(rows(*each.shape) for each in parts)
        kernels.attend_back(*at, 4, 2, given[n], out, *parts, lse, 0.2, 0, slopes)
        return out, *slopes

    many = taken([0, 48], [48, 70])
    q[118:] = float("nan")
    torch.set_num_threads(1)
    alone = taken([0], [70], slice(48, None))
    for one, other in zip(many, alone, strict=True):
        assert torch.equal(one[48:118], other[:70])


@pytest.mark.parametrize("softcap", [None, 12.0])
@pytest.mark.parametrize("vocabulary", [97, 2048, 5003])
def test_head(kernels, vocabulary, softcap):
    m, width, scale = 96, 64, 0.7
    h, w = matrix(m, width, 1, scale=2.0), drawn(vocabulary, width, seed=2, scale=0.3)
    labels = torch.arange(m) * 31 % vocabulary
    loss, hits, slope = kernels.head(h, w, labels, scale=scale, softcap=softcap, wanted=True)
    x = h.float().requires_grad_()
    z = x @ w.float().t() * scale
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    wanted = F.cross_entropy(z, labels, reduction="none")
    wanted.sum().backward()
    torch.testing.assert_close(loss, wanted.detach(), atol=2e-5, rtol=2e-5)
    near(slope, x.grad)
    assert torch.equal(hits, z.detach().argmax(-1) == labels)
    half = kernels.head(
        h[32:64], w, labels[32:64].clone(), scale=scale, softcap=softcap, wanted=True
    )
    assert torch.equal(half[0], loss[32:64])
    assert torch.equal(half[2], slope[32:64])


def test_logits_far_apart_and_no_numbers(kernels):
    h, w = matrix(32, 32, 1, scale=40.0), drawn(600, 32, seed=2, scale=3.0)
    labels = torch.arange(32)
    h[3] = float("nan")
    h[4] = float("inf")
    loss, _, _ = kernels.head(h, w, labels, scale=1.0, softcap=None, wanted=False)
    assert loss[3:5].isnan().all()
    rest = [i for i in range(32) if i not in (3, 4)]
    wanted = F.cross_entropy((h.float() @ w.float().t())[rest], labels[rest], reduction="none")
    torch.testing.assert_close(loss[rest], wanted, atol=1e-3, rtol=1e-5)


def test_norm(kernels):
    x, left, given = matrix(40, 96, 1), matrix(40, 96, 2), matrix(40, 96, 3)
    w, eps = torch.linspace(0.5, 1.5, 96), 1e-6
    out = rows(40, 96)
    inverse = kernels.norm(x, w, eps, out, left=left)
    free = x.float().requires_grad_()
    wanted = left.float() + free * (free.square().mean(-1, keepdim=True) + eps).rsqrt() * w
    near(out, wanted.detach())
    wanted.backward(given.float())
    kernels.norm_back(given, x, w, inverse, out, left=left)
    near(out, free.grad + left.float())


@pytest.mark.parametrize("normed", [True, False])
def test_rotate(kernels, normed):
    x, given = matrix(24, 3 * 64, 1), matrix(24, 3 * 64, 2)
    angle = torch.arange(24)[:, None] * torch.logspace(0, -3, 32)[None]
    angle = torch.cat([angle, angle], dim=1)
    cosine, sine = angle.cos().contiguous(), angle.sin().contiguous()
    w = torch.linspace(0.5, 1.5, 64) if normed else None
    out = rows(24, 3 * 64)
    inverse = kernels.rotate(x, 3, w, 1e-6, (cosine, sine), out)
    free = x.float().requires_grad_()
    y = free.view(24, 3, 64)
    if normed:
        y = y * (y.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * w
    half = torch.cat([-y[..., 32:], y[..., :32]], dim=-1)
    wanted = (y * cosine[:, None] + half * sine[:, None]).reshape(24, -1)
    near(out, wanted.detach())
    wanted.backward(given.float())
    kernels.rotate_back(given, x, 3, w, inverse, (cosine, sine), out)
    near(out, free.grad)


@pytest.mark.parametrize(
    ("kind", "act"), [(0, F.silu), (1, lambda x: F.gelu(x, approximate="tanh"))]
)
def test_gate(kernels, kind, act):
    x, given = matrix(24, 192, 1, scale=3.0), matrix(24, 96, 2)
    out = kernels.gate(x, kind, rows(24, 96))
    free = x.float().requires_grad_()
    wanted = act(free[:, :96]) * free[:, 96:]
    near(out, wanted.detach())
    wanted.backward(given.float())
    near(kernels.gate_back(given, x, kind, rows(24, 192)), free.grad)


def test_add(kernels):
    a, b = matrix(24, 96, 1), matrix(24, 96, 2)
    near(kernels.add(a, b, rows(24, 96)), a.float() + b.float())
