"""The states in which people have SD 1.x weights: what minisd makes of each, and says of it.

A row is a state: the tool that leaves it, how the file is made, and what happens. Most files here
hold the weights of `micro` under SD 1.x's names. `inspect` must agree with `load` on all of them.
"""

import argparse
import collections
import dataclasses
import datetime
import decimal
import functools
import importlib
import json
import operator
import os
import pathlib
import re
import types
import typing
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import minisd
from minisd.checkpoint import POSITION_IDS, PREFIXES
from minisd.checkpoint.v_prediction import VPredictionUNet
from minisd.guidance import Guided
from minisd.schedule import ABAR, SIGMAS, t_to_sigma
from minisd.unet import UNet

from .hostile_files import FIRST, micro, safetensors_bytes, saved, write
from .test_checkpoint import assert_holds

U, V, C = PREFIXES.values()
Weights = dict[str, Any]
# The module: the attribute `minisd.checkpoint.load` is the function.
load_module = importlib.import_module("minisd.checkpoint.load")


class State(NamedTuple):
    tool: str
    make: Callable[[Weights], bytes]
    note: str = ""  # a warning that must come, as a regular expression; no other may
    refusal: str = ""  # the error, if the file is refused
    same: bool = True  # whether the file holds the weights of `micro`
    notes: int = 1  # how many warnings there are, if there are any


def beside(**extra: Any) -> Callable[[Weights], bytes]:
    """A .ckpt with these values beside the weights."""
    return lambda weights: saved({"state_dict": weights, **extra})


def adding(extra: Weights) -> Callable[[Weights], bytes]:
    """A .ckpt with these tensors among the weights."""
    return lambda weights: saved({"state_dict": {**weights, **extra}})


def renamed(*pairs: tuple[str, str]) -> Callable[[Weights], bytes]:
    """The weights with parts of their names replaced."""

    def make(weights: Weights) -> bytes:
        names = {name: name for name in weights}
        for old, new in pairs:
            names = {name: text.replace(old, new) for name, text in names.items()}
        assert set(names.values()) != set(names)
        return saved({"state_dict": {names[name]: value for name, value in weights.items()}})

    return make


def vae_attention(names: dict[str, str], matrices: bool) -> Callable[[Weights], bytes]:
    """The autoencoder's attention under other names, as matrices or as convolutions."""

    def make(weights: Weights) -> bytes:
        changed = {}
        for name, value in weights.items():
            head, dot, tail = name.partition("mid.attn_1.")
            part, _, last = tail.partition(".")
            key = f"{head}{dot}{names.get(part, part)}.{last}" if dot else name
            changed[key] = value[:, :, 0, 0] if dot and matrices and value.ndim == 4 else value
        return saved(changed)

    return make


def flattened(weights: Weights) -> bytes:
    """All convolutions over 1x1 pixels as matrices."""
    return saved({n: t[:, :, 0, 0] if t.shape[2:] == (1, 1) else t for n, t in weights.items()})


def changed(name: str, value: Any) -> Callable[[Weights], bytes]:
    return lambda weights: saved({**weights, name: value})


def without(name: str) -> Callable[[Weights], bytes]:
    return lambda weights: saved({key: value for key, value in weights.items() if key != name})


def metadata(**texts: str) -> Callable[[Weights], bytes]:
    return lambda w: safetensors_bytes(w, {k.replace("__", "."): t for k, t in texts.items()})


def zeroed(weights: Weights) -> bytes:
    """As a download manager leaves it: the middle third was never written."""
    data = bytearray(safetensors_bytes(weights))
    start, end = len(data) * 3 // 10, len(data) * 6 // 10
    data[start:end] = bytes(end - start)
    return bytes(data)


def zeroed_ckpt(weights: Weights) -> bytes:
    data = bytearray(saved(weights))
    start, end = len(data) * 3 // 10, len(data) * 6 // 10
    data[start:end] = bytes(end - start)
    return bytes(data)


