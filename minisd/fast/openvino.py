"""UNet, encoder and decoder, each compiled as a whole by OpenVINO, for models on a CPU.

    fast.use_openvino(sd)  # pip install 'minisd[openvino]'

PyTorch runs one operation after the other. OpenVINO sees the whole network: it fuses operations and
plans the memory. At its first call a network is converted from minisd's own modules, and kept on
the disk for pictures of all sizes. Each process compiles it for the sizes that it meets. Samplers,
ledger, trace and all other observers of a run see what they always see.
"""

import hashlib
import inspect
import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minisd.attention import attention
from minisd.checkpoint.v_prediction import VPredictionUNet
from minisd.exact_mode import is_exact
from minisd.fast.memory import give_back
from minisd.files import new_file
from minisd.stable_diffusion import StableDiffusion
from minisd.unet import CrossAttention, SpatialTransformer, UNet, timestep_embedding
from minisd.vae import VAE

PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}
# A network that is compiled for a size has weights of its own. Those used last are kept, as many as
# have this many bytes together.
MOST_BYTES = 4 << 30
LEFT_OVER = 3600  # seconds after which an unfinished file is one of a program that was killed


def use_openvino(
    sd: StableDiffusion,
    report: Callable[[str], None] = lambda line: None,
    folder: str | Path | None = None,
) -> None:
    """Let OpenVINO compute UNet and autoencoder, in place, in the dtype of their weights.

    report: gets a line before each conversion and compilation, which take seconds to a minute.
    folder: where converted networks are kept (cache_folder()). It may be deleted.

    A network that was called has no weights in PyTorch: load the checkpoint again to save or train
    it. Raises ValueError without the package openvino, on a GPU, for other dtypes than float32 and
    bfloat16, in exact mode, and for packed models. Calls raise ValueError in exact mode, for
    gradients, and if layers have hooks: none of them would be called.
    """
    dtype = next(sd.unet.parameters()).dtype
    classes = {UNet: CompiledUNet, VPredictionUNet: CompiledVPredictionUNet}
    if sd.device.type != "cpu":
        raise ValueError(f"the engine openvino is for the CPU, but the model is on {sd.device}")
    if dtype not in PRECISIONS:
        name = str(dtype).removeprefix("torch.")
        raise ValueError(f"the engine openvino computes in float32 or bfloat16, not in {name}")
    if type(sd.unet) not in classes or any(weight.is_mkldnn for weight in sd.unet.parameters()):
        raise ValueError("the model is packed or compiled already: load it again")
    refuse_exact_mode()
    import_openvino()

    unet, vae = sd.unet, sd.vae
    to_k = next(layer for name, layer in unet.named_modules() if name.endswith("attn2.to_k"))
    # The sizes of these examples do not matter: sides and number of pictures stay open.
    latent = torch.zeros(2, 4, 2 * unet.factor, 2 * unet.factor)
    call = (latent, torch.zeros(2, unet.channels), torch.zeros(2, 77, to_k.in_features))
    image = torch.zeros(2, 3, 8 * vae.factor, 8 * vae.factor)
    settings = (dtype, report, Path(folder or cache_folder()))
    unet.network = Network("UNet", [*unet.children()], Method(unet, call_unet), call, *settings)
    layers = [vae.encoder, vae.quant_conv]
    vae.to_moments = Network("encoder", layers, Method(vae, VAE.moments), (image,), *settings)
    layers = [vae.decoder, vae.post_quant_conv]
    vae.to_image = Network("decoder", layers, Method(vae, VAE.decode), (latent,), *settings)
    unet.__class__, vae.__class__ = classes[type(unet)], CompiledVAE


