"""tiled_conv2d: convolutions of the shapes of LeNet5, ResNet20 and ResNet50, kept as codes, and torch's dense ones."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from .harness import Case, Options

# outputs, inputs, side of the kernel, side of the input
_LAYERS = [
    (6, 1, 5, 28),
    (16, 6, 5, 12),
    (16, 16, 3, 32),
    (32, 32, 3, 16),
    (64, 64, 3, 8),
    (256, 64, 1, 56),
    (256, 256, 3, 14),
    (512, 512, 3, 7),
]


def cases(options: Options) -> Iterator[Case]:
    """``sizes`` are batch sizes, ``k`` the numbers of codewords."""
    rng = torch.Generator().manual_seed(0)
    for batch in options.sizes or ([1] if options.quick else [1, 8, 32]):
        for outputs, inputs, side, size in _LAYERS[1:4] if options.quick else _LAYERS:
            for k in options.k or [16]:
                codes = torch.randint(0, k, (outputs, inputs, side, side), generator=rng).to(torch.uint8)
                x = torch.randn(batch, inputs, size, size, generator=rng)
                last = x.to(memory_format=torch.channels_last)
                yield _case(last, codes, torch.randn(k, generator=rng))
                yield _case(last, codes, torch.randn(outputs, k, generator=rng))


def _case(x: Tensor, codes: Tensor, codebook: Tensor) -> Case:
    outputs, inputs, side, _ = codes.shape
    tiles = ops.conv_tiles((outputs, inputs, side, side), codes=codes, codebook=codebook)
    rows, pad = codebook.expand(outputs, codebook.shape[-1]), side // 2
    weight = rows.gather(1, codes.flatten(1).long()).view(codes.shape)
    plain = x.contiguous()

    def verify(y: Tensor) -> dict[str, float]:
        exact = F.conv2d(x.double(), weight.double(), padding=pad)
        error = float((y.double() - exact).abs().max() / exact.abs().max())
        assert error <= 1e-5, error
        return {"error": error}

    positions = x.shape[0] * (x.shape[2] + 2 * pad - side + 1) * (x.shape[3] + 2 * pad - side + 1)
    held = sum(t.numel() * t.element_size() for t in tiles if isinstance(t, Tensor))
    return Case(
        {
            "batch": x.shape[0],
            "kernel": f"{outputs}x{inputs}x{side}x{side}",
            "size": x.shape[2],
            "k": codebook.shape[-1],
            "per output": codebook.dim() == 2,
        },
        lambda: ops.tiled_conv2d(x, tiles, padding=pad),
        verify,
        {
            "torch fp32": lambda: F.conv2d(plain, weight, padding=pad),
            "torch fp32 channels last": lambda: F.conv2d(x, weight, padding=pad),
        },
        verify,
        source=[x],
        moved=4 * (x.numel() + positions * outputs) + held,
        flops=2.0 * positions * codes[0].numel() * outputs,
    )