def averages(weights: Weights) -> Weights:
    unet = {n.removeprefix("model."): t for n, t in weights.items() if n.startswith(U)}
    return {"model_ema." + name.replace(".", ""): t + 1 for name, t in unet.items()}


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


def alphas(values: Any) -> Callable[[Weights], bytes]:
    return changed("alphas_cumprod", torch.as_tensor(values, dtype=torch.float32))


COMPVIS, TRAINER = "CompVis's trainer", r"ignored .*\(the trainer of the autoencoder\)"
CLIP, TO_DIFFUSERS = r"ignored .*\(the rest of CLIP\)", "diffusers' converter"
NEW = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
OLD = {"q": "query", "k": "key", "v": "value", "proj_out": "proj_attn", "norm": "group_norm"}
WHOLE = "minisd needs a whole SD 1.x checkpoint"
FP8 = torch.float8_e4m3fn

STATES = {
    # leftovers of trainers and programs
    "training averages": State(
        COMPVIS, lambda w: saved({**w, **averages(w)}), r"ignored \d+ tensors model_ema\.\*"
    ),
    "counter of the averages": State(
        COMPVIS, adding({"model_ema.num_updates": torch.tensor(3)}), r"ignored 1 tensor model_ema"
    ),
    "logvar": State(COMPVIS, adding({"logvar": zeros(1000)}), "1 tensor logvar .CompVis's"),
    "lvlb_weights": State(COMPVIS, adding({"lvlb_weights": zeros(1000)}), "lvlb_weights"),
    "scale_factor": State(COMPVIS, adding({"scale_factor": torch.tensor(0.18)}), "scale_factor"),
    "DDIM's buffers": State(
        COMPVIS, adding({"ddim_sigmas": zeros(50), "ddim_alphas": zeros(50)}), "2 tensors ddim_"
    ),
    "denoiser.sigmas": State(
        "generative-models", adding({"denoiser.sigmas": zeros(1000)}), "1 tensor denoiser"
    ),
    "embedding_manager": State(
        "textual inversion",
        adding({"embedding_manager.initial_embeddings.*": zeros(1, 12)}),
        "the trainer of textual inversion",
    ),
    "control_model": State(
        "ControlNet",
        adding({"control_model.input_blocks.0.0.weight": zeros(32, 4, 3, 3)}),
        "the trainer of ControlNet",
    ),
    "a LoRA beside": State(
        "a merger",
        adding({"lora_unet_down_blocks_0.lora_up.weight": zeros(4, 4)}),
        "a LoRA in the same file",
    ),
    "bundled embeddings": State(
        "AUTOMATIC1111",
        adding({"bundle_emb.cat.string_to_param.*": zeros(1, 12)}),
        "embeddings that AUTOMATIC1111 bundles",
    ),
    "safety checker": State(
        TO_DIFFUSERS, adding({"safety_checker.concept_embeds": zeros(17, 8)}), "safety checker"
    ),
    "loss of the autoencoder": State(
        COMPVIS, adding({"first_stage_model.loss.logvar": zeros(1)}), TRAINER
    ),
    "loss beside": State(COMPVIS, adding({"loss.perceptual_loss.x": zeros(4)}), TRAINER),
    "averages of the autoencoder": State(
        COMPVIS,
        adding({"first_stage_model.model_ema.num_updates": torch.tensor(3)}),
        TRAINER,
    ),
    "logit_scale": State(
        "CLIP", adding({"cond_stage_model.logit_scale": torch.tensor(4.6)}), CLIP
    ),
    "text_projection": State(
        "CLIP",
        adding({"cond_stage_model.transformer.text_projection.weight": zeros(12, 12)}),
        CLIP,
    ),
    "vision_model": State(
        "CLIP",
        adding(
            {
                "cond_stage_model.transformer.vision_model.encoder.layers.0.x": zeros(8),
                "cond_stage_model.transformer.vision_model.embeddings.position_ids": torch.arange(
                    257
                )[None],
                "cond_stage_model.transformer.visual_projection.weight": zeros(8, 8),
            }
        ),
        CLIP,
    ),
    "a second text encoder's positions": State(
        "converters for SDXL",
        adding({"cond_stage_model.1.model.text_model.embeddings.position_ids": torch.arange(77)}),
        "second text encoder",
    ),
    "a trainer's counter": State(
        "a trainer", adding({"global_step": torch.tensor(9)}), "global_step .a trainer's counter"
    ),
    "leftovers of two tools": State(
        "several",
        adding({"logvar": zeros(1000), "control_model.x": zeros(1)}),
        "ignored 1 tensor logvar .*, 1 tensor control_model",
    ),
    "8-bit leftovers": State(
        "a quantizer",
        lambda w: safetensors_bytes({**w, "control_model.x": zeros(4).to(FP8)}),
        "the trainer of ControlNet",
    ),
    "a leftover and a missing weight": State(
        "a merger",
        lambda w: saved({**{k: t for k, t in w.items() if k != FIRST}, "logvar": zeros(1000)}),
        "logvar",
        f"missing {FIRST}",
    ),
    "an unknown tensor": State(
        "unknown", adding({"extra.weight": zeros(1)}), "", "SD 1.x does not have: extra.weight"
    ),
    # names: a level or a prefix too many, or too few
    "state_dict twice": State("a trainer", lambda w: saved({"state_dict": {"state_dict": w}})),
    "under model": State("a trainer", lambda w: saved({"model": w, "epoch": 3})),
    "under module": State("DeepSpeed", lambda w: saved({"module": w, "dp_world_size": 1})),
    "under another name": State("a trainer", lambda w: saved({"weights": w, "step": 1})),
    "beside other dicts": State(
        "a trainer",
        lambda w: saved({"model": w, "optimizer": {"lr": 1.0}, "scaler": {"scale": zeros(1)}}),
    ),
    "in two groups": State(
        "a trainer",
        lambda w: saved({"a": w, "b": {"x": zeros(1)}}),
        "",
        "its tensors are in several groups, not in one: a, b",
    ),
    "torch.compile": State("torch.compile", renamed((U, U + "_orig_mod."))),
    "torch.compile, all": State(
        "torch.compile", lambda w: saved({"_orig_mod." + n: t for n, t in w.items()})
    ),
    "DistributedDataParallel": State(
        "DDP", lambda w: saved({"module." + n: t for n, t in w.items()})
    ),
    "DDP inside": State("DDP", renamed((U, U + "module."))),
    "FSDP": State("FSDP", renamed((".weight", "._fsdp_wrapped_module.weight"))),
    "Fabric": State(
        "Lightning Fabric", lambda w: saved({"_forward_module." + n: t for n, t in w.items()})
    ),
    "student.": State(
        "a distiller", lambda w: saved({"student." + n: t for n, t in w.items()})
    ),
    "model. in front of all": State(
        "a trainer", lambda w: saved({"model." + n: t for n, t in w.items()})
    ),
    "text_model twice": State("a converter", renamed((C, C + "text_model."))),
    "text encoder without text_model": State(
        "NovelAI, transformers 5", renamed((C, "cond_stage_model.transformer."))
    ),
    "text encoder without transformer": State(
        "a converter", renamed((C, "cond_stage_model.text_model."))
    ),
    "the same weight twice": State(
        "a merger",
        adding({"cond_stage_model.transformer.final_layer_norm.weight": zeros(12)}),
        "",
        "occurs twice",
    ),
    # shapes and names of layers
    "attention as matrices": State("pruners", vae_attention({}, True)),
    "attention of newer diffusers": State("diffusers 0.17", vae_attention(NEW, True)),
    "attention of older diffusers": State("diffusers 0.10", vae_attention(OLD, True)),
    "newer names for convolutions": State("a converter", vae_attention(NEW, False)),
    "1x1 convolutions as matrices": State("a converter", flattened),
    # numbers
    "float64": State("a merger", lambda w: saved({n: t.double() for n, t in w.items()})),
    "one weight in integers": State(
        "a quantizer", changed(FIRST, zeros(128, 32).to(torch.int8)), "", "is stored as I8"
    ),
    "8-bit weights": State(
        "a quantizer",
        lambda w: safetensors_bytes({**w, FIRST: zeros(128, 32).to(FP8)}),
        "",
        f"{FIRST} is stored as F8_E4M3: minisd reads float32",
    ),
    "8-bit weights in a .ckpt": State(
        "a quantizer", changed(FIRST, zeros(128, 32).to(FP8)), "", f"{FIRST} is of type float8_e4m"
    ),
    "NaN": State(
        "a merger", changed(FIRST, torch.full((128, 32), torch.nan)), "", f"{FIRST} holds NaN"
    ),
    "a missing weight": State("a pruner", without(FIRST), "", f"missing {FIRST}"),
    "zeros in the middle": State(
        "a download manager", zeroed, "weights are zero throughout, the download may", same=False
    ),
    "zeros in the middle of a .ckpt": State(
        "a download manager", zeroed_ckpt, "", "damaged or cut short: download it again"
    ),
    "one zero matrix": State(
        "a merger",
        changed(FIRST, zeros(128, 32)),
        f"1 weight is zero throughout.*: {FIRST}",
        same=False,
    ),
    "bytes behind the end": State(
        "a copier", lambda w: safetensors_bytes(w) + bytes(512), "", "512 bytes follow its last"
    ),
    "cut short": State("a download", lambda w: safetensors_bytes(w)[:-1000], "", "damaged or cut"),
    # schedule and positions
    "alphas_cumprod in half": State(
        "a pruner", lambda w: saved({**w, "alphas_cumprod": torch.tensor(ABAR).half()})
    ),
    "alphas_cumprod with NaN": State(
        "a pruner", alphas([torch.nan] * 1000), "noise schedule is damaged: it holds NaN"
    ),
    "another schedule": State(
        "a trainer", alphas(np.linspace(1, 0.1, 1000)), "noise schedule is not SD 1.x's; minisd"
    ),
    "zero terminal SNR": State(
        "a trainer", alphas(np.linspace(0.99, 0, 1000)), "down to pure noise"
    ),
    "the mark of zero terminal SNR": State(
        "a trainer", adding({"ztsnr": torch.tensor([])}), "down to pure noise", notes=2
    ),
    "position ids after a merge": State(
        "a merger", changed(POSITION_IDS, torch.arange(77.0)[None] - 0.001)
    ),
    # v-prediction
    "the mark of v-prediction": State(
        "trainers for A1111", adding({"v_pred": torch.tensor([])}), "the mark of v-prediction"
    ),
    "modelspec says v": State("kohya", metadata(modelspec__prediction_type="v")),
    "ss_v_parameterization": State("kohya", metadata(ss_v_parameterization="True")),
    "modelspec says epsilon": State("kohya", metadata(modelspec__prediction_type="epsilon")),
    # values beside the weights
    "defaultdict": State("a trainer", beside(hparams=collections.defaultdict(int, a=1))),
    "the weights in a defaultdict": State(
        "a trainer", lambda w: saved({"state_dict": collections.defaultdict(int, w)})
    ),
    "Counter and deque": State(
        "a trainer", beside(a=collections.Counter("ab"), b=collections.deque([1]))
    ),
    "built-in classes": State("a trainer", beside(a=str, b=int, c=range(3), d=type(None))),
    "Ellipsis": State("a trainer", beside(a=..., b=NotImplemented, c=type(...))),
    "typing": State("a trainer", beside(a=typing.Optional[int], b=list[int])),  # noqa: UP045
    "namespaces": State(
        "a trainer", beside(a=types.SimpleNamespace(b=1), c=argparse.Namespace(d=2))
    ),
    "functools and operator": State(
        "a trainer", beside(a=functools.partial(int, base=2), b=operator.itemgetter(1))
    ),
    "numpy": State("a trainer", beside(a=np.float32(3), b=np.arange(3), c=np.dtype("f4"))),
    "dates and paths": State(
        "a trainer",
        beside(a=datetime.datetime(2023, 1, 1), b=pathlib.PurePosixPath("x"), c=decimal.Decimal(1)),
    ),
    "sparse optimizer state": State("a trainer", beside(a=[torch.eye(3).to_sparse()])),
    "torch's own values": State(
        "a trainer", beside(a=torch.float16, b=torch.device("cpu"), c=torch.Size([1]))
    ),
    "a module object": State("a trainer", beside(a=torch.nn.Linear(2, 2))),
    "metadata of others under minisd": State(
        "unknown", metadata(minisd="v1"), "under the key 'minisd' is ignored"
    ),
    # models that look like SD 1.x
    "LCM": State(
        "LCM", adding({U + "time_embed.cond_proj.weight": zeros(32, 256)}), "", "LCM checkpoint"
    ),
    "GLIGEN": State(
        "GLIGEN", adding({U + "position_net.linears.0.weight": zeros(4)}), "", "GLIGEN checkpoint"
    ),
    "image variations": State(
        "Lambda Labs",
        lambda w: saved(
            {
                **{n: t for n, t in w.items() if not n.startswith(C)},
                "cond_stage_model.model.visual.ln_post.weight": zeros(8),
            }
        ),
        "",
        "an image variations checkpoint",
    ),
    "Zero123": State(
        "Zero123",
        adding({"cc_projection.weight": zeros(4, 4)}),
        "",
        "a Zero123 checkpoint",
    ),
    "AltDiffusion": State(
        "AltDiffusion",
        lambda w: saved(
            {
                **{n: t for n, t in w.items() if not n.startswith(C)},
                "cond_stage_model.roberta.embeddings.word_embeddings.weight": zeros(8, 8),
            }
        ),
        "",
        "an AltDiffusion checkpoint",
    ),
    "Taiyi": State(
        "Taiyi",
        lambda w: saved(
            {
                **{n: t for n, t in w.items() if not n.startswith(C)},
                "cond_stage_model.transformer.embeddings.word_embeddings.weight": zeros(8, 8),
            }
        ),
        "",
        "BERT as its text encoder",
    ),
    "a motion module": State(
        "AnimateDiff",
        lambda w: saved(
            {"down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": zeros(4)}
        ),
        "",
        "an AnimateDiff motion module",
    ),
    "LoHa": State("LyCORIS", lambda w: saved({"lora_unet_x.hada_w1_a": zeros(4)}), "", "a LoRA"),
    "IP-Adapter": State(
        "IP-Adapter", lambda w: saved({"image_proj.norm.weight": zeros(4)}), "", "IP-Adapter"
    ),
    "learned_embeds": State(
        "diffusers", lambda w: saved({"<cat>": zeros(768)}), "", "a textual inversion embedding"
    ),
    "an autoencoder alone": State(
        "Stability",
        lambda w: saved({n.removeprefix(V): t for n, t in w.items() if n.startswith(V)}),
        "",
        f"an autoencoder alone: {WHOLE} in one file; --vae takes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_state(state: State, tmp_path: Path):
    path = write(tmp_path / "model.ckpt", state.make(micro()))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if state.refusal:
            with pytest.raises(minisd.CheckpointError, match=state.refusal) as error:
                minisd.load(path)
            assert str(error.value).isprintable() and str(error.value).count(str(path)) == 1
        else:
            sd = minisd.load(path)
            if state.same:
                assert_holds(sd, micro())
    messages = [str(warning.message) for warning in caught]
    if state.note:
        assert any(re.search(state.note, message) for message in messages), messages
        assert len(messages) == state.notes
    else:
        assert messages == []


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_inspect_agrees_with_load(state: State, tmp_path: Path):
    """It gives a reason only for files that are refused. It raises only for those, too."""
    path = write(tmp_path / "model.ckpt", state.make(micro()))
    try:
        result = minisd.inspect(path)
    except minisd.CheckpointError as error:
        assert state.refusal and re.search(state.refusal, str(error))
        return
    assert not result.reason or state.refusal
    assert result.sentence.startswith(f"This is {result.kind}") and result.sentence.endswith(".")
    assert json.loads(json.dumps(dataclasses.asdict(result)))["kind"] == result.kind


def test_there_are_enough_states():
    assert len(STATES) >= 60 and all(state.tool for state in STATES.values())


# ---- v-prediction --------------------------------------------------------------------------------

STATE_V = {
    "the tensor v_pred": lambda folder: (saved({**micro(), "v_pred": torch.tensor([])}), {}),
    "the metadata modelspec.prediction_type": lambda folder: (
        safetensors_bytes(micro(), metadata={"modelspec.prediction_type": "v"}),
        {},
    ),
    "the metadata ss_v_parameterization": lambda folder: (
        safetensors_bytes(micro(), metadata={"ss_v_parameterization": "True"}),
        {},
    ),
    "model.yaml": lambda folder: (
        write(folder / "model.yaml", b'model:\n  params:\n    parameterization: "v"  # x\n')
        and saved(micro()),
        {},
    ),
    "": lambda folder: (saved(micro()), {"prediction": "v"}),
}


@pytest.mark.filterwarnings("ignore:ignored 1 tensor v_pred")
@pytest.mark.parametrize("source", STATE_V)
def test_v_prediction_is_never_run_as_eps(source: str, tmp_path: Path):
    data, switches = STATE_V[source](tmp_path)
    path = write(tmp_path / "model.ckpt", data)
    plain = minisd.load(write(tmp_path / "plain.ckpt", saved(micro())))
    sd = minisd.load(path, **switches)
    assert type(sd.unet) is VPredictionUNet and type(plain.unet) is not VPredictionUNet
    assert_holds(sd, micro())
    if source:
        result = minisd.inspect(path)
        assert (result.prediction, result.prediction_source) == ("v", source)
        assert "that predicts v" in result.sentence
    as_eps = minisd.load(path, prediction="eps")  # the user knows better
    assert type(as_eps.unet) is not VPredictionUNet


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"parameterization: eps\n",
        b"# parameterization: v\n",
        b"a: {parameterization: v}\n",
        b"x" * (1 << 17) + b"\nparameterization: v\n",
        b"\xff\xfe\x00parameterization",
        b"!!python/object/apply:os.system ['true']\nparameterization: !!python/name:os.system v\n",
        b"&a [*a, *a]\n" * 1000,
    ],
    ids=["empty", "eps", "comment", "flow", "too far behind", "not text", "tags", "aliases"],
)
def test_a_yaml_that_says_nothing_of_v(text: bytes, tmp_path: Path):
    write(tmp_path / "model.yaml", text)
    sd = minisd.load(write(tmp_path / "model.ckpt", saved(micro())))
    assert type(sd.unet) is not VPredictionUNet


