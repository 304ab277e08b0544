"""The same modules by other systems, on the CPU: OpenVINO and ONNX Runtime.

    pip install '.[bench]'

Both get minisd's own module in float32, unpacked, and make of it what they like, for the shapes of
one call. In bfloat16 OpenVINO is told to calculate in it; ONNX Runtime's CPU kernels don't know it.
"""

import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

OPENVINO_NAMES = {torch.float32: "f32", torch.bfloat16: "bf16"}


def openvino(module: nn.Module, example: tuple[Tensor, ...], dtype, threads: int) -> Callable:
    import openvino

    model = openvino.convert_model(
        module, example_input=example, input=[tuple(x.shape) for x in example]
    )
    settings = {
        "INFERENCE_PRECISION_HINT": OPENVINO_NAMES[dtype],
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.compile_model(model, "CPU", settings)
    return lambda *given: compiled([x.numpy() for x in given], share_outputs=False)[0]


def onnxruntime(module: nn.Module, example: tuple[Tensor, ...], dtype, threads: int) -> Callable:
    import onnxruntime

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # of what it could also export
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(module, example, path, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    return lambda *given: session.run(None, {n: x.numpy() for n, x in zip(names, given)})[0]


SYSTEMS = {"openvino": openvino, "onnxruntime": onnxruntime}
DTYPES = {"openvino": tuple(OPENVINO_NAMES), "onnxruntime": (torch.float32,)}


class Method(nn.Module):
    """One method of a model, as the module that exporters want."""

    def __init__(self, model: nn.Module, name: str):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, *given: Tensor) -> Tensor:
        return getattr(self.model, self.name)(*given)


def compiled(system: str, module: nn.Module, dtype: torch.dtype, threads: int) -> Callable:
    """The module's function by that system, which makes it anew when the shapes change."""
    run, shapes = None, None

    def call(*given: Tensor) -> Tensor:
        nonlocal run, shapes
        if shapes != [x.shape for x in given]:
            run, shapes = None, [x.shape for x in given]  # None: gives its memory back first
            with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of shapes that the trace takes for constants
                run = SYSTEMS[system](module, tuple(x.clone() for x in given), dtype, threads)
        return torch.from_numpy(run(*given))

    return call
