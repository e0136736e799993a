"""Packed linear layers with an activation: the layer, then the function, to the bit; and what torch makes of it."""

import copy
import json
import pickle

import pytest
import safetensors
import safetensors.torch
import torch
from test_nn import LAYERS, OPS, bound, coded_nm, coded_sparse, low_rank, lut, nm, sparse, total
from torch import nn

import lc
from lc_ext import nn as packed
from lc_ext import ops
from lc_ext.ops.activation import ACTIVATIONS

MODULES = {"relu": nn.ReLU(), "gelu": nn.GELU(), "gelu_tanh": nn.GELU("tanh"), "silu": nn.SiLU()}


@pytest.fixture(autouse=True)
def forgetful_compiler():
    """Each class is compiled only so many times: for the tests of others, too."""
    yield
    torch.compiler.reset()


def activated(layer, kind):
    other = copy.deepcopy(layer)
    other.activation = kind
    return other


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_is_the_layer_and_then_the_function(isa, rng, make, kind):
    plain = make(rng)
    layer = activated(plain, kind)
    for shape in ((37,), (0, 37), (3, 37), (2, 3, 37), (60, 37)):
        x = torch.randn(shape, generator=rng)
        assert torch.equal(layer(x), ops.activation(plain(x), kind))
    x = x.bfloat16()
    y, want = layer(x), ops.activation(plain(x).float(), kind)
    assert y.dtype == torch.bfloat16 and torch.allclose(y.float(), want, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("bias", [True, False])
def test_sums_are_activated_after_their_last_term(isa, rng, bias):
    makes = ([lut, sparse], [sparse, lut], [lut, low_rank], [low_rank], [nm], [lut, coded_nm, coded_sparse])
    for batch in (1, 5):
        for parts in makes:
            made = [make(rng, bias=len(makes) > 1) for make in parts]
            plain = packed.SumLinear(made, torch.randn(11, generator=rng) if bias else None)
            x = torch.randn(batch, 37, generator=rng)
            for kind in ("relu", "gelu"):
                assert torch.equal(activated(plain, kind)(x), ops.activation(plain(x), kind))


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_to_dense_is_a_sequential_and_comes_back(rng, make, kind):
    layer = activated(make(rng), kind).eval()
    dense = layer.to_dense()
    assert type(dense) is nn.Sequential and not any(m.training for m in dense.modules())
    assert repr(dense[1]) == repr(MODULES[kind]) and type(dense[0]) is nn.Linear
    x = torch.randn(3, 37, generator=rng)
    assert ((layer(x) - dense(x)).abs() <= 1.2 * bound(activated(layer, None), x) + 1e-6).all()
    assert f"activation={kind}" in repr(layer)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.activation == kind and torch.equal(other(x), layer(x))
    if make in (lut, sparse, nm):
        again = type(layer).from_dense(dense)
        assert again.activation == kind and torch.equal(again(x), layer(x)) and not again.training
    layer.activation = None
    assert type(layer.to_dense()) is nn.Linear and "activation" not in repr(layer)


@pytest.mark.parametrize("backend", [None, "eager", "aot_eager"])
@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("kind", ["relu", "gelu_tanh"])
def test_gradients_are_those_of_torch_s_function(rng, make, kind, backend):
    plain = make(rng)
    layer = activated(plain, kind)
    x = torch.randn(3, 37, generator=rng).requires_grad_()
    learned = [(name, t) for name, t in layer.named_buffers() if t.dtype.is_floating_point]
    call = layer if backend is None else torch.compile(layer, fullgraph=True, backend=backend)
    weights = torch.randn(3, 11, generator=rng)
    for name, t in learned:
        t.requires_grad_()
        plain.get_buffer(name).requires_grad_()
    grads = torch.autograd.grad((call(x) * weights).sum(), [x, *(t for _, t in learned)])
    y = ops.activation_reference(plain(x), kind)
    want = torch.autograd.grad((y * weights).sum(), [x, *(plain.get_buffer(name) for name, _ in learned)])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(grads, want, strict=True))


@pytest.mark.parametrize("make", LAYERS)
def test_export(rng, make):
    layer = activated(make(rng), "silu")
    x = torch.randn(3, 37, generator=rng)
    exported = torch.export.export(layer, (x,)).module()
    assert torch.allclose(exported(x), layer(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "dtype"), [("relu", torch.float32), ("gelu_tanh", torch.bfloat16)])
