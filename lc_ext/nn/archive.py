"""The smallest file: every tensor of a packed model in the shortest of a few codes, most of them entropy codes.

The file is ``LCZ2``, the length of a header and the header (:mod:`lc_ext.nn._header`), the tensors one after the other,
and the SHA-256 of all before it. The header is that of :mod:`lc_ext.nn.io`, with a list of the tensors: name, dtype,
shape, code and length.

Codes: ``raw``; ``values``, for few distinct values: these, and the index of each as a symbol; ``bytes``, each byte of
the elements as a symbol of its place; ``codes``, for packed codes, each a symbol; ``gaps``, for the columns and row
starts of a sparse matrix: the gaps between its positions as symbols of a width, with escapes.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .. import ops
from ..ops.pack_codes import words_per_row
from ..ops.sparse_linear import column_dtype
from ._entropy import Reader, decode, encode, varint
from ._header import MAGICS, deflated, inflated
from .lut_linear import LUTLinear
from .sparse_linear import SparseLinear

__all__ = ["archive_parts", "empty_tensors", "read_archive", "read_tensors", "write_archive"]

_DTYPES = {str(t).removeprefix("torch."): t for t in (
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.uint16, torch.bool,
)}  # fmt: skip
_MOST_VALUES = 4096  # distinct values that are looked for


def write_archive(file: Any, spec: dict[str, Any], tensors: dict[str, Tensor], model: nn.Module) -> None:
    """Write a model that :mod:`lc_ext.nn.io` has described."""
    layers = {path: m for path, m in model.named_modules() if isinstance(m, (LUTLinear, SparseLinear))}
    entries, blobs = [], []
    rest = dict(tensors)
    for path, layer in layers.items():
        prefix = f"{path}." if path else ""
        if isinstance(layer, LUTLinear) and (words := rest.pop(f"{prefix}words", None)) is not None:
            options = {"bits": layer.bits, "cols": layer.in_features}
            entries.append(_entry(f"{prefix}words", words, "codes", options))
            blobs.append(_shortest(entries[-1], words, _encode_codes(words, layer)))
        if isinstance(layer, SparseLinear) and f"{prefix}columns" in rest and f"{prefix}row_starts" in rest:
            columns, starts = rest.pop(f"{prefix}columns"), rest.pop(f"{prefix}row_starts")
            entries.append(_entry(f"{prefix}columns", columns, "gaps", {"cols": layer.in_features}))
            entries[-1]["starts"] = [f"{prefix}row_starts", starts.numel()]
            blobs.append(_encode_gaps(columns, starts, layer.in_features))
    for name, t in rest.items():
        entries.append(_entry(name, t, "raw", {}))
        blobs.append(_shortest(entries[-1], t, None))
    for entry, blob in zip(entries, blobs, strict=True):
        entry["length"] = len(blob)
    header = deflated({**spec, "tensors": entries})
    digest = hashlib.sha256()
    for part in (MAGICS[-1], len(header).to_bytes(4, "little"), header, *blobs):
        digest.update(part)
        file.write(part)
    file.write(digest.digest())


def read_archive(path: str | os.PathLike[str]) -> tuple[dict[str, Any], Reader]:
    """The header of an archive, and its tensors as they are in the file.

    Raises
    ------
    ValueError : if the file is not whole, or not an archive.
    """
    with open(path, "rb") as file:
        data = memoryview(file.read())
    if len(data) < 40 or bytes(data[:4]) not in MAGICS:
        raise ValueError("corrupt: not an archive, or truncated")
    if hashlib.sha256(data[:-32]).digest() != data[-32:]:
        raise ValueError("corrupt: the checksum does not match")
    reader = Reader(data[4:-32])
    spec = inflated(reader.take(int.from_bytes(reader.take(4), "little")), bytes(data[:4]))
    if not isinstance(spec, dict) or not isinstance(spec.get("tensors"), list):
        raise ValueError("the header must hold a list 'tensors'")
    return spec, reader


def archive_parts(path: str | os.PathLike[str]) -> dict[str, int]:
    """Where the bytes of an ``.lcz`` archive go.

    Returns
    -------
    by the name of each tensor, its bytes; the columns of a sparse matrix are with its row starts. ``header``: the
    rest, which is the description of the layers and the checksum. They add up to the size of the file.

    Raises
    ------
    ValueError : if the file is not whole, or not an archive.

    Examples
    --------
    >>> layers.save(nn.Linear(3, 2), "linear.lcz")
    >>> parts = layers.archive_parts("linear.lcz")
    >>> parts["weight"], parts["bias"], list(parts)
    (24, 8, ['header', 'weight', 'bias'])
    """
    spec, _ = read_archive(path)
    lengths = {entry["name"]: _integer(entry, "length") for entry in spec["tensors"] if _announced(entry)}
    return {"header": os.path.getsize(path) - sum(lengths.values()), **lengths}


def empty_tensors(spec: dict[str, Any], most: int) -> dict[str, Tensor]:
    """The tensors that the header announces, on the meta device: shapes can be checked before memory is taken.

    Raises
    ------
    ValueError : for a header that is not valid, or more than ``most`` elements in all: a few bytes can code many.
    """
    tensors: dict[str, Tensor] = {}
    for entry in spec["tensors"]:
        for name, dtype, shape in _announced(entry):
            if name in tensors:
                raise ValueError(f"tensor {name!r} is there twice")
            if math.prod(shape) > most:
                raise ValueError(f"tensor {name!r} has shape {list(shape)}: more than {most} elements")
            tensors[name] = torch.empty(shape, dtype=dtype, device="meta")
    if (total := sum(t.numel() for t in tensors.values())) > most:
        raise ValueError(f"the tensors have {total} elements, more than {most}")
    return tensors


def read_tensors(spec: dict[str, Any], reader: Reader) -> Iterator[tuple[str, Tensor]]:
    """Decode the tensors one by one, as :func:`empty_tensors` announced them."""
    for entry in spec["tensors"]:
        blob = Reader(reader.take(_integer(entry, "length")))
        (name, dtype, shape), *starts = _announced(entry)
        code = entry.get("code")
        if code == "gaps":
            yield from zip((name, starts[0][0]), _decode_gaps(blob, dtype, shape, starts[0][2], entry), strict=True)
        elif code == "codes":
            yield name, _decode_codes(blob, shape, entry)
        elif code in _DECODERS:
            yield name, _DECODERS[code](blob, dtype, shape)
        else:
            raise ValueError(f"tensor {name!r} is in the unknown code {code!r}")
        if not blob.done:
            raise ValueError(f"tensor {name!r} has more bytes than it needs")
    if not reader.done:
        raise ValueError("there are bytes after the last tensor")


def _entry(name: str, t: Tensor, code: str, options: dict[str, int]) -> dict[str, Any]:
    return {"name": name, "dtype": str(t.dtype).removeprefix("torch."), "shape": list(t.shape), "code": code, **options}


def _announced(entry: Any) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Names, dtypes and shapes of what an entry holds, one tensor or two."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or entry.get("dtype") not in _DTYPES:
        raise ValueError(f"tensors must have a name and a dtype, got {entry!r}")
    shape = entry.get("shape")
    if not isinstance(shape, list) or len(shape) > 8 or not all(type(n) is int and 0 <= n < 2**40 for n in shape):
        raise ValueError(f"tensor {entry['name']!r} has shape {shape!r}")
    found = [(entry["name"], _DTYPES[entry["dtype"]], tuple(shape))]
    if entry.get("code") == "gaps":
        starts = entry.get("starts")
        if not isinstance(starts, list) or len(starts) != 2 or not isinstance(starts[0], str) or len(shape) != 1:
            raise ValueError(f"tensor {entry['name']!r} has row starts {starts!r}")
        if type(starts[1]) is not int or not 1 <= starts[1] < 2**31:
            raise ValueError(f"tensor {entry['name']!r} has {starts[1]!r} row starts")
        found.append((starts[0], torch.int32, (starts[1],)))
    return found


def _integer(entry: dict[str, Any], key: str, most: int = 2**40) -> int:
    value = entry.get(key)
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"tensor {entry['name']!r} has {key} {value!r}")
    return value


def _bytes_of(t: Tensor) -> npt.NDArray[np.uint8]:
    return t.contiguous().view(-1).view(torch.uint8).numpy() if t.numel() else np.empty(0, np.uint8)


def _from_bytes(data: npt.NDArray[np.uint8], dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if dtype == torch.bool and data.size and data.max() > 1:
        raise ValueError("corrupt: a bool that is neither 0 nor 1")
    return torch.from_numpy(data.copy()).view(dtype).view(shape) if data.size else torch.empty(shape, dtype=dtype)


def _shortest(entry: dict[str, Any], t: Tensor, given: bytes | None) -> bytes:
    """The shortest code of a tensor, its name noted in the entry."""
    raw = _bytes_of(t)
    choices = {"raw": raw.tobytes()}
    if given is not None:
        choices[entry["code"]] = given
    if len(raw) > 64:  # below, a table costs more than it saves
        size = t.element_size()
        planes = [raw[i::size].astype(np.int32) for i in range(size)]
        choices["bytes"] = b"".join(encode(plane, int(plane.max()) + 1) for plane in planes)
        words = raw.view(f"<u{size}")
        distinct, index = np.unique(words, return_inverse=True)
        if len(distinct) <= min(_MOST_VALUES, len(words) // 2):
            message = encode(index.astype(np.int32), len(distinct))
            choices["values"] = varint(len(distinct)) + distinct.tobytes() + message
    entry["code"] = min(choices, key=lambda code: (len(choices[code]), code))
    return choices[entry["code"]]


def _decode_raw(reader: Reader, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return _from_bytes(np.frombuffer(reader.take(_nbytes(dtype, shape)), np.uint8), dtype, shape)


def _decode_bytes(reader: Reader, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    size = dtype.itemsize
    n = _nbytes(dtype, shape) // size
    out = np.empty(n * size, np.uint8)
    for i in range(size):
        symbols, alphabet = decode(reader, n)
        if len(symbols) != n or alphabet > 256:
            raise ValueError(f"corrupt: {len(symbols)} bytes where {n} are expected")
        out[i::size] = symbols
    return _from_bytes(out, dtype, shape)


def _decode_values(reader: Reader, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    n, k = _nbytes(dtype, shape) // dtype.itemsize, reader.varint()
    distinct = np.frombuffer(reader.take(k * dtype.itemsize), f"<u{dtype.itemsize}")
    index, alphabet = decode(reader, n)
    if len(index) != n or alphabet != k:
        raise ValueError(f"corrupt: {len(index)} values where {n} are expected")
    return _from_bytes(distinct[index].view(np.uint8), dtype, shape)


_DECODERS = {"raw": _decode_raw, "bytes": _decode_bytes, "values": _decode_values}


def _nbytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * dtype.itemsize


def _encode_codes(words: Tensor, layer: LUTLinear) -> bytes:
    codes = ops.unpack_codes(words, layer.bits, layer.in_features)
    return encode(codes.view(-1).numpy().astype(np.int32), 2**layer.bits)


def _decode_codes(reader: Reader, shape: tuple[int, ...], entry: dict[str, Any]) -> Tensor:
    bits, cols = _integer(entry, "bits", 8), _integer(entry, "cols")
    if bits < 1 or len(shape) != 2 or shape[1] != words_per_row(cols, bits) or entry["dtype"] != "int32":
        raise ValueError(f"tensor {entry['name']!r} of shape {shape} cannot hold {cols} codes of {bits} bits a row")
    symbols, alphabet = decode(reader, shape[0] * cols)
    if len(symbols) != shape[0] * cols or alphabet != 2**bits:
        raise ValueError(f"corrupt: {len(symbols)} codes where {shape[0] * cols} are expected")
    return ops.pack_codes(torch.from_numpy(symbols.astype(np.uint8)).view(shape[0], cols), bits)


def _encode_gaps(columns: Tensor, starts: Tensor, cols: int) -> bytes:
    """The width, then the gaps: one of 2**width - 1 or more is escapes, each that many, and the rest."""
    rows = torch.repeat_interleave(torch.arange(starts.numel() - 1), starts.diff().long())
    positions = rows * cols + columns.to(torch.int64)
    gaps = (positions.diff(prepend=positions.new_tensor([-1])) - 1).numpy()
    messages = []
    for width in range(1, 13):
        escape = 2**width - 1
        escapes = gaps // escape
        symbols = np.full(len(gaps) + int(escapes.sum()), escape, np.int32)
        symbols[np.cumsum(escapes + 1) - 1] = gaps % escape
        messages.append(varint(width) + encode(symbols, escape + 1))
        if not escapes.any():
            break
    return min(messages, key=len)


def _decode_gaps(
    reader: Reader, dtype: torch.dtype, shape: tuple[int, ...], starts: tuple[int, ...], entry: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    cols, rows, nnz = _integer(entry, "cols", 2**31), starts[0] - 1, shape[0]
    width = reader.varint()
    if not 1 <= width <= 12 or nnz > rows * cols or dtype != column_dtype(cols):
        raise ValueError(f"tensor {entry['name']!r} cannot hold {nnz} positions in {rows} x {cols}")
    escape = 2**width - 1
    symbols, alphabet = decode(reader, nnz + rows * cols // escape)
    if alphabet != escape + 1:
        raise ValueError(f"corrupt: an alphabet of {alphabet} gaps")
    ends = np.flatnonzero(symbols != escape)
    totals = np.cumsum(symbols.astype(np.int64) + (symbols != escape))
    positions = totals[ends] - 1
    trailing = len(symbols) > 0 and (not len(ends) or ends[-1] + 1 != len(symbols))
    if len(positions) != nnz or trailing or (nnz and positions[-1] >= rows * cols):
        raise ValueError(f"corrupt: the gaps do not make {nnz} positions in {rows} x {cols}")
    row, column = np.divmod(positions, max(cols, 1))
    counts = np.bincount(row, minlength=rows)[:rows]
    row_starts = torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    return torch.from_numpy(column.astype(np.int32)).to(dtype), row_starts
