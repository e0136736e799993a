"""lc: the Learning-Compression algorithm on the kernels of lc_ext."""

from lc_ext.nn import load, save

from . import data, models
from .algorithm import LCAlgorithm
from .compressions import Compression, LowRank, Prune, Quantize, Sum
from .history import History, StepRecord
from .packing import pack
from .schedules import exponential
from .sizes import Size
from .tasks import Task

__all__ = [
    "Compression",
    "History",
    "LCAlgorithm",
    "LowRank",
    "Prune",
    "Quantize",
    "Size",
    "StepRecord",
    "Sum",
    "Task",
    "data",
    "exponential",
    "load",
    "models",
    "pack",
    "save",
]
