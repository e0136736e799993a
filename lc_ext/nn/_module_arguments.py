"""The modules of ``torch.nn`` that a file may name, and what each argument of their constructors may be.

An argument is also an attribute of the module, of the same name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from ..ops import _check

__all__ = ["ARGUMENTS", "CONTAINERS", "Kind", "choice", "whole"]

Kind = Callable[[object, str], Any]  # (value, name of the argument) -> the value, or an error that names the argument

_LARGEST = 2**31 - 1


def whole(low: int = 0, high: int = _LARGEST) -> Kind:
    """An int in [low, high]."""
    return lambda value, name: _check.integer(value, name, low, high)


def choice(*values: str) -> Kind:
    """One of these strings."""

    def check(value: object, name: str) -> Any:
        if not isinstance(value, str) or value not in values:
            raise ValueError(f"{name} must be one of {', '.join(values)}, got {value!r}")
        return value

    return check


def _optional(kind: Kind) -> Kind:
    return lambda value, name: None if value is None else kind(value, name)


def _flag(value: object, name: str) -> Any:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def _real(value: object, name: str) -> Any:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise TypeError(f"{name} must be a finite number, got {value!r}")
    return value


def _sizes(each: Kind, most: int = 3) -> Kind:
    """One of a kind, or a tuple of them, which JSON has as a list."""

    def check(value: object, name: str) -> Any:
        if not isinstance(value, (list, tuple)):
            return each(value, name)
        if not 1 <= len(value) <= most:
            raise ValueError(f"{name} must hold 1 to {most} values, got {len(value)}")
        return tuple(each(v, f"{name}[{i}]") for i, v in enumerate(value))

    return check


def _padding(value: object, name: str) -> Any:
    return choice("valid", "same")(value, name) if isinstance(value, str) else _sizes(whole())(value, name)


_at_least_1 = whole(1)
_each = _sizes(_at_least_1)
_axis = whole(-64, 64)
_channels = {"in_channels": whole(), "out_channels": whole(), "kernel_size": _each, "stride": _each}
_conv: dict[str, Kind] = {
    **_channels,
    "padding": _padding,
    "dilation": _each,
    "groups": _at_least_1,
    "bias": _flag,
    "padding_mode": choice("zeros", "reflect", "replicate", "circular"),
}
_transposed: dict[str, Kind] = {
    **_channels,
    "padding": _sizes(whole()),
    "output_padding": _sizes(whole()),
    "groups": _at_least_1,
    "bias": _flag,
    "dilation": _each,
}
_norm: dict[str, Kind] = {
    "num_features": whole(),
    "eps": _real,
    "momentum": _optional(_real),
    "affine": _flag,
    "track_running_stats": _flag,
}
_max: dict[str, Kind] = {
    "kernel_size": _each,
    "stride": _each,
    "padding": _sizes(whole()),
    "dilation": _each,
    "return_indices": _flag,
    "ceil_mode": _flag,
}
_average: dict[str, Kind] = {
    "kernel_size": _each,
    "stride": _each,
    "padding": _sizes(whole()),
    "ceil_mode": _flag,
    "count_include_pad": _flag,
}
_adaptive: dict[str, Kind] = {"output_size": _sizes(_optional(whole()))}
_adaptive_max: dict[str, Kind] = {**_adaptive, "return_indices": _flag}
_softmax: dict[str, Kind] = {"dim": _optional(_axis)}
_none: dict[str, Kind] = {}
_inplace: dict[str, Kind] = {"inplace": _flag}
_dropout: dict[str, Kind] = {"p": _real, "inplace": _flag}
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
ARGUMENTS: dict[type[nn.Module], dict[str, Kind]] = {
    **dict.fromkeys((*CONTAINERS, nn.Identity, nn.Sigmoid, nn.Tanh, nn.LogSigmoid, nn.Softsign), _none),
    **dict.fromkeys((nn.ReLU, nn.ReLU6, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.SELU), _inplace),
    nn.GELU: {"approximate": choice("none", "tanh")},
    nn.LeakyReLU: {"negative_slope": _real, **_inplace},
    nn.ELU: {"alpha": _real, **_inplace},
    nn.Hardtanh: {"min_val": _real, "max_val": _real, **_inplace},
    nn.Softplus: {"beta": _real, "threshold": _real},
    nn.PReLU: {"num_parameters": _at_least_1},
    **dict.fromkeys((nn.Softmax, nn.LogSoftmax), _softmax),
    nn.Linear: {"in_features": whole(), "out_features": whole(), "bias": _flag},
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _conv),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d), _transposed),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _norm),
    nn.LayerNorm: {
        "normalized_shape": _sizes(whole(), 8),
        "eps": _real,
        "elementwise_affine": _flag,
        "bias": _flag,
    },
    nn.RMSNorm: {"normalized_shape": _sizes(whole(), 8), "eps": _optional(_real), "elementwise_affine": _flag},
    nn.GroupNorm: {"num_groups": _at_least_1, "num_channels": whole(), "eps": _real, "affine": _flag},
    nn.Embedding: {
        "num_embeddings": whole(),
        "embedding_dim": whole(),
        "padding_idx": _optional(whole(-_LARGEST)),
        "max_norm": _optional(_real),
        "norm_type": _real,
        "scale_grad_by_freq": _flag,
        "sparse": _flag,
    },
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d), _max),
    nn.AvgPool1d: _average,
    nn.AvgPool2d: {**_average, "divisor_override": _optional(_at_least_1)},
    **dict.fromkeys((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d), _adaptive),
    **dict.fromkeys((nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d), _adaptive_max),
    nn.Flatten: {"start_dim": _axis, "end_dim": _axis},
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d), _dropout),
}
