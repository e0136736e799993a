"""Our row of the LC experiment: the adapter that a harness with a `run(net, layers, tasks, ...)` contract loads.

    python lc_bench.py --lib benchmarks/lc_bench_adapter.py --proto short --exp quant_k2,... --seed 0

LC_BENCH_PENALTY chooses the form of the penalty: prox (default), gradient, or loss (a tensor in the loss).
LC_BENCH_DISTILL=0 leaves out the self-distillation that is on by default.
"""

from __future__ import annotations

import os

from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import lc

FORM = os.environ.get("LC_BENCH_PENALTY", "prox")
DISTILL = os.environ.get("LC_BENCH_DISTILL", "1") == "1"


def compression(op):
    """The compression of one operation of the harness."""
    if op["type"] == "kmeans":
        return lc.Quantize(op["k"])
    if op["type"] == "l0":
        return lc.Prune(op["kappa"])
    if op["type"] == "lowrank":
        return lc.LowRank(op["rank"])
    if op["type"] == "rankselect":
        return lc.RankSelection(op["alpha"])
    raise SystemExit(f"the adapter has no compression of type {op['type']!r} yet")


def run(net, layers, tasks, mu_s, l_step, evaluate):
    """Compress ``net``; what goes in and comes out is the harness's contract."""
    ours = []
    for task in tasks:
        first, *rest = (compression(op) for op in task["ops"])
        targets = [layers[i].weight for i in task["layers"]]
        ours.append(lc.Task(targets, sum(rest, first), joint=len(targets) > 1))

    def measure(model):
        evaluate("compressed")
        return {}

    form = "gradient" if FORM == "gradient" else "prox"
    algorithm = lc.LCAlgorithm(net, ours, mu=mu_s, evaluate=measure, penalty=form, distill=DISTILL)
    # The harness makes its optimizer inside the L step, so the hooks go on every optimizer for the time of the run.
    penalty, handle = algorithm._penalty, None
    if FORM == "prox":
        handle = register_optimizer_step_post_hook(lambda opt, args, kwargs: penalty.after_step(opt))
    elif FORM == "gradient":
        handle = register_optimizer_step_pre_hook(lambda opt, args, kwargs: penalty.before_step(opt))
    zero = (lambda: 0.0) if handle else algorithm.penalty
    history = algorithm.run(lambda model, step: l_step(model, zero, step))
    if handle:
        handle.remove()
    return {
        "delta": [layer.weight.detach().clone() for layer in layers],
        "bits": sum(task.compression.bits() for task in algorithm.tasks),
        "params": sum(p.numel() for task in algorithm.tasks for p in task.parameters),
        "t_L": history.seconds_l,
        "t_C": [s.seconds_c for s in history.steps],
    }
