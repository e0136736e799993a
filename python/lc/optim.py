"""Optimizers for the L step, and for training before compression."""

from .cram import CrAM
from .sam import SAM

__all__ = ["SAM", "CrAM"]
