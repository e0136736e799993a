"""The parameters and views of the older toolkit, UCMerced's LC-model-compression. See ``docs/older_toolkit.md``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .compressions.base import split
from .tasks import BoundTask, state_dtype

__all__ = ["AsIs", "AsVector", "ParameterTorch"]

Array = np.ndarray[Any, Any]
Getter = Callable[[], Tensor]


class View(ABC):
    """How some tensors look to a compression of the user's own. ``list`` holds the functions that return them."""

    def __init__(self, list_or_item: Getter | Tensor | Sequence[Getter | Tensor]) -> None:
        self.single = not isinstance(list_or_item, (list, tuple))
        items: Any = [list_or_item] if self.single else list_or_item
        self.list: list[Getter] = [_getter(item) for item in items]
        if not self.list or not all(callable(get) and isinstance(get(), Tensor) for get in self.list):
            raise TypeError("a Param takes a function that returns a tensor, a tensor, or a list of such")
        self.original_form = list_or_item

    def tensors(self) -> list[Tensor]:
        """The tensors as they are now."""
        return [get() for get in self.list]

    @property
    def shape(self) -> tuple[int]:
        """Of all elements as a vector."""
        return (sum(t.numel() for t in self.tensors()),)

    def pack(self) -> Any:
        """The tensors in this view."""
        return self.pack_(self.tensors())

    @torch.no_grad()
    def unpack(self, packed: Any) -> None:
        """Copy the content of this view into the tensors."""
        for t, new in zip(self.tensors(), self.unpack_(packed), strict=True):
            t.copy_(new)

    @abstractmethod
    def pack_(self, tensors: Tensor | Sequence[Tensor]) -> Any:
        """Given tensors in this view."""

    @abstractmethod
    def unpack_(self, packed: Any) -> list[Tensor]:
        """The tensors again."""


class AsVector(View):
    """All elements as one vector."""

    def pack_(self, tensors: Tensor | Sequence[Tensor]) -> Array:
        return vector([tensors] if isinstance(tensors, Tensor) else tensors)

    def unpack_(self, packed: Any) -> list[Tensor]:
        return parts(packed, self.tensors())


class AsIs(View):
    """Each tensor as it is: an array for a single one, or a list."""

    def pack_(self, tensors: Tensor | Sequence[Tensor]) -> Any:
        arrays = [vector([t]).reshape(t.shape) for t in ([tensors] if isinstance(tensors, Tensor) else tensors)]
        return arrays[0] if self.single else arrays

    def unpack_(self, packed: Any) -> list[Tensor]:
        arrays = packed if isinstance(packed, (list, tuple)) else [packed]
        return [parts(a, [t])[0] for a, t in zip(arrays, self.tensors(), strict=True)]


