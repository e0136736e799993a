"""The header of an archive as bytes: JSON, deflated.

Files of the version ``LCZ2`` deflate it (raw, for the file has a checksum of its own) with a dictionary of what headers
are made of; those of the first, ``LCZ1``, are a zlib stream.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

__all__ = ["MAGICS", "deflated", "inflated"]

MAGICS = (b"LCZ1", b"LCZ2")  # by version; the last is written
MOST = 1 << 26  # bytes
_COMMON = (  # the most usual last. Part of the format: it never changes
    b'{"format":"lc_ext.packed","format_version":1,"modules":{"","shared":{},"tied":{},"tensors":[{"class":"LowRankConv2d",'
    b'"parts":[{"class":"LowRankLinear","rank":{"class":"NMLinear","n":2,"m":4,{"class":"LUTConv2d","arguments":'
    b'{"in_channels":1,"kernel_size":[3,3],"stride":[2,2],"padding":[1,1],"dilation":[1,1],"groups":1,"padding_mode":'
    b'"zeros"},"parts":[{"class":"LUTLinear","arguments":{"in_features":,"out_features":,"bits":4,"codebook_size":16,"bias":'
    b'true}}]}{"class":"SumLinear","arguments":{"bias":false}}{"class":"SparseConv2d","arguments":{"in_channels":3,'
    b'"kernel_size":[5,5],"stride":[1,1],"padding":[0,0],"dilation":[1,1],"groups":1,"padding_mode":"zeros"},"parts":'
    b'[{"class":"SparseLinear","arguments":{"in_features":784,"out_features":300,"nnz":,"bias":true,"codebook_size":31}}]},'
    b'"name":".matrix.words","dtype":"int32","shape":[,"code":"codes","bits":4,"cols":,"length":{"name":".running_mean",'
    b'"dtype":"float32","shape":[64],"code":"raw","length":256},{"name":".num_batches_tracked","dtype":"int64","shape":[],'
    b'"code":"raw","length":8},"name":".parts.0.weight","dtype":"bfloat16","code":"values","length":{"name":'
    b'".matrix.columns","dtype":"uint16","shape":[],"code":"gaps","cols":,"starts":[".matrix.row_starts",],"length":},'
    b'"name":".matrix.values","dtype":"uint8","shape":[],"code":"bytes","length":},{"name":".matrix.codebook","dtype":'
    b'"float32","shape":[31],"code":"raw","length":124},{"name":".bias","dtype":"float32","shape":[500],"code":"raw",'
    b'"length":2000}]}'
)


def deflated(spec: dict[str, Any]) -> bytes:
    """A header of the last version."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, _COMMON)
    return deflate.compress(json.dumps(spec, separators=(",", ":")).encode()) + deflate.flush()


def inflated(header: bytes | memoryview, magic: bytes) -> Any:
    """The JSON of a header of the version that ``magic`` names.

    Raises
    ------
    ValueError : if it is none.
    """
    try:
        inflate = zlib.decompressobj() if magic == MAGICS[0] else zlib.decompressobj(-15, _COMMON)
        return json.loads(inflate.decompress(header, MOST))
    except (zlib.error, ValueError) as error:
        raise ValueError(f"corrupt header: {error}") from error
