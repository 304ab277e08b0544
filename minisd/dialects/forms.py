"""What `translate` writes: prompts in another program's syntax, and settings in its form."""

import json
from dataclasses import replace

from minisd.dialects import a1111_prompts, comfyui_prompts, diffusers
from minisd.prompts.syntax import escaped, parse
from minisd.recipes import a1111 as infotexts
from minisd.recipes import comfyui as graphs
from minisd.recipes.dream import dream_line
from minisd.recipes.recipe import OWN, Recipe, name_of

Piece = tuple[str, float]


# ---- prompts -------------------------------------------------------------------------------------


def in_syntax(
    recipe: Recipe, text: str, target: str, negative: bool = False
) -> tuple[str, list[str]]:
    """The text in the target's syntax, and what that cannot say. Raises PromptError."""
    if recipe.dialect == target or (recipe.dialect, target) == ("invokeai-2.2", "invokeai"):
        return text, []
    pieces, notes = pieces_of(recipe.dialect, text, negative)
    if any(weight != 1 for _, weight in pieces):
        if target == "diffusers":
            notes.append("the weights of words have no equivalent: they are left out")
        else:
            notes.append("weights of words act differently there: the texts' states will differ")
    if target == "diffusers":
        return "".join(words for words, _ in pieces), notes
    if target == "invokeai":
        write, escape = "({}){:g}", escaped
    else:
        write = "({}:{:g})"
        escape = with_backslashes if target == "a1111" else with_round_backslashes
    return "".join(
        escape(words) if weight == 1 else write.format(escape(words), weight)
        for words, weight in pieces
    ), notes


def pieces_of(dialect: str, text: str, negative: bool) -> tuple[list[Piece], list[str]]:
    """(words, weight) in order, and notes on what is more than that."""
    if dialect == "a1111":
        pieces = a1111_prompts.parse_attention(text)
        notes = []
        if len(a1111_prompts.cut_and(text)) > 1 and not negative:
            notes.append("AND has no equivalent: it becomes a word")
        if len(a1111_prompts.prompt_schedule(text, 10)) > 1:
            notes.append("prompt editing has no equivalent: its marks become words")
            pieces = [(text, 1.0)]
        if ("BREAK", -1) in pieces:
            notes.append("BREAK has no equivalent: it is left out")
            pieces = [(w, 1.0) if (w, v) != ("BREAK", -1) else (" ", 1.0) for w, v in pieces]
        return pieces, notes
    if dialect == "comfyui":
        return comfyui_prompts.pieces_of(text), []
    if dialect in (OWN, "invokeai-2.2") and not (negative and dialect == OWN):
        parts = parse(text).parts
        if len(parts) > 1:
            first = [("".join(f.text for part in parts for f in part.fragments), 1.0)]
            return first, ["a blend has no equivalent: its parts become one prompt"]
        return [(f.text, f.weight) for f in parts[0].fragments], []
    return [(text, 1.0)], []


def with_backslashes(text: str) -> str:
    return infotexts.with_backslashes(text)


def with_round_backslashes(text: str) -> str:
    return text.replace("(", "\\(").replace(")", "\\)")


# ---- forms ---------------------------------------------------------------------------------------


UNWRITTEN = {
    "quantize": "Enable quantization in K samplers for sharper and cleaner results",
    "exact_steps": "With img2img, do exactly the amount of steps the slider specifies",
}


def as_a1111(recipe: Recipe, size: tuple[int, int]) -> tuple[str, list[str]]:
    notes = []
    for option, title in UNWRITTEN.items():
        if recipe.options.get(option):
            notes.append(f"not in the text: switch on {title!r} in the settings there")
    return infotexts.infotext(recipe, size, {}), notes


def as_comfyui(recipe: Recipe, size: tuple[int, int]) -> tuple[str, list[str]]:
    notes = []
    era = recipe.options.get("era")
    if era is not None:
        notes.append(f"not in the graph: take a version of ComfyUI of {era} or a little later")
    if recipe.options.get("noise_source") == "GPU":
        notes.append("not in the graph: it must run on a GPU")
    return json.dumps(graphs.graph_of(recipe, size), indent=1), notes


def as_invokeai(recipe: Recipe, size: tuple[int, int]) -> tuple[str, list[str]]:
    notes = [f"not in the line: the program's version is {recipe.options.get('era', '2.2.5')}"]
    if recipe.options.get("noise_source", "GPU") == "GPU":
        notes.append("not in the line: it must run on a GPU of CUDA")
    elif recipe.options.get("noise_source") == "CPU":
        notes.append("not in the line: it must run on a CPU, or on a Mac")
    own = replace(recipe, dialect=OWN, options={}, schedule=None, width=size[0], height=size[1])
    return dream_line(own), notes


def as_diffusers(recipe: Recipe, size: tuple[int, int]) -> tuple[str, list[str]]:
    """Python lines."""
    names = {own: name for name, own in diffusers.NAMES.items()}
    scheduler = names["k_dpmpp_2" if recipe.sampler == "dpmpp_2m" else name_of(recipe.sampler)]
    device = "cuda" if recipe.options.get("noise_source") == "GPU" else "cpu"
    pipeline = "StableDiffusion" + ("Img2ImgPipeline" if recipe.image else "Pipeline")
    config = ", use_karras_sigmas=True" if recipe.schedule == "karras" else ""
    spacing = recipe.options.get("spacing")
    config += f", timestep_spacing={spacing!r}" if spacing else ""
    arguments = [f"{recipe.prompt!r}"]
    if recipe.image:
        arguments += [f"image=Image.open({str(recipe.image)!r})", f"strength={recipe.strength!r}"]
    else:
        arguments += [f"width={size[0]}", f"height={size[1]}"]
    arguments += [
        f"num_inference_steps={recipe.steps}",
        f"guidance_scale={recipe.guidance!r}",
        f"negative_prompt={recipe.negative_prompt!r}",
        f"generator=torch.Generator({device!r}).manual_seed({recipe.seed})",
    ]
    if recipe.options.get("eta"):
        arguments.append(f"eta={recipe.options['eta']!r}")
    if recipe.clip_skip > 1:
        arguments.append(f"clip_skip={recipe.clip_skip - 1}")
    lines = [
        "import torch",
        f"from diffusers import {scheduler}, {pipeline}",
        *(["from PIL import Image"] if recipe.image else []),
        "",
        f'pipe = {pipeline}.from_single_file("model.safetensors", safety_checker=None)',
        f"pipe.scheduler = {scheduler}.from_config(pipe.scheduler.config{config})",
        "result = pipe(",
        *(f"    {argument}," for argument in arguments),
        ")",
        'result.images[0].save("picture.png")',
    ]
    return "\n".join(lines), ["it rounds to 8 bits, where minisd and the others truncate"]
