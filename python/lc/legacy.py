"""The Algorithm of the older toolkit, UCMerced's LC-model-compression. See ``docs/older_toolkit.md``."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lc_ext.nn import PackedLinear

from .algorithm import LCAlgorithm
from .compressed_model import recalibrate_bn
from .compression_types.base_types import CompressionTypeBase, Foreign, Native, driven, fit
from .compressions import Compression, Sum
from .tasks import Task
from .torch import AsIs, AsVector, ParameterTorch, View

__all__ = ["Algorithm"]

log = logging.getLogger(__name__)

OldTask = tuple[Callable[[Any], View], CompressionTypeBase, str]
BoundOldTask = tuple[View, CompressionTypeBase, str]


class Algorithm:
    """The older toolkit's interface to the LC algorithm; for anything new, see :class:`lc.LCAlgorithm`.

    Scripts may call or override the steps one by one: ``c_step``, ``multipliers_step``, ``l_step``, ``evaluate``.

    Parameters
    ----------
    model : its weights are the starting point, and hold the compressed ones after :meth:`run`.
    compression_tasks : ``{param: (view, compression, name)}``, or a list of such tuples for their sum; params are
        :class:`lc.torch.ParameterTorch`, compressions those of :mod:`lc.compression_types`.
    mu_schedule : positive values that never fall; none for direct compression alone.
    l_step_optimization : called as ``f(model, lc_penalty, step)``: it minimises the loss plus ``lc_penalty()``. The
        model is in training mode.
    evaluation_func : called as ``f(model)``, with the compressed weights in place and the model in evaluation mode.
    c_step_reps : at most so many rounds over the parts of a sum in a C step.
    bn_batches : see :class:`lc.LCAlgorithm`; the toolkit has nothing like it.
    """

    def __init__(
        self,
        model: nn.Module,
        compression_tasks: Mapping[ParameterTorch, OldTask | Sequence[OldTask]],
        mu_schedule: Iterable[float],
        l_step_optimization: Callable[..., Any],
        evaluation_func: Callable[[nn.Module], Any],
        c_step_reps: int = 10,
        bn_batches: Iterable[Any] | None = None,
    ) -> None:
        self.model = model
        self.mu = 0.0
        self.mu_schedule = list(mu_schedule)
        self.l_step_optimization = l_step_optimization
        self.evaluation_func = evaluation_func
        self.c_step_reps = c_step_reps
        self.lc_parameters = list(compression_tasks)
        self.compression_tasks = {param: _with_views(param, given) for param, given in compression_tasks.items()}
        self._tasks = [_Tasks(_as_list(tasks), c_step_reps) for tasks in self.compression_tasks.values()]
        self.driver = LCAlgorithm(
            model,
            [
                Task(param.tensors(), tasks, joint=True)  # type: ignore[arg-type]
                for param, tasks in zip(self.lc_parameters, self._tasks, strict=True)
            ],
            mu=self.mu_schedule or [1.0],  # it is given the mu of each step
            bn_batches=bn_batches,
        )
        for param, task in zip(self.lc_parameters, self.driver.tasks, strict=True):
            param.bind(task)

    # ---- the steps ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Direct compression, then the whole schedule. The model holds the compressed weights afterwards."""
        self.mu = 0.0
        self.c_step(step_number=0)
        for param in self.lc_parameters:
            param.lambda_ *= 0
        self.evaluate()
        for step, mu in enumerate(self.mu_schedule):
            self.mu = mu
            self.l_step(step)
            self.c_step(step)
            self.multipliers_step()
            self.evaluate()
        self.compression_eval()
        if self.driver.bn_batches is not None:
            recalibrate_bn(self.model, self.driver.bn_batches)

    def l_step(self, step: int) -> Any:
        """Train towards the compressed weights, by the user's function; returns what that returns."""
        self.release()
        if self.mu:
            targets = self.driver.targets(self.mu)
            for param in self.lc_parameters:
                param.pull_to([targets[t] for t in param.tensors()])  # type: ignore[index]
        with _training(self.model):
            found = self.l_step_optimization(self.model, self.lc_penalty, step)
        self.retrieve()
        return found

    def c_step(self, step_number: int) -> None:
        """Compress the weights, shifted by the multipliers, with the present mu."""
        self.release()
        for tasks in self._tasks:
            tasks.step = step_number
        distortion = self.driver.c_step(self.mu)
        log.info("C step %d: mu %.3g, ||w - Delta(Theta)||^2 %.4g", step_number, self.mu, sum(distortion.values()))

    def multipliers_step(self) -> None:
        """lambda <- lambda - mu (w - Delta(Theta))."""
        self.release()
        self.driver.multipliers_step(self.mu)

    def evaluate(self) -> Any:
        """Call the user's function with the compressed weights in place; returns what that returns."""
        before = [param.is_eval for param in self.lc_parameters]
        self.compression_eval()
        try:
            with self.driver.compressed():
                return self.evaluation_func(self.model)
        finally:
            for param, compressed in zip(self.lc_parameters, before, strict=True):
                if not compressed:
                    param.train()

    def lc_penalty(self) -> Tensor | float:
        """mu/2 ||w - target||^2 over all params, to add to the loss."""
        return sum(self.mu * 0.5 * param.lc_penalty() for param in self.lc_parameters)

    # ---- the weights in the model ------------------------------------------------------------------------------------

    def compression_eval(self) -> None:
        """Put the compressed weights in the model."""
        for param in self.lc_parameters:
            param.eval()

    def compression_train(self) -> None:
        """Put the trained weights back."""
        for param in self.lc_parameters:
            param.train()

    def release(self) -> None:
        """``release`` of all params."""
        for param in self.lc_parameters:
            param.release()

    def retrieve(self) -> None:
        """``retrieve`` of all params."""
        for param in self.lc_parameters:
            param.retrieve()

    # ---- sizes -------------------------------------------------------------------------------------------------------

    def count_params(self) -> int:
        """Numbers that the compressed weights take."""
        return sum(c.count_params() for tasks in self._tasks for c in tasks.compressions)

    def count_param_bits(self) -> int:
        """Bits that the compressed weights take; the rest of the model is not counted."""
        return sum(c.count_param_bits() for tasks in self._tasks for c in tasks.compressions)


