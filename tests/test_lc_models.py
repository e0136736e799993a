"""The reference networks: shapes, sizes as in the literature, initial weights; and the count of multiply-adds."""

import copy
import doctest

import pytest
import torch
from torch import nn

from lc import models
from lc.models import _macs
from lc_ext.nn import LowRankLinear


def count(make, **options):
    with torch.device("meta"):
        return sum(p.numel() for p in make(**options).parameters())


IMAGES = {
    "resnet8": models.resnet8,
    "resnet8, narrow": lambda **o: models.resnet8(width=8, stem_stride=2, **o),
    "resnet20, projection": lambda **o: models.resnet20(shortcut="B", **o),
    "vgg11": models.vgg11,
    "vgg11, batch norm": lambda **o: models.vgg11(batch_norm=True, fc_layers=1, **o),
    "nin": models.nin,
    "nin, as published": lambda **o: models.nin(batch_norm=False, **o),
    "lenet5": models.lenet5,
}


@pytest.mark.parametrize("size, in_channels, classes", [(32, 3, 10), (28, 1, 7)])
@pytest.mark.parametrize("name", IMAGES)
def test_image_networks(name, size, in_channels, classes, rng):
    """Logits of either sign (the older toolkit's VGG and NIN end in a ReLU), gradients, a state to reload."""
    options = {"in_channels": in_channels, "classes": classes}
    if name == "lenet5":
        options["size"] = size
    torch.manual_seed(0)
    model = IMAGES[name](**options)
    x = torch.randn(2, in_channels, size, size, generator=rng)
    logits = model(x)
    assert logits.shape == (2, classes)
    assert logits.isfinite().all() and logits.min() < 0 < logits.max()
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.device("meta"):
        again = IMAGES[name](**options)
    again.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), model.eval()(x))


@pytest.mark.parametrize(
    "model, millions",
    [
        (models.resnet20, "0.27"),  # He et al. (2015), table 6
        (models.resnet32, "0.46"),
        (models.resnet44, "0.66"),
        (models.resnet56, "0.85"),
        (models.resnet110, "1.73"),  # "1.7" there
        (models.vgg16, "14.98"),
        (models.nin, "0.97"),
    ],
)
def test_parameters_as_in_the_literature(model, millions):
    assert f"{count(model) / 1e6:.2f}" == millions


def test_parameters_exactly():
    assert count(models.lenet300) == 266_200 + 410
    assert count(models.lenet5) == 431_080
    assert count(models.resnet20) == 269_722
    assert count(models.nin, batch_norm=False) == 966_986
    # Convolutions of VGG16 without biases, the affine part of the normalization, the layers of the head.
    head = 512 * 10 + 10
    assert count(models.vgg16, batch_norm=True, fc_layers=1) == 14_710_464 + 2 * 4224 + head
    assert count(models.vgg16, fc_layers=3) == 14_710_464 + 4224 + 2 * (512 * 512 + 512) + head
    # Option B: two projections, 16 to 32 and 32 to 64 channels, with normalization.
    assert count(models.resnet20, shortcut="B") == 269_722 + 16 * 32 + 32 * 64 + 2 * (32 + 64)


