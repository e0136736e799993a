"""Files that say how their model is built: what is not known is not guessed, what is hostile is refused."""

import json

import pytest
import safetensors.torch
import torch
from torch import nn

import lc
from lc_ext import nn as packed
from lc_ext.nn import structure
from lc_ext.nn._module_arguments import ARGUMENTS


def model():
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding="same", padding_mode="circular"),
        nn.BatchNorm2d(4),
        nn.LeakyReLU(0.2),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Flatten(),
    )
    norm = nn.LayerNorm(10)
    return nn.Sequential(body, packed.LUTLinear(64, 10, 2), norm, nn.GELU("tanh"), packed.LUTLinear(10, 10, 3), norm)


EVERY = {
    nn.Sequential: [nn.Sequential(nn.Tanh(), nn.Sequential())],
    nn.ModuleList: [nn.ModuleList([nn.Tanh()])],
    nn.ModuleDict: [nn.ModuleDict({"a": nn.Tanh()})],
    nn.GELU: [nn.GELU(), nn.GELU("tanh")],
    nn.Softmax: [nn.Softmax(dim=-1)],
    nn.LogSoftmax: [nn.LogSoftmax(dim=1)],
    nn.Linear: [nn.Linear(3, 2), nn.Linear(3, 2, bias=False)],
    nn.Conv1d: [nn.Conv1d(4, 6, 3, groups=2, bias=False)],
    nn.Conv2d: [
        nn.Conv2d(4, 6, (3, 1), (1, 2), "valid", 2),
        nn.Conv2d(1, 1, 3, padding="same", padding_mode="reflect"),
    ],
    nn.Conv3d: [nn.Conv3d(1, 2, (1, 2, 3))],
    nn.ConvTranspose1d: [nn.ConvTranspose1d(2, 3, 3, 2, output_padding=1)],
    nn.ConvTranspose2d: [nn.ConvTranspose2d(2, 3, 3, 2, 1, output_padding=(1, 0))],
    **{
        norm: [norm(3), norm(3, momentum=None), norm(3, affine=False, track_running_stats=False, eps=1e-3)]
        for norm in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    },
    nn.LayerNorm: [nn.LayerNorm((2, 3)), nn.LayerNorm(3, bias=False), nn.LayerNorm(3, elementwise_affine=False)],
    nn.RMSNorm: [nn.RMSNorm(3), nn.RMSNorm(3, eps=1e-3)],
    nn.GroupNorm: [nn.GroupNorm(2, 4)],
    nn.Embedding: [nn.Embedding(5, 2), nn.Embedding(5, 2, padding_idx=-1, max_norm=1.0, sparse=True)],
    nn.MaxPool1d: [nn.MaxPool1d(2)],
    nn.MaxPool2d: [nn.MaxPool2d((2, 3), 1, padding=(1, 0), return_indices=True)],
    nn.AvgPool1d: [nn.AvgPool1d(3, 2, 1)],
    nn.AvgPool2d: [nn.AvgPool2d(3, 2, ceil_mode=True, divisor_override=5)],
    nn.AdaptiveAvgPool1d: [nn.AdaptiveAvgPool1d(1)],
    nn.AdaptiveAvgPool2d: [nn.AdaptiveAvgPool2d((None, 2))],
    nn.AdaptiveMaxPool1d: [nn.AdaptiveMaxPool1d(2)],
    nn.AdaptiveMaxPool2d: [nn.AdaptiveMaxPool2d(2, return_indices=True)],
    nn.PReLU: [nn.PReLU(3)],
}


@pytest.mark.parametrize("cls", list(ARGUMENTS), ids=lambda c: c.__name__)
def test_every_class_comes_back(cls):
    resnet = {
        "PadShortcut": [],
        "Block": [],
        "ResNet": [lc.models.resnet8(), lc.models.resnet8(shortcut="B", classes=3)],
    }
    instances = EVERY.get(cls, resnet.get(cls.__name__))
    for module in [cls()] if instances is None else instances:
        state = torch.random.get_rng_state()
        entries = json.loads(json.dumps(structure.describe(nn.Sequential(module.eval()), [])))
        built = structure.build(entries, [])
        assert repr(built[0]) == repr(module) and type(built[0]) is cls
        assert [m.training for m in built.modules()] == [True] + [False] * (len(list(built.modules())) - 1)
        shapes = {name: (t.shape, t.dtype) for name, t in module.state_dict().items()}
        assert {name: (t.shape, t.dtype) for name, t in built[0].state_dict().items()} == shapes
        assert all(t.is_meta for t in built.state_dict().values())
        assert torch.equal(torch.random.get_rng_state(), state)  # nothing is drawn