def test_a_yaml_that_is_not_a_file(tmp_path: Path):
    (tmp_path / "model.yaml").mkdir()
    minisd.load(write(tmp_path / "model.ckpt", saved(micro())))
    if hasattr(os, "mkfifo"):  # opening one would wait for a writer
        os.mkfifo(tmp_path / "pipe.yaml")
        minisd.load(write(tmp_path / "pipe.ckpt", saved(micro())))


def test_eps_from_v_is_exact(monkeypatch: pytest.MonkeyPatch):
    """For normal latents of standard deviation s the best v is known, and so is the best eps.

    With x = x0 + sigma * noise, the best x0 is x s^2 / (s^2 + sigma^2); eps follows from it.
    """
    s = 0.7

    def best_v(self: UNet, x_in: torch.Tensor, t: torch.Tensor, context: torch.Tensor):
        sigma = torch.tensor([t_to_sigma(float(value)) for value in t], dtype=torch.float64)
        sigma = sigma[:, None, None, None]
        x = x_in * (sigma**2 + 1).sqrt()
        x0 = x * s**2 / (s**2 + sigma**2)
        eps = (x - x0) / sigma
        return (eps - sigma * x0) / (sigma**2 + 1).sqrt()  # v = alpha eps - sigma alpha x0

    monkeypatch.setattr(UNet, "forward", best_v)
    unet = VPredictionUNet.__new__(VPredictionUNet)
    predict_eps = Guided(
        functools.partial(VPredictionUNet.forward, unet), *[zeros(1, 77, 1)] * 2, 1
    )
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t in (0.0, 0.25, 1.0, 17.3, 500.5, 998.9, 999.0):
        sigma = t_to_sigma(t)
        x_t = x * (s**2 + sigma**2) ** 0.5
        eps = predict_eps(x_t, sigma)
        assert (eps - x_t * sigma / (s**2 + sigma**2)).abs().max() < 2e-6


