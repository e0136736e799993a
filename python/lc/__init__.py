"""lc: the Learning-Compression algorithm on the kernels of lc_ext."""

from lc_ext.nn import load, save

from . import data, models, optim
from .algorithm import LCAlgorithm
from .calibration import calibrate
from .compressed_model import recalibrate_bn
from .compressing import compress
from .compressions import Compression, LowRank, Prune, Quantize, Sum
from .distillation import Distillation
from .finetuning import Finetuning
from .history import History, StepRecord
from .packing import pack
from .schedules import auto_mu, exponential
from .sizes import Size
from .tasks import Task, first_match

__all__ = [
    "Compression",
    "Distillation",
    "Finetuning",
    "History",
    "LCAlgorithm",
    "LowRank",
    "Prune",
    "Quantize",
    "Size",
    "StepRecord",
    "Sum",
    "Task",
    "auto_mu",
    "calibrate",
    "compress",
    "data",
    "exponential",
    "first_match",
    "load",
    "models",
    "optim",
    "pack",
    "recalibrate_bn",
    "save",
]
