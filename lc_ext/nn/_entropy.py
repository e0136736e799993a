"""Symbols as bytes, close to their entropy: a table of frequencies, then a stream of asymmetric numeral systems.

A message is: the number of symbols n, the size a of the alphabet, and where both are positive a frequencies that add up
to 2**PRECISION, all as varints (7 bits a byte, low first, the top bit says that more follow); then, for each CHUNK of
symbols, the number of 32-bit words and the words, low byte first. An alphabet with one frequency that is not 0 has no
chunks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Reader", "decode", "encode", "varint"]

Ints = npt.NDArray[np.int32]

PRECISION = 14
CHUNK = 1 << 20


def varint(value: int) -> bytes:
    """A number that is not negative, 7 bits a byte."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


class Reader:
    """Bytes that are read from the front; what is not there raises a ValueError."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0

    def take(self, size: int) -> memoryview:
        """The next ``size`` bytes."""
        if size < 0 or size > len(self._data) - self._at:
            raise ValueError(f"truncated: {size} bytes expected, {len(self._data) - self._at} left")
        self._at += size
        return self._data[self._at - size : self._at]

    def varint(self) -> int:
        """The next number."""
        value = 0
        for shift in range(0, 63, 7):
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("corrupt: a number of more than 63 bits")

    @property
    def done(self) -> bool:
        """Whether nothing is left."""
        return self._at == len(self._data)


def encode(symbols: Ints, alphabet: int) -> bytes:
    """A message of symbols, each at least 0 and below ``alphabet``."""
    out = bytearray(varint(len(symbols)) + varint(alphabet))
    if not len(symbols):
        return bytes(out)
    frequencies = _frequencies(np.bincount(symbols, minlength=alphabet))
    for f in frequencies.tolist():
        out += varint(f)
    if np.count_nonzero(frequencies) > 1:
        model = _model(frequencies)
        for begin in range(0, len(symbols), CHUNK):
            coder = _constriction().stream.stack.AnsCoder()
            coder.encode_reverse(np.ascontiguousarray(symbols[begin : begin + CHUNK], dtype=np.int32), model)
            words = coder.get_compressed()
            out += varint(len(words)) + words.astype("<u4").tobytes()
    return bytes(out)


def decode(reader: Reader, most: int) -> tuple[Ints, int]:
    """The symbols of a message, of which there may be at most ``most``, and the size of their alphabet.

    Raises
    ------
    ValueError : for what :func:`encode` would not have written.
    """
    n, alphabet = reader.varint(), reader.varint()
    if n > most:
        raise ValueError(f"corrupt: {n} symbols where {most} are expected at most")
    if not n:
        return np.empty(0, np.int32), alphabet
    if not 1 <= alphabet <= 1 << PRECISION:
        raise ValueError(f"corrupt: an alphabet of {alphabet} symbols")
    frequencies = np.array([reader.varint() for _ in range(alphabet)], dtype=np.int64)
    if frequencies.max() > 1 << PRECISION or frequencies.sum() != 1 << PRECISION:
        raise ValueError("corrupt: the frequencies do not add up")
    if np.count_nonzero(frequencies) == 1:
        return np.full(n, frequencies.argmax(), np.int32), alphabet
    model = _model(frequencies)
    symbols = np.empty(n, np.int32)
    for begin in range(0, n, CHUNK):
        size = reader.varint()
        words = np.frombuffer(reader.take(4 * size), "<u4").astype(np.uint32)
        part = symbols[begin : begin + CHUNK]
        part[:] = _constriction().stream.stack.AnsCoder(words).decode(model, len(part))
    return symbols, alphabet


def _frequencies(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Counts scaled to add up to 2**PRECISION, none that was positive to less than 1."""
    total = 1 << PRECISION
    if len(counts) > total:
        raise ValueError(f"an alphabet must have at most {total} symbols, got {len(counts)}")
    scaled: npt.NDArray[np.int64] = np.maximum(np.rint(counts * (total / counts.sum())).astype(np.int64), counts > 0)
    while excess := int(scaled.sum()) - total:  # from the largest, where it costs least
        top = int(scaled.argmax())
        scaled[top] -= min(excess, max(1, int(scaled[top]) // 2)) if excess > 0 else excess
    return scaled


def _model(frequencies: npt.NDArray[np.int64]) -> Any:
    p = (frequencies / (1 << PRECISION)).astype(np.float32)  # exact, so every machine has the same model
    return _constriction().stream.model.Categorical(p, perfect=False)


def _constriction() -> Any:
    try:
        import constriction
    except ImportError as error:
        raise ImportError("an .lcz archive needs the entropy coder: pip install constriction") from error
    return constriction
