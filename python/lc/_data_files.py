"""Readers of the file formats of data sets: idx (MNIST), the batches of CIFAR-10, folders of images.

They return uint8 images as arrays (N, C, H, W) and int64 labels. A missing file raises FileNotFoundError, a file that
is not what it should be ValueError; both name the file.
"""

from __future__ import annotations

import gzip
import math
import pickle
import zlib
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Split", "class_folders", "read_cifar10", "read_idx", "read_image_folder", "read_mnist"]

CIFAR_TRAIN = [f"data_batch_{i}" for i in range(1, 6)]
CIFAR_TEST = ["test_batch"]
CIFAR_RECORD = 1 + 3 * 32 * 32  # bytes of a record of the binary version: label, red, green, blue
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg"}


class Split(NamedTuple):
    """Images (N, C, H, W) in uint8, and int64 labels."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


def read_mnist(folder: Path, part: str) -> Split:
    """``part`` is "train" or "t10k"."""
    images_file, labels_file = _idx_file(folder, part, "images", 3), _idx_file(folder, part, "labels", 1)
    images, labels = read_idx(images_file, 3), read_idx(labels_file, 1)
    if not images.size:
        raise ValueError(f"{images_file}: holds no images")
    if len(images) != len(labels):
        raise ValueError(f"{images_file} has {len(images)} images, but {labels_file} has {len(labels)} labels")
    return Split(images[:, None], labels.astype(np.int64))


def _idx_file(folder: Path, part: str, what: str, dimensions: int) -> Path:
    names = [f"{part}-{what}{dot}idx{dimensions}-ubyte{gz}" for dot in "-." for gz in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder}: has none of {', '.join(names)}")


def read_idx(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """The array of bytes in an idx file, plain or (``.gz``) compressed."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file: {error}") from error
    head, magic = 4 + 4 * dimensions, bytes([0, 0, 8, dimensions])
    if raw[:4] != magic:
        raise ValueError(f"{path}: must start with the bytes {magic.hex()}, got {raw[:4].hex() or 'nothing'}")
    shape = [int.from_bytes(raw[i : i + 4], "big") for i in range(4, head, 4)]
    size = head + math.prod(shape)
    if len(raw) != size:
        raise ValueError(f"{path}: must hold {size} bytes for the shape {shape}, got {len(raw)}")
    return np.frombuffer(raw, np.uint8, offset=head).reshape(shape)


def read_cifar10(folder: Path) -> tuple[Split, Split]:
    """Training and test part, of the python version or else the binary one."""
    binary = not (folder / CIFAR_TRAIN[0]).is_file()
    if binary and not (folder / f"{CIFAR_TRAIN[0]}.bin").is_file():
        raise FileNotFoundError(f"{folder}: has neither {CIFAR_TRAIN[0]} nor {CIFAR_TRAIN[0]}.bin")
    read, suffix = (_cifar_binary, ".bin") if binary else (_cifar_pickle, "")

    def part(names: list[str]) -> Split:
        batches = [read(folder / f"{name}{suffix}") for name in names]
        return Split(np.concatenate([b.images for b in batches]), np.concatenate([b.labels for b in batches]))

    return part(CIFAR_TRAIN), part(CIFAR_TEST)


def _cifar_binary(path: Path) -> Split:
    raw = np.frombuffer(path.read_bytes(), np.uint8)
    if not raw.size or raw.size % CIFAR_RECORD:
        raise ValueError(f"{path}: must hold whole records of {CIFAR_RECORD} bytes, got {raw.size} bytes")
    records = raw.reshape(-1, CIFAR_RECORD)
    return _cifar_split(path, records[:, 1:], records[:, 0].astype(np.int64))


def _cifar_pickle(path: Path) -> Split:
    with path.open("rb") as file:
        try:
            batch = _ArrayUnpickler(file, encoding="bytes").load()
        except Exception as error:  # a broken pickle can raise many kinds
            raise ValueError(f"{path}: not a batch of CIFAR-10: {type(error).__name__}: {error}") from error
    if not isinstance(batch, dict):
        raise ValueError(f"{path}: not a batch of CIFAR-10: holds a {type(batch).__name__}, not a dict")
    batch = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    data, labels = batch.get("data"), batch.get("labels")
    if not isinstance(data, _Array) or not isinstance(labels, list) or not all(type(i) is int for i in labels):
        raise ValueError(f'{path}: must hold an array "data" and a list of integers "labels"')
    try:
        pixels = data.as_bytes(3 * 32 * 32)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return _cifar_split(path, pixels, np.array(labels, dtype=object))