@pytest.mark.parametrize("name", ["m.safetensors", "m.lcz"])
def test_a_file_is_enough(tmp_path, rng, name):
    if name.endswith(".lcz"):
        pytest.importorskip("constriction", reason="needs constriction, the entropy coder of archives")
    saved = model()
    saved[0].eval()
    saved[1].codebook += torch.arange(4)
    for t in saved.parameters():
        t.data += 1
    packed.save(saved, tmp_path / name)
    loaded = packed.load(tmp_path / name)
    x = torch.randn(2, 2, 8, 8, generator=rng)
    assert torch.equal(loaded(x), saved(x))
    assert [type(m) for m in loaded.modules()] == [type(m) for m in saved.modules()]
    assert [m.training for m in loaded.modules()] == [m.training for m in saved.modules()]
    assert loaded[2] is loaded[5]  # a module that is there twice
    assert all(p.requires_grad for p in loaded.parameters())
    with torch.no_grad():
        loaded[0][0].weight.zero_()
    assert torch.equal(packed.load(tmp_path / name)(x), saved(x))


def test_tied_and_shared_and_half(tmp_path):
    lut = packed.LUTLinear(4, 4, 2)
    saved = nn.Sequential(nn.Linear(4, 4), lut, nn.ModuleDict({"a": nn.Linear(4, 4), "b": lut}), lut).bfloat16()
    saved[2]["a"].weight = saved[0].weight
    packed.save(saved, tmp_path / "m")
    loaded = packed.load(tmp_path / "m")
    assert loaded[2]["a"].weight is loaded[0].weight and loaded[2]["a"].bias is not loaded[0].bias
    assert loaded[1] is loaded[3] is loaded[2]["b"]
    assert {t.dtype for t in loaded.state_dict().values()} == {torch.bfloat16, torch.int32}


@pytest.mark.parametrize("make", [packed.LUTLinear, packed.LowRankLinear])
def test_a_layer_alone(tmp_path, make):
    layer = make(6, 4, 2)
    packed.save(layer.eval(), tmp_path / "m")
    loaded = packed.load(tmp_path / "m")
    assert repr(loaded) == repr(layer) and not loaded.training


def test_packed_nets_of_lc_come_back(tmp_path, rng):
    torch.manual_seed(0)
    nets = [(lc.models.resnet8(), (3, 32, 32)), (lc.models.lenet300(), (784,)), (lc.models.lenet5(), (1, 28, 28))]
    for net, shape in nets:
        algorithm = lc.LCAlgorithm(net.eval(), lc.Task("re:.*weight", lc.Quantize(2)), mu=[1.0], multipliers=False)
        algorithm.run(lambda model, step: algorithm.penalty().item())  # noqa: B023
        saved = lc.pack(net)
        lc.save(saved, tmp_path / "net")
        x = torch.randn(2, *shape, generator=rng)
        assert torch.equal(lc.load(tmp_path / "net")(x), saved(x))


class Mine(nn.Sequential):
    pass


def changed(change):
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    change(net)
    return net


UNKNOWN = [
    (lambda: nn.Sequential(Mine(nn.Linear(3, 3))), r"module '0' is of class .*\bMine"),
    (lambda: changed(lambda net: net[0].register_forward_hook(lambda *a: None)), "module '0' has hooks"),
    (lambda: changed(lambda net: setattr(net[0], "forward", lambda x: x)), "forward of its own"),
    (lambda: changed(lambda net: net.register_buffer("more", torch.ones(2))), "'more'"),
    (lambda: changed(lambda net: net.register_buffer("more", torch.ones(2), persistent=False)), "not saved"),
    (lambda: changed(lambda net: setattr(net[0], "weight", nn.Parameter(torch.ones(2, 2)))), r"'0\.weight'"),
    (lambda: changed(lambda net: nn.utils.parametrizations.weight_norm(net[0])), "ParametrizedLinear"),
    (lambda: nn.Sequential(nn.Linear(3, 3), nn.LeakyReLU(float("inf"))), "negative_slope"),
]