def cache_folder() -> Path:
    """Where converted networks are kept: $XDG_CACHE_HOME/minisd, or else ~/.cache/minisd."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "minisd"


def engine_of(sd: StableDiffusion) -> str:
    """What computes the networks: openvino and its version; empty for torch."""
    return f"openvino {version('openvino')}" if isinstance(sd.unet, CompiledUNet) else ""


def import_openvino() -> Any:
    """The package openvino. Raises ValueError if it is not installed."""
    outside = os.environ.get("CI")
    os.environ["CI"] = "true"  # otherwise the import sends a message to the package's makers
    try:
        import openvino  # noqa: PLC0415 - an extra
        import openvino.frontend.pytorch.ts_decoder  # noqa: PLC0415
    except ImportError:
        remedy = "pip install 'minisd[openvino]'"
        raise ValueError(f"the engine openvino needs the package openvino: {remedy}") from None
    finally:
        os.environ.pop("CI") if outside is None else os.environ.update(CI=outside)
    return openvino


@cache
def core() -> Any:
    """OpenVINO's Core, kept until the end of the process.

    It gives the main thread a stack for signals. If it goes away that stack goes too, but stays
    registered, and the next Ctrl-C would be a segmentation fault.
    """
    return import_openvino().Core()


def refuse_exact_mode() -> None:
    if is_exact():
        raise ValueError("exact mode is for the engine torch: openvino has arithmetic of its own")


# ---- the models ----------------------------------------------------------------------------------


class CompiledUNet(UNet):
    """Hooks on the network itself work as before, those on its layers do not."""

    network: "Network"

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        t, context = t.expand(len(x)), context.expand(len(x), -1, -1)
        if len(x) == 2 and torch.equal(x[0], x[1]) and torch.equal(t[0], t[1]):
            t = t[:1]  # the halves of a guided call: see call_unet
        # In bfloat16 OpenVINO would compute cosines and sines of rounded angles, 6 % wrong.
        return self.network(x, timestep_embedding(t, self.channels), context)


class CompiledVPredictionUNet(VPredictionUNet, CompiledUNet):
    """The conversion of v to eps is VPredictionUNet's, the network is CompiledUNet's."""


class CompiledVAE(VAE):
    to_moments: "Network"
    to_image: "Network"

    def moments(self, image: Tensor) -> Tensor:
        return self.to_moments(image)

    def decode(self, latent: Tensor) -> Tensor:
        return self.to_image(latent)


def call_unet(unet: UNet, x: Tensor, embedding: Tensor, context: Tensor) -> Tensor:
    """UNet.forward with the timesteps' embedding (B, channels) in their place, to be traced.

    With an embedding of one row, all latents in x are equal. They are computed once, until the
    first cross-attention reads the text states, which differ. (minisd/fast/halves.py has the same
    for PyTorch.) Sizes come from tensors' shapes, so that they stay open in the traced graph.
    """
    dtype = next(unet.parameters()).dtype
    hooks = [unet.time_embed.register_forward_pre_hook(lambda *_: embedding.to(dtype))]
    for row in unet.input_blocks:
        transformers = [layer for layer in row.children() if isinstance(layer, SpatialTransformer)]
        if transformers:
            to_words = transformers[0].get_submodule("transformer_blocks.0.attn2")
            hooks += [
                row.register_forward_pre_hook(lambda _, a: (a[0][: a[1].shape[0]], *a[1:])),
                to_words.register_forward_pre_hook(
                    lambda _, a: (a[0].expand(a[1].shape[0], -1, -1), a[1])
                ),
            ]
            break
    try:
        return UNet.forward(unet, x, embedding[:, 0], context)
    finally:
        for hook in hooks:
            hook.remove()


class Method(nn.Module):
    """One function of a model as a module, as the converter needs it."""

    def __init__(self, model: nn.Module, function: Callable[..., Tensor]):
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self.model, *inputs)


# ---- the engine ----------------------------------------------------------------------------------


class Network:
    """A function of tensors, converted once and compiled for each size of its inputs."""

    def __init__(
        self,
        name: str,
        layers: Sequence[nn.Module],  # those that it runs
        method: Method,
        example: tuple[Tensor, ...],
        dtype: torch.dtype,
        report: Callable[[str], None],
        folder: Path,
    ):
        self.name, self.layers, self.method, self.example = name, layers, method, example
        self.modules = [module for layer in layers for module in layer.modules()]
        self.dtype, self.report, self.folder = dtype, report, folder
        self.size = sum(x.nbytes for layer in layers for x in layer.state_dict().values())
        self.model: Any = None  # OpenVINO's, with open sizes
        self.source: Any = None  # what must live as long as that
        self.compiled: dict[tuple, Any] = {}  # by threads and sizes, the one used last at the end
        self.lock = threading.Lock()  # a compiled network computes one call at a time

    def __call__(self, *inputs: Tensor) -> Tensor:
        refuse_exact_mode()
        if any(module._forward_hooks or module._forward_pre_hooks for module in self.modules):
            seers = "attention maps, the explorer and the studio"
            raise ValueError(
                f"{seers} look into the layers of the {self.name}, which the engine openvino "
                "computes as a whole: use the engine torch"
            )
        if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
            raise ValueError("the engine openvino computes no gradients: use the engine torch")
        arrays = [x.detach().float().contiguous().numpy() for x in inputs]
        with self.lock:
            key = (torch.get_num_threads(), *(x.shape for x in inputs))
            compiled = self.compiled.pop(key, None) or self.compile(*key)
            self.compiled[key] = compiled
            return torch.from_numpy(compiled(arrays)[0]).to(inputs[0].dtype)

    def compile(self, threads: int, *shapes: torch.Size) -> Any:
        if self.model is None:
            self.load_or_convert()
        while self.compiled and (len(self.compiled) + 1) * self.size > MOST_BYTES:
            del self.compiled[next(iter(self.compiled))]
        self.report(f"openvino: compiling the {self.name} for {'x'.join(map(str, shapes[0]))}")
        model = self.model.clone()
        # Where a layer has as many places as heads, OpenVINO 2026.4 takes one for the other: its
        # attention in bfloat16 is wrong by half. With open sizes it is right.
        places = {shapes[0][-2:].numel() >> 2 * level for level in range(6)}
        heads = {module.heads for module in self.modules if isinstance(module, CrossAttention)}
        if not places & heads:
            model.reshape({i: list(shape) for i, shape in enumerate(shapes)})
        settings = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[self.dtype],
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        if self.dtype == torch.float32:
            settings["EXECUTION_MODE_HINT"] = "ACCURACY"
        compiled = core().compile_model(model, "CPU", settings)
        give_back()
        return compiled

    def load_or_convert(self) -> None:
        path = self.folder / f"{self.name.lower()}-{self.key()}.xml"
        kept = read(path)
        if kept is None:
            self.report(f"openvino: converting the {self.name}, to be kept in {self.folder}")
            self.model, self.source = converted(self.method, self.example)
            try:
                write(self.model, path)
            except OSError as error:
                self.report(f"openvino: the converted {self.name} is not kept: {error}")
            kept = read(path)
        if kept is not None:
            # The file's weights are mapped, so PyTorch's are not needed any more.
            self.model, self.source = kept, None
            for layer in self.layers:
                layer.to("meta")
            give_back()

    def key(self) -> str:
        """Names what was converted: versions, code, the layers and their settings, all weights."""
        digest = hashlib.sha256()
        for package in ("minisd", "openvino", "torch"):
            digest.update(f"{package} {version(package)} ".encode())
        for code in (UNet, VAE, attention, Network):
            digest.update(Path(inspect.getfile(code)).read_bytes())
        for layer in self.layers:
            for name, module in layer.named_modules():
                numbers = {k: v for k, v in vars(module).items() if isinstance(v, int | float)}
                digest.update(f"{name} {type(module).__name__} {module} {numbers} ".encode())
            for name, x in layer.state_dict().items():
                digest.update(f"{name} {x.dtype} {tuple(x.shape)} ".encode())
                digest.update(x.contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()[:40]


def converted(method: Method, example: tuple[Tensor, ...]) -> tuple[Any, Any]:
    """(OpenVINO's model with open sizes, the owner of its weights)."""
    frontend = import_openvino().frontend
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about shapes that become constants
        decoder = frontend.pytorch.ts_decoder.TorchScriptPythonDecoder(
            method, example_input=example, trace_kwargs={"check_trace": False}
        )
    pytorch = frontend.FrontEndManager().load_by_framework("pytorch")
    return pytorch.convert(pytorch.load(decoder)), decoder


# ---- what is kept --------------------------------------------------------------------------------


def write(model: Any, path: Path) -> None:
    """Write OpenVINO's two files: the graph, which names the check sum of both, and the weights.

    Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for file in path.parent.iterdir():
        is_part = re.fullmatch(
            r"\.[0-9a-f]{16}\.(part|xml)", file.name
        )  # new_file's, and xml below
        if is_part and time.time() - file.stat().st_mtime > LEFT_OVER:
            file.unlink(missing_ok=True)
    # The block of the weights ends first. So where there is a graph, there are its weights.
    with (
        new_file(path, lambda _: True) as graph,
        new_file(path.with_suffix(".bin"), lambda _: True) as weights,
    ):
        xml = graph.with_suffix(".xml")  # OpenVINO asks for this ending
        try:
            import_openvino().serialize(model, xml, weights)
            text = xml.read_bytes()
        except RuntimeError as error:  # the disk is full
            raise OSError(f"{error}".strip().split("\n")[-1]) from None
        finally:
            xml.unlink(missing_ok=True)
        graph.write_bytes(text + check_sum(text, weights))


def read(path: Path) -> Any:
    """OpenVINO's model; None if there is no file, or a broken one."""
    weights = path.with_suffix(".bin")
    try:
        graph, begin, rest = path.read_bytes().rpartition(b"<!--")
        if begin + rest != check_sum(graph, weights):
            return None
        return core().read_model(path, weights)
    except (OSError, ValueError, RuntimeError):
        return None


def check_sum(graph: bytes, weights: Path) -> bytes:
    """A comment that fits these two files only. Weights are summed: gigabytes in a second."""
    numbers = np.memmap(weights, np.uint8, "r")
    aligned = len(numbers) - len(numbers) % 8
    total = numbers[:aligned].view(np.int64).sum(), numbers[aligned:].sum(), len(numbers)
    text = " ".join(str(int(number)) for number in total)
    return f"<!--{hashlib.sha256(graph + text.encode()).hexdigest()}-->".encode()
