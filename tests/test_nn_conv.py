"""Packed convolutions and embeddings: the same function as the dense layer, saved, loaded, and packed from a run."""

import copy
import itertools
import logging
import pickle

import pytest
import torch
from torch import nn

import lc
from lc_ext import nn as packed

GEOMETRIES = [
    {"kernel_size": 3},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 1},
    {"kernel_size": 2, "padding": "same", "dilation": 2},
    {"kernel_size": 3, "padding": 2, "dilation": 2, "groups": 2},
    {"kernel_size": 3, "padding": 1, "groups": 4},
    {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    {"kernel_size": 4, "padding": "valid", "padding_mode": "reflect"},
]


def dense_conv(rng, dims=2, channels=(4, 8), bias=True, **options):
    """A convolution of few distinct values, many of them zero."""
    conv = (nn.Conv1d if dims == 1 else nn.Conv2d)(*channels, bias=bias, **options)
    values = torch.tensor([0.0, 0.0, 0.0, 0.5, -0.25, 1.25])
    conv.weight.data = values[torch.randint(0, len(values), conv.weight.shape, generator=rng)]
    return conv


def image(rng, dims=2, batch=2, channels=4):
    return torch.randn(batch, channels, *((11, 13)[:dims]), generator=rng)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", GEOMETRIES)
@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("packed_path", [False, True])
@pytest.mark.parametrize("kind", ["LUT", "Sparse"])
def test_is_the_dense_convolution(rng, monkeypatch, options, dims, packed_path, kind):
    cls = getattr(packed, f"{kind}Conv{dims}d")
    if not packed_path:
        monkeypatch.setattr("lc_ext.nn.conv._make_tiles", lambda matrix, geometry: None)
    for bias, batch in itertools.product((True, False), (1, 3)):
        conv = dense_conv(rng, dims, bias=bias, **options).eval()
        layer = cls.from_dense(conv)
        x = image(rng, dims, batch)
        close(layer(x), conv(x))
        assert not layer.training and (layer._kept.tiles is not None) == (packed_path and layer.geometry.groups == 1)
        again = layer.to_dense()
        assert type(again) is type(conv) and torch.equal(again.weight, conv.weight) and again.stride == conv.stride
        close(again(x), conv(x))
        close(layer(x.to(memory_format=torch.channels_last)) if dims == 2 else layer(x), conv(x))
        assert layer.nbytes < 4 * conv.weight.numel() + 300


def test_sum_of_parts_and_their_biases(rng):
    conv = dense_conv(rng, kernel_size=3, padding=1)
    lut = packed.LUTConv2d.from_dense(conv).matrix
    sparse = packed.SparseConv2d.from_dense(conv).matrix
    layer = packed.SumConv2d(packed.SumLinear([lut, sparse]), 4, 3, padding=1)
    x = image(rng)
    close(layer(x), 2 * conv(x))
    close(layer.to_dense()(x), 2 * conv(x))


