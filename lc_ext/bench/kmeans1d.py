"""kmeans1d: cold, warm, weighted, packed, a ragged batch, groups and the optimum.

"excess" is the distortion above that of ``method="optimal"``, as a part of it. The values are half Gaussian, half
Laplacian, which is what weights of nets look like.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from lc_ext import ops
from lc_ext.bench.harness import Case, Options

SIZES = [1_000, 10_000, 100_000, 1_000_000, 10_000_000]
CODEWORDS = [2, 4, 16, 256]


def weights_like(n: int, seed: int = 0) -> Tensor:
    """n values, half from N(0, 0.05^2), half from a Laplacian of scale 0.03, mixed."""
    rng = torch.Generator().manual_seed(seed)
    normal = 0.05 * torch.randn(n, generator=rng)
    uniform = torch.rand(n, generator=rng) - 0.5
    laplacian = -0.03 * uniform.sign() * (1 - 2 * uniform.abs()).clamp_min(1e-7).log()
    return torch.where(torch.rand(n, generator=rng) < 0.5, normal, laplacian)


def drifted(x: Tensor, seed: int = 1) -> Tensor:
    """The values after a step of training: 1 % larger, with noise of 2 % of their spread."""
    return 1.01 * x + 0.02 * x.std() * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))


def resnet50_sizes() -> list[int]:
    """The 50 largest matrices of a ResNet-50, 22.7 M weights; one of 1000 stands for its small ones."""
    sizes, inputs = [9408], 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for _ in range(blocks):
            sizes += [inputs * width, width * width * 9, width * width * 4]
            inputs = 4 * width
    sizes = [*sizes, 2048 * 1000][:50]
    sizes[1] = 1000
    return sizes


def _excess(x: list[Tensor], best: list[float], h: Tensor | None = None) -> Callable[[Any], dict[str, float]]:
    def excess(result: Any) -> dict[str, float]:
        codebooks, codes = result[0], result[1]
        codes, codebooks = (codes, codebooks) if isinstance(codes, list) else ([codes], codebooks[None])
        total = 0.0
        for t, book, code in zip(x, codebooks, codes, strict=True):
            assert torch.equal(code.reshape(t.shape), ops.assign(t, book)), "codes are not the nearest"
            square = (t.double() - book.double()[code.long()]).square()
            total += float(square.sum() if h is None else (h.double() * square).sum())
        return {"excess": total / sum(best) - 1}

    return excess


def _peers(x: Tensor, k: int) -> dict[str, Callable[[], Any]]:
    peers: dict[str, Callable[[], Any]] = {}
    values = x.numpy()
    if importlib.util.find_spec("ckwrap") and x.numel() * k <= 20_000_000:
        ckwrap = importlib.import_module("ckwrap")
        peers["ckwrap"] = lambda: ckwrap.ckmeans(values.astype("float64"), k)
    if importlib.util.find_spec("flash1dkmeans"):
        flash = importlib.import_module("flash1dkmeans")
        peers["flash1dkmeans"] = lambda: flash.kmeans_1d(values, k, random_state=0)
    if importlib.util.find_spec("sklearn") and x.numel() * k <= 4_000_000:
        cluster = importlib.import_module("sklearn.cluster")
        peers["sklearn"] = lambda: cluster.KMeans(k, n_init=1, random_state=0).fit(values.reshape(-1, 1))
    return peers


def _peer_excess(x: Tensor, best: float) -> Callable[[Any], dict[str, float]]:
    def excess(result: Any) -> dict[str, float]:
        centers = getattr(result, "centers", getattr(result, "cluster_centers_", None))
        centers = result[0] if centers is None else centers
        book = torch.as_tensor(centers).float().flatten().sort().values
        square = (x.double() - book.double()[ops.assign(x, book).long()]).square()
        return {"excess": float(square.sum()) / best - 1}

    return excess


def cases(options: Options) -> Iterator[Case]:
    """One tensor of each size, then lists and groups."""
    sizes = options.sizes or (SIZES[:4] if options.quick else SIZES)
    for n in sizes:
        x = weights_like(n).to(options.dtype)
        moved = n * (x.element_size() + 1)
        for k in options.k or CODEWORDS:
            yield from _one_tensor(x, k, moved, options)
    if options.sizes is None and not options.quick:
        yield from _batches(options)


def _one_tensor(x: Tensor, k: int, moved: int, options: Options) -> Iterator[Case]:
    label: dict[str, object] = {"n": x.numel(), "k": k}
    best = ops.kmeans1d(x, k, method="optimal")
    cold, late = ops.kmeans1d(x, k), drifted(x.float()).to(x.dtype)
    late_best, late_out = ops.kmeans1d(late, k, method="optimal").distortion, ops.kmeans1d(late, k)
    yield Case(
        {**label, "what": "cold"},
        lambda: ops.kmeans1d(x, k, out=cold),
        _excess([x.float()], [best.distortion]),
        _peers(x, k) if options.peers and x.dtype == torch.float32 else {},
        _peer_excess(x, best.distortion),
        [x],
        moved,
    )
    init = ops.kmeans1d(x, k).codebook
    yield Case(
        {**label, "what": "warm"},
        lambda: ops.kmeans1d(late, k, init=init, out=late_out),
        _excess([late.float()], [late_best]),
        source=[late],
        moved=moved,
    )
    packed = ops.kmeans1d(x, k, packed=True)
    bits = max(1, (k - 1).bit_length())

    def unpacked(result: Any) -> dict[str, float]:
        codes = ops.unpack_codes(result.codes, bits, x.numel()).reshape(x.shape)
        return _excess([x.float()], [best.distortion])((result.codebook, codes))

    yield Case(
        {**label, "what": "packed"},
        lambda: ops.kmeans1d(x, k, packed=True, out=packed),
        unpacked,
        source=[x],
        moved=x.numel() * x.element_size() + 4 * packed.codes.numel(),
    )
    h = torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) + 0.1
    weighted = ops.kmeans1d(x, k, weights=h)
    yield Case(
        {**label, "what": "weighted"},
        lambda: ops.kmeans1d(x, k, weights=h, out=weighted),
        _excess([x.float()], [ops.kmeans1d(x, k, weights=h, method="optimal").distortion], h),
        source=[x],
        moved=moved + 4 * x.numel(),
    )
    if x.numel() <= 1_000_000:
        yield Case(
            {**label, "what": "optimal"},
            lambda: ops.kmeans1d(x, k, method="optimal", out=best),
            _excess([x.float()], [best.distortion]),
            source=[x],
            moved=moved,
        )


def _batches(options: Options) -> Iterator[Case]:
    xs = [weights_like(n, i) * (0.2 + 2 / (i + 1) ** 0.5) for i, n in enumerate(resnet50_sizes())]
    total = sum(t.numel() for t in xs)
    for k in options.k or CODEWORDS:
        best = ops.kmeans1d(xs, k, method="optimal")
        cold, late = ops.kmeans1d(xs, k), [drifted(t) for t in xs]
        init, late_best, late_out = (
            cold.codebook.clone(),
            ops.kmeans1d(late, k, method="optimal"),
            ops.kmeans1d(late, k),
        )
        label: dict[str, object] = {"n": total, "k": k}
        yield Case(
            {**label, "what": "50 tensors"},
            lambda k=k, out=cold: ops.kmeans1d(xs, k, out=out),
            _excess(xs, best.distortion),
            source=xs,
            moved=5 * total,
        )
        yield Case(
            {**label, "what": "50 tensors, warm"},
            lambda k=k, x=late, init=init, out=late_out: ops.kmeans1d(x, k, init=init, out=out),
            _excess(late, late_best.distortion),
            source=late,
            moved=5 * total,
        )
        joint = ops.kmeans1d(xs, k, joint=True)
        yield Case(
            {**label, "what": "50 tensors, joint"},
            lambda k=k, out=joint: ops.kmeans1d(xs, k, joint=True, out=out),
            lambda result: {"distortion": result.distortion[0]},
            source=xs,
            moved=5 * total,
        )
    x = weights_like(1 << 20)
    for k, group in ((4, 32), (4, 128), (16, 64), (16, 1024)):
        offsets = torch.arange(0, x.numel() + 1, group)
        out = ops.kmeans1d(x, k, offsets=offsets)
        rows = x.view(-1, group)

        def nearest(result: Any, rows: Tensor = rows) -> dict[str, float]:
            for i in range(0, len(rows), 997):
                codes = result.codes.view(rows.shape)[i]
                assert torch.equal(codes, ops.assign(rows[i], result.codebook[i])), "codes are not the nearest"
            return {"distortion": float(result.distortion.sum())}

        yield Case(
            {"n": x.numel(), "k": k, "what": f"groups of {group}"},
            lambda k=k, offsets=offsets, out=out: ops.kmeans1d(x, k, offsets=offsets, out=out),
            nearest,
            source=[x],
            moved=5 * x.numel(),
        )
