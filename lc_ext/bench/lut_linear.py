"""lut_linear: linear layer with packed codes and codebooks, in three arithmetics."""

from __future__ import annotations

import copy
import ctypes
import importlib
import importlib.util
import itertools
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nn import LUTLinear
from .harness import Case, Function, Options

_ERROR = {"exact": 2e-6, "fast": 1e-3, "int8": 2e-2}
_CACHE = 64 << 20  # bytes of layers to go around, so that none is in the caches


def cases(options: Options) -> Iterator[Case]:
    """Square weights of ``sizes`` rows, ``k`` codewords, batches of 1 to 64; batch 1 also on layers that are not in the
    caches. ``dense`` is torch's float32 layer, ``dense bfloat16`` that of weights and activations of that dtype,
    ``fbgemm`` its int8 one with dynamic activations; ``onnxruntime`` has 4 or 8 bits, a scale for 128 columns and int8
    activations. Where ``LC_GGML_SHIM`` names the library of the peers' harness: ``Q4_0`` repacked and ``TQ2_0``."""
    rng = torch.Generator().manual_seed(0)
    for side in options.sizes or ([256] if options.quick else [4096]):
        dense = torch.randn(side, side, generator=rng) / side**0.5
        peers = _Peers(dense, options.threads) if options.peers and not options.quick else None
        for k in options.k or ([16] if options.quick else [2, 4, 8, 16, 256]):
            for mode in [options.mode] if options.mode else list(_ERROR):
                codes = torch.randint(0, k, (side, side), generator=rng, dtype=torch.uint8)
                codebook = torch.special.ndtri((torch.arange(k) + 0.5) / k)
                bits = max(1, (k - 1).bit_length())
                layer = LUTLinear.from_codes(codes, codebook, mode=mode)
                weight = codebook[codes.long()]
                for batch in [1, 8] if options.quick else [1, 4, 8, 64]:
                    x = torch.randn(batch, side, generator=rng).to(options.dtype)
                    others: dict[str, Function] = {"dense": _dense(x, weight.to(x.dtype))}
                    if x.dtype is torch.float32 and not options.quick:
                        others["dense bfloat16"] = _dense(x.bfloat16(), weight.bfloat16())
                    if peers and x.dtype is torch.float32:
                        others |= peers.functions(x)
                    yield _case(x, [layer], weight, bits, mode, others)
                if not options.quick:
                    around = [copy.deepcopy(layer) for _ in range(2 + _CACHE // layer.words.nbytes)]
                    x = torch.randn(1, side, generator=rng).to(options.dtype)
                    yield _case(x, around, weight, bits, mode, {})


def _case(
    x: Tensor,
    layers: list[LUTLinear],
    weight: Tensor,
    bits: int,
    mode: str,
    peers: dict[str, Function],
) -> Case:
    side, batch, turn = weight.shape[0], x.shape[0], itertools.cycle(layers)

    def ours() -> Tensor:
        y: Tensor = next(turn)(x)
        return y

    for _ in layers:
        ours()  # derives what the kernel reads

    def verify(y: Tensor) -> dict[str, float]:
        exact = x.double() @ weight.double().T
        error = float((y - exact).norm() / exact.norm())
        assert error < _ERROR[mode] + torch.finfo(x.dtype).eps, f"error {error}"
        return {"error": error}

    words = layers[0].words
    return Case(
        {"side": side, "bits": bits, "mode": mode, "batch": batch, "weights": "cold" if len(layers) > 1 else "warm"},
        ours,
        verify,
        peers,
        source=[x, words],
        moved=4 * words.numel() + 2 * batch * side * x.element_size(),
    )


def _dense(x: Tensor, weight: Tensor) -> Function:
    return lambda: F.linear(x, weight)


class _Peers:
    """Layers of other packages for one weight, those that are here."""

    def __init__(self, weight: Tensor, threads: int) -> None:
        self.weight, self.threads = weight, threads
        self.rows, self.cols = weight.shape
        self.onnx = {bits: session for bits in (4, 8) if (session := _onnxruntime(weight, bits, threads)) is not None}
        path = os.environ.get("LC_GGML_SHIM")
        self.ggml: Any = _ggml(path) if path else None
        self.fbgemm: Any = None
        if "fbgemm" in torch.backends.quantized.supported_engines:
            torch.backends.quantized.engine = "fbgemm"
            quantized = torch.quantize_per_tensor(weight, float(weight.abs().max()) / 127, 0, torch.qint8)
            self.fbgemm = torch.ops.quantized.linear_prepack(quantized, None)

    def functions(self, x: Tensor) -> dict[str, Function]:
        found: dict[str, Function] = {}
        if self.fbgemm is not None:
            found["fbgemm"] = lambda: torch.ops.quantized.linear_dynamic(x, self.fbgemm, True)
        for bits, session in self.onnx.items():
            found[f"onnxruntime {bits}b"] = lambda s=session: s.run(None, {"x": x.numpy()})
        ggml = self.ggml
        if ggml is not None:
            y = torch.empty(x.shape[0], self.rows)
            for name, kind, repack in (("Q4_0", 2, 1), ("TQ2_0", 35, 0)):
                arguments = (kind, self.rows, self.cols, x.shape[0], self.weight.data_ptr(), repack, self.threads)
                handle = ggml.gl_new(*arguments)
                if handle:
                    found[name] = lambda h=handle: ggml.gl_run(h, x.data_ptr(), y.data_ptr())
        return found


def _ggml(path: str) -> Any:
    library = ctypes.CDLL(path)
    library.gl_new.restype = ctypes.c_void_p
    library.gl_new.argtypes = [ctypes.c_int] * 4 + [ctypes.c_void_p] + [ctypes.c_int] * 2
    library.gl_run.argtypes = [ctypes.c_void_p] * 3
    return library


def _onnxruntime(weight: Tensor, bits: int, threads: int) -> Any:
    if importlib.util.find_spec("onnx") is None or importlib.util.find_spec("onnxruntime") is None:
        return None
    helper, numpy_helper, runtime = map(importlib.import_module, ("onnx.helper", "onnx.numpy_helper", "onnxruntime"))
    kind = importlib.import_module("onnx").TensorProto.FLOAT

    rows, cols = weight.shape
    if cols % 128:
        return None
    groups = weight.view(rows, cols // 128, 128)
    scale = groups.abs().amax(2, keepdim=True) / (2 ** (bits - 1) - 0.5)
    codes = (groups / scale + 2 ** (bits - 1)).round().clamp(0, 2**bits - 1).to(torch.uint8)
    packed = codes if bits == 8 else codes[..., ::2] | codes[..., 1::2] << 4
    node = helper.make_node(
        "MatMulNBits",
        ["x", "B", "S"],
        ["y"],
        domain="com.microsoft",
        K=cols,
        N=rows,
        bits=bits,
        block_size=128,
        accuracy_level=4,
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", kind, ["M", cols])],
        [helper.make_tensor_value_info("y", kind, ["M", rows])],
        [numpy_helper.from_array(packed.numpy(), "B"), numpy_helper.from_array(scale.numpy().reshape(-1), "S")],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return runtime.InferenceSession(
        model.SerializeToString(),
        settings,
        providers=["CPUExecutionProvider"],
    )
