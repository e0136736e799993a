"""Metric weights: how much each weight matters to the loss, gathered in one pass over some batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .compressed_model import unwrapped

__all__ = ["calibrate", "call_model", "weight_layers"]

Kind = Literal["activation", "fisher"]


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    kind: Kind = "activation",
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    damping: float = 0.01,
    clip: float = 0.999,
) -> dict[str, Tensor]:
    """Diagonal metric of the weights of the Linear and convolution layers, for ``LCAlgorithm(metric=...)``.

    Parameters
    ----------
    model : its weights and gradients are left as they are; it runs in evaluation mode.
    batches : what the model, or ``loss``, is called with. For ``activation`` the first item of a tuple is the input.
    kind : ``"activation"``: E[x_j^2] of the input column j, the same for all rows, so that h_ij (w_ij - q_ij)^2 is the
        expected squared error of an output whose inputs are uncorrelated (the score of Wanda is |w_ij| sqrt(h_ij)).
        ``"fisher"``: E[(dL/dw)^2], from one backward pass per batch. Each position of a sequence or an image counts as
        a sample of its own.
    loss : ``loss(model, batch)``, the mean loss of a batch as a tensor; needed for ``fisher``.
    damping : h + damping * mean(h), so that no weight is free.
    clip : values above this quantile of a tensor are set to it.

    Returns
    -------
    by parameter name, a positive float32 tensor of the parameter's shape.

    Raises
    ------
    ValueError : if there are no batches, or ``fisher`` has no loss.

    Notes
    -----
    The cost is a forward pass per batch, and a backward pass for ``fisher``; for it each layer also takes a product of
    squares of the size of its own weight gradient (g^2)^T (x^2).

    Examples
    --------
    >>> metric = lc.calibrate(model, batches)
    >>> algorithm = lc.LCAlgorithm(model, lc.Task(nn.Linear, lc.Quantize(2)), mu=[1e-2], metric=metric)
    """
    if kind not in ("activation", "fisher"):
        raise ValueError(f"kind must be 'activation' or 'fisher', got {kind!r}")
    if kind == "fisher" and loss is None:
        raise ValueError("kind 'fisher' needs loss(model, batch)")
    if not 0 < clip <= 1 or not damping >= 0:
        raise ValueError(f"clip must be in (0, 1] and damping at least 0, got {clip} and {damping}")
    inner = unwrapped(model)
    layers = weight_layers(inner)
    sums: dict[str, Tensor] = {}
    samples = dict.fromkeys(layers, 0)
    handles = [layer.register_forward_hook(_hook(name, kind, sums, samples)) for name, layer in layers.items()]
    modes = {module: module.training for module in inner.modules()}
    model.eval()
    seen = 0
    try:
        for batch in batches:
            seen += 1
            if kind == "fisher" and loss is not None:
                with torch.enable_grad():
                    value = loss(model, batch)
                    parameters = [p for p in inner.parameters() if p.requires_grad]
                    torch.autograd.grad(value, parameters, allow_unused=True)  # the hooks see the gradients go by
            else:
                with torch.no_grad():
                    call_model(model, batch)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    if not seen:
        raise ValueError("batches must hold at least one batch")
    result = {}
    for name, total in sums.items():
        h = (total / max(samples[name], 1)).reshape(layers[name].weight.shape if kind == "fisher" else total.shape)
        h = h.expand(layers[name].weight.shape).contiguous()
        top = h.flatten().kthvalue(max(1, round(clip * h.numel()))).values
        h = h.clamp(max=top)
        mean = h.mean()
        result[name] = h + (damping * mean if mean > 0 else torch.ones_like(mean))
    return result


def weight_layers(model: nn.Module) -> dict[str, Any]:
    """The Linear and convolution layers, by the names of their weights."""
    return {
        f"{path}.weight" if path else "weight": layer
        for path, layer in model.named_modules()
        if isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)) and not layer.__class__.__name__.startswith("Lazy")
    }


def call_model(model: nn.Module, batch: Any) -> None:
    """Run the model on a batch: an input, a tuple with the input first, or keyword arguments."""
    if isinstance(batch, dict):
        model(**batch)
    else:
        model(batch[0] if isinstance(batch, (tuple, list)) else batch)


def _hook(
    name: str, kind: Kind, sums: dict[str, Tensor], samples: dict[str, int]
) -> Callable[[Any, tuple[Any, ...], Tensor], None]:
    def add(total: Tensor, rows: int) -> None:
        sums[name] = sums[name] + total if name in sums else total
        samples[name] += rows

    def after_forward(layer: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x = inputs[0].detach().float()
        if kind == "activation":
            squares = x.square()
            if isinstance(layer, nn.Linear):
                add(squares.reshape(-1, x.shape[-1]).sum(0), x.numel() // x.shape[-1])
            else:
                axes = [d for d in range(x.dim()) if d != x.dim() - len(layer.kernel_size) - 1]
                add(_per_channel(squares.sum(axes), layer), x.numel() // layer.in_channels)
            return

        def after_backward(gradient: Tensor) -> None:
            g = gradient.detach().float()
            if isinstance(layer, nn.Linear):
                rows = g.reshape(-1, g.shape[-1])
                add(rows.square().T @ x.reshape(-1, x.shape[-1]).square(), 1)
            else:
                add(_conv_squares(layer, x.square(), g.square()), 1)

        if output.requires_grad:
            output.register_hook(after_backward)

    return after_forward


def _per_channel(channels: Tensor, layer: Any) -> Tensor:
    """Second moments of the input channels as they meet the weight of a convolution."""
    ones = [1] * len(layer.kernel_size)
    if layer.transposed:  # (in, out / groups, ...)
        return channels.view(-1, 1, *ones)
    if layer.groups == 1:
        return channels.view(1, -1, *ones)
    groups = channels.view(layer.groups, 1, layer.in_channels // layer.groups)
    return groups.expand(-1, layer.out_channels // layer.groups, -1).reshape(layer.out_channels, -1, *ones)


def _conv_squares(layer: Any, x: Tensor, g: Tensor) -> Tensor:
    """sum over positions of g^2 x^2: the weight gradient of the same convolution, of squares."""
    weight = torch.zeros_like(layer.weight, dtype=torch.float32, requires_grad=True)
    functions: dict[tuple[int, bool], Any] = {
        (1, False): torch.conv1d,
        (2, False): torch.conv2d,
        (3, False): torch.conv3d,
        (1, True): torch.conv_transpose1d,
        (2, True): torch.conv_transpose2d,
        (3, True): torch.conv_transpose3d,
    }
    options = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation, "groups": layer.groups}
    if layer.transposed:
        options["output_padding"] = layer.output_padding
    if layer.padding_mode != "zeros":
        sizes = layer._reversed_padding_repeated_twice
        x, options["padding"] = nn.functional.pad(x, sizes, mode=layer.padding_mode), 0
    with torch.enable_grad():
        y = functions[len(layer.kernel_size), layer.transposed](x, weight, None, **options)
        (total,) = torch.autograd.grad(y, weight, g)
    return total
