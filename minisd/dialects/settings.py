"""The settings of other programs' runs, in their own words -> recipes.

`settings` are those of tests/golden/dialects.safetensors: A1111's processing object, ComfyUI's
KSampler, the arguments of diffusers' pipelines and of CompVis's scripts, InvokeAI's generators.
"""

from collections.abc import Mapping
from typing import Any

from minisd.dialects import comfyui, compvis, diffusers
from minisd.prompts.syntax import escaped
from minisd.recipes import a1111_names as a1111
from minisd.recipes.recipe import INIT_IMAGE, Recipe

SIDE = 128  # pixels, where the settings have no width and height

# AUTOMATIC1111's options, and ours.
A1111_OPTIONS = {
    "randn_source": "noise_source",
    "eta_noise_seed_delta": "ensd",
    "img2img_fix_steps": "exact_steps",
    "img2img_extra_noise": "extra_noise",
    "enable_quantization": "quantize",
    "use_downcasted_alpha_bar": "downcast",
    "use_old_karras_scheduler_sigmas": "old_karras",
    "always_discard_next_to_last_sigma": "discard_next_to_last",
    "sgm_noise_multiplier": "sgm_noise",
    "pad_cond_uncond": "pad_conds",
    "pad_cond_uncond_v0": "pad_conds_v0",
    "s_min_uncond_all": "ngms_all",
    "comma_padding_backtrack": "comma_backtrack",
    "use_old_scheduling": "old_editing",
    "emphasis": "emphasis",
    "sigma_min": "sigma_min",
    "sigma_max": "sigma_max",
    "rho": "rho",
}


def from_settings(program: str, settings: Mapping[str, Any]) -> Recipe:
    """The recipe of a run: program a1, comfy, diffusers, compvis or invokeai.

    An init image is INIT_IMAGE: pass it to `draw`. Raises ValueError for an unknown program.
    """
    makers = {
        "a1": from_a1111,
        "comfy": from_comfyui,
        "diffusers": from_diffusers,
        "compvis": from_compvis,
        "invokeai": from_invokeai,
    }
    if program not in makers:
        raise ValueError(f"there is no program {program!r}; choose from {', '.join(makers)}")
    return makers[program](settings)


def from_a1111(settings: Mapping[str, Any]) -> Recipe:
    given = dict(settings.get("options", {}))
    name = settings["sampler_name"]
    sampler = a1111.SAMPLERS.get(name, "dpmpp_2m_sde")
    options = {ours: given[key] for key, ours in A1111_OPTIONS.items() if key in given}
    eta = given.get("eta_ddim" if sampler == "ddim" else "eta_ancestral")
    more = {
        "eta": eta,
        "noise_multiplier": settings.get("initial_noise_multiplier"),
        "ngms": settings.get("s_min_uncond"),
        "solver": "heun" if name == a1111.HEUN else None,
    }
    options |= {key: value for key, value in more.items() if value is not None}
    known = {*A1111_OPTIONS, "eta_ddim", "eta_ancestral", "CLIP_stop_at_last_layers"}
    unknown = [f"the option {key}={given[key]!r} was left out" for key in given if key not in known]
    variations = ()
    if settings.get("subseed_strength"):
        variations = ((settings["subseed"], settings["subseed_strength"]),)
    fields: dict[str, Any] = {}
    if settings["kind"] == "img2img":
        fields = {"image": INIT_IMAGE, "strength": settings["denoising_strength"]}
    return Recipe(
        settings["prompt"],
        negative_prompt=settings["negative_prompt"],
        steps=settings["steps"],
        sampler=sampler,
        schedule=a1111.schedule_named(settings["scheduler"], sampler),
        guidance=settings["cfg_scale"],
        seed=settings["seed"],
        width=settings["width"],
        height=settings["height"],
        clip_skip=given.get("CLIP_stop_at_last_layers", 1),
        variations=variations,
        dialect="a1111",
        options=options,
        notes=tuple(unknown),
        **fields,
    )