def _cifar_split(path: Path, pixels: npt.NDArray[np.uint8], labels: npt.NDArray[Any]) -> Split:
    if not len(labels) or len(pixels) != len(labels):
        raise ValueError(f"{path}: has {len(pixels)} images and {len(labels)} labels")
    if not 0 <= labels.min() <= labels.max() < 10:
        raise ValueError(f"{path}: labels must be from 0 to 9, got {labels.min()} to {labels.max()}")
    return Split(pixels.reshape(-1, 3, 32, 32), labels.astype(np.int64))


class _Array:
    """What a pickle says of a numpy array. No code of numpy runs before it is checked."""

    def __init__(self, raw: object = None, dtype: object = None, shape: object = None, order: object = "C") -> None:
        self.raw, self.dtype, self.shape, self.order = raw, dtype, shape, order

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, fortran, self.raw = state
        self.order = "F" if fortran else "C"

    def as_bytes(self, columns: int) -> npt.NDArray[np.uint8]:
        if not isinstance(self.dtype, _DType) or self.dtype.name not in ("u1", b"u1") or self.order not in ("C", "F"):
            raise ValueError('"data" must be an array of bytes (uint8)')
        shape, raw = self.shape, self.raw
        if not isinstance(shape, tuple) or [*map(type, shape)] != [int, int] or shape[1] != columns:
            raise ValueError(f'"data" must have the shape (N, {columns}), got {shape}')
        if not isinstance(raw, (bytes, bytearray)) or len(raw) != shape[0] * columns:
            raise ValueError(f'"data" of shape {shape} must hold {shape[0] * columns} bytes')
        array = np.frombuffer(raw, np.uint8)
        return array.reshape(shape) if self.order == "C" else array.reshape(shape[::-1]).T


class _DType:
    def __init__(self, name: object, *_: object) -> None:
        self.name = name

    def __setstate__(self, state: object) -> None:
        pass  # byte order and alignment: nothing that matters to bytes


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _encode(text: str, encoding: object) -> bytes:
    """How Python 3 pickles bytes in the protocols of Python 2."""
    if encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"refuses the encoding {encoding!r}")
    return text.encode("latin1")


class _ArrayUnpickler(pickle.Unpickler):
    """Admits numbers, strings, lists, dicts and numpy arrays, these as `_Array`; anything else is refused unseen."""

    ADMITTED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _DType,
        ("_codecs", "encode"): _encode,
        **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
        **{(f"numpy.{core}.numeric", "_frombuffer"): _Array for core in ("core", "_core")},
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"refuses {module}.{name}") from None


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted; none if there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def read_image_folder(folder: Path, classes: list[str], size: tuple[int, int] | None, channels: int) -> Split:
    """The images of ``folder/<class>/*.png|jpg|jpeg``, in the order of the classes and of the names."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise ImportError("image_folder needs Pillow: pip install pillow") from None

    def pixels(file: IO[bytes]) -> npt.NDArray[np.uint8]:
        with Image.open(file) as opened:
            if opened.mode.startswith(("I", "F")):
                raise ValueError(f"images must have 8 bits per channel, got mode {opened.mode}")
            image = opened.convert("RGB" if channels == 3 else "L")
        if size is not None:
            image = ImageOps.fit(image, size[::-1], Image.Resampling.BILINEAR)
        return np.array(image).reshape(image.height, image.width, channels).transpose(2, 0, 1)

    images: list[npt.NDArray[np.uint8]] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        if not (folder / name).is_dir():
            raise FileNotFoundError(f"{folder / name}: no such folder")
        files = sorted(path for path in (folder / name).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise FileNotFoundError(f"{folder / name}: holds no {', '.join(sorted(IMAGE_SUFFIXES))} files")
        for path in files:
            with path.open("rb") as file:
                try:
                    images.append(pixels(file))
                except Exception as error:  # the decoders raise many kinds
                    raise ValueError(f"{path}: not a readable image: {type(error).__name__}: {error}") from error
            if images[-1].shape != images[0].shape:
                shape, first = images[-1].shape[1:], images[0].shape[1:]
                raise ValueError(f"{path}: has {shape} pixels, the images before it {first}: give a size")
            labels.append(label)
    return Split(np.stack(images), np.array(labels, dtype=np.int64))