def test_opcheck(rng, kind, dtype):
    a, b, c, d, e = (make(rng).to(dtype) for make in (lut, sparse, nm, coded_sparse, coded_nm))
    x = torch.randn(2, 3, 37, generator=rng).to(dtype).requires_grad_()
    for t in (a.codebook, b.values, c.values, d.codebook, e.codebook, a.bias):
        t.requires_grad_()
    lut_arguments = (x, a.words, a.codebook, a.bits, 37, a.bias, "exact", kind)
    results = [torch.library.opcheck(OPS.lut_linear.default, lut_arguments)]
    for op, layer in ((OPS.sparse_linear, b), (OPS.nm_linear, c), (OPS.sparse_linear, d), (OPS.nm_linear, e)):
        results.append(torch.library.opcheck(op.default, (x, *layer.arguments(), kind)))
    assert all(set(result.values()) == {"SUCCESS"} for result in results)


@pytest.mark.parametrize("name", ["layer", "layer.lcz"])
@pytest.mark.parametrize("make", LAYERS)
def test_files(tmp_path, rng, make, name):
    if name.endswith(".lcz"):
        pytest.importorskip("constriction", reason="needs constriction, the entropy coder of archives")
    layer, x = activated(make(rng), "gelu"), torch.randn(3, 37, generator=rng)
    packed.save(layer, tmp_path / name)
    for model in ([], [nn.Linear(37, 11)], [layer.to_dense()]):
        loaded = packed.load(tmp_path / name, *model)
        assert repr(loaded) == repr(layer) and torch.equal(loaded(x), layer(x))
    with pytest.raises(ValueError, match="activation gelu in the file, relu in the model"):
        packed.load(tmp_path / name, nn.Sequential(nn.Linear(37, 11), nn.ReLU()))


def net():
    """Activations that can be fused, and such that cannot."""
    again, shared = nn.Linear(8, 8), nn.ReLU()
    return nn.Sequential(
        *(nn.Linear(8, 16), nn.ReLU(inplace=True)),
        *(nn.Linear(16, 8), nn.GELU("tanh")),
        *(again, nn.SiLU(), again),
        *(nn.Linear(8, 8), nn.Tanh(), shared),
        nn.ModuleDict({"body": nn.Sequential(nn.Linear(8, 8), shared, nn.Dropout(0.5), nn.SiLU(), nn.Linear(8, 8))}),
    )


class Net(nn.Module):
    """Not known to files."""

    def __init__(self):
        super().__init__()
        self.layers = net()

    def forward(self, x):
        for m in self.layers[:-1]:
            x = m(x)
        return self.layers[-1]["body"](x)


def compressed(model):
    torch.manual_seed(0)
    algorithm = lc.LCAlgorithm(model.eval(), lc.Task("re:.*weight", lc.Quantize(3)), mu=[1.0], multipliers=False)
    algorithm.run(lambda model, step: algorithm.penalty().item())
    return model


KINDS = ["LUTLinear", "Identity"] * 2 + ["LUTLinear", "SiLU", "LUTLinear", "LUTLinear", "Tanh", "ReLU"]


@pytest.mark.parametrize("name", ["m", "m.lcz"])
def test_pack_fuses_where_nothing_else_sees_the_result(tmp_path, rng, name):
    if name.endswith(".lcz"):
        pytest.importorskip("constriction", reason="needs constriction, the entropy coder of archives")
    model, x = compressed(Net()), torch.randn(5, 8, generator=rng)
    fused, plain = lc.pack(model), lc.pack(model, fuse_activations=False)
    kinds = [type(m).__name__ for m in fused.layers]
    assert kinds == [*KINDS, "ModuleDict"]
    assert [fused.layers[i].activation for i in (0, 2, 4, 7)] == ["relu", "gelu_tanh", None, None]
    body = fused.layers[-1]["body"]
    assert body[0].activation == "relu" and type(body[1]) is nn.Identity and type(body[3]) is nn.SiLU
    assert [type(m) for m in plain.layers] == [
        packed.LUTLinear if isinstance(m, nn.Linear) else type(m) for m in model.layers
    ]
    assert torch.allclose(fused(x), plain(x), rtol=1e-5, atol=1e-6)
    assert [type(m) for m in model.layers] == [type(m) for m in net()]

    lc.save(fused, tmp_path / name)
    loaded = lc.load(tmp_path / name, Net().eval())
    assert torch.equal(loaded(x), fused(x)) and str(loaded) == str(fused)
    with pytest.raises(ValueError, match=r"give load a model.*Net"):
        lc.load(tmp_path / name)
    other = Net()
    other.layers[3] = nn.SiLU()
    kinds = [type(m) for m in other.modules()]
    with pytest.raises(ValueError, match=r"'layers\.3' must be gelu_tanh in the model, got SiLU"):
        lc.load(tmp_path / name, other)
    assert [type(m) for m in other.modules()] == kinds

    lc.save(fused.layers, tmp_path / name)  # of known classes only
    loaded = lc.load(tmp_path / name)
    assert str(loaded) == str(fused.layers)
    fused.layers = loaded
    assert torch.equal(fused(x), lc.pack(model)(x))