def from_comfyui(settings: Mapping[str, Any]) -> Recipe:
    options = {}
    if settings.get("start_step") is not None:
        options = {"start_step": settings["start_step"], "end_step": settings.get("last_step")}
        options |= {"full_denoise": bool(settings.get("force_full_denoise", False))}
    fields: dict[str, Any] = {}
    if settings.get("denoise") is not None:
        fields = {"image": INIT_IMAGE, "strength": settings["denoise"]}
    return Recipe(
        settings["prompt"],
        negative_prompt=settings["negative"],
        steps=settings["steps"],
        sampler=comfyui.NAMES[settings["sampler"]],
        schedule=settings["scheduler"],
        guidance=settings["cfg"],
        seed=settings["seed"],
        width=settings.get("width", SIDE),
        height=settings.get("height", SIDE),
        clip_skip=-settings.get("clip_skip", -1),
        dialect="comfyui",
        options=options,
        **fields,
    )


def from_diffusers(settings: Mapping[str, Any]) -> Recipe:
    """clip_skip 1 there is 2 here."""
    sampler = diffusers.NAMES[settings["scheduler"]]
    options: dict[str, Any] = {"spacing": settings["timestep_spacing"]}
    if settings.get("eta") is not None:
        options["eta"] = settings["eta"]
    fields: dict[str, Any] = {}
    if settings["kind"] != "txt2img":
        fields = {"image": INIT_IMAGE, "strength": settings["strength"]}
    return Recipe(
        settings["prompt"],
        negative_prompt=settings["negative"],
        steps=settings["steps"],
        sampler=sampler,
        schedule="karras" if settings.get("use_karras_sigmas") else None,
        guidance=settings["scale"],
        seed=settings["seed"],
        width=settings.get("width", SIDE),
        height=settings.get("height", SIDE),
        clip_skip=1 + (settings.get("clip_skip") or 0),
        dialect="diffusers",
        options=options,
        **fields,
    )


def from_compvis(settings: Mapping[str, Any]) -> Recipe:
    """The runs were made on a CPU. On a GPU, as usual, the noise_source is GPU."""
    options: dict[str, Any] = {"noise_source": settings.get("noise_source", "CPU")}
    if settings.get("eta") is not None:
        options["eta"] = settings["eta"]
    if settings.get("n_samples", 1) != 1:
        options["batch"] = settings["n_samples"]
    is_img2img = settings["kind"] == "img2img"
    fields: dict[str, Any] = {}
    if is_img2img:
        fields = {"image": INIT_IMAGE, "strength": settings["strength"]}
    return Recipe(
        settings["prompt"],
        steps=settings["ddim_steps" if is_img2img else "S"],
        sampler=compvis.NAMES[settings.get("sampler", "ddim")],
        guidance=settings.get("scale", 5.0 if is_img2img else 7.5),
        seed=settings["seed"],
        width=settings.get("W", SIDE),
        height=settings.get("H", SIDE),
        dialect="compvis",
        options=options,
        **fields,
    )


def from_invokeai(settings: Mapping[str, Any]) -> Recipe:
    """The runs were made on a CPU."""
    version = settings["tag"].lstrip("v").split("-")[0]
    prompt = settings.get("prompt")
    if prompt is None:
        pairs = zip(settings["frags"], settings["weights"], strict=True)
        prompt = "".join(
            escaped(text) if weight == 1 else f"({escaped(text)}){weight!r}"
            for text, weight in pairs
        )
    options: dict[str, Any] = {"noise_source": settings.get("noise_source", "CPU")}
    dialect = "invokeai-2.0" if version < "2.1" else "invokeai-2.2"
    era = "2.1" if "2.1" <= version < "2.2.5" else version
    if era not in ("2.0.0", "2.2.5"):  # which are the dialects' own
        options["era"] = era
    fields: dict[str, Any] = {}
    if settings["kind"] == "img2img":
        fields = {"image": INIT_IMAGE, "strength": settings["strength"]}
    return Recipe(
        prompt,
        negative_prompt=settings["neg"],
        steps=settings["steps"],
        sampler=settings["sampler"],
        guidance=settings["cfg"],
        seed=settings["seed"],
        width=settings.get("width", SIDE),
        height=settings.get("height", SIDE),
        dialect=dialect,
        options=options,
        **fields,
    )
