"""lc_ext: kernels that compress neural networks, and packed layers that run them.

``lc_ext.ops`` has the compression steps as functions on tensors, ``lc_ext.nn`` the packed layers. The driver of the
Learning-Compression algorithm on top of them is the package ``lc``.
"""

from . import nn, ops

__all__ = ["nn", "ops"]