def test_eps_from_v_is_diffusers():
    scheduling = pytest.importorskip("diffusers.schedulers.scheduling_ddim")
    scheduler = scheduling.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    scheduler.set_timesteps(10)
    rng = torch.Generator().manual_seed(0)
    for t in scheduler.timesteps[:9]:
        x_in, v = torch.randn(2, 1, 4, 8, 8, generator=rng)
        x0 = scheduler.step(v, t, x_in).pred_original_sample
        sigma = float(SIGMAS[t])
        expected = (x_in * (sigma**2 + 1) ** 0.5 - x0) / sigma  # eps that gives this x0
        eps = (v + sigma * x_in) / (sigma**2 + 1) ** 0.5
        torch.testing.assert_close(eps, expected, rtol=1e-4, atol=1e-4)


def test_a_picture_from_a_v_model(tmp_path: Path):
    """Layers that answer 0 mean v = 0, so eps = sigma x / (sigma^2 + 1) at every step."""
    weights = {**micro(), U + "out.2.weight": zeros(4, 32, 3, 3), U + "out.2.bias": zeros(4)}
    path = write(tmp_path / "model.ckpt", saved(weights))
    with pytest.warns(UserWarning, match="1 weight is zero throughout"):
        sd = minisd.load(path, prediction="v")
    steps = []
    minisd.txt2img(
        sd, "fire", width=32, height=32, steps=3, seed=1, sampler="k_euler", guidance=3.0,
        observe=lambda event: isinstance(event, minisd.Step) and steps.append(event),
    )  # fmt: skip
    assert len(steps) == 3
    for step in steps:
        expected = step.x * step.sigma / (step.sigma**2 + 1)
        torch.testing.assert_close(step.eps, expected, rtol=1e-5, atol=1e-6)


