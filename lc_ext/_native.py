"""The one door between Python and the kernels: tensors become addresses, the device picks the module.

Native code knows nothing of torch, so one build serves every torch version. It gets raw pointers, sizes and, on CUDA,
a stream; the op that calls it has checked the arguments and allocated the results.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import torch  # before _C: the extension then binds to the OpenMP runtime that torch carries
from torch import Tensor

from . import _C

_cpu = _C.cpu
_emulated: ModuleType | None = None  # lc_ext._C_emu while emulated_cuda() is active


def has_kernel(name: str, tensor: Tensor) -> bool:
    """Whether the native kernel ``name`` exists for the device of ``tensor``."""
    if _emulated is not None:
        return hasattr(_emulated.cuda, name)
    if tensor.is_cpu:
        return hasattr(_cpu, name)
    return tensor.is_cuda and hasattr(_C.cuda, name)


def call(name: str, *args: Any) -> Any:
    """Run the kernel ``name`` on the device of the tensors among ``args``.

    A tensor goes as its address and must be contiguous; a list of tensors goes as a list of addresses; None goes
    as address 0; numbers go as they are.
    """
    native: list[Any] = []
    for arg in args:  # every call of an op pays for this loop: the common cases first, no device objects
        if type(arg) is int:
            native.append(arg)
        elif isinstance(arg, Tensor):
            if not arg.is_cpu:
                return _call_cuda(name, args)
            native.append(arg.data_ptr())
        elif type(arg) is list and arg and isinstance(arg[0], Tensor):
            addresses = []
            for t in arg:
                if not t.is_cpu:
                    return _call_cuda(name, args)
                addresses.append(t.data_ptr())
            native.append(addresses)
        else:
            native.append(0 if arg is None else arg)
    if _emulated is not None:
        return getattr(_emulated.cuda, name)(*native, 0)
    return getattr(_cpu, name)(*native)


def cpu_kernel(name: str) -> Any:
    """The native function itself, for a caller that has the addresses: :func:`call` finds them at every call."""
    return getattr(_cpu, name)


def _call_cuda(name: str, args: Sequence[Any]) -> Any:
    """:func:`call` where a tensor is not on the CPU: they must all be on one CUDA device."""
    lists = [arg if isinstance(arg, list) else [arg] for arg in args]
    devices = list(dict.fromkeys(t.device for ts in lists for t in ts if isinstance(t, Tensor)))
    if len(devices) > 1:
        raise ValueError(f"tensors must be on one device, got {devices[0]} and {devices[1]}")
    native = [_address(arg) for arg in args]
    with torch.cuda.device(devices[0]):
        return getattr(_C.cuda, name)(*native, torch.cuda.current_stream(devices[0]).cuda_stream)


def _address(arg: Any) -> Any:
    if isinstance(arg, Tensor):
        return arg.data_ptr()
    if isinstance(arg, list):
        return [_address(a) for a in arg]
    return 0 if arg is None else arg


@contextlib.contextmanager
def emulated_cuda(seed: int = 0) -> Iterator[None]:
    """Run the CUDA kernels on the host emulation, on CPU tensors: for tests, on machines with no GPU.

    Parameters
    ----------
    seed : the order in which the emulated threads run: 0 ascending, 1 descending, others shuffled.

    Raises
    ------
    ImportError : if the emulation was not built (``LC_EXT_EMU=ON``).
    """
    global _emulated
    module = importlib.import_module("lc_ext._C_emu")
    module.set_seed(seed)
    before, _emulated = _emulated, module
    try:
        yield
    finally:
        _emulated = before


def supported_isas() -> list[str]:
    """Instruction sets this machine can run; ``wide`` is a test build of the 16-lane code."""
    return list(_C.supported_isas())


def active_isa() -> str:
    """The instruction set in use: the best supported one, or what ``LC_EXT_ISA`` names."""
    return str(_C.active_isa())


isa_changes = 0  # by set_isa: what was made for one instruction set may not suit another


def set_isa(name: str) -> None:
    """Use the instruction set ``name`` from now on, in the whole process."""
    global isa_changes
    if name not in _C.supported_isas():
        raise ValueError(f"name must be one of {supported_isas()} on this machine, got {name!r}")
    _C.set_isa(name)
    isa_changes += 1