@pytest.mark.parametrize(("make", "reason"), UNKNOWN)
def test_what_is_not_known_needs_a_model(tmp_path, make, reason):
    saved = make()
    packed.save(saved, tmp_path / "m")
    with pytest.raises(ValueError, match=f"give load a model.*{reason}"):
        packed.load(tmp_path / "m")
    into = make()
    for t in into.state_dict().values():
        t.zero_()
    loaded = packed.load(tmp_path / "m", into)
    assert all(torch.equal(t, loaded.state_dict()[name]) for name, t in saved.state_dict().items())


SEQUENTIAL = {"path": "", "class": "Sequential"}
LINEAR = {"in_features": 2, "out_features": 2, "bias": True}
CONV = {**LINEAR, "class": "Conv2d"}


def entry(path, name, **arguments):
    return {"path": path, "class": name, "arguments": arguments}


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        (None, "list of modules"),
        ([], "list of modules"),
        ([3], "objects with a path"),
        ([{"class": "ReLU"}], "objects with a path"),
        ([entry("0", "Linear", **LINEAR)], "begin with the module ''"),
        ([SEQUENTIAL, SEQUENTIAL], "have it once"),
        ([SEQUENTIAL, {"path": "0", "class": "os.system", "arguments": {"command": "true"}}], "'os.system' is not one"),
        ([SEQUENTIAL, {"path": "0", "class": ["Linear"]}], "is not one that a file may name"),
        ([SEQUENTIAL, {"path": "0"}], "class None"),
        ([SEQUENTIAL, {"path": "0", "class": "Tanh", "evil": 1}], "unknown entries"),
        ([{**SEQUENTIAL, "training": "no"}], "training must be"),
        ([SEQUENTIAL, entry("0", "Linear", in_features=2, bias=True)], "must have the arguments in_features"),
        ([SEQUENTIAL, entry("0", "Linear", **LINEAR, device="cuda")], "must have the arguments"),
        ([SEQUENTIAL, {"path": "0", "class": "Linear", "arguments": []}], "must have the arguments"),
        ([SEQUENTIAL, entry("0", "Linear", **{**LINEAR, "in_features": "2"})], "in_features must be an int"),
        ([SEQUENTIAL, entry("0", "Linear", **{**LINEAR, "in_features": 10**30})], "in_features must be 0 to"),
        ([SEQUENTIAL, entry("0", "Linear", **{**LINEAR, "in_features": -1})], "in_features must be 0 to"),
        ([SEQUENTIAL, entry("0", "Linear", **{**LINEAR, "bias": 1})], "bias must be True or False"),
        ([SEQUENTIAL, entry("0", "GELU", approximate="__import__")], "approximate must be one of"),
        ([SEQUENTIAL, entry("0", "Dropout", p=7.0, inplace=False)], "between 0 and 1"),
        ([SEQUENTIAL, entry("0", "Dropout", p=True, inplace=False)], "p must be a finite number"),
        ([SEQUENTIAL, entry("0", "GroupNorm", num_groups=0, num_channels=2, eps=1e-5, affine=True)], "num_groups"),
        ([SEQUENTIAL, entry("0", "AdaptiveAvgPool2d", output_size=[1] * 9)], "output_size must hold 1 to 3"),
        ([SEQUENTIAL, entry("0", "AdaptiveAvgPool2d", output_size=[[1]])], r"output_size\[0\] must be an int"),
        ([SEQUENTIAL, {"path": "0", "packed": True}], "not described"),
        ([SEQUENTIAL, {"path": "1.0", "class": "Tanh"}], "a module before it"),
        ([SEQUENTIAL, {"path": ".0", "class": "Tanh"}], "a module before it"),
        ([SEQUENTIAL, {"path": "0.", "class": "Tanh"}], "a module before it"),
        ([SEQUENTIAL, {"path": "0", "class": "Tanh"}, {"path": "0", "class": "Tanh"}], "a module before it"),
        ([SEQUENTIAL, {"path": "0", "class": "Tanh"}, {"path": "0.1", "class": "Tanh"}], "Tanh has no child"),
        ([SEQUENTIAL, {"path": "forward", "class": "Tanh"}], "already exists"),
        ([{"path": "", "class": "ModuleList"}, {"path": "1", "class": "Tanh"}], "must be number 0"),
        ([SEQUENTIAL, {"path": "0", "same": ""}], "same must be"),
        ([SEQUENTIAL, {"path": "0", "same": "0"}], "same must be"),
        ([SEQUENTIAL, {"path": "0", "same": 3}], "same must be"),
        ([SEQUENTIAL, {"path": "0", "same": "1"}, {"path": "1", "class": "Tanh"}], "same must be"),
        ([SEQUENTIAL, entry("0", "lc.models.ResNet", depth=10**9)], "must have the arguments depth"),
        (
            [entry("", "lc.models.Block", in_channels=2, out_channels=2, stride=1, shortcut="A")],
            "does not list module 'bn1'",
        ),
    ],
)
def test_hostile_structures_are_refused(entries, reason):
    with pytest.raises(ValueError, match=reason):
        structure.build(entries, [])


