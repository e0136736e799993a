"""Compression-aware training: CrAM, whose nets survive compression in one shot, and that one shot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from .c_step import c_step
from .compressed_model import install, recalibrate_bn
from .compressions import Compression, leaves
from .distributed.world import World
from .sam import SAM
from .tasks import Task, bind, remember

__all__ = ["CrAM", "one_shot"]


class CrAM(SAM):
    """Compression-aware minimiser: w <- w - eta [grad L(C(w + rho grad L(w))) + grad L(w)] over another optimizer.

    Parameters
    ----------
    params : parameters or groups of them, as for any optimizer. A group with ``"compress": False`` is perturbed, but
        not compressed; nor are tensors of one dimension, such as biases.
    base_optimizer : ``base_optimizer(params, **options)``, such as ``torch.optim.SGD`` or ``AdamW``.
    compression : the operator C, any :class:`lc.Compression` that needs no mu; or several, one of which is drawn at
        each step (CrAM Multi).
    rho : the perturbation is rho times the gradient, which is not normalised.
    plus : add the gradient at w (CrAM+).
    sparse_grad : zero the gradients of C(w + rho g) where a pruning made a zero; other compressions let all through.
    mask_period : a pruning's mask is used for so many of its steps before it is found anew.
    joint : compress all tensors as one, such as one threshold for all; else each on its own.
    model : its batch normalisations do not update their statistics in the perturbed pass.
    seed : of the draws. The same in all processes, which so draw alike.
    options : of the base optimizer.

    Raises
    ------
    TypeError, ValueError : for an argument of another type or range, no tensor to compress, a ``mask_period`` with a
        compression that does not prune, and whatever a compression raises, such as for gradients that are not finite;
        the parameters are then back at w.

    Notes
    -----
    Peste et al. 2023. Two forward and backward passes and a C step at each step; a copy of the parameters, one of the
    gradients with ``plus``, and w + rho g is made in the parameters themselves. ``step(closure)``, where the closure
    zeroes the gradients, computes the loss, calls ``backward`` and returns the loss; or ``loss.backward();
    first_step(); zero_grad(); loss.backward(); second_step()``. With a ``GradScaler``, scale both losses and pass it
    to both; then ``scaler.update()``. Under DistributedDataParallel let both passes synchronise.

    Examples
    --------
    >>> several = [lc.Prune(0.5), lc.Prune(0.1)]
    >>> optimizer = lc.optim.CrAM(model.parameters(), torch.optim.SGD, compression=several, rho=0.05, lr=0.1)
    >>> len(optimizer.compressions)
    2
    """

    def __init__(
        self,
        params: Iterable[Any],
        base_optimizer: Callable[..., Optimizer],
        *,
        compression: Compression | Sequence[Compression],
        rho: float = 0.05,
        plus: bool = True,
        sparse_grad: bool = True,
        mask_period: int = 1,
        joint: bool = True,
        model: nn.Module | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        several = [compression] if isinstance(compression, Compression) else list(compression)
        if not several or not all(isinstance(c, Compression) for c in several):
            raise TypeError(f"compression must be one or several lc.Compression, got {compression!r}")
        if any(c.penalised for c in several):
            raise ValueError(f"compression must not depend on mu, got {compression!r}")
        if mask_period < 1:
            raise ValueError(f"mask_period must be at least 1, got {mask_period}")
        if mask_period > 1 and not all(_prunes(c) for c in several):
            raise ValueError(f"mask_period {mask_period} needs compressions that prune, got {compression!r}")
        super().__init__(base_optimizer(params, **options), rho, model)
        self.plus, self.sparse_grad, self.mask_period = plus, sparse_grad, mask_period
        matrices = [p for g in self.param_groups if g.get("compress", True) for p in g["params"] if p.dim() > 1]
        if not matrices:
            raise ValueError("params holds no tensor of two dimensions or more to compress")
        self._groups = [matrices] if joint else [[p] for p in matrices]
        self.compressions = [[c.fresh() for _ in self._groups] for c in several]
        self._prunes = [_prunes(c) for c in several]
        self._generator = torch.Generator().manual_seed(seed)
        self._masks: list[list[list[Tensor]] | None] = [None] * len(several)
        self._uses = [0] * len(several)
        self._clean: list[tuple[Tensor, Tensor]] = []
        self._sparse: list[tuple[Tensor, Tensor]] = []  # parameters and the masks of their gradients

    @torch.no_grad()
    def first_step(self, scaler: GradScaler | None = None) -> None:
        """Move to C(w + rho g); the gradients, those of a loss that ``scaler`` has scaled, are those at w."""
        scale = scaler.get_scale() if scaler is not None else 1.0
        having = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if self._moved or self._clean:
            raise RuntimeError("first_step was called twice: call second_step in between")
        overflow = scaler is not None and not all(bool(p.grad.isfinite().all()) for p in having)
        if self.plus or overflow:
            self._clean = [(p, p.grad.clone()) for p in having]
        if overflow:  # the gradients that are kept make the scaler skip the step
            return
        self._leave(having)
        try:
            gradients = [p.grad for p in having]
            torch._foreach_add_([p.detach() for p in having], gradients, alpha=self.rho / scale)
            self._compress()
        except BaseException:
            self._abandon()
            raise

    def _compress(self) -> None:
        k = int(torch.randint(len(self.compressions), (), generator=self._generator))
        masks = self._masks[k]
        if masks is None or self._uses[k] % self.mask_period == 0:
            found = []
            for group, compression in zip(self._groups, self.compressions[k], strict=True):
                delta = compression.fit([p.detach().float() for p in group])
                torch._foreach_copy_([p.detach() for p in group], delta)
                found.append([d != 0 for d in delta] if self._prunes[k] else [])
            masks = found
            self._masks[k] = masks if self.mask_period > 1 else None
        else:
            for group, of_group in zip(self._groups, masks, strict=True):
                torch._foreach_mul_([p.detach() for p in group], of_group)
        self._uses[k] += 1
        if self.sparse_grad and self._prunes[k]:
            self._sparse = [pair for g, m in zip(self._groups, masks, strict=True) for pair in zip(g, m, strict=True)]

    def second_step(self, scaler: GradScaler | None = None) -> None:
        """Go back to w and take the base optimizer's step with the gradients of both points."""
        self._combine()
        if scaler is None:
            self.step()
        else:
            scaler.step(self)

    def _abandon(self) -> None:
        self._back()
        self._clean, self._sparse = [], []

    @torch.no_grad()
    def _combine(self) -> None:
        self._back()
        for p, mask in self._sparse:
            if p.grad is not None:
                p.grad.mul_(mask)
        for p, gradient in self._clean:
            p.grad = gradient if p.grad is None else p.grad.add_(gradient)
        self._clean, self._sparse = [], []

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's, and under ``"cram"`` the masks, their ages and the generator of the draws."""
        mine = {"masks": self._masks, "uses": list(self._uses), "generator": self._generator.get_state()}
        return {**self.base.state_dict(), "cram": mine}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take on a state; ValueError if it is not that of a CrAM with as many compressions."""
        mine = state_dict.get("cram")
        if mine is None or len(mine["uses"]) != len(self.compressions):
            raise ValueError(f"state_dict must be that of a CrAM with {len(self.compressions)} compressions")
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "cram"})
        self._masks, self._uses = list(mine["masks"]), list(mine["uses"])
        self._generator.set_state(mine["generator"])


def _prunes(compression: Compression) -> bool:
    return all(leaf.sparse for leaf in leaves(compression))


def one_shot(
    model: nn.Module,
    compression: Compression | Task | Sequence[Task],
    bn_batches: Iterable[Any] | None = None,
) -> nn.Module:
    """Compress a trained ``model`` in place by one C step, and tune its batch normalisations.

    Parameters
    ----------
    model : any.
    compression : tasks; or a compression of all tensors of two dimensions or more, taken as one.
    bn_batches : for :func:`lc.recalibrate_bn`, without which a strongly pruned net with batch normalisation is lost.

    Returns
    -------
    model : ready for :func:`lc.pack`.

    Raises
    ------
    TypeError, ValueError : as for :class:`lc.LCAlgorithm` and :func:`lc.recalibrate_bn`.

    Examples
    --------
    >>> model = lc.one_shot(model, lc.Prune(0.1))
    >>> packed = lc.pack(model)
    """
    tasks = Task("re:.*", compression, joint=True) if isinstance(compression, Compression) else compression
    bound = bind(model, tasks)
    for task in bound:
        task.multipliers = [torch.zeros_like(w) for w in task.weights()]
    c_step(bound, 0.0, False, World())
    install(bound, [task.delta for task in bound])
    if bn_batches is not None:
        recalibrate_bn(model, bn_batches)
    remember(model, bound)
    return model
