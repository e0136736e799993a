"""lc.pack: the packed model computes what the compressed one does, is small on disk, and comes back from there."""

import copy

import pytest
import safetensors.torch
import torch
from torch import nn

import lc
from lc.models import lenet300
from lc_ext.nn import LowRankLinear, LUTLinear, NMLinear, SparseLinear, SumLinear

CASES = {
    "k=2": (lambda: lc.Quantize(2), False, LUTLinear, 26),
    "k=4": (lambda: lc.Quantize(4), False, LUTLinear, 14),
    "k=16": (lambda: lc.Quantize(16), False, LUTLinear, 7.5),
    "k=4 per row": (lambda: lc.Quantize(4, per="row"), False, LUTLinear, 12),
    "k=4 per row, jointly": (lambda: lc.Quantize(4, per="row"), True, LUTLinear, 12),
    "k=2 per 4 weights, jointly": (lambda: lc.Quantize(2, per=4), True, LUTLinear, 1.8),
    "ternary per row": (lambda: lc.Ternary(per="row"), True, LUTLinear, 12),
    "2:4": (lambda: lc.NMPrune(2, 4), False, NMLinear, 1.8),
    "k=4 per row + 1 %": (lambda: lc.Quantize(4, per="row") + lc.Prune(0.01), False, SumLinear, 9),
    "keep 3 %": (lambda: lc.Prune(0.03), True, SparseLinear, 19),
    "rank": (lambda: lc.LowRank(9), False, LowRankLinear, 15),
    "k=2 + 1 %": (lambda: lc.Quantize(2) + lc.Prune(0.01), True, SumLinear, 17),
    "rank + 1 %": (lambda: lc.LowRank(5) + lc.Prune(0.01), False, SumLinear, 14),
}


def compressed(compression, joint, model=None):
    """Direct compression is enough here: one turn of the loop that moves nothing."""
    torch.manual_seed(0)
    model = lenet300() if model is None else model
    algorithm = lc.LCAlgorithm(model, lc.Task("re:.*weight", compression, joint=joint), mu=[1.0], multipliers=False)
    for _ in algorithm.steps():
        algorithm.attach(torch.optim.SGD(model.parameters(), lr=0.0)).remove()
        algorithm.penalty()
    return model, algorithm


@pytest.mark.parametrize("name", list(CASES))
def test_outputs_layers_size_and_round_trip(name, tmp_path, rng):
    compression, joint, layer, smaller = CASES[name]
    model, _ = compressed(compression(), joint)
    packed = lc.pack(model)
    assert [type(packed[i]) for i in (0, 2, 4)] == [layer] * 3
    assert isinstance(model[0], nn.Linear)
    for batch in (1, 5, 64):
        x = torch.randn(batch, 784, generator=rng)
        exact = copy.deepcopy(model).double()(x.double()).detach()
        bound = 2.0**-23 * 784 * float(x.abs().max()) * float(model[0].weight.detach().abs().max()) * 8
        assert float((packed(x).detach() - exact).abs().max()) <= bound
    dense_file, file = tmp_path / "dense.safetensors", tmp_path / "packed.safetensors"
    lc.save(model, dense_file)
    lc.save(packed, file)
    assert dense_file.stat().st_size / file.stat().st_size > smaller
    again = lc.load(file, lenet300())
    assert torch.equal(again(x), packed(x))
    # The plain route: any safetensors reader, into a model packed the same way.
    plain = tmp_path / "plain.safetensors"
    safetensors.torch.save_file(packed.state_dict(), plain)
    other = lc.pack(model)
    other.load_state_dict(safetensors.torch.load_file(plain))
    assert torch.equal(other(x), packed(x))


@pytest.mark.parametrize("per", ["row", 2])
def test_codebooks_per_row_of_convolutions_and_embeddings(per, rng):
    model = nn.ModuleList([nn.Embedding(9, 6), nn.Conv2d(4, 8, 3), nn.Conv1d(4, 3, 3)])
    compressed(lc.Quantize(4, per=per), False, model)
    packed = lc.pack(model)
    assert [type(layer).__name__ for layer in packed] == ["LUTEmbedding", "LUTConv2d", "LUTConv1d"]
    index, image = torch.tensor([[1, 8, 0], [2, 1, 1]]), torch.randn(2, 4, 7, 7, generator=rng)
    assert torch.equal(packed[0](index), model[0](index))
    assert torch.allclose(packed[1](image), model[1](image), atol=1e-5)
    assert torch.allclose(packed[2](image[:, :, 0]), model[2](image[:, :, 0]), atol=1e-5)