# ---- another autoencoder, training averages ------------------------------------------------------


def vae_of(shift: float) -> Weights:
    return {name: value + shift for name, value in micro().items() if name.startswith(V)}


VAE_FORMS = {
    "with prefix": saved,
    "without prefix": lambda w: saved({n.removeprefix(V): t for n, t in w.items()}),
    "Stability's": lambda w: saved(
        {
            "state_dict": {
                **{n.removeprefix(V): t for n, t in w.items()},
                "loss.logvar": zeros(1),
                "model_ema.decay": zeros(1),
            }
        }
    ),
    "safetensors": lambda w: safetensors_bytes({n.removeprefix(V): t for n, t in w.items()}),
    "a whole checkpoint": lambda w: saved({**micro(), **w}),
    "matrices": lambda w: vae_attention(NEW, True)({n.removeprefix(V): t for n, t in w.items()}),
}


@pytest.mark.parametrize("form", VAE_FORMS.values(), ids=VAE_FORMS)
def test_another_autoencoder(form: Callable[[Weights], bytes], tmp_path: Path):
    path = write(tmp_path / "model.ckpt", saved(micro()))
    vae = write(tmp_path / "vae.ckpt", form(vae_of(0.5)))
    sd = minisd.load(path, vae=vae)
    assert_holds(sd, {**micro(), **vae_of(0.5)})
    assert (sd.path, sd.vae_path) == (path, vae)
    assert minisd.load(path).vae_path is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: saved({"encoder.down_blocks.0.x": zeros(1)}), "it holds no autoencoder of SD 1"),
        (lambda: saved({"a": zeros(1)}), "it holds no autoencoder of SD 1.x"),
        (
            lambda: saved({n: t for n, t in vae_of(0).items() if "conv_in" not in n}),
            "missing first",
        ),
        (lambda: b"<html>", "a web page"),
    ],
)
def test_not_an_autoencoder(make: Callable[[], bytes], message: str, tmp_path: Path):
    path = write(tmp_path / "model.ckpt", saved(micro()))
    vae = write(tmp_path / "vae.pt", make())
    with pytest.raises(minisd.CheckpointError, match=message) as error:
        minisd.load(path, vae=vae)
    assert str(vae) in str(error.value)


