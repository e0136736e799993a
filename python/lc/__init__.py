"""lc: the Learning-Compression algorithm on the kernels of lc_ext."""

from lc_ext.nn import archive_parts, load, save

from . import criteria, data, models, optim, recipes
from .algorithm import LCAlgorithm
from .calibration import calibrate
from .compensation import compensate
from .compressed_model import recalibrate_bn
from .compressing import compress
from .compressions import (
    Binary,
    Compression,
    GroupPrune,
    L0Penalty,
    L1Ball,
    L1Penalty,
    L2Ball,
    L2Penalty,
    Levels,
    LowRank,
    NMPrune,
    PowersOfTwo,
    Prune,
    Quantize,
    RankSelection,
    SparseCodebook,
    Sum,
    SymmetricInt,
    Ternary,
    Tucker2,
    VectorQuantize,
)
from .cram import one_shot
from .distillation import Distillation
from .finetuning import Finetuning
from .history import History, StepRecord
from .legacy import Algorithm
from .packing import pack
from .post_training import post_train
from .profiling import LayerProfile, Profile, profile
from .schedules import auto_mu, exponential
from .sizes import Size
from .tasks import Task, first_match

__all__ = [
    "Algorithm",
    "Binary",
    "Compression",
    "Distillation",
    "Finetuning",
    "GroupPrune",
    "History",
    "L0Penalty",
    "L1Ball",
    "L1Penalty",
    "L2Ball",
    "L2Penalty",
    "LCAlgorithm",
    "LayerProfile",
    "Levels",
    "LowRank",
    "NMPrune",
    "PowersOfTwo",
    "Profile",
    "Prune",
    "Quantize",
    "RankSelection",
    "Size",
    "SparseCodebook",
    "StepRecord",
    "Sum",
    "SymmetricInt",
    "Task",
    "Ternary",
    "Tucker2",
    "VectorQuantize",
    "archive_parts",
    "auto_mu",
    "calibrate",
    "compensate",
    "compress",
    "criteria",
    "data",
    "exponential",
    "first_match",
    "load",
    "models",
    "one_shot",
    "optim",
    "pack",
    "post_train",
    "profile",
    "recalibrate_bn",
    "recipes",
    "save",
]