def test_modes_are_chosen_as_measured_and_slow_layers_are_named(monkeypatch, caplog, rng):
    model, _ = compressed(lc.Quantize(4), False)
    speed = {("exact", 784): 3.0, ("fast", 784): 1.0, ("exact", 300): 2.5, ("fast", 300): 4.0}  # dense: 2

    def times(layer, dense, x, repeats, seconds):
        return speed.get((layer.mode, layer.in_features), 1.0) * len(x), 2.0 * len(x)

    monkeypatch.setattr(lc.profiling, "_times", times)
    x = torch.randn(3, 784, generator=rng)
    packed = lc.pack(model, x, modes=["exact", "fast"], batches=[1, 8])
    assert [packed[i].mode for i in (0, 2, 4)] == ["fast", "exact", "exact"]
    (warning,) = caplog.messages
    assert (
        warning
        == "2, LUTLinear, is slower than dense: 2.500 ms against 2.000 at batch 1, 20.000 ms against 16.000 at batch 8"
    )
    assert lc.pack(model, modes=["int8"])[0].mode == "int8"
    with pytest.raises(ValueError, match=r"modes.*'quick'"):
        lc.pack(model, modes=["quick"])


def test_packing_times_a_model(caplog, rng):
    model, _ = compressed(lc.Quantize(2) + lc.Prune(0.01), True)
    x = torch.randn(2, 784, generator=rng)
    packed = lc.pack(model, x, modes=["exact", "fast", "int8"], batches=[1])
    exact = model(x)
    assert float((packed(x) - exact).detach().norm() / exact.detach().norm()) < 2e-2


def test_a_last_group_that_is_shorter_stays_dense():
    model = nn.Sequential(nn.Linear(10, 4))
    compressed(lc.Quantize(2, per=4), False, model)
    assert type(lc.pack(model)[0]) is nn.Linear


def test_mixed_tasks_and_layers_left_dense(rng):
    torch.manual_seed(0)
    model = lenet300()
    algorithm = lc.LCAlgorithm(model, [lc.Task("0", lc.Quantize(2)), lc.Task("2", lc.LowRank(4))], mu=[1.0])
    for _ in algorithm.steps():
        algorithm.penalty()
    packed = lc.pack(model)
    assert [type(packed[i]) for i in (0, 2, 4)] == [LUTLinear, LowRankLinear, nn.Linear]
    x = torch.randn(3, 784, generator=rng)
    torch.testing.assert_close(packed(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_model_that_is_one_linear_layer(rng):
    model, _ = compressed(lc.Quantize(2), False, nn.Linear(6, 5, bias=False))
    x = torch.randn(2, 6, generator=rng)
    torch.testing.assert_close(lc.pack(model)(x), model(x))


def test_refuses_what_is_not_compressed_or_was_trained_since():
    with pytest.raises(ValueError, match="has not been compressed"):
        lc.pack(lenet300())
    model, _ = compressed(lc.Quantize(2), False)
    with torch.no_grad():
        model[2].weight[0, 0] += 1
    with pytest.raises(ValueError, match=r"2\.weight.*compressed weights"):
        lc.pack(model)


def test_two_algorithms_one_after_the_other(rng):
    """Only the layers of the latest were packed."""
    model, _ = compressed(lc.Quantize(2), False)
    algorithm = lc.LCAlgorithm(model, lc.Task("2", lc.LowRank(3)), mu=[1.0])
    for _ in algorithm.steps():
        algorithm.penalty()
    packed = lc.pack(model)
    assert [type(packed[i]) for i in (0, 2, 4)] == [LUTLinear, LowRankLinear, LUTLinear]


def test_layers_that_share_a_weight_are_all_packed(rng, tmp_path):
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6, bias=False))
    model[2].weight = model[0].weight
    model, _ = compressed(lc.Quantize(2), False, model)
    packed = lc.pack(model)
    assert isinstance(packed[0], LUTLinear) and isinstance(packed[2], LUTLinear)
    x = torch.randn(3, 6, generator=rng)
    torch.testing.assert_close(packed(x), model(x))


@pytest.mark.parametrize("compression", [lc.Quantize(2), lc.LowRank(3), lc.Prune(0.1), lc.LowRank(3) + lc.Prune(0.1)])
def test_a_bfloat16_model_packs_and_runs(compression, rng):
    model, _ = compressed(compression, False, lenet300().bfloat16())
    x = torch.randn(4, 784, generator=rng).bfloat16()
    got, want = lc.pack(model)(x), model(x)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, want, rtol=0.1, atol=0.1)


def test_wrapped_models(rng):
    model = nn.DataParallel(lenet300())
    compressed(lc.Quantize(2), False, model)
    assert isinstance(lc.pack(model)[0], LUTLinear)
    assert isinstance(lc.pack(model.module)[0], LUTLinear)


def test_parametrized_weights_are_refused():
    """What was compressed there was the gain and the direction, not the weight."""
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    with pytest.raises(ValueError, match="parametrization"):
        compressed(lc.Quantize(2), False, model)


def test_files_have_the_users_permissions(tmp_path):
    lc.save(lenet300(), tmp_path / "a")
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
