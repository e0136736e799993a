"""Several processes: every one ends with the weights that a single process would have."""

from __future__ import annotations

import copy
import logging
import os
import random
import re
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from lc_problem import problem, step
from lc_processes import ProcessDied, Processes
from torch import nn

import lc
from lc.distributed import shard_statistics, sharded_c_step
from lc.distributed.shard_statistics import Shards
from lc.distributed.sharded import rows_of
from lc.distributed.shared_c_step import bin_pack
from lc.distributed.wire import decode, encode, fingerprint
from lc.distributed.world import World
from lc_ext import ops

MU = lc.exponential(1e-2, 3.0, 3)


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pools")
    made = {size: Processes(size, folder) for size in (2, 3)}
    yield made
    for pool in made.values():
        pool.close()


@pytest.fixture(params=[2, 3])
def pool(pools, request):
    return pools[request.param]


def world():
    return World(dist.group.WORLD)


def everyone_has(value):
    """``value``, checked to be the same in all processes."""
    theirs = world().gather(value)
    assert all(v == theirs[0] for v in theirs), theirs
    return value


def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 5), nn.Linear(5, 4))


def tasks():
    return [
        lc.Task(["0", "5"], lc.Prune(0.3), joint=True),
        lc.Task("2", lc.Quantize(3) + lc.Prune(4)),
        lc.Task("4", lc.LowRank(2)),
        lc.Task("0.bias", lc.Quantize(2)),
    ]


def records(history):
    """All but the times, and the loss, which processes may have their own of."""
    return [{**vars(s), "seconds_l": 0, "seconds_c": 0, "seconds_eval": 0} for s in history.steps]


