"""save and load: whole, checked and atomic."""

import copy
import json
import os
from random import Random

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from lc_ext import nn as packed


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 8)
        self.body = nn.Sequential(nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 16), nn.BatchNorm1d(16))
        self.again = nn.Linear(16, 16)
        self.fewer = nn.Linear(16, 16)
        self.last = nn.Linear(16, 8, bias=False)
        self.tied = nn.Linear(8, 6, bias=False)
        self.tied.weight = self.embed.weight

    def forward(self, tokens):
        return self.tied(self.last(self.fewer(self.again(self.again(self.body(self.embed(tokens)))))))


TOKENS = torch.tensor([0, 1, 2, 3, 4, 5])


def dense():
    torch.manual_seed(1)
    return Net().eval()


def compressed():
    torch.manual_seed(2)
    model = Net()
    with torch.no_grad():
        model.body[0].weight.copy_(model.body[0].weight.sign())
        model.body[2].weight.mul_(torch.rand(16, 40) < 0.2)
    model.body[0] = packed.LUTLinear.from_dense(model.body[0])
    model.body[2] = packed.SparseLinear.from_dense(model.body[2])
    codes = torch.randint(0, 3, (16, 16), dtype=torch.uint8)
    parts = [
        packed.LUTLinear.from_codes(codes, torch.randn(3)),
        packed.LowRankLinear.from_factors(torch.randn(16, 1), torch.randn(1, 16)),
        nn.Linear(16, 16),
    ]
    with torch.no_grad():
        model.fewer.weight.mul_(torch.arange(16) % 4 < 2)
    model.fewer = packed.NMLinear.from_dense(model.fewer)
    model.again = packed.SumLinear(parts, torch.randn(16))
    return model.eval()


@pytest.fixture
def file(tmp_path):
    packed.save(compressed(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(t, b[name]) and t.dtype == b[name].dtype for name, t in a.items())


def test_round_trip(file):
    model, into = compressed(), dense()
    loaded = packed.load(file, into)
    assert loaded is into and same(loaded, model)
    assert torch.equal(loaded(TOKENS), model(TOKENS))
    assert [type(m) for m in loaded.modules()] == [type(m) for m in model.modules()]
    assert loaded.tied.weight is loaded.embed.weight and loaded.tied.weight.requires_grad
    assert not any(m.training for m in loaded.modules())
    assert os.listdir(file.parent) == [file.name]


def test_file_is_small_and_plain_safetensors(file):
    with safetensors.safe_open(file, "pt") as f:
        spec = json.loads(f.metadata()["lc_ext"])
        names = set(f.keys())
    assert (spec["format"], spec["format_version"]) == ("lc_ext.packed", 1)
    assert spec["modules"]["body.0"] == {
        "class": "LUTLinear",
        "arguments": {"in_features": 8, "out_features": 40, "bits": 1, "codebook_size": 2, "bias": True},
    }
    assert spec["tied"] == {"tied.weight": "embed.weight"} and "tied.weight" not in names


@pytest.mark.parametrize("make", ["LUTLinear", "NMLinear", "SparseLinear", "LowRankLinear", "SumLinear"])
def test_a_layer_alone_and_its_dtype(tmp_path, make):
    layer = next(m for m in compressed().modules() if type(m).__name__ == make).bfloat16()
    packed.save(layer, tmp_path / "layer")
    loaded = packed.load(tmp_path / "layer", nn.Linear(layer.in_features, layer.out_features))
    assert type(loaded) is type(layer) and same(loaded, layer)


def test_shared_layers_stay_shared(tmp_path):
    layer = packed.LUTLinear(4, 4, 3)
    packed.save(nn.Sequential(layer, nn.ReLU(), layer), tmp_path / "m")
    loaded = packed.load(tmp_path / "m", nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)))
    assert loaded[0] is loaded[2] and type(loaded[0]) is packed.LUTLinear


def test_strided_and_overlapping_tensors(tmp_path):
    base = torch.randn(6, 6)
    model = nn.Linear(6, 6, bias=False)
    model.weight = nn.Parameter(base.t())
    model.register_buffer("first_rows", base[:2])
    model.register_buffer("one", base[0])
    model.register_buffer("empty", base[:0])
    model.register_buffer("scalar", torch.tensor(3))
    packed.save(model, tmp_path / "m")
    into = copy.deepcopy(model)
    for t in into.state_dict().values():
        t.zero_()
    assert same(packed.load(tmp_path / "m", into), model)
    assert (tmp_path / "m").stat().st_size < 3000


def test_dense_model_round_trips(tmp_path):
    packed.save(dense(), tmp_path / "m")
    assert same(packed.load(tmp_path / "m", Net()), dense())


def test_save_replaces_whole_files_only(file, monkeypatch):
    before = file.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        packed.save(dense(), file)
    assert file.read_bytes() == before and os.listdir(file.parent) == [file.name]


