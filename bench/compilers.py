"""The same modules on other systems, on the CPU: OpenVINO and ONNX Runtime.

    pip install '.[bench]'

Both get minisd's own module in float32, not packed, and compile it for the shapes of one call. In
bfloat16 OpenVINO is asked to compute in it. ONNX Runtime's CPU kernels do not support bfloat16.
"""

import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

OPENVINO_NAMES = {torch.float32: "f32", torch.bfloat16: "bf16"}


def openvino(
    module: nn.Module, example: tuple[Tensor, ...], dtype: torch.dtype, threads: int
) -> Callable:
    os.environ["CI"] = "true"  # otherwise it sends messages on its use to its makers
    import openvino  # noqa: PLC0415 - an extra

    model = openvino.convert_model(
        module, example_input=example, input=[tuple(x.shape) for x in example]
    )
    settings = {
        "INFERENCE_PRECISION_HINT": OPENVINO_NAMES[dtype],
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled_model = openvino.compile_model(model, "CPU", settings)
    return lambda *inputs: compiled_model([x.numpy() for x in inputs], share_outputs=False)[0]


def onnxruntime(
    module: nn.Module, example: tuple[Tensor, ...], dtype: torch.dtype, threads: int
) -> Callable:
    import onnxruntime  # noqa: PLC0415 - an extra

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it advertises other exports
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(module, example, path, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [argument.name for argument in session.get_inputs()]
    return lambda *inputs: session.run(None, {n: x.numpy() for n, x in zip(names, inputs)})[0]


SYSTEMS = {"openvino": openvino, "onnxruntime": onnxruntime}


class Method(nn.Module):
    """One method of a model as a module, which is what the exporters need."""

    def __init__(self, model: nn.Module, name: str):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, *inputs: Tensor) -> Tensor:
        return getattr(self.model, self.name)(*inputs)


def compiled(system: str, module: nn.Module, *, dtype: torch.dtype, threads: int) -> Callable:
    """The module's function on that system. It is compiled again when the shapes change."""
    run, shapes = None, None

    def call(*inputs: Tensor) -> Tensor:
        nonlocal run, shapes
        if shapes != [x.shape for x in inputs]:
            run, shapes = None, [x.shape for x in inputs]  # None: free its memory first
            with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about shapes that become constants
                run = SYSTEMS[system](module, tuple(x.clone() for x in inputs), dtype, threads)
        return torch.from_numpy(run(*inputs))

    return call