class _Tasks(Compression):
    """All that one Param gets, as one compression for the driver: a single one, or a sum."""

    penalised = True

    def __init__(self, tasks: Sequence[BoundOldTask], rounds: int) -> None:
        self.compressions = [compression for _, compression, _ in tasks]
        # The library's own compressions need no view: theirs are of all elements, or of a tensor as it is.
        inner = [(driven if type(v) in (AsVector, AsIs) else Foreign)(c, v.pack_, v.unpack_) for v, c, _ in tasks]
        pairs = zip(self.compressions, inner, strict=True)
        self.natives = [c for c, i in pairs if isinstance(c, Native) and not isinstance(i, Foreign)]
        self.whole = inner[0] if len(inner) == 1 else Sum(inner, max_sweeps=rounds)
        self.step = 0

    def fit(self, v: Sequence[Tensor], mu: float = 0.0) -> list[Tensor]:
        """The C step."""
        for c in self.compressions:
            c.mu, c.step_number = mu, self.step
        for native in self.natives:
            native.prepare(v)
        projected = fit(self.whole, v, mu)
        for native in self.natives:
            native.record()
        return projected

    def fresh(self) -> Compression:
        """Itself: a script may have loaded a state, to go on from there."""
        return self

    @property
    def learned(self) -> bool:
        return self.whole.learned

    def decompress(self) -> list[Tensor]:
        return self.whole.decompress()

    def bits(self) -> int:
        return sum(c.count_param_bits() for c in self.compressions)

    def weight_bits(self) -> int:
        return self.whole.weight_bits()

    def summary(self) -> dict[str, float]:
        return self.whole.summary()

    def linear(self, i: int, bias: Tensor | None) -> PackedLinear | None:
        return self.whole.linear(i, bias)

    def state_dict(self) -> dict[str, Any]:
        return self.whole.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.whole.load_state_dict(state)


def _with_views(param: ParameterTorch, given: Any) -> Any:
    """The tasks of a Param with their views made; a list of one is that one."""
    if not isinstance(param, ParameterTorch):
        raise TypeError(f"compression_tasks must have ParameterTorch as its keys, got {type(param).__name__}")
    tasks = []
    for item in given if isinstance(given, list) else [given]:
        if not (isinstance(item, tuple) and len(item) == 3 and isinstance(item[1], CompressionTypeBase)):
            raise TypeError(f"a task must be (view, compression, name), or a list of such, got {item!r}")
        view, compression, name = item
        tasks.append((view(param.w_view.original_form), compression, name))
    if not tasks:
        raise ValueError("a Param must have one task at least, got an empty list")
    return tasks if len(tasks) > 1 else tasks[0]


def _as_list(tasks: BoundOldTask | list[BoundOldTask]) -> list[BoundOldTask]:
    return tasks if isinstance(tasks, list) else [tasks]


@contextlib.contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    """The model in training mode; undone afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.train()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
