"""activation: right to the last few bits, in the tails too, and the same bits everywhere."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lc_ext import _native, ops
from lc_ext.ops.activation import ACTIVATIONS, activation_code, activation_gradient

INF, NAN = math.inf, math.nan


def exact(x, kind):
    """In float64, without cancellation."""
    x = x.double()
    if kind == "relu":
        return torch.where(x < 0, 0.0, x)
    if kind == "gelu":
        return x * 0.5 * torch.special.erfc(-x / math.sqrt(2))
    u = x if kind == "silu" else 2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return torch.where(u < 0, x * torch.exp(u) / (1 + torch.exp(u)), x / (1 + torch.exp(-u)))


def bound(x, kind):
    u = math.sqrt(2 / math.pi) * (x.double() + 0.044715 * x.double() ** 3) if kind == "gelu_tanh" else torch.zeros(())
    return (2.0**-20 + 2.0**-21 * u.abs()) * exact(x, kind).abs() + 2.0**-142


def some(rng):
    """All exponents, and densely where the functions bend."""
    bits = torch.randint(0, 0x7F800000, (40_000,), generator=rng).to(torch.int32).view(torch.float32)
    near = torch.linspace(-16, 16, 60_001)
    far = torch.linspace(-110, -80, 20_001)
    return torch.cat([bits, -bits, near, far])


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_error(isa, rng, kind):
    x = some(rng)
    y, want = ops.activation(x, kind).double(), exact(x, kind)
    assert ((y - want).abs() <= bound(x, kind)).all()


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_is_torch_s_function(rng, kind):
    x = 3 * torch.randn(7, 130, generator=rng)
    assert torch.allclose(ops.activation(x, kind), ops.activation_reference(x, kind), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_the_same_bits_everywhere(rng, kind):
    x = some(rng)[:100_001]
    bias = torch.randn(len(x), generator=rng)
    before, found = _native.active_isa(), []
    try:
        for isa in _native.supported_isas():
            _native.set_isa(isa)
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                found.append(ops.activation(x, kind, bias))
    finally:
        _native.set_isa(before)
        torch.set_num_threads(1)
    assert all(torch.equal(y.view(torch.int32), found[0].view(torch.int32)) for y in found)
    apart = torch.cat([ops.activation(part.contiguous(), kind) for part in (x + bias).split(777)])
    assert torch.equal(apart.view(torch.int32), found[0].view(torch.int32))


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_special_values(isa, kind):
    tiny = 2.0**-149
    x = torch.tensor([0.0, -0.0, INF, -INF, NAN, -NAN, tiny, -tiny, 3.4e38, -3.4e38, 2.0**-126, -(2.0**-126)])
    y = ops.activation(x, kind)
    assert y[:2].tolist() == [0, 0] and torch.signbit(y[:2]).tolist() == [False, True]
    assert y[2:4].tolist() == [INF, 0] and y[4:6].isnan().all()
    assert y[8] == x[8] and y[9] == 0
    half = 1.0 if kind == "relu" else 0.5
    assert float(y[10]) == half * 2.0**-126 and float(y[11]) == (0 if kind == "relu" else -(2.0**-127))
    assert 0 <= float(y[6]) <= tiny and -tiny <= float(y[7]) <= 0


@given(st.lists(st.floats(width=32), max_size=40), st.sampled_from([None, *ACTIVATIONS]), st.integers(0, 3))
def test_any_shape_bias_and_place(values, kind, batch):
    x = torch.tensor(values).repeat(batch, 1)
    bias = torch.arange(len(values), dtype=torch.float32)
    want = ops.activation((x + bias).reshape(-1), kind).view(x.shape)
    kept = x.clone()
    y = ops.activation(x, kind, bias)
    assert torch.equal(y.nan_to_num(7), want.nan_to_num(7)) and torch.equal(x.nan_to_num(7), kept.nan_to_num(7))
    assert ops.activation(x, kind, bias, out=x) is x and torch.equal(x.nan_to_num(7), y.nan_to_num(7))


def test_none_is_the_sum_with_the_bias(rng):
    x, bias = torch.randn(3, 9, generator=rng), torch.randn(9, generator=rng)
    assert torch.equal(ops.activation(x, None, bias), x + bias) and torch.equal(ops.activation(x, None), x)
    assert ops.activation(torch.tensor(-2.0), "relu").shape == ()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_is_widened_and_rounded_once(rng, dtype):
    x = torch.randn(50, generator=rng).to(dtype)
    for kind in ACTIVATIONS:
        assert torch.equal(ops.activation(x, kind), ops.activation(x.float(), kind).to(dtype))


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_gradient_is_torch_s(rng, kind):
    x = torch.randn(40, generator=rng).requires_grad_()
    grad = torch.randn(40, generator=rng)
    (want,) = torch.autograd.grad((ops.activation_reference(x, kind) * grad).sum(), x)
    assert torch.equal(activation_gradient(grad, x.detach(), kind), want)


X = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda: ops.activation([1.0], "relu"), TypeError, "x"),
        (lambda: ops.activation(X.int(), "relu"), TypeError, "x"),
        (lambda: ops.activation(X, "tanh"), ValueError, "activation.*'tanh'"),
        (lambda: ops.activation(X, 1), ValueError, "activation.*1"),
        (lambda: ops.activation(X, "relu", torch.ones(2)), ValueError, "bias"),
        (lambda: ops.activation(torch.tensor(1.0), "relu", torch.ones(1)), ValueError, "bias"),
        (lambda: ops.activation(X, "relu", out=torch.ones(3)), ValueError, "out"),
        (lambda: ops.activation(X.half(), "relu", out=torch.ones(2, 3)), TypeError, "out"),
        (lambda: ops.activation(X, "relu", X[0], out=X), ValueError, "out must not share memory with bias"),
        (lambda: ops.activation(torch.ones(9)[:6], "silu", out=torch.ones(9)[3:]), None, None),
        (lambda: (lambda t: ops.activation(t[:6], "silu", out=t[3:]))(torch.ones(9)), ValueError, "memory with x"),
    ],
)
def test_bad_arguments_are_named(call, error, named):
    if error is None:
        assert call().shape == (6,)
        return
    with pytest.raises(error, match=named):
        call()


def test_codes_are_those_of_the_kernels():
    assert [activation_code(kind) for kind in (None, "relu", "gelu", "gelu_tanh", "silu")] == [0, 1, 2, 3, 4]