def test_changed_buffers_and_copies_make_new_tiles(rng):
    layer = packed.LUTConv2d.from_dense(dense_conv(rng, kernel_size=3))
    x = image(rng)
    before = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other._kept is None and torch.equal(other(x), before)
    layer.matrix.codebook.mul_(2)
    close(layer(x), layer.to_dense()(x))
    assert not torch.equal(layer(x), before)
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer(x), before)
    half = layer.bfloat16()
    assert half(x.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(half(x.bfloat16()).float(), before, rtol=0.1, atol=0.2)


@pytest.mark.parametrize("scheme", [1, 2])
@pytest.mark.parametrize("options", [o for o in GEOMETRIES if o.get("groups", 1) == 1])
@pytest.mark.parametrize("dims", [1, 2])
def test_low_rank_convolution(rng, scheme, options, dims):
    if scheme > dims:
        return
    conv = dense_conv(rng, dims, **options)
    n, m, *k = conv.weight.shape
    rows, cols = (n, m * k[0] * (k[1] if dims == 2 else 1)) if scheme == 1 else (n * k[0], m * k[1])
    left, right = torch.randn(rows, 3, generator=rng), torch.randn(3, cols, generator=rng)
    cls = packed.LowRankConv1d if dims == 1 else packed.LowRankConv2d
    layer = cls.from_factors(left, right, conv, scheme, conv.bias.detach())
    dense = layer.to_dense()
    x = image(rng, dims)
    close(layer(x) / 10, dense(x) / 10)
    assert layer.dense_weight().shape == conv.weight.shape and layer.rank == 3


def test_an_embedding_decodes_the_rows_that_are_asked_for(rng):
    table = nn.Embedding(10, 7, padding_idx=3)
    table.weight.data = torch.randint(0, 5, (10, 7), generator=rng).float()
    layer = packed.LUTEmbedding.from_dense(table)
    index = torch.tensor([[0, 3, 9], [9, 1, 0]])
    assert torch.equal(layer(index), table(index)) and torch.equal(layer.to_dense()(index), table(index))
    assert layer(index[:0]).shape == (0, 3, 7) and layer.to_dense().padding_idx == 3
    for bad in (torch.tensor([10]), torch.tensor([-1])):
        with pytest.raises((IndexError, RuntimeError)):
            layer(bad)
    with pytest.raises(TypeError, match="index must be int32 or int64"):
        layer(torch.ones(3))
    with pytest.raises(ValueError, match="max_norm"):
        packed.LUTEmbedding.from_dense(nn.Embedding(10, 7, max_norm=1.0))
    with pytest.raises(ValueError, match="padding_idx must be one of 10"):
        packed.LUTEmbedding(layer.matrix, 10)


def model(rng):
    return nn.Sequential(
        dense_conv(rng, kernel_size=3, padding=1, stride=2),
        nn.ReLU(),
        dense_conv(rng, channels=(8, 6), kernel_size=3, padding_mode="circular", padding=1),
        nn.Flatten(),
        nn.Linear(6 * 6 * 7, 5),
    )


def test_files(rng, tmp_path):
    net = model(rng)
    small = copy.deepcopy(net)
    small[0] = packed.LUTConv2d.from_dense(net[0])
    left, right = torch.randn(6, 2, generator=rng), torch.randn(2, 72, generator=rng)
    small[2] = packed.SumConv2d(
        packed.SumLinear(
            [packed.SparseConv2d.from_dense(net[2]).matrix, packed.LowRankLinear.from_factors(left, right)]
        ),
        8, 3, padding=1, padding_mode="circular",
    )  # fmt: skip
    packed.save(small, tmp_path / "net")
    loaded = packed.load(tmp_path / "net", model(rng))
    x = image(rng)
    assert torch.equal(loaded(x), small(x))
    assert [type(m) for m in loaded.modules()] == [type(m) for m in small.modules()]
    other = model(rng)
    other[0] = dense_conv(rng, kernel_size=3, padding=1, stride=1)
    with pytest.raises(ValueError, match=r"module '0' is Geometry.*stride=\(2, 2\).*in the model"):
        packed.load(tmp_path / "net", other)
    other[0] = nn.Conv1d(4, 8, 3)
    with pytest.raises(ValueError, match=r"module '0' must be an nn\.Conv2d in the model, got Conv1d"):
        packed.load(tmp_path / "net", other)
    for layer in (small[0], small[2], copy.deepcopy(small[0]), pickle.loads(pickle.dumps(small[2]))):
        assert layer(image(rng, channels=layer.geometry.in_channels)).shape[1] == layer.geometry.out_channels


def test_embedding_and_low_rank_files(rng, tmp_path):
    table = nn.Embedding(10, 7)
    table.weight.data = torch.randint(0, 5, (10, 7), generator=rng).float()
    conv = dense_conv(rng, kernel_size=3)
    left, right = torch.randn(24, 2, generator=rng), torch.randn(2, 12, generator=rng)
    small = nn.ModuleList(
        [packed.LUTEmbedding.from_dense(table), packed.LowRankConv2d.from_factors(left, right, conv, 2)]
    )
    packed.save(small, tmp_path / "net")
    loaded = packed.load(tmp_path / "net", nn.ModuleList([nn.Embedding(10, 7), nn.Conv2d(4, 8, 3)]))
    assert torch.equal(loaded[0].dense_weight(), table.weight)
    assert torch.equal(loaded[1].dense_weight(), small[1].dense_weight())
    with pytest.raises(ValueError, match="is 10 x 7 in the file"):
        packed.load(tmp_path / "net", nn.ModuleList([nn.Embedding(7, 10), nn.Conv2d(4, 8, 3)]))


COMPRESSIONS = {
    "codes": (lc.Quantize(4), packed.LUTConv2d),
    "sparse": (lc.Prune(0.3), packed.SparseConv2d),
    "sum": (lc.Quantize(2) + lc.Prune(0.05), packed.SumConv2d),
    "scheme 1": (lc.LowRank(2), packed.LowRankConv2d),
    "scheme 2": (lc.LowRank(2, scheme=2), packed.LowRankConv2d),
}


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_a_compressed_net_is_packed(rng, name):
    compression, cls = COMPRESSIONS[name]
    net = model(rng)
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=rng)
    algorithm = lc.LCAlgorithm(net, lc.Task([nn.Conv2d], compression), mu=[1.0])
    algorithm.run(lambda model, step: algorithm.penalty().item())
    small = lc.pack(net)
    x = image(rng)
    assert type(small[0]) is cls and type(small[2]) is cls and type(small[4]) is nn.Linear
    close(small(x), net(x))


