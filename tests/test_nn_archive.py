"""Entropy-coded archives: what goes in comes out, in no more bytes than the entropy and a table; nothing else loads."""

import copy
import hashlib
import json
import random
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lc_ext import nn as packed
from lc_ext import ops
from lc_ext.nn import _entropy, _header


@given(st.lists(st.integers(0, 40), max_size=400), st.sampled_from([1, 2, 7, 1 << 20]))
def test_messages_come_back(symbols, chunk):
    x = np.array(symbols, np.int32)
    alphabet = int(x.max(initial=0)) + 1
    try:
        whole, _entropy.CHUNK = _entropy.CHUNK, chunk
        data = _entropy.encode(x, alphabet)
        reader = _entropy.Reader(memoryview(data))
        got, size = _entropy.decode(reader, len(x))
    finally:
        _entropy.CHUNK = whole
    assert reader.done and size == alphabet and np.array_equal(got, x)


@pytest.mark.parametrize("p", [[0.5, 0.5], [0.97, 0.01, 0.01, 0.01], [1 - 1e-5, 1e-5], np.geomspace(1, 1e-4, 256)])
def test_messages_are_near_their_entropy(p):
    rng = np.random.default_rng(0)
    p = np.array(p) / np.sum(p)
    x = rng.choice(len(p), 300_000, p=p).astype(np.int32)
    counts = np.bincount(x, minlength=len(p))
    f = counts[counts > 0] / counts.sum()
    bound = -(f * np.log2(f)).sum() * len(x) / 8
    size = len(_entropy.encode(x, len(p)))
    assert bound <= size <= 1.01 * bound + 2 * len(p) + 30


def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 40), nn.ReLU(), nn.Linear(40, 10)
    )


def sample(rng):
    """A net of codes, sparse, low-rank and dense layers."""
    torch.manual_seed(0)
    model = net().eval()
    conv, wide, last = model[0], model[3], model[5]
    codes = torch.randint(0, 3, (8, 27), generator=rng).to(torch.uint8)
    table = torch.randn(4, generator=rng)
    lut = packed.LUTLinear.from_codes(codes, table, conv.bias.detach())
    model[0] = packed.LUTConv2d(lut, 3, 3)
    wide.weight.data *= torch.rand(40, 288, generator=rng) < 0.03
    wide.weight.data[7:9] = 0
    low = packed.LowRankLinear.from_factors(torch.randn(40, 2, generator=rng), torch.randn(2, 288, generator=rng))
    model[3] = packed.SumLinear([packed.SparseLinear.from_dense(wide), low])
    last.weight.data = last.weight.data.sign()
    return model


@pytest.fixture
def file(rng, tmp_path):
    packed.save(sample(rng), tmp_path / "net.lcz")
    return tmp_path / "net.lcz"


def state(model):
    return {name: (t.dtype, t.clone()) for name, t in model.state_dict().items()}


def same(a, b):
    a, b = state(a), state(b)
    return a.keys() == b.keys() and all(a[n][0] == b[n][0] and torch.equal(a[n][1], b[n][1]) for n in a)


def test_a_model_comes_back(rng, file, tmp_path):
    model = sample(torch.Generator().manual_seed(rng.initial_seed()))
    loaded = packed.load(file, net().eval())
    x = torch.randn(2, 3, 8, 8, generator=rng)
    assert same(loaded, model) and torch.equal(loaded(x), model(x))
    packed.save(model, tmp_path / "net.safetensors")
    assert file.stat().st_size < 0.8 * (tmp_path / "net.safetensors").stat().st_size


def test_the_parts_of_an_archive_add_up(file):
    parts = packed.archive_parts(file)
    assert sum(parts.values()) == file.stat().st_size and all(n >= 0 for n in parts.values())
    assert {"header", "0.matrix.words", "3.parts.0.columns", "3.parts.0.values", "5.bias"} < set(parts)
    assert parts["5.bias"] == 40
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="corrupt"):
        packed.archive_parts(file)