def nested(depth):
    return [{"path": ".".join(["0"] * n), "class": "Sequential"} for n in range(depth + 1)]


def doubled(depth):
    """2**depth modules, each level twice."""
    entries = nested(depth)
    return entries + [
        {"path": ".".join(["0"] * n + ["1"]), "same": ".".join(["0"] * (n + 1))} for n in range(depth - 1, -1, -1)
    ]


def chained(length):
    """Each in the next one."""
    each = [[{"path": str(i), "class": "Sequential"}, {"path": f"{i}.0", "same": str(i - 1)}] for i in range(length)]
    return [SEQUENTIAL, each[0][0], *(e for pair in each[1:] for e in pair)]


ITSELF = [
    SEQUENTIAL,
    *({"path": path, "class": "Sequential"} for path in ("0", "1")),
    {"path": "1.0", "same": "0"},
    {"path": "0.0", "same": "1"},
]
WIDE = [SEQUENTIAL, *({"path": str(i), "class": "Tanh"} for i in range(structure.MODULES))]


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        (nested(100), "64 modules deep"),
        (nested(5000), "64 modules deep"),
        (doubled(40), "100000 modules"),
        (chained(2000), "64 modules deep"),
        (ITSELF, "64 modules deep"),
        (WIDE, "100000 modules"),
    ],
    ids=["deep", "deeper", "doubled", "chained", "in itself", "wide"],
)
def test_large_structures_are_refused_before_they_are_walked(entries, reason):
    with pytest.raises(ValueError, match=reason):
        structure.build(entries, [])


def test_deep_and_shared_structures_that_are_allowed():
    for entries in (nested(60), doubled(10), chained(60)):
        built = structure.build(entries, [])
        assert all(type(m) is nn.Sequential for m in built.modules())


def test_sizes_that_the_tensors_do_not_have_take_no_memory(tmp_path):
    saved = nn.Sequential(nn.Linear(3, 3), packed.LUTLinear(3, 3, 2))
    tensors, spec = dict(saved.state_dict()), {"format": "lc_ext.packed", "format_version": 1}
    modules, shared = packed.io.packed_modules(saved)
    huge = structure.describe(saved, modules)
    huge[1]["arguments"]["in_features"] = 2**31 - 1
    spec.update(modules=modules, shared=shared, tied={}, structure=huge)
    spec["sha256"] = packed.io._digest(spec, tensors)
    safetensors.torch.save_file(tensors, tmp_path / "m", metadata={"lc_ext": json.dumps(spec)})
    with pytest.raises(ValueError, match=r"'0\.weight' is torch\.float32 \(3, 3\) in the file.*2147483647"):
        packed.load(tmp_path / "m")


def test_archives_that_are_far_larger_than_their_file_need_a_model(tmp_path):
    pytest.importorskip("constriction", reason="needs constriction, the entropy coder of archives")
    wide = nn.Sequential(nn.Linear(4200, 4200, bias=False))
    wide[0].weight.data.zero_()
    packed.save(wide, tmp_path / "m.lcz")
    assert (tmp_path / "m.lcz").stat().st_size < 2000
    with pytest.raises(ValueError, match=r"'0\.weight' has shape .* more than"):
        packed.load(tmp_path / "m.lcz")
    assert packed.load(tmp_path / "m.lcz", nn.Sequential(nn.Linear(4200, 4200, bias=False)))[0].weight.sum() == 0
