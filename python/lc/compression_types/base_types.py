"""What the older toolkit's compressions have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..compressions import Compression
from ..compressions.base import flat, split

__all__ = [
    "CompressionTypeBase",
    "Foreign",
    "Native",
    "PruningTypeBase",
    "array",
    "bits_of",
    "driven",
    "fit",
    "settle",
    "tensor",
]

Array = np.ndarray[Any, Any]
Data = TypeVar("Data", Array, Tensor)
State = dict[str, Any]


class CompressionTypeBase(ABC):
    """Base of all. Derive from it to add one of your own, on NumPy arrays: what a Param holds, as its view shows it.

    ``info`` holds, by the number of the step, what each C step found; ``mu`` is the penalty parameter of the step.
    """

    def __init__(self) -> None:
        self._mu = 0.0
        self._state: State | None = None
        self.info: dict[int, Any] = {}
        self.step_number = 0

    @property
    def mu(self) -> float:
        """The penalty parameter."""
        return self._mu

    @mu.setter
    def mu(self, mu: float) -> None:
        if mu < 0:
            raise ValueError(f"mu must not be negative, got {mu}")
        self._mu = mu

    @property
    def state_dict(self) -> State | None:
        """What was learned; None before anything was."""
        return self._state

    @abstractmethod
    def compress(self, data: Any) -> Any:
        """The C step: learn from ``data``, and return its projection."""

    @abstractmethod
    def load_state_dict(self, state_dict: State) -> None:
        """The inverse of ``state_dict``."""

    @abstractmethod
    def uncompress_state(self) -> Any:
        """The projection again, from what was learned."""

    @abstractmethod
    def count_params(self) -> int:
        """Numbers that were learned."""

    @abstractmethod
    def count_param_bits(self) -> int:
        """Bits that they take."""


class PruningTypeBase(CompressionTypeBase):
    """Base of the toolkit's prunings: ``compress`` is ``prune``."""

    def compress(self, data: Any) -> Any:
        return self.prune(data)

    @abstractmethod
    def prune(self, data: Any) -> Any:
        """The C step."""


class Native(CompressionTypeBase):
    """One of this library's: ``inner`` learns, and everything else is read off it."""

    inner: Compression

    def compress(self, data: Data) -> Data:
        """The C step on a tensor or an array: learn from it, and return its projection, of the same kind and type."""
        v = data.detach() if isinstance(data, Tensor) else torch.as_tensor(np.asarray(data))
        self.prepare([v.float()])
        (out,) = fit(self.inner, [v.float()], self.mu)
        self.record()
        out = out.to(v.dtype if v.is_floating_point() else torch.float32)
        return out if isinstance(data, Tensor) else out.cpu().numpy()

    def prepare(self, v: Sequence[Tensor]) -> None:
        """Before a C step on ``v``: hand down the options, which a script may have changed; bring the state there."""
        settle(self.inner, v)

    def record(self) -> None:
        """After a C step: note in ``info`` what it found."""

    @property
    def state_dict(self) -> State | None:
        return self._read() if self.inner.learned else None

    def load_state_dict(self, state_dict: State) -> None:
        self.inner.load_state_dict(self._write(state_dict))

    def uncompress_state(self) -> Array:
        """The projection as a vector."""
        return array(flat(self.learned.decompress()))

    @property
    def learned(self) -> Any:
        """``inner``, which must have learned something."""
        if not self.inner.learned:
            raise RuntimeError(f"{type(self).__name__} has not compressed anything yet")
        return self.inner

    @abstractmethod
    def _read(self) -> State: ...

    @abstractmethod
    def _write(self, state: State) -> State: ...


class Foreign(Compression):
    """A compression of the user's own, on NumPy arrays: ``pack`` and ``unpack`` are those of its view."""

    penalised = True
    values_: list[Tensor]

    def __init__(
        self,
        compression: CompressionTypeBase,
        pack: Callable[[Sequence[Tensor]], Any],
        unpack: Callable[[Any], Sequence[Tensor]],
    ) -> None:
        self.compression, self.pack, self.unpack = compression, pack, unpack

    def fit(self, v: Sequence[Tensor], mu: float = 0.0) -> list[Tensor]:
        """The C step."""
        self.compression.mu = mu
        projected = self.unpack(self.compression.compress(self.pack(v)))
        self.values_ = [p.to(t).view(t.shape) for p, t in zip(projected, v, strict=True)]
        return self.decompress()

    def decompress(self) -> list[Tensor]:
        return [t.clone() for t in self.values_]

    def bits(self) -> int:
        return int(self.compression.count_param_bits())

    def weight_bits(self) -> int:
        return self.bits()


def as_vector(v: Sequence[Tensor]) -> Array:
    """All elements of some tensors."""
    return array(flat(v))


def driven(
    compression: CompressionTypeBase,
    pack: Callable[[Sequence[Tensor]], Any] = as_vector,
    unpack: Callable[[Any], Sequence[Tensor]] = lambda a: [tensor(a)],
) -> Compression:
    """What the driver runs for ``compression``: its inner one; or a wrapper, if ``compress`` is the user's own."""
    if isinstance(compression, Native) and type(compression).compress.__module__.startswith(__package__):
        return compression.inner
    return Foreign(compression, pack, unpack)


def bits_of(precision: str | int, allowed: Sequence[int]) -> int:
    """Bits of a value in the toolkit's terms: "float" means 32."""
    bits = 32 if precision == "float" else precision
    if bits not in allowed:
        raise ValueError(f'precision must be "float" or one of {list(allowed)}, got {precision!r}')
    return int(bits)


def fit(inner: Compression, v: Sequence[Tensor], mu: float) -> list[Tensor]:
    """One C step of ``inner``."""
    return inner.fit(v, mu=mu) if inner.penalised else inner.fit(v)  # type: ignore[call-arg]


def settle(inner: Compression, v: Sequence[Tensor]) -> None:
    """Give what was loaded, which is flat and on the CPU, the device and the shapes of ``v``."""
    state = inner.state_dict()
    for name, value in state.items():
        if isinstance(value, Tensor):
            state[name] = value.to(v[0].device)
        elif value and isinstance(value, list) and all(isinstance(t, Tensor) for t in value):
            whole = flat(value).to(v[0].device)
            state[name] = split(whole, v) if whole.numel() == sum(t.numel() for t in v) else []
    inner.load_state_dict(state)


def array(t: Tensor) -> Array:
    """A copy as a NumPy array."""
    return t.detach().cpu().numpy().copy()


def tensor(a: Any) -> Tensor:
    """A float32 tensor with a copy of an array."""
    return torch.tensor(np.asarray(a), dtype=torch.float32)
