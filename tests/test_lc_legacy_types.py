"""The compressions and networks of the older toolkit (UCMerced's LC-model-compression), and their defects absent.

The defects are those found by running it: each has a test here that tells its story.
"""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from lc import compression_types as ct
from lc_ext import ops

DATA = np.array([0.1, -2.0, 0.3, 1.0, -0.2, 0.9, 0.0, -1.9])
ALL = {
    "adaptive": (lambda: ct.AdaptiveQuantization(2), 8 + 2, 8 + 64),
    "adaptive3": (lambda: ct.AdaptiveQuantization(3), 8 + 3, 16 + 96),
    "optimal": (lambda: ct.OptimalAdaptiveQuantization(3), 8 + 3, 16 + 96),
    "binary": (ct.BinaryQuantization, 8, 8),
    "scaled_binary": (ct.ScaledBinaryQuantization, 8 + 1, 8 + 32),
    "ternary": (ct.ScaledTernaryQuantization, 8 + 1, 16 + 32),
    # kept: 1, 3, 7, that is distances of 2, 2, 4; symbols of 2 bits: 1 + 1 + 2, of 3 bits: 3; so 8 bits
    "l0": (lambda: ct.ConstraintL0Pruning(3), 3, 3 * 32 + 8),
    "l0_half": (lambda: ct.ConstraintL0Pruning(3, precision=16), 3, 3 * 16 + 8),
    "l0_one_bit": (lambda: ct.ConstraintL0Pruning(3, precision=1), 3 + 2, 3 + 8 + 64),
    "l1": (lambda: ct.ConstraintL1Pruning(2.0), 3, 3 * 32 + 8),
    "l0_penalty": (lambda: ct.PenaltyL0Pruning(1.0), 2, 2 * 32 + 3 * 2),  # distances of 2 and 6: 2 symbols of 3 bits
    "l1_penalty": (lambda: ct.PenaltyL1Pruning(1.5), 2, 2 * 32 + 3 * 2),
}