@pytest.mark.parametrize("density", [0.0, 1e-3, 0.03, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sparse_layers(rng, tmp_path, density, dtype):
    linear = nn.Linear(300, 70)
    linear.weight.data *= torch.rand(70, 300, generator=rng) < density
    layer = packed.SparseLinear.from_dense(linear).to(dtype)
    packed.save(layer, tmp_path / "a.lcz")
    assert same(packed.load(tmp_path / "a.lcz", nn.Linear(300, 70)), layer)


def test_special_tensors(tmp_path):
    model = nn.Module()
    for name, t in {
        "empty": torch.empty(0, 3), "scalar": torch.tensor(3), "flags": torch.arange(200) % 3 == 0,
        "nan": torch.full((100,), float("nan")), "zero": torch.tensor([0.0, -0.0] * 50),
        "fp16": torch.randn(9, 9).half(), "int64": torch.arange(1000), "few": torch.arange(1000) % 7,
    }.items():  # fmt: skip
        model.register_buffer(name, t)
    model.tied = nn.Linear(3, 3, bias=False)
    model.other = model.tied
    packed.save(model, tmp_path / "m.lcz")
    into = copy.deepcopy(model)
    for t in into.state_dict().values():
        t.zero_()
    packed.load(tmp_path / "m.lcz", into)
    for name, t in model.state_dict().items():
        got = into.state_dict()[name]
        assert got.dtype == t.dtype and got.shape == t.shape
        if t.numel():
            assert torch.equal(got.reshape(-1).view(torch.uint8), t.reshape(-1).view(torch.uint8)), name


def test_bytes_on_disk_are_within_two_percent_of_the_entropy(rng, tmp_path):
    """Codes, positions and shared values of a large layer; the table, the header and the checksum are in it."""
    p = torch.tensor([0.4, 0.2, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05])
    codes = torch.multinomial(p, 512 * 1024, replacement=True, generator=rng).to(torch.uint8).view(512, 1024)
    lut = packed.LUTLinear.from_codes(codes, torch.randn(8, generator=rng))
    packed.save(lut, tmp_path / "codes.lcz")
    bound = ops.code_entropy(codes, 8) * codes.numel() / 8
    assert bound < (tmp_path / "codes.lcz").stat().st_size < 1.02 * bound

    linear = nn.Linear(1024, 1024, bias=False)
    mask = torch.rand(1024, 1024, generator=rng) < 0.05
    values = torch.randn(16, generator=rng)
    index = torch.randint(0, 16, (int(mask.sum()),), generator=rng)
    linear.weight.data.zero_()[mask] = values[index]
    packed.save(packed.SparseLinear.from_dense(linear), tmp_path / "sparse.lcz")
    bound = (ops.gap_bits(mask).entropy + ops.code_entropy(index.to(torch.uint8), 16) * index.numel()) / 8
    assert bound < (tmp_path / "sparse.lcz").stat().st_size < 1.02 * bound


@pytest.mark.parametrize("kind", ["lcz", "safetensors"])
def test_two_thousand_mutated_files_are_refused_or_equal(rng, tmp_path, kind):
    """No crash and no silent load: a changed file raises a ValueError, and the model stays as it was."""
    model = sample(rng)
    path = tmp_path / f"net.{kind}"
    packed.save(model, path)
    whole = path.read_bytes()
    draw = random.Random(0)
    into = net().eval()
    before = state(into)
    for trial in range(1000):
        data = bytearray(whole)
        match trial % 4:
            case 0:
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            case 1:
                del data[draw.randrange(len(data)) :]
            case 2:
                at = draw.randrange(len(data))
                data[at : at + draw.randrange(1, 40)] = draw.randbytes(draw.randrange(0, 40))
            case 3:
                at, to = draw.randrange(len(data)), draw.randrange(len(data))
                data[to : to + 16] = data[at : at + 16]
        if bytes(data) == whole:
            continue
        path.write_bytes(data)
        with pytest.raises(ValueError, match="net"):
            packed.load(path, into)
    assert all(torch.equal(t, before[n][1]) for n, t in into.state_dict().items())


def test_mutated_contents_with_a_true_checksum(rng, tmp_path):
    """The decoder itself, behind the checksum: hostile lengths, tables and streams raise, or give other numbers."""
    path = tmp_path / "net.lcz"
    packed.save(sample(rng), path)
    whole = path.read_bytes()[:-32]
    header = 8 + int.from_bytes(whole[4:8], "little")
    draw = random.Random(1)
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(draw.randrange(1, 4)):
            data[draw.randrange(header, len(data))] = draw.randrange(256)
        path.write_bytes(bytes(data) + hashlib.sha256(data).digest())
        try:
            packed.load(path, net())
        except ValueError:
            refused += 1
    assert refused > 10


def forge(path, change):
    """Rewrite an archive with another header, as a file of the first version: its checksum is true."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[4:8], "little")
    spec = _header.inflated(data[8:end], data[:4])
    change(spec)
    header = zlib.compress(json.dumps(spec).encode())
    body = b"LCZ1" + len(header).to_bytes(4, "little") + header + data[end:-32]
    path.write_bytes(body + hashlib.sha256(body).digest())


def test_files_of_the_first_version_load(rng, file):
    whole = state(packed.load(file, net().eval()))
    size = file.stat().st_size
    forge(file, lambda spec: None)
    assert file.read_bytes()[:4] == b"LCZ1" and file.stat().st_size > size + 150
    again = state(packed.load(file, net().eval()))
    assert all(torch.equal(again[name][1], t) for name, (_, t) in whole.items())
    assert sum(packed.archive_parts(file).values()) == file.stat().st_size


FIRST_VERSION = (  # a SparseLinear, by the code of that version
    "4c435a31ee00000078da7d4fcd4ec3300c7e179f23c4c6d6439f811bc76aaa4ceb7611695239ce065479779c328d1e804324"
    "fbf3f7970586c0130ad4e0ba96dee561c6ee8d7a30b7437b218e3678a87706a6d0274711ea05caeb1c465de065468ef46c3d"
    "21ab10794c13795979d6b703a1242eb2ca4048b2010e06bcff84fa68e0d5a202c28972ce06e219596bd48bce62ef13f91858"
    "79cd021e27d2f02eb834f9a8b9bd7ccc0549d6cbae82d5a300cdf16494d697db8873a1aae8bb4e14e452b4010ed7f6b69922"
    "70e44739ebb7ab6cee61177489b659830b284ffbdfc318aff063b47fdc18adbffdcfe6f0978df639e52faafd8fa0011502bd"
    "1ec3610200201662200000000000003f0000003f0000003f0000003f0000003f000000000000803f00000040000040408fbf"
    "4261b899eb17559862826ef96e1983f7de58ba84ae6955d9c1dd8b869271"
)


def test_a_file_that_the_first_version_wrote(tmp_path):
    (tmp_path / "old.lcz").write_bytes(bytes.fromhex(FIRST_VERSION))
    layer = packed.load(tmp_path / "old.lcz", nn.Linear(6, 4))
    want = (torch.arange(24).view(4, 6) % 5 == 0) * 0.5
    assert torch.equal(layer.dense_weight(), want) and torch.equal(layer.bias, torch.arange(4.0))


def test_a_header_is_read_whole_or_not_at_all(file):
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[4:8], "little")
    body = data[:4] + (end - 12).to_bytes(4, "little") + data[8 : end - 4] + data[end:-32]
    file.write_bytes(body + hashlib.sha256(body).digest())
    with pytest.raises(ValueError, match="corrupt header"):
        packed.load(file, net())


def entry(spec, ending):
    return next(e for e in spec["tensors"] if e["name"].endswith(ending))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s.update(format="x"), "format must be"),
        (lambda s: s.update(tensors=3), "list 'tensors'"),
        (lambda s: entry(s, "words").update(bits=9), "bits 9"),
        (lambda s: entry(s, "words").update(cols=28), "truncated|codes where|cannot hold"),
        (lambda s: entry(s, "words").update(shape=[8, 2, 1]), "size mismatch|shape"),
        (lambda s: entry(s, "words").update(shape=[1 << 39, 2]), "elements"),
        (lambda s: entry(s, "values").update(shape=[1 << 39]), "elements"),
        (lambda s: entry(s, "values").update(shape=[-1]), "shape"),
        (lambda s: entry(s, "values").update(code="zip"), "unknown code 'zip'"),
        (lambda s: entry(s, "values").update(length=-1), "length -1"),
        (lambda s: entry(s, "values").update(dtype="object"), "dtype"),
        (lambda s: entry(s, "columns").update(starts=["3.parts.0.row_starts", 0]), "row starts"),
        (lambda s: entry(s, "columns").update(cols=7), "positions|cannot hold"),
        (lambda s: s["tensors"].append(s["tensors"][0]), "twice"),
        (lambda s: s["tensors"].pop(), "Missing|not in the file"),
    ],
)
def test_forged_headers_are_refused(file, change, reason):
    forge(file, change)
    with pytest.raises(ValueError, match=reason):
        packed.load(file, net())


def test_without_the_coder_the_error_says_what_to_install(rng, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "constriction", None)
    with pytest.raises(ImportError, match="pip install constriction"):
        packed.save(sample(rng), tmp_path / "net.lcz")
    assert not list(tmp_path.iterdir())