class ParameterTorch:
    """Some tensors of a model that are compressed together, with what the LC algorithm keeps for them.

    Parameters
    ----------
    single_or_list_of_tensors : a function without arguments that returns a parameter of the model, or a list of such;
        the parameters themselves will do.
    device : where the penalty is wanted. None: where the parameters are.
    bn_after : of no meaning here; scripts read it.

    Attributes
    ----------
    w, delta_theta, lambda_, target : weights, compressed weights, multipliers, and where the penalty pulls: vectors.
        Each reading makes an array, and only an assignment has an effect: ``p.lambda_ *= 0``, not ``p.lambda_[3] = 0``.
    """

    def __init__(
        self,
        single_or_list_of_tensors: Getter | Tensor | Sequence[Getter | Tensor],
        device: torch.device | str | None = None,
        bn_after: bool = False,
    ) -> None:
        self.w_view = AsVector(single_or_list_of_tensors)
        self.device = device
        self.bn_after = bn_after
        self.is_eval = False
        self._trained: list[Tensor] = []  # the weights, while the compressed ones are in their place
        self._state: BoundTask | SimpleNamespace = SimpleNamespace(delta=self._zeros(), multipliers=self._zeros())
        targets = [nn.Parameter(t, requires_grad=False) for t in self._zeros()]
        self.d_theta_list: list[Getter] = [lambda t=t: t for t in targets]  # type: ignore[misc]
        self.target_view = AsVector(self.d_theta_list)

    def tensors(self) -> list[Tensor]:
        """The tensors of the model."""
        return self.w_view.tensors()

    def bind(self, task: BoundTask) -> None:
        """From now on share the state with this task of the driver."""
        task.delta, task.multipliers = self._state.delta, self._state.multipliers
        self._state = task

    def pull_to(self, targets: Sequence[Tensor]) -> None:
        """Set ``target`` from tensors."""
        with torch.no_grad():
            for t, new in zip(self.target_view.tensors(), targets, strict=True):
                t.copy_(new)

    def lc_penalty(self) -> Tensor:
        """The squared distance of the weights to ``target``, with its graph."""
        pairs = zip(self.tensors(), self.target_view.tensors(), strict=True)
        squares = [(w.to(t.dtype) - t.to(w.device)).square().sum() for w, t in pairs]
        total = torch.stack([s.to(squares[0].device) for s in squares]).sum()
        return total if self.device is None else total.to(self.device)

    @torch.no_grad()
    def eval(self) -> None:
        """Put the compressed weights in the model's place, until ``train``."""
        if not self.is_eval:
            self._trained = [t.detach().clone() for t in self.tensors()]
            self._copy(self._state.delta)
            self.is_eval = True

    def train(self) -> None:
        """Put the trained weights back."""
        if self.is_eval:
            self.is_eval = False
            self._copy(self._trained)
            self._trained = []

    def release(self) -> None:
        """Let the model have the trained weights."""
        self.train()

    def retrieve(self, full: bool = False) -> None:
        """With ``full``, set ``delta_theta`` to ``target``. ``w`` is always what the model has: nothing to fetch."""
        if full:
            self.delta_theta = self.target

    @property
    def w(self) -> Array:
        return vector(self._trained if self.is_eval else self.tensors())

    @w.setter
    def w(self, value: Any) -> None:
        weights = parts(value, self.tensors())
        if self.is_eval:
            self._trained = weights
        else:
            self._copy(weights)

    @property
    def delta_theta(self) -> Array:
        return vector(self._state.delta)

    @delta_theta.setter
    def delta_theta(self, value: Any) -> None:
        self._state.delta = parts(value, self._zeros())

    @property
    def lambda_(self) -> Array:
        return vector(self._state.multipliers)

    @lambda_.setter
    def lambda_(self, value: Any) -> None:
        self._state.multipliers = parts(value, self._zeros())

    @property
    def target(self) -> Array:
        return vector(self.target_view.tensors())

    @target.setter
    def target(self, value: Any) -> None:
        self.pull_to(parts(value, self._zeros()))

    def vector_to_compression_view(self, values: Any, compression_view: View) -> Any:
        """A vector such as ``w`` in another view."""
        return compression_view.pack_(parts(values, self.tensors()))

    def compression_view_to_vector(self, data: Any, compression_view: View) -> Array:
        """The inverse."""
        return vector(compression_view.unpack_(data))

    def _zeros(self) -> list[Tensor]:
        return [torch.zeros_like(t, dtype=state_dtype(t), requires_grad=False) for t in self.tensors()]

    @torch.no_grad()
    def _copy(self, values: Sequence[Tensor]) -> None:
        for t, value in zip(self.tensors(), values, strict=True):
            t.copy_(value)


def _getter(item: Getter | Tensor) -> Getter:
    return (lambda: item) if isinstance(item, Tensor) else item


def vector(tensors: Sequence[Tensor]) -> Array:
    """All elements as one NumPy vector, a copy; half precision as float32."""
    return torch.cat([t.detach().to(state_dtype(t)).reshape(-1).cpu() for t in tensors]).numpy()


def parts(values: Any, like: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of :func:`vector`."""
    flat = torch.as_tensor(np.asarray(values) if not isinstance(values, Tensor) else values.detach()).reshape(-1)
    if flat.numel() != sum(t.numel() for t in like):
        raise ValueError(f"a vector of {sum(t.numel() for t in like)} elements is needed, got {flat.numel()}")
    return [part.to(t.device, t.dtype, copy=True) for part, t in zip(split(flat, like), like, strict=True)]