def elementwise(model, group=None, checkpoint=None, stop_after=None, state=True, made=None, mu=MU, **options):
    """A run whose L steps need no forward pass: replicas and shards go through the very same arithmetic."""
    algorithm = lc.LCAlgorithm(
        model,
        made or tasks(),
        mu=mu,
        group=group,
        evaluate=lambda m: {"found": World(group).rank + [3.0, 2.0, 1.0, 5.0][len(algorithm.history.steps)]},
        best=("found", "min"),
        metric={"0.bias": torch.arange(1.0, 8.0)},
        **options,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    algorithm.attach(optimizer)
    generator = torch.Generator().manual_seed(5)
    kept = {"optimizer": optimizer, "generator": generator} if state else {}
    for n in algorithm.steps(checkpoint=checkpoint, state=kept):
        for _ in range(2):
            factor = float(torch.rand((), generator=generator)) + float(torch.rand(())) + random.random()
            for p in model.parameters():
                p.grad = p.detach() * factor
            optimizer.step()
        if n == stop_after:
            return None
    return algorithm


def seeded(model, *args, **options):
    torch.manual_seed(0), random.seed(0)
    return elementwise(model, *args, **options)


def assert_same(a, b):
    """Two algorithms with plain tensors ended alike, bit for bit."""
    mine, theirs = unwrap(a.model).state_dict(), unwrap(b.model).state_dict()
    for name, t in mine.items():
        assert torch.equal(t, theirs[name]), name
    for s, t in zip(a.tasks, b.tasks, strict=True):
        for m, n in zip([*s.multipliers, *s.delta], [*t.multipliers, *t.delta], strict=True):
            assert torch.equal(m, n), s.name
    learned = [encode([t.compression.state_dict() for t in x.tasks])[1] for x in (a, b)]
    assert torch.equal(*learned)
    assert a.size() == b.size()


def unwrap(model):
    return getattr(model, "module", model)


def sharded(model):
    """``model`` cut into shards, in three units."""
    from torch.distributed.fsdp import fully_shard

    for layer in model[:3]:
        if list(layer.parameters()):
            fully_shard(layer)
    return fully_shard(model)


# ---- the parts -------------------------------------------------------------------------------------------------------


def test_bin_packing_gives_the_next_dearest_to_whom_has_least():
    assert bin_pack([5, 4, 3, 3, 3], 2) == [0, 1, 1, 0, 1]
    assert bin_pack([2, 2, 2], 3) == [0, 1, 2]
    assert bin_pack([], 3) == []


def test_what_was_learned_survives_the_wire_bit_for_bit():
    sparse = torch.zeros(40, 5)
    sparse[3, 1], sparse[7, 2] = -0.0, 1.5
    tree = {
        "codes_": [torch.arange(6, dtype=torch.uint8).view(2, 3)],
        "u_": torch.randn(4, 3).T,
        "half": torch.randn(5).bfloat16(),
        "empty": torch.empty(0, 3),
        "values_": (sparse, torch.tensor(2.5)),
        "n_": 3,
        "flag": torch.tensor([True, False]),
    }
    described, buffer = encode(tree)
    assert buffer.numel() == 6 + 48 + 10 + 2 * 8 + 4 + 2
    again = decode(described, buffer, torch.device("cpu"))
    assert again["n_"] == 3 and torch.signbit(again["values_"][0][3, 1])
    for a, b in zip(torch.utils._pytree.tree_leaves(tree), torch.utils._pytree.tree_leaves(again), strict=True):
        assert a is b or a == b if not isinstance(a, torch.Tensor) else torch.equal(a, b) and a.dtype == b.dtype


def test_fingerprints_differ_with_any_bit_and_any_order():
    x = torch.randn(3000)
    swapped = x.clone()
    swapped[[5, 2000]] = x[[2000, 5]]
    nudged = x.clone()
    nudged[2], nudged[3] = torch.nextafter(x[2:4], torch.tensor([9.0, -9.0]))
    prints = [fingerprint([t]) for t in (x, swapped, nudged, -x, x[:-1], x.double())]
    assert len(set(prints)) == len(prints) and prints[0] == fingerprint([x.clone()])
    assert fingerprint([x, swapped]) != fingerprint([swapped, x])


def test_a_process_alone_exchanges_nothing():
    alone = World()
    assert alone.alone and alone.first and alone.gather(3) == [3] and alone.same(4) == 4
    with pytest.raises(KeyError):
        alone.together(lambda: {}["missing"])


# ---- replicas --------------------------------------------------------------------------------------------------------


def replicas_equal_one_process():
    alone, together = seeded(net()), seeded(net(), dist.group.WORLD)
    assert_same(alone, together)
    assert records(alone.history) == records(together.history)
    everyone_has(fingerprint(list(together.model.state_dict().values())))
    everyone_has([vars(s) for s in together.history.steps])  # the times too


def test_replicas_equal_one_process_bit_for_bit(pool):
    pool.run(replicas_equal_one_process)


def fits_of_one_c_step():
    made = []

    class Counted(lc.Quantize):
        def fit(self, v, weights=None):
            made.append(v[0].numel())
            return super().fit(v, weights)

    algorithm = lc.LCAlgorithm(net(), lc.Task("re:.*weight", Counted(2)), mu=[1.0], group=dist.group.WORLD)
    next(algorithm.steps())
    return made


def test_each_c_step_is_made_by_one_process(pools):
    assert pools[2].run(fits_of_one_c_step) == [[84, 20], [63, 45]]
    assert pools[3].run(fits_of_one_c_step) == [[84], [63], [45, 20]]


def trained(model, group=None, own_data=False, **options):
    """A run with real training; all processes see the same data, or each its own."""
    _, x, y = problem()
    if own_data:
        rank, size = world().rank, world().size
        x, y = x[rank::size][:80], y[rank::size][:80]
    algorithm = lc.LCAlgorithm(
        model,
        lc.Task("re:.*weight", lc.Quantize(2)),
        mu=MU,
        group=group,
        evaluate=lambda m: {"error": float((m(x).argmax(1) != y).float().mean())},
        **options,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    algorithm.attach(optimizer)
    algorithm.run(lambda model, n: [step(model, optimizer, x, y) for _ in range(4)][-1])
    return algorithm


def ddp_equals_one_process():
    """The mean of two equal gradients is exact."""
    alone = trained(problem()[0])
    wrapped = nn.parallel.DistributedDataParallel(problem()[0])
    made = [lc.Task(wrapped, lc.Quantize(2)), *lc.first_match(wrapped, [("0.bias", lc.Quantize(2))])]
    assert [t.name for t in lc.LCAlgorithm(wrapped, made, mu=MU).tasks] == ["0.weight", "2.weight", "0.bias"]
    together = trained(wrapped)
    assert_same(alone, together)
    assert records(alone.history) == records(together.history)
    assert set(lc.pack(together.model).state_dict()) == set(lc.pack(alone.model).state_dict())


def test_ddp_with_equal_data_equals_one_process_bit_for_bit(pools):
    pools[2].run(ddp_equals_one_process)


def ddp_with_own_data():
    def normed():
        return nn.Sequential(problem()[0][0], nn.BatchNorm1d(24), *problem()[0][1:])

    batches = [torch.randn(64, 12, generator=torch.Generator().manual_seed(world().rank)) for _ in range(2)]
    model = nn.parallel.DistributedDataParallel(normed())
    algorithm = trained(model, own_data=True, bn_batches=batches, distill=True, stop_gap=0.05, best=("error", "min"))
    everyone_has(fingerprint(list(model.state_dict().values())))
    everyone_has([vars(s) for s in algorithm.history.steps])
    for task in algorithm.tasks:
        assert torch.equal(task.compression.decompress()[0], task.parameters[0])


def test_ddp_with_data_of_its_own_ends_with_the_same_weights_everywhere(pool):
    pool.run(ddp_with_own_data)


class Odd(Exception):
    """An error that cannot be pickled."""

    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


class Failing(lc.Quantize):
    def __init__(self, error):
        super().__init__(2)
        self.error = error

    def fit(self, v, weights=None):
        raise self.error


def error_of(work):
    try:
        work()
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def errors_are_raised_everywhere(make):
    model = make(net())
    seen = []
    for task in (
        lc.Task("2", Failing(ValueError("bad rank"))),
        lc.Task("2", Failing(Odd(1, 2))),
        lc.Task("2", lc.LowRank(7)),
        lc.Task(["2", "0"], lc.Prune(1000), joint=True),
    ):
        algorithm = lc.LCAlgorithm(model, [lc.Task("4", lc.Quantize(2)), task], mu=[1.0], group=dist.group.WORLD)
        seen.append(error_of(lambda algorithm=algorithm: next(algorithm.steps())))
    mine = world().rank == world().size - 1
    with torch.no_grad():
        if mine:
            lc.distributed.sharded.local(model[4].weight)[-1:] = torch.nan
    algorithm = lc.LCAlgorithm(model, lc.Task(["2", "4"], lc.Quantize(2)), mu=[1.0], group=dist.group.WORLD)
    seen.append(error_of(lambda: next(algorithm.steps())))

    def evaluate(model):
        if mine:
            raise RuntimeError("no data here")
        return {}

    algorithm = lc.LCAlgorithm(model, lc.Task("0", lc.Quantize(2)), mu=[1.0], group=dist.group.WORLD, evaluate=evaluate)
    seen.append(error_of(lambda: next(algorithm.steps())))
    return seen


def plain(model):
    return model


@pytest.mark.parametrize("make", ["plain", "sharded"])
def test_an_error_in_one_process_is_raised_in_all(pools, make):
    for seen in zip(*pools[3].run(errors_everywhere, make), strict=True):
        assert None not in seen and len({text.split("Odd: ")[-1] for _, text in seen}) == 1, seen
        assert len({kind for kind, _ in seen} - {"Odd"}) <= 1 and "Traceback" not in seen[0][1]
    names = [kind for kind, _ in pools[2].run(errors_everywhere, make)[0]]
    assert [n.replace("Odd", "RuntimeError") for n in names] == [
        "ValueError", "RuntimeError", "ValueError", "ValueError", "ValueError", "RuntimeError",
    ]  # fmt: skip


def errors_everywhere(make):
    return errors_are_raised_everywhere({"plain": plain, "sharded": sharded}[make])


def differing_replicas():
    model = net()
    torch.manual_seed(world().rank)
    with torch.no_grad():
        model[2].weight.add_(torch.rand(9, 7))
    algorithm = lc.LCAlgorithm(model, tasks(), mu=[1.0], group=dist.group.WORLD)
    return error_of(lambda: next(algorithm.steps()))


def test_replicas_that_differ_are_refused(pool):
    for kind, text in pool.run(differing_replicas):
        assert kind == "ValueError" and "different weights of 2.weight" in text


def another_delta():
    class Loose(lc.Quantize):
        """decompress gives other bits in other processes, as products on other processors do."""

        def decompress(self):
            return [d * (1 + 1e-7 * world().rank) for d in super().decompress()]

    algorithm = lc.LCAlgorithm(net(), lc.Task("re:.*weight", Loose(3)), mu=[1.0], group=dist.group.WORLD)
    for _ in algorithm.steps():
        algorithm.penalty()
    everyone_has(fingerprint(list(algorithm.model.state_dict().values())))


def test_delta_is_sent_itself_where_processors_differ(pool):
    pool.run(another_delta)


def records_logged():
    seen = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    logger = logging.getLogger("lc")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        seeded(net(), dist.group.WORLD)
    finally:
        logger.removeHandler(handler)
    return len(seen)


def test_the_first_process_logs(pool):
    counts = pool.run(records_logged)
    assert counts[0] >= len(MU) + 1 and not any(counts[1:])


# ---- shards ----------------------------------------------------------------------------------------------------------


def shards_equal_one_process():
    alone, together = seeded(net()), seeded(sharded(net()))
    assert together.world.size == world().size
    collected = together.collect(net() if world().first else None)
    for a, b in zip(alone.history.steps, together.history.steps, strict=True):
        assert (a.bits, a.ratio, a.learned, a.metrics) == (b.bits, b.ratio, b.learned, b.metrics)
        assert a.gap == pytest.approx(b.gap, rel=1e-12)
    assert alone.size() == together.size()
    everyone_has([vars(s) for s in together.history.steps])
    for p, q in zip(alone.model.parameters(), together.model.parameters(), strict=True):
        assert torch.equal(p, q.full_tensor())
    if world().first:
        learned = [
            encode([t.compression.state_dict() for t in x])[1] for x in (alone.tasks, lc.tasks.tasks_of(collected))
        ]
        assert torch.equal(*learned)
        packed = lc.pack(alone.model), lc.pack(collected)
        x = torch.randn(3, 12)
        assert torch.equal(packed[0](x), packed[1](x))
    assert "collect" in error_of(lambda: lc.pack(together.model))[1]
    assert error_of(lambda: together.collect(nn.Linear(2, 2)))[0] == "ValueError"


def test_shards_equal_one_process_bit_for_bit(pool):
    pool.run(shards_equal_one_process)


def trained_in_some_form(model, form):
    _, x, y = problem()
    algorithm = lc.LCAlgorithm(
        model,
        [lc.Task("0", lc.Quantize(2)), lc.Task("2", lc.Prune(0.2))],
        mu=lc.exponential(1e-2, 3.0, 4),
        penalty="prox" if form == "loss" else form,
        evaluate=lambda m: {"error": float((m(x).argmax(1) != y).float().mean())},
    )

    def l_step(model, n):
        optimizer = (torch.optim.Adam if n % 2 else torch.optim.SGD)(model.parameters(), lr=0.01 if n % 2 else 0.1)
        if form != "loss":
            algorithm.attach(optimizer)
        return [step(model, optimizer, x, y, algorithm.penalty if form == "loss" else lambda: 0.0) for _ in range(12)][
            -1
        ]

    history = algorithm.run(l_step)
    assert float((model(x).argmax(1) != y).float().mean()) == history.steps[-1].metrics["error"]
    return history.steps


def shards_train(form):
    alone, model = problem()[0], sharded(problem()[0])
    steps = trained_in_some_form(alone, form), trained_in_some_form(model, form)
    assert [s.metrics for s in steps[0]] == [s.metrics for s in steps[1]]
    assert steps[1][-1].gap == pytest.approx(steps[0][-1].gap, rel=1e-5) and steps[1][-1].gap < steps[1][0].gap
    for p, q in zip(alone.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(q.full_tensor(), p, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("form", ["prox", "gradient", "loss"])
def test_a_sharded_net_is_trained_and_ends_compressed(pools, form):
    pools[2].run(shards_train, form)


def cut(whole):
    """The shards of this process of whole tensors."""
    w = world()
    return Shards([t[slice(*rows_of(t.shape, w.rank, w.size))] for t in whole], [tuple(t.shape) for t in whole], w)


def join(shards):
    return [torch.cat(parts) for parts in zip(*world().gather(list(shards)), strict=True)]


def report(compression):
    return lc.tasks.BoundTask([], [], compression).report()


def top_kappa(seed):
    rng = torch.Generator().manual_seed(seed)
    shapes = [(5, 3), (1, 4), (8,), (2, 2, 3), (7, 1)]
    levels = [2, 5, 1000][seed % 3]  # many ties, some, hardly any
    whole = [torch.randint(-levels, levels + 1, shape, generator=rng) * 0.37 for shape in shapes]
    whole[2][1] = -1e-44
    whole[0][1, 1] = 3e38
    total = sum(t.numel() for t in whole)
    for keep in [*range(0, total + 1, 4), total] if seed < 3 else [0.0, 0.21, 1.0]:
        pruned, alone = lc.Prune(keep), lc.Prune(keep)
        shards = cut(whole)
        values = join(shard_statistics._fit_prune(pruned, shards, None))
        for mine, right in zip(values, ops.topk_prune(whole, keep).values, strict=True):
            assert torch.equal(mine, right), (seed, keep)
        alone.fit(whole)
        assert shard_statistics._report_prune(pruned, shards) == report(alone), (seed, keep)


def test_the_largest_over_all_shards_are_those_of_topk_prune(pool):
    for seed in range(4):
        pool.run(top_kappa, seed)


def shared_codebook(k, weighted, warm):
    rng = torch.Generator().manual_seed(k)
    whole = [torch.randn(70, 50, generator=rng), torch.randn(33, generator=rng) * 3, torch.randn(1, 9, generator=rng)]
    metric = [torch.rand(t.shape, generator=rng) + 0.01 for t in whole] if weighted else None
    mine, alone = lc.Quantize(k), lc.Quantize(k)
    if warm:
        mine.codebook_ = torch.linspace(-2, 2, k)
    deltas = join(shard_statistics._fit_quantize(mine, cut(whole), cut(metric).local if weighted else None))
    best = alone.fit(whole, metric)
    h = metric or [torch.ones_like(t) for t in whole]
    errors = [
        sum(float((g * (t - d).square()).sum()) for g, t, d in zip(h, whole, ds, strict=True)) for ds in (deltas, best)
    ]
    assert errors[0] <= (1.1 if warm else 1.01) * errors[1], errors
    assert shard_statistics._report_quantize(mine, cut(whole)) == report(alone)
    return everyone_has(mine.codebook_.tolist())


@pytest.mark.parametrize("k, weighted, warm", [(2, False, False), (5, True, False), (16, False, True)])
def test_a_codebook_over_all_shards_is_the_same_for_any_number_of_them(pools, k, weighted, warm):
    two, three = (pools[size].run(shared_codebook, k, weighted, warm) for size in (2, 3))
    assert two[0] == three[0]


def codebook_of_extremes():
    for scale in (0.0, 1e-44, 1e38):
        whole = [torch.linspace(-1, 1, 10).view(5, 2) * scale]
        deltas = join(shard_statistics._fit_quantize(lc.Quantize(3), cut(whole), None))
        assert (deltas[0] - whole[0]).abs().max() <= 0.45 * scale
    everyone_has(fingerprint(deltas))


def test_codebooks_of_zero_tiny_and_huge_weights(pool):
    pool.run(codebook_of_extremes)


def large_tasks_exchange_sums():
    before, shard_statistics.QUANTIZE_ABOVE = shard_statistics.QUANTIZE_ABOVE, 0
    try:
        made = [lc.Task("0", lc.Quantize(2)), lc.Task(["2", "0.bias"], lc.Quantize(3), joint=True)]
        together = seeded(sharded(net()), made=made)
        alone = seeded(net(), made=made)
        collected = together.collect(net())
    finally:
        shard_statistics.QUANTIZE_ABOVE = before
    for a, b in zip(alone.history.steps, together.history.steps, strict=True):
        # one process may leave its warm start for the cold one where that is better
        assert a.bits == b.bits and a.gap == pytest.approx(b.gap, rel=0.1)
    if world().first:
        assert lc.pack(collected)[0].dense_weight().unique().numel() == 2
    return everyone_has([p.full_tensor().tolist() for p in together.model.parameters()])


def test_tasks_of_many_weights_exchange_sums(pools):
    assert pools[2].run(large_tasks_exchange_sums)[0] == pools[3].run(large_tasks_exchange_sums)[0]


def what_shards_do_not_do():
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh

    seen = []
    mesh = init_device_mesh("cpu", (world().size,))
    for placement in (Shard(1), Replicate()):
        model = net()
        model[0].weight = nn.Parameter(distribute_tensor(model[0].weight.detach(), mesh, [placement]))
        seen.append(error_of(lambda model=model: lc.LCAlgorithm(model, lc.Task("0", lc.Quantize(2)), mu=[1.0])))
    assert isinstance(model[0].weight, DTensor)
    mixed = net()
    sharded_part = sharded(mixed[:1])
    assert sharded_part is not None
    seen.append(error_of(lambda: lc.LCAlgorithm(mixed, lc.Task(["0", "2"], lc.Quantize(2), joint=True), mu=[1.0])))
    seen.append(error_of(lambda: lc.LCAlgorithm(sharded(net()), tasks(), mu=[1.0], distill=True)))
    seen.append(error_of(lambda: lc.auto_mu(sharded(net()), tasks(), lambda m: m[0].bias.sum())))
    return seen


def test_what_cannot_be_done_is_said(pools):
    seen = pools[2].run(what_shards_do_not_do)[0]
    assert [kind for kind, _ in seen] == ["ValueError"] * 5
    words = ["dimension 0", "dimension 0", "only some are sharded", "teacher", "give mu"]
    for (_, text), word in zip(seen, words, strict=True):
        assert word in text


def test_gather_and_deal_are_inverse(pool):
    pool.run(gathered_and_dealt)


def gathered_and_dealt():
    for shape in [(5, 3), (1, 2), (6,), (2, 0)]:
        whole = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        first, last = rows_of(shape, world().rank, world().size)
        for owner in range(world().size):
            there = sharded_c_step.gather_shards(whole[first:last], shape, owner, world())
            assert (there is not None) == (owner == world().rank)
            assert there is None or torch.equal(there, whole)
            back = sharded_c_step.deal_shards(there, torch.zeros_like(whole[first:last]), shape, owner, world())
            assert torch.equal(back, whole[first:last])


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def resumed(make, folder, stop_after):
    """Each process has random numbers of its own, which its evaluation takes some of."""
    kind = {"plain": plain, "sharded": sharded}[make]
    group = dist.group.WORLD
    whole = seeded(kind(net()), group, folder / "whole")
    draws = torch.rand(()).item() + random.random()
    path = folder / "run"
    assert seeded(kind(net()), group, path, stop_after=stop_after) is None
    torch.manual_seed(99), random.seed(99)
    again = elementwise(kind(net()), group, path)
    assert records(whole.history) == records(again.history)
    assert torch.rand(()).item() + random.random() == draws
    for p, q in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(lc.distributed.sharded.local(p), lc.distributed.sharded.local(q))
    assert whole.size() == again.size()
    again = elementwise(kind(net()), group, path)  # a finished run only puts its result in place
    assert records(whole.history) == records(again.history)
    assert everyone_has(again.history.steps[-1].step) == len(MU)
    for wrong in ({"mu": [1.0, 2.0]}, {"state": False}, {"made": [lc.Task("0.bias", lc.Quantize(2))]}):
        assert error_of(lambda wrong=wrong: elementwise(kind(net()), group, path, **wrong))[0] == "ValueError"


@pytest.mark.parametrize("make", ["plain", "sharded"])
def test_a_run_left_early_ends_the_same_to_the_bit(pool, make, tmp_path):
    pool.run(resumed, make, tmp_path, 1)


def random_numbers_of_each(path, stop_after):
    torch.manual_seed(world().rank), random.seed(world().rank)
    algorithm = lc.LCAlgorithm(net(), lc.Task("2", lc.Quantize(2)), mu=MU, group=dist.group.WORLD)
    generator = torch.Generator().manual_seed(10 + world().rank)
    drawn = []
    for n in algorithm.steps(checkpoint=path, state={"generator": generator}):
        algorithm.penalty()
        drawn.append((torch.rand(()).item(), random.random(), torch.rand((), generator=generator).item()))
        if n == stop_after:
            break
    return drawn


def test_each_process_goes_on_with_random_numbers_of_its_own(pool, tmp_path):
    whole = pool.run(random_numbers_of_each, tmp_path / "whole", None)
    first = pool.run(random_numbers_of_each, tmp_path / "run", 1)
    second = pool.run(random_numbers_of_each, tmp_path / "run", None)
    assert len({tuple(drawn[0]) for drawn in whole}) == pool.size
    assert [a[:1] + b for a, b in zip(first, second, strict=True)] == whole


def killed(make, path, step):
    finish = lc.LCAlgorithm._finish_step

    def dying(self, n, *args):
        if n == step and world().rank == world().size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return finish(self, n, *args)

    lc.LCAlgorithm._finish_step = dying
    seeded({"plain": plain, "sharded": sharded}[make](net()), dist.group.WORLD, path)


def finished(make, path, run=elementwise):
    algorithm = run({"plain": plain, "sharded": sharded}[make](net()), dist.group.WORLD, path)
    return records(algorithm.history), [
        lc.distributed.sharded.local(p.detach()).tolist() for p in algorithm.model.parameters()
    ]


@pytest.mark.parametrize("make", ["plain", "sharded"])
def test_kill_9_of_one_process_and_resume_gives_the_same_weights(pools, make, tmp_path):
    pool = Processes(2, tmp_path)
    try:
        with pytest.raises(ProcessDied):
            pool.run(killed, make, tmp_path / "run", 2)
    finally:
        pool.kill()
    whole = pools[2].run(finished, make, tmp_path / "whole", seeded)
    assert pools[2].run(finished, make, tmp_path / "run") == whole


def written_nowhere(path):
    return error_of(lambda: seeded(net(), dist.group.WORLD, path)), error_of(lambda: seeded(sharded(net()), None, path))


def test_a_checkpoint_that_cannot_be_written_is_an_error_everywhere(pool, tmp_path):
    (tmp_path / "file").write_text("in the way")
    answers = pool.run(written_nowhere, tmp_path / "file" / "run")
    for errors in zip(*answers, strict=True):
        assert None not in errors and len(set(errors)) == 1, errors


def goes_on_from(path):
    return error_of(lambda: seeded(net(), dist.group.WORLD, path)), error_of(lambda: seeded(sharded(net()), None, path))


def test_a_checkpoint_of_another_number_of_processes_or_damaged_is_refused(pools, tmp_path):
    pools[2].run(resumed, "plain", tmp_path, 1)
    for plain_error, _ in pools[3].run(goes_on_from, tmp_path / "run"):
        assert plain_error[0] == "ValueError" and "processes" in plain_error[1]
    (tmp_path / "run").write_bytes(b"hello" * 9)
    for plain_error, _ in pools[2].run(goes_on_from, tmp_path / "run"):
        assert plain_error[0] == "ValueError" and "damaged" in plain_error[1]
    folder = tmp_path / "folder"
    folder.mkdir()
    pools[3].run(resumed, "sharded", folder, 1)
    for _, error in pools[2].run(goes_on_from, folder / "run"):
        assert error[0] == "ValueError" and "processes" in error[1]


def cut_off_while_writing(path):
    """The process dies when its part is half written: what was there before counts."""
    seeded(sharded(net()), None, path, stop_after=1)
    before = everyone_has(sorted(p.name for p in path.iterdir()))
    if world().first:
        (path / "step_9.part").mkdir()
        (path / "step_9.part" / "rank_0.ckpt").write_bytes(b"half")
    world().gather(None)
    assert elementwise(sharded(net()), None, path).history.steps[-1].step == len(MU)
    after = everyone_has(sorted(p.name for p in path.iterdir()))
    return before, after


def test_a_folder_holds_one_whole_checkpoint_whose_weights_any_number_can_read(pools, tmp_path):
    before, after = pools[3].run(cut_off_while_writing, tmp_path / "run")[0]
    assert before == ["latest", "step_1"] and after == ["latest", f"step_{len(MU)}"]
    import torch.distributed.checkpoint as dcp

    model = net()
    start = copy.deepcopy(model.state_dict())
    weights = model.state_dict()
    with pytest.warns(UserWarning, match="single process"):
        dcp.load({"model": weights}, checkpoint_id=tmp_path / "run" / after[1], no_dist=True)
    assert not any(torch.equal(weights[name], start[name]) for name in weights if "weight" in name)


# ---- the documentation -----------------------------------------------------------------------------------------------


def documented(number, folder):
    source = re.findall(
        r"```python\n(.*?)```", (Path(__file__).parent.parent / "docs/distributed.md").read_text(), re.S
    )
    model, x, y = problem()
    rank = world().rank
    namespace = {
        "make_model": lambda: copy.deepcopy(model),
        "loader": [(x[i::2], y[i::2]) for i in (rank % 2, 1 - rank % 2)] * 8,
        "error": lambda m: float((m(x).argmax(1) != y).float().mean()),
        "folder": folder,
    }
    exec(source[number], namespace)
    everyone_has([vars(s) for s in namespace["algorithm"].history.steps])
    assert namespace["algorithm"].history.steps[-1].gap < namespace["algorithm"].history.steps[0].gap
    return sorted(p.name for p in folder.iterdir())


def test_the_examples_of_the_documentation(pools, tmp_path):
    assert pools[2].run(documented, 0, tmp_path)[0] == ["net.safetensors", "run.ckpt"]
    (tmp_path / "sharded").mkdir()
    assert pools[2].run(documented, 1, tmp_path / "sharded")[0] == ["net.safetensors", "run"]
