"""What each packed layer costs against the dense layer that it replaces."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lc_ext.nn import PackedLayer
from lc_ext.ops import _check

__all__ = ["LayerProfile", "Profile", "profile"]


@dataclass(frozen=True)
class LayerProfile:
    """One packed layer.

    Attributes
    ----------
    name : its path in the model.
    kind : its class.
    bytes, dense_bytes : of its tensors, and of those of the dense layer.
    milliseconds, dense_milliseconds : median time of a call, for each batch size.
    """

    name: str
    kind: str
    bytes: int
    dense_bytes: int
    milliseconds: dict[int, float]
    dense_milliseconds: dict[int, float]

    @property
    def slower_at(self) -> list[int]:
        """The batch sizes at which the packed layer takes longer than the dense one."""
        return [b for b, ms in self.milliseconds.items() if ms > self.dense_milliseconds[b]]


@dataclass(frozen=True)
class Profile:
    """Result of :func:`profile`; its ``str`` is a table.

    Attributes
    ----------
    layers : a :class:`LayerProfile` for each packed layer, in the order of their calls.
    batches : the batch sizes.
    """

    layers: list[LayerProfile]
    batches: list[int]

    def __str__(self) -> str:
        from rich.console import Console
        from rich.table import Table

        table = Table("layer", "class", "KB", "dense KB", *(f"batch {b}: ms (dense)" for b in self.batches))
        for layer in self.layers:
            times = []
            for b in self.batches:
                mark = " slower" if b in layer.slower_at else ""
                times.append(f"{layer.milliseconds[b]:.3f} ({layer.dense_milliseconds[b]:.3f}){mark}")
            table.add_row(layer.name, layer.kind, f"{layer.bytes / 1e3:.1f}", f"{layer.dense_bytes / 1e3:.1f}", *times)
        text = io.StringIO()
        Console(file=text, width=60 + 30 * len(self.batches)).print(table)
        return text.getvalue().rstrip()


def profile(
    packed: nn.Module, example_input: Any, *, batches: Sequence[int] = (1, 32), repeats: int = 15, seconds: float = 0.2
) -> Profile:
    """Time and size of each packed layer of a model, against the dense layer that it replaces.

    Parameters
    ----------
    packed : a model with layers of :mod:`lc_ext.nn`, as :func:`lc.pack` makes it.
    example_input : what the model is called with, a tensor or a tuple of arguments; the first dimension of what a layer
        gets is taken for the batch, and repeated or cut to each of ``batches``.
    batches : batch sizes to time.
    repeats : calls of each layer, packed and dense in turn; fewer where they take longer than ``seconds``.
    seconds : bound on the time of each comparison.

    Returns
    -------
    Profile : ``print`` it for the table.

    Raises
    ------
    TypeError, ValueError : for a model without packed layers, or batch sizes that are not positive.

    Notes
    -----
    A call in eval mode without gradients, with as many threads as torch has. One layer is made dense at a time.
    """
    sizes = [_check.integer(b, f"batches[{i}]", 1) for i, b in enumerate(batches)]
    if not sizes:
        raise ValueError("batches must hold at least one size, got none")
    _check.integer(repeats, "repeats", 1)
    inputs: dict[str, Tensor] = {}
    outer = {m: name for name, m in _outermost(packed, "")}
    if not outer:
        raise ValueError("packed has no layers of lc_ext.nn")

    def note(module: Any, args: tuple[Any, ...]) -> None:
        inputs.setdefault(outer[module], args[0].detach())

    modes = {m: m.training for m in packed.modules()}
    handles = [module.register_forward_pre_hook(note) for module in outer]
    try:
        packed.eval()
        with torch.inference_mode():
            packed(*example_input) if isinstance(example_input, tuple) else packed(example_input)
        layers = {name: m for m, name in outer.items()}
        for handle in handles:
            handle.remove()
        return Profile([_layer(name, layers[name], x, sizes, repeats, seconds) for name, x in inputs.items()], sizes)
    finally:
        for handle in handles:
            handle.remove()
        for m, training in modes.items():
            m.training = training


def _outermost(module: nn.Module, path: str) -> Iterator[tuple[str, PackedLayer]]:
    """The packed layers that are in no other."""
    if isinstance(module, PackedLayer):
        yield path, module
        return
    for name, child in module.named_children():
        yield from _outermost(child, f"{path}.{name}" if path else name)


def _layer(
    name: str, layer: PackedLayer, x: Tensor, batches: Sequence[int], repeats: int, seconds: float
) -> LayerProfile:
    dense = layer.to_dense()
    times: dict[int, tuple[float, float]] = {}
    for batch in batches:
        part = x.repeat(-(-batch // max(x.shape[0], 1)), *(1,) * (x.dim() - 1))[:batch].contiguous()
        times[batch] = _times(layer, dense, part, repeats, seconds)
    size = sum(t.numel() * t.element_size() for t in dense.parameters())
    return LayerProfile(
        name, type(layer).__name__, layer.nbytes, size, *({b: t[i] for b, t in times.items()} for i in (0, 1))
    )


@torch.inference_mode()
def _times(packed: nn.Module, dense: nn.Module, x: Tensor, repeats: int, seconds: float) -> tuple[float, float]:
    """Median milliseconds of both, called in turn."""
    taken: tuple[list[float], list[float]] = ([], [])
    start = time.perf_counter()
    for trial in range(repeats + 2):  # two to warm up
        for times, module in zip(taken, (packed, dense), strict=True):
            begin = _now(x)
            module(x)
            times.append(_now(x) - begin)
        if trial > 2 and time.perf_counter() - start > seconds:
            break
    first, second = (1e3 * statistics.median(times[2:]) for times in taken)
    return first, second


def _now(x: Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter()