def test_training_averages(tmp_path: Path):
    path = write(tmp_path / "model.ckpt", saved({**micro(), **averages(micro())}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sd = minisd.load(path, ema=True)
    expected = {name: t + 1 if name.startswith(U) else t for name, t in micro().items()}
    assert_holds(sd, expected)
    assert sd.ema and not minisd.load().ema
    plain = write(tmp_path / "plain.ckpt", saved(micro()))
    with pytest.raises(minisd.CheckpointError, match=r"averages .* of no weight"):
        minisd.load(plain, ema=True)
    five = dict(list(averages(micro()).items())[:5])
    part = write(tmp_path / "part.ckpt", saved({**micro(), **five}))
    with pytest.raises(minisd.CheckpointError, match="of 5 of the UNet's"):
        minisd.load(part, ema=True)


# ---- devices, and names that name nothing --------------------------------------------------------


@pytest.mark.parametrize("device", ["meta", "hpu", "privateuseone:0", "cuda:99", "nonsense", "ve"])
def test_a_device_that_cannot_be_used(device: str, monkeypatch: pytest.MonkeyPatch):
    """It is refused before the file is opened: reading it may take minutes."""
    monkeypatch.setattr(load_module, "read_tensors", lambda path: pytest.fail("it was read"))
    with pytest.raises(ValueError, match=f"the device {device} cannot be used: ."):
        minisd.load(device=device)


def test_an_empty_path_is_not_the_weights_in_the_box():
    with pytest.raises(minisd.CheckpointError, match="folder"):
        minisd.load("")


# ---- an open model -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_open_model_does_not_depend_on_its_file(dtype: torch.dtype, tmp_path: Path):
    """Neither when the file is overwritten, nor when it is cut."""
    path = write(tmp_path / "model.safetensors", safetensors_bytes(micro()))
    sd = minisd.load(path, dtype=dtype)
    mappings = Path("/proc/self/maps")
    if mappings.exists():  # reading a mapped file that was cut would end this process
        assert str(path) not in mappings.read_text()
    tensors = [t for part in (sd.unet, sd.vae, sd.text_encoder) for t in part.state_dict().values()]
    before = [tensor.clone() for tensor in tensors]
    write(path, bytes(path.stat().st_size))
    assert all(map(torch.equal, before, tensors))
    os.truncate(path, 100)
    assert all(map(torch.equal, before, tensors))