@pytest.mark.parametrize("depth", [8, 14, 20, 110])
def test_depth_of_resnet_is_the_number_of_layers(depth):
    layers = [m for m in models.resnet(depth, width=2).modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == depth


@pytest.mark.parametrize("depth", [11, 13, 16, 19])
def test_depth_of_vgg_is_the_number_of_layers(depth):
    make = {11: models.vgg11, 13: models.vgg13, 16: models.vgg16, 19: models.vgg19}[depth]
    with torch.device("meta"):
        layers = [m for m in make(fc_layers=3).modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == depth


def test_shortcut_a_keeps_every_other_pixel_and_adds_zero_channels():
    block = models.resnet8(width=4).stages[1][0]
    x = torch.randn(2, 4, 7, 7)
    out = block.shortcut(x)
    assert out.shape == (2, 8, 4, 4)
    assert torch.equal(out[:, 2:6], x[:, :, ::2, ::2])
    assert not out[:, :2].any() and not out[:, 6:].any()


def test_initial_weights():
    torch.manual_seed(0)
    conv = models.resnet20().stages[2][1].conv1.weight  # 64 x 64 x 3 x 3: a relative error of the std of 1/sqrt(2n)
    expected = (2 / (64 * 9)) ** 0.5
    assert abs(conv.std() / expected - 1) < 4 / (2 * conv.numel()) ** 0.5
    linear = models.lenet5()[7]
    bound = (6 / 1300) ** 0.5
    assert 0.99 * bound < linear.weight.abs().max() <= bound
    assert not linear.bias.any()
    for model in (models.nin(), models.vgg11(), models.vgg11(batch_norm=True), models.resnet8()):
        assert not any(p.any() for name, p in model.named_parameters() if name.endswith("bias"))


def test_lenet300_is_what_it_was():
    """Its weights for a seed, its layers and signature are what saved models and the demo rely on."""
    torch.manual_seed(0)
    model = models.lenet300(20, 3, nn.ReLU)
    torch.manual_seed(0)
    first = nn.Linear(20, 300)
    nn.init.xavier_uniform_(first.weight)
    assert torch.equal(model[0].weight, first.weight)
    assert [type(m) for m in model] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert model(torch.zeros(2, 20)).shape == (2, 3)


@pytest.mark.parametrize(
    "make, word",
    [
        (lambda: models.resnet(21), "depth"),
        (lambda: models.resnet(2), "depth"),
        (lambda: models.resnet(20, shortcut="C"), "shortcut"),
        (lambda: models.vgg(15), "depth"),
        (lambda: models.vgg(16, fc_layers=4), "fc_layers"),
        (lambda: models.lenet5(size=15), "size"),
    ],
)
def test_bad_arguments(make, word):
    with pytest.raises(ValueError, match=word):
        make()


@pytest.mark.parametrize(
    "model, size, channels, macs",
    [
        (models.resnet20, 32, 3, 40_551_040),  # 40.6 M
        (models.resnet56, 32, 3, 125_485_696),  # 125 M
        (models.lenet5, 28, 1, 20 * 24 * 24 * 25 + 50 * 8 * 8 * 500 + 800 * 500 + 5000),
        (models.vgg16, 32, 3, 313_463_808),
    ],
)
def test_macs_as_in_the_literature(model, size, channels, macs):
    with torch.device("meta"):
        assert models.count_macs(model(), torch.zeros(1, channels, size, size)) == macs


def test_macs_by_layer_and_of_all_kinds_of_convolution():
    shared = nn.Linear(6, 6)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), shared, shared)
    assert models.layer_macs(model, torch.zeros(7, 5)) == {"0": 7 * 30, "2": 2 * 7 * 36}
    grouped = nn.Conv2d(4, 8, (3, 5), groups=2)
    assert models.count_macs(grouped, torch.zeros(2, 4, 10, 10)) == 2 * 8 * 8 * 6 * 2 * 15
    assert models.count_macs(nn.Conv1d(3, 5, 4, stride=2), torch.zeros(1, 3, 10)) == 4 * 5 * 3 * 4
    # A transposed convolution is the transpose of a convolution, with the same products.
    transposed = nn.ConvTranspose2d(8, 4, 3, stride=2, groups=2, padding=1)
    forward = nn.Conv2d(4, 8, 3, stride=2, groups=2, padding=1)
    padded = models.count_macs(forward, torch.zeros(1, 4, 9, 9))
    assert models.count_macs(transposed, torch.zeros(1, 8, 5, 5)) == padded


def test_macs_leave_the_model_as_it_was():
    model = models.resnet8(width=4).train()
    model.stages[0].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    models.count_macs(model, torch.randn(2, 3, 8, 8))
    with pytest.raises(RuntimeError):
        models.count_macs(model, torch.randn(2, 5, 8, 8))
    assert modes == [m.training for m in model.modules()]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


def test_macs_refuse_what_they_cannot_count():
    model = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4))
    with pytest.raises(ValueError, match=r"1 \(LSTM\)"):
        models.count_macs(model, torch.zeros(1, 4))
    packed = nn.Sequential(LowRankLinear(4, 3, 2))
    with pytest.raises(ValueError, match=r"0 \(LowRankLinear\)"):
        models.count_macs(packed, torch.zeros(1, 4))


def test_examples_in_docstrings():
    assert doctest.testmod(_macs) == (0, 1 + 1)