def test_save_follows_links_and_refuses_unknown_layers(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    packed.save(packed.LUTLinear(4, 3, 2), tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").is_file()

    class Mine(packed.LUTLinear):
        pass

    with pytest.raises(TypeError, match="Mine"):
        packed.save(Mine(4, 3, 2), tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def refused(path, reason, model=None):
    """load raises a ValueError that names the file and the reason, and leaves the model as it was."""
    model = dense() if model is None else model
    before, kinds = copy.deepcopy(model), [type(m) for m in model.modules()]
    with pytest.raises(ValueError, match=reason) as caught:
        packed.load(path, model)
    assert str(path) in str(caught.value)
    assert same(model, before) and kinds == [type(m) for m in model.modules()]


def test_truncated_files_are_refused(file):
    data = file.read_bytes()
    for length in [0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 1]:
        file.write_bytes(data[:length])
        refused(file, ".")
    file.write_bytes(data + b"\0")
    refused(file, ".")


def test_any_changed_byte_is_refused_or_means_nothing(file, rng):
    data, model, refusals = file.read_bytes(), compressed(), 0
    header = 8 + int.from_bytes(data[:8], "little")
    places = torch.randint(0, header, (120,), generator=rng).tolist()
    places += torch.randint(header, len(data), (60,), generator=rng).tolist()
    for at in places:
        changed = bytearray(data)
        changed[at] ^= 1 << int(torch.randint(0, 8, (), generator=rng))
        file.write_bytes(changed)
        try:
            loaded = packed.load(file, dense())
        except ValueError as error:
            assert str(file) in str(error)
            refusals += 1
        else:
            assert same(loaded, model)
    assert refusals >= 170


def rewrite(file, change, checksum=True):
    """Change the description or the tensors as one who also fixes the checksum would."""
    with safetensors.safe_open(file, "pt") as f:
        spec, tensors = json.loads(f.metadata()["lc_ext"]), {name: f.get_tensor(name) for name in f.keys()}
    change(spec, tensors)
    if checksum:
        spec["sha256"] = packed.io._digest(spec, tensors)
    safetensors.torch.save_file(tensors, file, metadata={"lc_ext": json.dumps(spec)})


def put(*keys, value):
    def change(spec, tensors):
        at = spec
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = value

    return change


def tensor(name, function):
    def change(spec, tensors):
        tensors[name] = function(tensors[name])

    return change


def element(name, at, value):
    def change(spec, tensors):
        tensors[name].view(-1)[at] = value

    return change


LUT_0 = ("modules", "body.0", "arguments")
SMALL = {"in_features": 2, "out_features": 2, "bits": 2}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (put("format", value="other"), "format must be"),
        (put("format_version", value=2), "format_version must be 1, got 2"),
        (put("modules", value=[]), "object 'modules'"),
        (put("modules", "nowhere", value={"class": "LUTLinear", "arguments": {}}), "'nowhere' is not in the model"),
        (put("modules", "body.1", value={"class": "LUTLinear", "arguments": SMALL}), "must be an nn.Linear"),
        (put("modules", "body.0", "class", value="Conv2d"), "class 'Conv2d'"),
        (put("modules", "body.0", "class", value=["LUTLinear"]), "class"),
        (put("modules", "body.0", value=3), "no class and arguments"),
        (put(*LUT_0, "bits", value=9), "bits must be 1 to 8, got 9"),
        (put(*LUT_0, "bits", value=7), "size mismatch"),
        (put(*LUT_0, "bits", value="1"), "bits must be an int"),
        (put(*LUT_0, "evil", value=1), "evil"),
        (put(*LUT_0, "in_features", value=10**30), "(?i)int|overflow"),
        (put(*LUT_0, "out_features", value=10**11), "10000000"),
        (put(*LUT_0, "bias", value=False), "bias"),
        (put("modules", "again", "parts", value=[]), "parts"),
        (put("modules", "again", "parts", value=None), "no parts"),
        (put("modules", "again", "arguments", "in_features", value=3), "its parts make"),
        (put("shared", "last", value="nowhere"), "not packed"),
        (put("tied", "tied.weight", value="nowhere"), "not stored"),
        (tensor("body.0.words", lambda t: t.long()), "words must be int32"),
        (tensor("body.0.words", lambda t: t[:-1].contiguous()), "words"),
        (element("body.0.codebook", 0, float("nan")), "NaN"),
        (element("again.parts.0.words", 0, -1), "codes below the size of the codebook"),
        (element("body.2.columns", 3, 40), "columns must be in"),
        (element("body.2.columns", 0, 39), "columns must ascend"),
        (element("fewer.indices", 0, 0), "indices must hold positions that ascend"),
        (put("modules", "fewer", "arguments", "n", value=4), "n must be 1 to 3, got 4"),
        (put("modules", "fewer", "arguments", "n", value=1), "size mismatch"),
        (put("modules", "fewer", "arguments", "codebook_size", value=3), "codebook"),
        (element("body.2.row_starts", 1, -5), "row_starts"),
        (element("body.2.row_starts", 16, 10**6), "row_starts"),
        (tensor("body.2.columns", lambda t: t.int()), "columns must be torch.uint16"),
        (tensor("again.parts.1.u", lambda t: t.int()), "u must be float32"),
        (tensor("last.weight", lambda t: t.half()), "'last.weight' is torch.float16"),
        (tensor("last.weight", lambda t: t[:-1].contiguous()), r"'last.weight' is torch.float32 \(7, 16\)"),
        (lambda spec, tensors: tensors.pop("last.weight"), "not in the file: last.weight"),
        (lambda spec, tensors: tensors.pop("body.0.words"), "words"),
        (lambda spec, tensors: tensors.update(extra=torch.ones(1)), "not in the model: extra"),
        (lambda spec, tensors: spec["modules"].pop("body.0"), "body.0"),
    ],
)
def test_forged_files_are_refused(file, change, reason):
    rewrite(file, change)
    refused(file, reason)


def test_the_forger_of_these_tests_can_make_a_good_file(file):
    rewrite(file, lambda spec, tensors: None)
    assert same(packed.load(file, dense()), compressed())
    rewrite(file, element("last.weight", 0, 7.0), checksum=False)
    refused(file, "checksum")


def test_foreign_files_are_refused(tmp_path):
    safetensors.torch.save_file({"weight": torch.ones(2)}, tmp_path / "plain")
    refused(tmp_path / "plain", "not written by lc_ext")
    safetensors.torch.save_file({"weight": torch.ones(2)}, tmp_path / "json", metadata={"lc_ext": "[" * 100_000})
    refused(tmp_path / "json", "recursion")
    torch.save({"weight": torch.ones(2)}, tmp_path / "pickle")
    refused(tmp_path / "pickle", "header")
    with pytest.raises(FileNotFoundError):
        packed.load(tmp_path / "absent", dense())


JUNK = [None, True, -1, 0, 1, 3, 2**31, 10**30, 1.5, float("nan"), "", "0", "Linear", "LUTLinear", "../x", [], {}, [[]]]


def mutate(value, random):
    """The same JSON, but for one place in it."""
    if isinstance(value, (dict, list)) and value and random.random() < 0.9:
        changed = copy.copy(value)
        at = random.choice(list(value) if isinstance(value, dict) else range(len(value)))
        kind = random.random()
        if kind < 0.75:
            changed[at] = mutate(value[at], random)
        elif kind < 0.85:
            del changed[at]
        elif isinstance(value, list):
            changed.insert(random.randrange(len(value)), value[at])
        else:
            changed[random.choice(["same", "class", "packed", "bias", "path", "x"])] = value[at]
        return changed
    return random.choice(JUNK)


@pytest.mark.parametrize("name", ["model", "model.lcz"])
def test_mutated_structures_are_refused_or_mean_the_same(tmp_path, name):
    """Whoever also mends the checksum gets an error that names the file, or a model of just the file's tensors."""
    if name.endswith(".lcz"):
        pytest.importorskip("constriction", reason="needs constriction, the entropy coder of archives")
    random, file = Random(0), tmp_path / name
    net = compressed()
    model = nn.Sequential(net.body, net.again, net.fewer, net.again, nn.ModuleDict({"a": net.last}), nn.Flatten())
    tensors, tied = packed.io._tensors(model)
    modules, shared = packed.io.packed_modules(model)
    good = {"format": "lc_ext.packed", "format_version": 1, "modules": modules, "shared": shared, "tied": tied}
    good["structure"] = packed.structure.describe(model, {**modules, **shared})
    good = json.loads(json.dumps(good))
    refusals = 0
    for trial in range(500):
        part = random.choice(["structure", "structure", "structure", "modules", "shared", "tied"])
        spec = {**good, part: mutate(good[part], random)} if trial else dict(good)
        if name.endswith(".lcz"):
            with open(file, "wb") as opened:
                packed.archive.write_archive(opened, spec, tensors, model)
        else:
            spec["sha256"] = packed.io._digest(spec, tensors)
            safetensors.torch.save_file(tensors, file, metadata={"lc_ext": json.dumps(spec)})
        try:
            loaded = packed.load(file)
        except ValueError as error:
            assert str(file) in str(error) and trial
            refusals += 1
        else:
            assert all(not t.is_meta for t in loaded.state_dict().values())
            assert not any(isinstance(m, packed.structure.Hole) for m in loaded.modules())
            found = {t.data_ptr(): t for t in loaded.state_dict().values()}.values()
            assert sorted(map(str, found)) == sorted(map(str, tensors.values()))
    assert refusals >= 350


def test_another_architecture_is_refused(file):
    wide = dense()
    wide.body[0] = nn.Linear(9, 40)
    refused(file, "'body.0' is 8 -> 40 in the file, 9 -> 40 in the model", wide)
    refused(file, "'body.0' must be an nn.Linear in the model, got LUTLinear", compressed())
