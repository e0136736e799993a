"""The networks of the older toolkit, UCMerced's LC-model-compression, made of those of :mod:`lc.models`.

Each function makes a module with its layers in ``output`` and its training loss in ``loss``; the layers that the
toolkit compresses have names that begin with ``compressible``. The modules here have the toolkit's names too. For
anything new, see :mod:`lc.models`; for what differs, ``docs/older_toolkit.md``.
"""

from .lenet5 import lenet5_classic, lenet5_drop
from .lenet300 import lenet300_classic, lenet300_classic_drop, lenet300_modern, lenet300_modern_drop
from .nincif import nincif_bn
from .resnetcif import resnetcif20, resnetcif32, resnetcif44, resnetcif56, resnetcif110
from .vggcif import vggcif9_bn, vggcif11_bn, vggcif13_bn, vggcif16_bn, vggcif19_bn

__all__ = [
    "lenet5_classic",
    "lenet5_drop",
    "lenet300_classic",
    "lenet300_classic_drop",
    "lenet300_modern",
    "lenet300_modern_drop",
    "nincif_bn",
    "resnetcif20",
    "resnetcif32",
    "resnetcif44",
    "resnetcif56",
    "resnetcif110",
    "vggcif9_bn",
    "vggcif11_bn",
    "vggcif13_bn",
    "vggcif16_bn",
    "vggcif19_bn",
]