@pytest.mark.parametrize("kind", [np.float64, np.float32, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ALL)
def test_compress_counts_and_states(name, kind):
    """Stories: removed np.int, a missing super().__init__, shape (1, N) from ternary, the first nonzero not counted,
    16 bits and 4 bits counted as 32, ratio taken before it is known, float indices at mu = 0.
    """
    make, params, bits = ALL[name]
    compression = make()
    assert compression.state_dict is None and compression.mu == 0 and compression.step_number == 0
    with pytest.raises(RuntimeError, match="not compressed anything"):  # story: TypeError, or the undefined name Error
        compression.count_params()
    with pytest.raises(RuntimeError, match="not compressed anything"):
        compression.count_param_bits()
    compression.mu = 1.0
    data = torch.tensor(DATA, dtype=kind) if isinstance(kind, torch.dtype) else DATA.astype(kind)
    out = compression.compress(data)
    assert type(out) is type(data) and out.dtype == data.dtype and out.shape == data.shape
    assert compression.count_params() == params
    assert compression.count_param_bits() == bits
    values = out.float().numpy() if isinstance(out, torch.Tensor) else out
    tolerance = {"rtol": 1e-2 if kind == torch.bfloat16 else 1e-6}
    np.testing.assert_allclose(compression.uncompress_state(), values, **tolerance)
    again = make()
    again.load_state_dict(compression.state_dict)
    np.testing.assert_array_equal(again.uncompress_state(), compression.uncompress_state())
    assert again.count_params() == params and again.count_param_bits() == bits
    again.mu = 1.0
    np.testing.assert_allclose(again.compress(DATA), compression.compress(DATA), rtol=1e-6)
    if name == "l0":
        assert compression.info[0][0]["ratio"] == 5
    compression.mu = 0.0
    compression.compress(data)
    compression.count_param_bits()
    compression.uncompress_state()
    with pytest.raises(ValueError, match="mu must not be negative"):
        compression.mu = -1.0


def test_bits_of_positions_are_the_toolkits_and_the_first_counts(rng):
    data = torch.randn(2000, generator=rng)
    for kappa in 1, 2, 20, 900:
        compression = ct.ConstraintL0Pruning(kappa)
        kept = np.flatnonzero(compression.compress(data))
        distances = np.diff(kept, prepend=-1)
        coded = [b * sum(d // (2**b - 1) + 1 for d in distances.tolist()) for b in range(2, 33)]
        assert compression.count_param_bits() == 32 * kappa + min(coded)


def test_states_that_the_toolkit_saved():
    """In its own forms: codewords in no order and as a column, packed bits, (1, N), positions in a tuple."""
    codes = np.array([0, 1, 1, 2, 0])
    adaptive = ct.AdaptiveQuantization(3)
    adaptive.load_state_dict(
        {"cluster_centers": np.array([[0.5], [-1.0], [0.0]]), "assignments": codes, "data_shape": (5,)}
    )
    np.testing.assert_array_equal(adaptive.uncompress_state(), [0.5, -1, -1, 0, 0.5])
    two = ct.AdaptiveQuantization(2)
    bits = np.array([1, 0, 1, 1, 0])
    two.load_state_dict(
        {"cluster_centers": np.array([[0.5], [-1.0]]), "assignments": np.packbits(bits), "data_shape": (5,)}
    )
    np.testing.assert_array_equal(two.uncompress_state(), [-1, 0.5, -1, -1, 0.5])
    ternary = ct.ScaledTernaryQuantization()
    ternary.load_state_dict({"assignments": np.array([[1.0, 0.0, -1.0]]), "scale": 0.5})
    np.testing.assert_array_equal(ternary.uncompress_state(), [0.5, 0, -0.5])
    penalty = ct.PenaltyL0Pruning(1.0)
    penalty.load_state_dict({"remaining_indx": (np.array([1, 4]),), "remaining_values": np.array([2.0, 3.0]), "len": 6})
    np.testing.assert_array_equal(penalty.uncompress_state(), [0, 2, 0, 0, 3, 0])
    nothing = {"remaining_indx": np.array([]), "remaining_values": np.array([]), "len": 6}
    penalty.load_state_dict(nothing)
    assert not penalty.uncompress_state().any()
    constraint = ct.ConstraintL0Pruning(2, precision=16)
    unsorted = {"remaining_indx": np.array([4, 1]), "remaining_values": np.array([2.0, 3.0], np.float16), "len": 6}
    constraint.load_state_dict(unsorted | {"quantizer_state": None})
    np.testing.assert_array_equal(constraint.uncompress_state(), [0, 3, 0, 0, 2, 0])
    assert constraint.count_params() == 2


def test_values_of_the_quantizations():
    np.testing.assert_array_equal(ct.BinaryQuantization().compress(DATA), np.where(DATA > 0, 1, -1))
    a = np.abs(DATA).mean()
    np.testing.assert_allclose(ct.ScaledBinaryQuantization().compress(DATA), np.where(DATA > 0, a, -a), rtol=1e-6)
    ternary = ct.ScaledTernaryQuantization().compress(DATA)
    np.testing.assert_allclose(ternary, np.array([0, -1, 0, 1, 0, 1, 0, -1]) * 1.45, rtol=1e-6)
    optimal = ct.OptimalAdaptiveQuantization(3).compress(DATA)
    np.testing.assert_allclose(optimal, [0.05, -1.95, 0.05, 0.95, 0.05, 0.95, 0.05, -1.95], rtol=1e-6)


def test_values_of_the_prunings():
    """Stories: the l1 projection stops one index late, or never; kappa = 0 keeps everything; at mu = 0 no decoding."""
    for data, radius in ([3.0, 1.0, 0.1], 2.0), ([1.0, 1.0, 1.0], 2.0):
        projected = ct.ConstraintL1Pruning(radius).compress(np.array(data))
        assert abs(np.abs(projected).sum() - radius) < 1e-6
    np.testing.assert_allclose(ct.ConstraintL1Pruning(9.0).compress(DATA), DATA, rtol=1e-6)
    nothing = ct.ConstraintL0Pruning(kappa=0)
    assert not nothing.compress(DATA).any()
    assert nothing.count_params() == nothing.count_param_bits() == 0
    everything = ct.ConstraintL0Pruning(kappa=100)
    np.testing.assert_allclose(everything.compress(DATA), DATA, rtol=1e-6)
    four_bits = ct.ConstraintL0Pruning(kappa=4, precision=1)
    kept = four_bits.compress(DATA)
    np.testing.assert_allclose(kept[[1, 3, 5, 7]], [-1.95, 0.95, 0.95, -1.95], rtol=1e-6)
    soft = ct.PenaltyL1Pruning(alpha=0.5)
    soft.mu = 1.0
    np.testing.assert_allclose(soft.prune(DATA), np.sign(DATA) * np.maximum(np.abs(DATA) - 0.5, 0), atol=1e-6)
    for make in ct.PenaltyL0Pruning, ct.PenaltyL1Pruning:
        at_zero = make(alpha=0.1)
        assert not at_zero.compress(DATA).any()
        assert not at_zero.uncompress_state().any()
        assert at_zero.count_param_bits() == 0
    with pytest.raises(ValueError, match="precision"):
        ct.ConstraintL0Pruning(3, precision=12)


@pytest.mark.parametrize("scheme", [None, "scheme_1", "scheme_2"])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_low_rank(scheme, kind, rng):
    """Stories: None from the full rank on; half precision counted twice."""
    data = torch.randn(6, 5, 3, 3, generator=rng)
    given = data.numpy() if kind == "numpy" else data
    rows, cols = (18, 15) if scheme == "scheme_2" else (6, 45)
    for precision, width in ("float", 32), (16, 16):
        compression = ct.LowRank(3, scheme, precision)
        out = torch.as_tensor(compression.compress(given))
        matrix = out.swapaxes(1, 2).reshape(18, 15) if scheme == "scheme_2" else out.reshape(6, 45)
        assert int(torch.linalg.matrix_rank(matrix, rtol=1e-5)) == 3
        assert compression.count_params() == 3 * (rows + cols)
        assert compression.count_param_bits() == 3 * (rows + cols) * width
        assert compression.state_dict["U"].dtype == np.dtype(f"float{width}")
        again = ct.LowRank(3, scheme, precision)
        again.load_state_dict(compression.state_dict)
        np.testing.assert_array_equal(again.uncompress_state(), out)
    whole = ct.LowRank(50, scheme)
    np.testing.assert_array_equal(whole.compress(given), given)
    assert whole.count_params() == 6 * 5 * 9
    whole.target_rank = 2
    whole.compress(given)
    assert whole.count_params() == 2 * (rows + cols)
    with pytest.raises(ValueError, match="conv_scheme"):
        ct.LowRank(3, "scheme_3")


def test_rank_selection(rng):
    """Story: the toolkit may choose a rank whose factors are larger than the matrix: 50 for 50 x 100."""
    data = torch.randn(10, 2, generator=rng) @ torch.randn(2, 20, generator=rng) + 0.1 * torch.randn(
        10, 20, generator=rng
    )
    for mu, low, high in (0.0, 0, 0), (1e-1, 2, 2), (1e6, 10, 10):
        compression = ct.RankSelection("scheme_1", 0.01, "storage", False, None)
        assert compression.selected_rank == 0
        compression.mu, compression.step_number = mu, 7
        out = compression.compress(data)
        assert low <= compression.selected_rank <= high
        assert compression.info[7]["selected_rank"] == compression.selected_rank
        assert compression.count_params() == min(compression.selected_rank * 30, 200)
        again = ct.RankSelection("scheme_1", 0.01, "storage", False, None)
        again.load_state_dict(compression.state_dict)
        torch.testing.assert_close(torch.tensor(again.uncompress_state()), out)
        assert again.selected_rank == compression.selected_rank
        assert again.count_params() == compression.count_params()
    assert torch.equal(out, data)


def test_flops_of_a_strided_convolution(rng):
    """Story: of scheme 2 the first convolution strides along the width alone, so it works on more rows."""
    layer = nn.Conv2d(4, 8, 3, stride=2, padding=1)
    layer.multiplier = 16 * 16
    compression = ct.RankSelection("scheme_2", 1e-6, "flops", True, layer)
    compression.mu = 1.0
    compression.compress(layer.weight)
    cost = compression.inner.cost
    exact = ops.conv_macs(layer.weight.shape, 2, 32, stride=2, padding=1)
    assert tuple(cost) == tuple(exact)


def test_mapper_by_hand(rng):
    """Story: the toolkit's Mapper is abstract and cannot be made; and its members never learn what mu is."""
    data = [torch.randn(4, 5, generator=rng).numpy(), torch.randn(30, generator=rng).numpy()]
    mapper = ct.Mapper([ct.LowRank(2), ct.PenaltyL0Pruning(0.5)])
    mapper.mu = 1.0
    out = mapper.compress(data)
    assert np.linalg.matrix_rank(out[0]) == 2
    np.testing.assert_array_equal(out[1], np.where(np.abs(data[1]) > 1, data[1], 0))
    assert mapper.count_params() == 18 + np.count_nonzero(out[1])
    again = ct.Mapper([ct.LowRank(2), ct.PenaltyL0Pruning(0.5)])
    again.load_state_dict(mapper.state_dict)
    for a, b in zip(again.uncompress_state(), out, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    with pytest.raises(ValueError, match="2 compressions"):
        mapper.compress(data[:1])
    with pytest.raises(TypeError, match="compressions alone"):
        ct.Mapper([3])


def test_the_toolkits_submodules():
    from lc.compression_types.low_rank import RankSelection
    from lc.compression_types.meta import Mapper
    from lc.models.torch.resnetcif import BasicBlock, resnetcif20
    from lc.models.torch.utils import count_params

    assert RankSelection is ct.RankSelection and Mapper is ct.Mapper
    net = resnetcif20()
    assert count_params(net) == 269722 and isinstance(net.layer1[0], BasicBlock)


# ---- its networks ----------------------------------------------------------------------------------------------------


def test_lenet300():
    from lc.models.torch import lenet300_classic_drop, lenet300_modern

    net = lenet300_modern()
    layers = [name for name, m in net.output.named_children() if isinstance(m, nn.Linear)]
    assert layers == ["compressible_0", "compressible_1", "compressible_2"]
    assert set(net.state_dict()) == {f"output.compressible_{i}.{p}" for i in range(3) for p in ("weight", "bias")}
    assert net(torch.randn(2, 28, 28)).shape == (2, 10)
    net.loss(net(torch.randn(2, 784)), torch.tensor([1, 2])).backward()
    assert isinstance(lenet300_classic_drop().output.drop_1, nn.Dropout)


def test_convolutional_networks(capsys):
    """Stories: the VGG constructor ends in a TypeError; its head has a ReLU on the logits and a layer less."""
    from lc.models import torch as models

    torch.manual_seed(0)
    for name in ("lenet5_classic", "nincif_bn", "resnetcif20", "vggcif11_bn"):
        net = getattr(models, name)()
        x = torch.randn(4, 784) if name == "lenet5_classic" else torch.randn(4, 3, 32, 32)
        out = net(x)
        assert out.shape == (4, 10)
        assert float(out.detach().min()) < 0 or name == "nincif_bn"
        loss = net.loss(out, torch.arange(4))
        loss.backward()
        assert all(p.grad is not None for p in net.parameters())
        twin = copy.deepcopy(net)
        with torch.no_grad():
            next(twin.parameters()).add_(1)
        assert bool(twin.loss(out, torch.arange(4)) == loss) == (name == "lenet5_classic")  # decays its own weights
    vgg = models.vggcif16_bn()
    weights = [m for m in vgg.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(weights) == 16 and list(vgg.output.children())[-1] is weights[-1]
    assert capsys.readouterr().out == ""
