"""Fashion-MNIST, LeNet5 and ResNet8: eight compressions by LC and by what is simpler, at equal epochs.

    apt-get install dataset-fashion-mnist          # or --data FOLDER with the four files of the data set
    python benchmarks/fashion_mnist.py run         # goes on where it was stopped: a line of JSON for each result
    python benchmarks/fashion_mnist.py table       # Markdown and JSON from those lines
    python benchmarks/fashion_mnist.py tune        # what SETTINGS was chosen by: 5,000 images of the training set

All of it goes through the public API, so it is also an example of a study: SCHEMES is what is compared, METHODS are the
ways to make a compressed net, and Training is the part that belongs to the user.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from fashion_mnist_table import write_table
from torch import Tensor, nn

import lc

DEBIAN = "/usr/share/datasets/fashion-mnist"
RESULTS = Path(__file__).parent / "results" / "fashion_mnist.jsonl"
BATCH = 64
PARTS = 10  # one L step is 1 / PARTS of an epoch
STEPS = 15  # of them: every method trains 1.5 epochs from the reference
REFERENCE_STEPS = 6 * PARTS
WEIGHT, TEMPERATURE = 0.9, 4.0  # of the self-distillation

# ---- what is compared ------------------------------------------------------------------------------------------------

NETS: dict[str, Callable[[], nn.Module]] = {
    "lenet5": lambda: lc.models.lenet5().to(memory_format=torch.channels_last),  # 1.5 times as fast as contiguous
    "resnet8": lambda: lc.models.resnet8(in_channels=1, stem_stride=2),
}


def every(compression: lc.Compression, joint: bool = False) -> list[lc.Task]:
    """All weights of convolutions and linear layers: a pattern takes parameters of two dimensions or more."""
    return [lc.Task("re:.*weight", compression, joint)]


def low_rank(*ranks: tuple[str, int]) -> list[lc.Task]:
    return [lc.Task(pattern, lc.LowRank(rank)) for pattern, rank in ranks]


LENET5_RANKS = [("0.weight", 5), ("3.weight", 10), ("7.weight", 10), ("9.weight", 5)]
LENET5_MIX = [
    lc.Task(nn.Conv2d, lc.Quantize(4)),
    lc.Task("7.weight", lc.Prune(0.02)),
    lc.Task("9.weight", lc.Quantize(2) + lc.Prune(0.01)),
]
RESNET8_RANKS = [("re:conv.weight|stages.0.*", 4), ("re:stages.1.*", 8), ("re:stages.2.*", 12), ("fc.weight", 5)]
RESNET8_MIX = [
    lc.Task(["conv.weight", "re:stages.0.*"], lc.Quantize(4)),
    lc.Task("re:stages.1.*", lc.Quantize(2) + lc.Prune(0.02)),
    lc.Task("re:stages.2.*", lc.Prune(0.1), joint=True),
    lc.Task("fc.weight", lc.LowRank(5)),
]
SCHEMES: dict[str, dict[str, list[lc.Task]]] = {
    "lenet5": {
        "K=2": every(lc.Quantize(2)),
        "K=4": every(lc.Quantize(4)),
        "ternary, scaled": every(lc.Ternary()),
        "keep 5 %": every(lc.Prune(0.05), joint=True),
        "keep 2 %": every(lc.Prune(0.02), joint=True),
        "ranks 5 10 10 5": low_rank(*LENET5_RANKS),
        "K=2 + 1 %": every(lc.Quantize(2) + lc.Prune(0.01)),
        "mix: K=4, keep 2 %, K=2 + 1 %": LENET5_MIX,
    },
    "resnet8": {
        "K=2": every(lc.Quantize(2)),
        "K=4": every(lc.Quantize(4)),
        "ternary, scaled": every(lc.Ternary()),
        "keep 10 %": every(lc.Prune(0.1), joint=True),
        "keep 5 %": every(lc.Prune(0.05), joint=True),
        "ranks 4 8 12 5": low_rank(*RESNET8_RANKS),
        "K=2 + 1 %": every(lc.Quantize(2) + lc.Prune(0.01)),
        "mix: K=4, K=2 + 2 %, keep 10 %, rank 5": RESNET8_MIX,
    },
}


class Setting(NamedTuple):
    """How a method trains: learning rates from ``lr`` to ``lr_end``, for LC mu from ``mu`` to ``mu_end``."""

    optimizer: str
    lr: float
    lr_end: float
    mu: float = 0.0
    mu_end: float = 0.0


REFERENCE = Setting("sgd", 0.05, 0.005)
COMMON = {
    "direct": Setting("none", 0.0, 0.0),
    "finetune-compress": Setting("sgd", 0.02, 0.002),
    "compress-finetune": Setting("adam", 0.002, 0.0002),
    "lc": Setting("sgd", 0.02, 0.01, 0.005, 5.0),
}
SETTINGS = {
    "lenet5": {**COMMON, "iterated": Setting("sgd", 0.005, 0.0005)},
    "resnet8": {**COMMON, "iterated": Setting("sgd", 0.02, 0.002)},
}
CANDIDATES = {
    "finetune-compress": [Setting("sgd", 0.02, 0.002)],
    "iterated": [Setting("sgd", 0.02, 0.002), Setting("sgd", 0.005, 0.0005)],
    "compress-finetune": [
        Setting("sgd", 0.02, 0.002),
        Setting("adam", 0.002, 0.0002),  # the gradient of a codeword is a sum over its weights: too much for SGD
    ],
    "lc": [
        Setting("sgd", 0.02, 0.01, 0.005, 5.0),
        Setting("sgd", 0.02, 0.01, 0.02, 5.0),
        Setting("sgd", 0.02, 0.01, 0.005, 20.0),
        Setting("sgd", 0.03, 0.01, 0.005, 5.0),
        Setting("sgd", 0.02, 0.002, 0.005, 25.0),
    ],
}
TUNED_ON = {"lenet5": ("K=2", "keep 2 %"), "resnet8": ("K=2", "keep 10 %")}

# ---- the user's part: data, training, test ---------------------------------------------------------------------------


class Training:
    """Batches without end, and one loss for all methods: that of lc.Distillation.

    The images are not augmented, so the logits of the teacher, which is the reference, are computed once for all runs,
    and not in each step by lc itself.
    """

    def __init__(self, data: lc.data.Dataset, seed: int, taught: Tensor | None = None) -> None:
        self.data = data
        self.batch = min(BATCH, len(data.x))
        self.taught = taught
        self.stream = self._endless(torch.Generator().manual_seed(seed))

    def _endless(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.arange(len(self.data.x))
        while True:
            yield from lc.data.batches(self.data.x, order, self.batch, generator, drop_last=True)

    def loss(self, model: nn.Module, images: Tensor, index: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            out = model(images)
        out = out.float()
        loss = F.cross_entropy(out, self.data.y[index])
        if self.taught is None:
            return loss
        student, teacher = (F.log_softmax(z / TEMPERATURE, -1) for z in (out, self.taught[index]))
        divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
        return (1 - WEIGHT) * loss + WEIGHT * TEMPERATURE**2 * divergence

    def part(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """One L step, or what is one elsewhere: 1 / PARTS of an epoch."""
        model.train()
        for images, index in itertools.islice(self.stream, max(len(self.data.x) // self.batch // PARTS, 1)):
            optimizer.zero_grad()
            self.loss(model, images, index).backward()
            optimizer.step()

    def statistics(self) -> list[Tensor]:
        """Inputs for lc.recalibrate_bn."""
        return list(self.data.x[:2560].split(256))


@torch.no_grad()
def predict(model: nn.Module, x: Tensor) -> Tensor:
    model.eval()
    return torch.cat([model(images) for images in x.split(500)])


def test_error(model: nn.Module, data: lc.data.Dataset) -> float:
    """In float32, whatever the net was trained in; per cent."""
    return 100 * float((predict(model, data.x_test).argmax(1) != data.y_test).float().mean())


def train(
    model: nn.Module, training: Training, setting: Setting, steps: int = STEPS, after: Callable[[], object] = int
) -> nn.Module:
    """``steps`` parts with the learning rates of lc.compress; ``after`` is called after each."""
    optimizer = make_optimizer(setting, [p for p in model.parameters() if p.requires_grad])
    for n in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = setting.lr * (setting.lr_end / setting.lr) ** (n / max(steps - 1, 1))
        training.part(model, optimizer)
        after()
    return model


def make_optimizer(setting: Setting, parameters: Any) -> torch.optim.Optimizer:
    if setting.optimizer == "adam":
        return torch.optim.Adam(parameters, setting.lr)
    return torch.optim.SGD(parameters, setting.lr, momentum=0.9, nesterov=True)


# ---- the methods: each leaves ``net`` compressed ---------------------------------------------------------------------


class Made(NamedTuple):
    size: lc.Size
    seconds_c: float = 0.0


class Projection:
    """The C step alone: the weights become their compression."""

    def __init__(self, net: nn.Module, tasks: list[lc.Task]) -> None:
        self.algorithm = lc.LCAlgorithm(net, tasks, mu=[1.0], multipliers=False)
        self.algorithm.start()
        self.seconds = 0.0

    @torch.no_grad()
    def __call__(self) -> Made:
        start = time.perf_counter()
        self.algorithm.c_step(mu=0.0)
        for parameter, delta in self.algorithm.targets(mu=1.0).items():  # without multipliers: Delta(Theta)
            parameter.copy_(delta)
        self.seconds += time.perf_counter() - start
        return Made(self.algorithm.size(), self.seconds)


def by_projection(net: nn.Module, tasks: list[lc.Task], training: Training, setting: Setting) -> Made:
    """Direct compression, of the reference or, for "finetune-compress", of the net trained on from it."""
    return Projection(net, tasks)()


def by_iteration(net: nn.Module, tasks: list[lc.Task], training: Training, setting: Setting) -> Made:
    """Iterated direct compression: train, project, train, project; no penalty."""
    project = Projection(net, tasks)
    project()
    train(net, training, setting, after=project)
    return Made(project.algorithm.size(), project.seconds)


def by_finetuning(net: nn.Module, tasks: list[lc.Task], training: Training, setting: Setting) -> Made:
    """Compress, then train what was learned; masks and codes stay. For pruning: by magnitude, then finetune."""
    project = Projection(net, tasks)
    project()
    tuned = lc.Finetuning(net)
    train(tuned, training, setting)
    tuned.finish()
    return Made(project.algorithm.size(), project.seconds)


def by_lc(net: nn.Module, tasks: list[lc.Task], training: Training, setting: Setting) -> Made:
    algorithm = lc.compress(
        net,
        tasks,
        training.part,
        budget_epochs=STEPS,  # what lc calls an epoch is a part here
        epochs_per_step=1,
        lr=setting.lr,
        lr_end=setting.lr_end,
        mu=lc.exponential(setting.mu, (setting.mu_end / setting.mu) ** (1 / (STEPS - 1)), STEPS),
        optimizer=lambda parameters: make_optimizer(setting, parameters),
        distill=False,  # Training.loss does it, for all methods
    )
    return Made(algorithm.size(), algorithm.history.seconds_c)


METHODS = {
    "direct": by_projection,
    "finetune-compress": by_projection,
    "iterated": by_iteration,
    "compress-finetune": by_finetuning,
    "lc": by_lc,
}

# ---- runs ------------------------------------------------------------------------------------------------------------


class Start(NamedTuple):
    """A trained net, the CPU seconds that took, and its logits on the training set."""

    net: nn.Module
    seconds: float
    logits: Tensor


class Study:
    """Results in a file of JSON lines, trained starting nets in a folder; what is there already is not done again."""

    def __init__(self, data: lc.data.Dataset, split: str, out: Path, cache: Path) -> None:
        self.data, self.split, self.out, self.cache = data, split, out, cache
        self.records = read_records(out)

    def run(self, net: str, scheme: str, method: str, seed: int, setting: Setting) -> None:
        key = {"net": net, "scheme": scheme, "method": method, "seed": seed, "split": self.split, **setting._asdict()}
        if any(key.items() <= record.items() for record in self.records):
            return
        start = self.reference(net, seed)
        training = Training(self.data, 1000 + seed, start.logits)
        model, spent = start.net, 0.0
        if method == "finetune-compress":
            model, spent, _ = self.finetuned(net, seed, setting)
        began, began_cpu = time.perf_counter(), time.process_time()
        made = METHODS[method](model, SCHEMES[net][scheme], training, setting)
        seconds, seconds_cpu = spent + time.perf_counter() - began, spent + time.process_time() - began_cpu
        lc.recalibrate_bn(model, training.statistics())
        result = {
            "error": test_error(model, self.data),
            "ratio": made.size.ratio,
            "weights_only_ratio": made.size.weights_only_ratio,
            "epochs": 0 if method == "direct" else STEPS / PARTS,
            "seconds": seconds_cpu,
            "c_share": made.seconds_c / seconds,
        }
        self.add(key | result)

    def reference(self, net: str, seed: int) -> Start:
        """The net that all methods start from."""

        def make(model: nn.Module) -> None:
            train(model, Training(self.data, seed), REFERENCE, REFERENCE_STEPS)

        return self._start("reference", net, seed, REFERENCE, REFERENCE_STEPS, make)

    def finetuned(self, net: str, seed: int, setting: Setting) -> Start:
        """The reference, trained on as long as LC trains."""

        def make(model: nn.Module) -> None:
            before = self.reference(net, seed)
            model.load_state_dict(before.net.state_dict())
            train(model, Training(self.data, 1000 + seed, before.logits), setting)

        return self._start("finetuned", net, seed, setting, STEPS, make)

    def _start(
        self, kind: str, net: str, seed: int, setting: Setting, steps: int, make: Callable[[nn.Module], None]
    ) -> Start:
        torch.manual_seed(seed)
        model = NETS[net]()
        path = self.cache / f"{kind}-{net}-{seed}-{self.split}-{len(self.data.x)}-{setting.lr:g}-{steps}.pt"
        if path.exists():
            saved = torch.load(path, weights_only=True)
            model.load_state_dict(saved["state"])
            return Start(model, saved["seconds"], saved["logits"])
        began = time.process_time()
        make(model)
        seconds = time.process_time() - began
        lc.recalibrate_bn(model, Training(self.data, 0).statistics())
        start = Start(model, seconds, predict(model, self.data.x))
        self.cache.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".part")
        torch.save({"state": model.state_dict(), "seconds": start.seconds, "logits": start.logits}, scratch)
        os.replace(scratch, path)
        key = {"net": net, "scheme": "none", "method": kind, "seed": seed, "split": self.split, **setting._asdict()}
        self.add(key | {"error": test_error(model, self.data), "epochs": steps / PARTS, "seconds": start.seconds})
        return start

    def add(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.out.with_suffix(".part")
        scratch.write_text("".join(json.dumps(r) + "\n" for r in self.records), encoding="utf-8")
        os.replace(scratch, self.out)
        print(json.dumps(record), flush=True)


def read_records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def load(folder: str) -> lc.data.Dataset:
    try:
        return lc.data.mnist(folder, center="channel", unit_variance=True)
    except FileNotFoundError as error:
        sys.exit(f"{error}\nThe data set: apt-get install dataset-fashion-mnist, or --data FOLDER with its four files.")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "table", "tune"])
    parser.add_argument("--data", default=DEBIAN, help="folder of the data set")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the file of JSON lines; the table goes beside it")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "lc_fashion_mnist")
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--schemes", default="", help="separated by ; (default: all)")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.command == "table":
        write_table(read_records(options.out), options.out)
        return
    data, tuning = load(options.data), options.command == "tune"
    nets, methods = options.nets.split(","), options.methods.split(",")
    if tuning:
        out = options.out.with_name(options.out.stem + "_tuning.jsonl")
        study = Study(data.holdout(1 / 12), "validation", out, options.cache)
        for net, method in itertools.product(nets, [m for m in methods if m != "direct"]):
            for scheme in options.schemes.split(";") if options.schemes else TUNED_ON[net]:
                for setting in CANDIDATES[method]:
                    study.run(net, scheme, method, 0, setting)
        return
    study = Study(data, "test", options.out, options.cache)
    for net, seed in itertools.product(nets, map(int, options.seeds.split(","))):
        for scheme in options.schemes.split(";") if options.schemes else SCHEMES[net]:
            for method in methods:
                study.run(net, scheme, method, seed, SETTINGS[net][method])


if __name__ == "__main__":
    main()
