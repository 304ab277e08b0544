"""The architecture of a checkpoint's three models, inferred from its tensors' names and shapes."""

from collections.abc import Callable, Iterable
from statistics import mode
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from minisd.checkpoint.names import PREFIXES, Shapes
from minisd.checkpoint.tensors import CheckpointError
from minisd.checkpoint.v_prediction import VPredictionUNet
from minisd.text_encoder import TextEncoder
from minisd.unet import Row, Table, UNet
from minisd.vae import VAE


class Models(NamedTuple):
    unet: UNet
    vae: VAE
    text_encoder: TextEncoder


def build(
    shapes: dict[str, Shapes], unet_heads: int = 8, text_heads: int = 12, prediction: str = "eps"
) -> Models:
    """The three models that these names and shapes describe, on the meta device: without memory.

    shapes: of each model's tensors, by PREFIXES's keys, names without the prefix. prediction: "eps"
    or "v", what the UNet's layers predict. Raises
    CheckpointError, which lists mismatches against the inferred architecture or against SD 1.x,
    whichever has fewer.
    """
    unet = VPredictionUNet if prediction == "v" else UNet
    makers: dict[str, Callable[[], nn.Module]] = {
        "unet": lambda: unet(unet_table(shapes["unet"]), unet_heads),
        "vae": lambda: VAE(**vae_size(shapes["vae"])),
        "text_encoder": lambda: TextEncoder(
            **text_encoder_size(shapes["text_encoder"]), heads=text_heads
        ),
    }
    originals = {"unet": UNet, "vae": VAE, "text_encoder": TextEncoder}
    models: dict[str, Any] = {}
    problems = []
    with torch.device("meta"), WithoutInit():
        for part, make in makers.items():
            candidates = []
            try:
                models[part] = make()
                candidates.append(differences(shapes[part], models[part], PREFIXES[part]))
            except (LookupError, ValueError, RuntimeError, StopIteration):
                pass  # nothing can be inferred: compare with SD 1.x alone
            if candidates != [[]]:
                original = originals[part]()
                candidates.append(differences(shapes[part], original, PREFIXES[part]))
                problems += min(candidates, key=len)
    if problems:
        raise CheckpointError(shortened(problems, "; "))
    check_heads(models["unet"], unet_heads, PREFIXES["unet"])
    check_heads(models["text_encoder"], text_heads, PREFIXES["text_encoder"])
    expected = context_width(shapes["unet"])
    given = shapes["text_encoder"]["final_layer_norm.weight"][0]
    if expected != given:
        widths = f"its UNet reads {expected} channels of text, its text encoder makes {given}"
        raise CheckpointError(f"{widths}: they do not belong to one model")
    return Models(**models)


class WithoutInit(TorchFunctionMode):
    """New layers get no random numbers: they would be replaced anyway.

    On the meta device, random numbers make torch import its compiler. That takes a second, and
    Ctrl-C during this import would spoil it for the rest of the process.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def differences(shapes: Shapes, model: nn.Module, prefix: str) -> list[str]:
    """A line for each name that is missing, unknown or of another shape than in the model."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return [
        *(f"missing {prefix}{name}" for name in expected if name not in shapes),
        *(f"unknown {prefix}{name}" for name in shapes if name not in expected),
        *(
            f"wrong shape: {prefix}{name} is {shapes[name]}, should be {shape}"
            for name, shape in expected.items()
            if name in shapes and shapes[name] != shape
        ),
    ]


def check_heads(model: nn.Module, heads: int, prefix: str) -> None:
    for name, module in model.named_modules():
        query = getattr(module, "to_q", getattr(module, "q_proj", None))
        if isinstance(query, nn.Linear) and query.out_features % heads:
            channels = f"the {query.out_features} channels of {prefix}{name}"
            raise CheckpointError(f"{heads} heads do not divide {channels}")


def shortened(items: list[str], separator: str = ", ", limit: int = 8) -> str:
    """The first of these, in one line, and how many more there are."""
    rest = f"{separator}and {len(items) - limit:,} more" if len(items) > limit else ""
    return separator.join(item[:150] for item in items[:limit]) + rest


# ---- the arguments of UNet, VAE and TextEncoder --------------------------------------------------


def unet_table(shapes: Shapes) -> Table:
    """The rows of the UNet. Raises LookupError, ValueError, StopIteration if none can be inferred.

    Only the first convolution and the residual blocks choose a width. Each row reads the output of
    the row before it; on the way up it also reads the output of an input block.
    """
    layers_by_child = {  # what a layer is, by the name of a child that no other layer has
        "weight": "conv",
        "op": "down",
        "conv": "up",
        "in_layers": "res",
        "transformer_blocks": "attn",
    }

    def layers_and_width(prefix: str, c: int) -> tuple[str, int]:
        block = {
            name.removeprefix(prefix): shape
            for name, shape in shapes.items()
            if name.startswith(prefix)
        }
        layers = []
        for i in range(count_children(block, "", 4)):
            children = {name.split(".")[1] for name in block if name.startswith(f"{i}.")}
            layers.append(next(kind for c, kind in layers_by_child.items() if c in children))
            if layers[-1] in ("conv", "res"):
                outputs = f"{i}.out_layers." if layers[-1] == "res" else f"{i}."
                # The width that most of its tensors have. If one of them has a wrong shape, the
                # message then names that one, and not all its neighbours.
                c = mode(shape[0] for name, shape in block.items() if name.startswith(outputs))
        return " ".join(layers), c

    c, skips, input_blocks, output_blocks = 4, [], [], []
    for i in range(count_children(shapes, "input_blocks.", 20)):
        layers, c_out = layers_and_width(f"input_blocks.{i}.", c)
        input_blocks.append(Row(layers, c, c_out))
        c = c_out
        skips.append(c)
    layers, c_out = layers_and_width("middle_block.", c)
    middle_block = Row(layers, c, c_out)
    c = c_out
    for i in range(count_children(shapes, "output_blocks.", 20)):
        layers, c_out = layers_and_width(f"output_blocks.{i}.", c)
        output_blocks.append(Row(layers, c + skips.pop(), c_out))
        c = c_out
    return Table(tuple(input_blocks), middle_block, tuple(output_blocks), context_width(shapes))


def context_width(shapes: Shapes) -> int:
    """Channels of the text states that the UNet reads: those that most of its layers read."""
    return mode(shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight"))


def vae_size(shapes: Shapes) -> dict[str, Any]:
    """The arguments of VAE. Raises LookupError, ValueError if they cannot be inferred."""
    levels = range(count_children(shapes, "encoder.down.", 8))
    return {
        "ch": shapes["encoder.conv_in.weight"][0],
        "widths": tuple(shapes[f"encoder.down.{i}.block.0.norm2.weight"][0] for i in levels),
        "blocks": count_children(shapes, "encoder.down.0.block.", 8),
    }


def text_encoder_size(shapes: Shapes) -> dict[str, int]:
    """The arguments of TextEncoder but heads, which names and shapes do not show.

    Raises LookupError, ValueError if they cannot be inferred.
    """
    return {
        "width": shapes["final_layer_norm.weight"][0],
        "layers": count_children(shapes, "encoder.layers.", 40),
        "hidden": shapes["encoder.layers.0.mlp.fc1.weight"][0],
    }


def count_children(names: Iterable[str], prefix: str, limit: int) -> int:
    """How many different children a module has. More than `limit`, from a made-up file, would take
    minutes to build: ValueError."""
    n = len({name[len(prefix) :].split(".")[0] for name in names if name.startswith(prefix)})
    if n > limit:
        raise ValueError(f"{prefix}* has {n} children")
    return n
