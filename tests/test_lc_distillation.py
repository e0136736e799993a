"""Self-distillation: the hook changes the gradient as the mixed loss would, and is there in the L step only."""

import pytest
import torch
import torch.nn.functional as F
from lc_problem import problem, step
from torch import nn

import lc


def explicit(model, teacher, x, y, weight, t, smoothing):
    z = model(x)
    target = F.softmax(teacher(x).detach() / t, -1)
    target = (1 - smoothing) * target + smoothing * torch.full_like(target, 1 / z.shape[-1])
    divergence = F.kl_div(F.log_softmax(z / t, -1), target, reduction="batchmean")
    return (1 - weight) * F.cross_entropy(z, y) + weight * t * t * divergence


@pytest.mark.parametrize(("scale", "smoothing"), [(1.0, 0.0), (1024.0, 0.0), (1.0, 0.3)])
def test_the_hook_gives_the_gradient_of_the_mixed_loss(scale, smoothing):
    model, x, y = problem()
    teacher, _, _ = problem()
    distillation = lc.Distillation(0.7, 3.0, smoothing=smoothing, scale=lambda: scale)
    algorithm = lc.LCAlgorithm(model, lc.Task("0", lc.Quantize(2)), mu=[1.0, 1.0], distill=distillation)
    with torch.no_grad():
        model[0].weight.add_(0.1)  # the teacher is what the model was when the algorithm was made
    for _ in algorithm.steps():
        model.zero_grad()
        (scale * F.cross_entropy(model(x), y)).backward()
        got = [p.grad / scale for p in model.parameters()]
        break
    reference = problem()[0]
    reference.zero_grad()
    reference.load_state_dict(model.state_dict())
    explicit(reference, teacher, x, y, 0.7, 3.0, smoothing).backward()
    for g, p in zip(got, reference.parameters(), strict=True):
        torch.testing.assert_close(g, p.grad, rtol=1e-4, atol=1e-6)
    loss = distillation.loss(F.cross_entropy(reference(x), y), reference(x), x)
    torch.testing.assert_close(loss, explicit(reference, teacher, x, y, 0.7, 3.0, smoothing))


def test_outside_of_an_l_step_and_in_eval_mode_nothing_changes():
    model, x, y = problem()
    algorithm = lc.LCAlgorithm(model, lc.Task("0", lc.Quantize(2)), mu=[1.0], distill=True)

    def gradient():
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        return model[0].weight.grad.clone()

    plain = gradient()
    for _ in algorithm.steps():
        assert not torch.equal(gradient(), plain)
        model.eval()
        assert torch.equal(gradient(), plain)
        model.train()
        break
    assert torch.equal(gradient(), plain)


def test_a_run_with_a_teacher_gets_nearer_to_it():
    divergences = []
    for distill in (False, lc.Distillation(smoothing=0)):
        model, x, y = problem()
        teacher = problem()[0]
        algorithm = lc.LCAlgorithm(
            model, lc.Task("re:.*weight", lc.Quantize(2)), mu=lc.exponential(1e-2, 1.5, 12), distill=distill
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        algorithm.attach(optimizer)
        for _ in algorithm.steps():
            for _ in range(20):
                step(model, optimizer, x, y)
        divergences.append(
            float(F.kl_div(model(x).log_softmax(-1), teacher(x).softmax(-1), reduction="batchmean").detach())
        )
        assert algorithm.history.steps[-1].gap < 0.1
    assert divergences[1] < divergences[0]


def test_outputs_that_hold_logits():
    class Wrapped(nn.Module):
        def __init__(self, inner, make):
            super().__init__()
            self.inner, self.make = inner, make

        def forward(self, x):
            return self.make(self.inner(x))

    class Output:
        def __init__(self, logits):
            self.logits = logits

    gradients = []
    for make, pick in [(lambda z: z, None), (lambda z: (z, 3), None), (Output, None), (lambda z: {"z": z}, "z")]:
        inner, x, y = problem()
        model = Wrapped(inner, make)
        distillation = lc.Distillation(logits=None if pick is None else lambda out: out["z"])
        algorithm = lc.LCAlgorithm(model, lc.Task("inner.0", lc.Quantize(2)), mu=[1.0], distill=distillation)
        for _ in algorithm.steps():
            out = model(x)
            z = out["z"] if pick else getattr(out, "logits", out[0] if isinstance(out, tuple) else out)
            F.cross_entropy(z, y).backward()
            gradients.append(inner[0].weight.grad.clone())
            break
    assert all(torch.equal(g, gradients[0]) for g in gradients)
    with pytest.raises(TypeError, match="no logits"):
        distillation = lc.Distillation()
        model = Wrapped(problem()[0], lambda z: {"z": z})
        algorithm = lc.LCAlgorithm(model, lc.Task("inner.0", lc.Quantize(2)), mu=[1.0], distill=distillation)
        for _ in algorithm.steps():
            model(torch.randn(3, 12))


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [({"weight": 1.5}, "weight"), ({"temperature": 0}, "temperature"), ({"smoothing": 1}, "smoothing")],
)
def test_bad_arguments_are_named(kwargs, named):
    with pytest.raises(ValueError, match=named):
        lc.Distillation(**kwargs)
    with pytest.raises(TypeError, match="teacher"):
        lc.Distillation(teacher="resnet")
    with pytest.raises(RuntimeError, match="no teacher"):
        lc.Distillation().loss(torch.zeros(()), torch.zeros(2, 3), torch.zeros(2, 3))