def test_an_embedding_is_packed_and_what_cannot_be_stays_dense(rng, caplog):
    net = nn.Sequential(nn.Embedding(10, 7), nn.ConvTranspose1d(7, 3, 1))
    algorithm = lc.LCAlgorithm(net, lc.Task(["0", "1"], lc.Quantize(2)), mu=[1.0], distill=False)
    algorithm.run(lambda model, step: algorithm.penalty().item())
    with caplog.at_level(logging.WARNING):
        small = lc.pack(net)
    assert type(small[0]) is packed.LUTEmbedding and type(small[1]) is nn.ConvTranspose1d
    assert "1.weight of ConvTranspose1d, by Quantize, has no packed layer: it stays dense" in caplog.text
    index = torch.arange(10)
    assert torch.equal(small[0](index), net[0](index))


def test_bad_arguments(rng):
    conv = dense_conv(rng, kernel_size=3)
    layer = packed.LUTConv2d.from_dense(conv)
    cases = [
        (TypeError, "matrix must be a SparseLinear, got LUTLinear", lambda: packed.SparseConv2d(layer.matrix, 4, 3)),
        (ValueError, "matrix must have 27 inputs.*got 36", lambda: packed.LUTConv2d(layer.matrix, 3, 3)),
        (ValueError, "groups must divide", lambda: packed.LUTConv2d(layer.matrix, 4, 3, groups=3)),
        (ValueError, "stride must be at least 1, got 0", lambda: packed.LUTConv2d(layer.matrix, 4, 3, stride=0)),
        (ValueError, "kernel_size must be an int or 2 of them", lambda: packed.LUTConv2d(layer.matrix, 4, (3, 3, 1))),
        (ValueError, "padding must be sizes", lambda: packed.LUTConv2d(layer.matrix, 4, 3, padding="full")),
        (ValueError, "calls for stride 1", lambda: packed.LUTConv2d(layer.matrix, 4, 3, 2, "same")),
        (ValueError, "padding_mode must be", lambda: packed.LUTConv2d(layer.matrix, 4, 3, padding_mode="mirror")),
        (ValueError, r"x must have shape \(batch, 4, height, width\)", lambda: layer(torch.zeros(2, 3, 5, 5))),
        (TypeError, "conv must be an nn.Conv2d, got Conv1d", lambda: packed.LUTConv2d.from_dense(nn.Conv1d(4, 8, 3))),
        (TypeError, "SumConv2d has no from_dense", lambda: packed.SumConv2d.from_dense(conv)),
        (ValueError, "rank must be at least 1", lambda: packed.LowRankConv2d(4, 8, 3, 0)),
        (ValueError, "scheme must be 1 to 1, got 2", lambda: packed.LowRankConv1d(4, 8, 3, 1, 2)),
        (TypeError, "bias must be True or False", lambda: packed.LowRankConv2d(4, 8, 3, 1, bias=1)),
    ]
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()


def test_gradients_and_compile(rng):
    conv = dense_conv(rng, kernel_size=3, padding=1)
    layer = packed.LUTConv2d.from_dense(conv)
    x = image(rng).requires_grad_()
    grad = torch.autograd.grad(layer(x).square().sum(), x)[0]
    close(grad, torch.autograd.grad(conv(x).square().sum(), x)[0])
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    close(compiled(x.detach()), conv(x.detach()))


@pytest.mark.parametrize("kind", ["LUT", "Sparse"])
def test_what_was_packed_can_be_finetuned(rng, kind):
    conv = dense_conv(rng, kernel_size=3, padding=1)
    layer, x = getattr(packed, f"{kind}Conv2d").from_dense(conv), image(rng)
    layer(x)
    learned = layer.matrix.codebook if kind == "LUT" else layer.matrix.values
    learned.requires_grad_()
    target = (2 * conv(x)).detach()
    optimizer = torch.optim.SGD([learned], lr=1e-3 if kind == "LUT" else 0.1)
    losses = []
    for _ in range(30):
        loss = (layer(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    with torch.no_grad():
        close(layer(x), layer.to_dense()(x))