def test_hooks_prevent_fusion(rng):
    model = compressed(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.SiLU()))
    seen = []
    model[1].register_forward_pre_hook(lambda m, args: seen.append(args))
    fused = lc.pack(model)
    assert [type(m).__name__ for m in fused] == ["LUTLinear", "ReLU", "LUTLinear", "Identity"]
    fused(torch.randn(2, 4, generator=rng))
    assert len(seen) == 1
    with pytest.raises(TypeError, match=r"fuse_activations.*'yes'"):
        lc.pack(model, fuse_activations="yes")


@pytest.mark.parametrize(
    ("fused", "reason"),
    [
        ([], "object 'fused'"),
        ({"1": "2"}, "must follow"),
        ({"1": 0}, "must follow"),
        ({"3": "0"}, "must follow"),
        ({"x.1": "0"}, "not in the model"),
        ({"": "0"}, "must follow"),
        ({"3": "2"}, "'3' must be None in the model, got SiLU"),
    ],
)
def test_forged_fusions_are_refused(tmp_path, fused, reason):
    def make():
        return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.SiLU())

    model = lc.pack(compressed(make()))
    model[2].activation = None
    lc.save(model, tmp_path / "m")
    with safetensors.safe_open(tmp_path / "m", "pt") as f:
        spec, tensors = json.loads(f.metadata()["lc_ext"]), {name: f.get_tensor(name) for name in f.keys()}
    assert spec["fused"] == {"1": "0"}
    spec["fused"] = fused
    spec["sha256"] = packed.io._digest(spec, tensors)
    safetensors.torch.save_file(tensors, tmp_path / "m", metadata={"lc_ext": json.dumps(spec)})
    dense = make()
    with pytest.raises(ValueError, match=reason):
        lc.load(tmp_path / "m", dense)
    assert [type(m).__name__ for m in dense] == ["Linear", "ReLU", "Linear", "SiLU"]


LINEAR = {"in_features": 4, "out_features": 3}


@pytest.mark.parametrize(
    ("make", "error", "named"),
    [
        (lambda: packed.LUTLinear(4, 3, 2, activation="tanh"), ValueError, "activation.*'tanh'"),
        (lambda: packed.SparseLinear(4, 3, 2, activation=nn.ReLU()), TypeError, "activation.*ReLU"),
        (lambda: packed.NMLinear(4, 3, 2, 4, activation=1), ValueError, "activation"),
        (lambda: packed.LowRankLinear(4, 3, 2, activation=["relu"]), ValueError, "activation"),
        (lambda: packed.SumLinear([nn.Linear(4, 3)], activation="no"), ValueError, "activation"),
        (lambda: packed.SumLinear([packed.LUTLinear(4, 3, 2, activation="relu")]), ValueError, r"parts\[0\].*'relu'"),
        (lambda: setattr(packed.LUTLinear(4, 3, 2), "activation", "x"), ValueError, "activation"),
        (lambda: setattr(packed.LUTLinear(4, 3, 2), "activation", nn.SiLU()), TypeError, "activation"),
        (lambda: packed.SparseLinear.from_dense(nn.Sequential(nn.Linear(4, 3), nn.Tanh())), TypeError, "linear"),
        (lambda: packed.LUTEmbedding(packed.LUTLinear(4, 3, 2, bias=False, activation="relu")), ValueError, "matrix"),
    ],
)
def test_bad_arguments_are_named(make, error, named):
    with pytest.raises(error, match=named):
        make()


def test_constructors_take_one():
    layers = [
        packed.LUTLinear(**LINEAR, bits=2, activation="relu"),
        packed.NMLinear(**LINEAR, n=2, m=4, activation="relu"),
        packed.SparseLinear(**LINEAR, nnz=2, activation="relu"),
        packed.LowRankLinear(**LINEAR, rank=1, activation="relu"),
        packed.SumLinear([total(torch.Generator().manual_seed(0))], torch.ones(11), "relu"),
    ]
    for layer in layers:
        assert layer.activation == layer.config()["activation"] == "relu"
        layer.bias -= 2
        assert (layer(torch.zeros(2, layer.in_features)) >= 0).all()
