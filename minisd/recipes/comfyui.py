"""ComfyUI's graph: the PNG text `prompt`, as its API takes it.

    {"3": {"class_type": "KSampler", "inputs": {"seed": 42, "model": ["4", 0], ...}}, ...}

A link is [node's number, output's number]. Read are the plain nodes between the checkpoint and the
picture. A graph with other nodes on that way draws something else, so it is refused by name.
"""

import json
from collections.abc import Mapping
from typing import Any

from minisd.recipes.dream import BY_FIELD, OutOfRange, read_value
from minisd.recipes.recipe import Recipe, name_of

NAMES = {
    "euler": "k_euler",
    "euler_ancestral": "k_euler_a",
    "heun": "k_heun",
    "dpm_2": "k_dpm_2",
    "dpm_2_ancestral": "k_dpm_2_a",
    "lms": "k_lms",
    "dpmpp_2m": "k_dpmpp_2",
    "dpmpp_2s_ancestral": "k_dpmpp_2_a",
    "dpmpp_sde": "dpmpp_sde",
    "dpmpp_2m_sde": "dpmpp_2m_sde",
    "dpmpp_3m_sde": "dpmpp_3m_sde",
    "ddim": "ddim",
    "uni_pc": "uni_pc",
    "uni_pc_bh2": "uni_pc_bh2",
}
SCHEDULERS = (
    *("normal", "karras", "exponential", "sgm_uniform", "simple", "ddim_uniform", "beta"),
    *("kl_optimal", "linear_quadratic"),
)
SAMPLERS = ("KSampler", "KSamplerAdvanced")
OUTPUTS = ("SaveImage", "PreviewImage")
UNRECORDED = "the graph does not say these, so --set changes them: era=2025-12-26, noise_source=CPU"

Graph = dict[str, dict[str, Any]]


# ---- reading -------------------------------------------------------------------------------------


def read(text: str) -> tuple[dict[str, Any], list[str]]:
    """The recipe's fields in a graph, and notes. Raises ValueError for nodes that are not read."""
    graph = json.loads(text)
    if not isinstance(graph, dict) or not all(is_node(node) for node in graph.values()):
        raise ValueError("its text prompt is not a graph of ComfyUI")
    reader = Reader(graph)
    sampler = reader.find_sampler()
    inputs = graph[sampler]["inputs"]
    is_advanced = graph[sampler]["class_type"] == "KSamplerAdvanced"
    reader.node(inputs["model"], "CheckpointLoaderSimple")
    fields: dict[str, Any] = {"dialect": "comfyui"}
    options: dict[str, Any] = {}
    notes: list[str] = []
    name = str(inputs["sampler_name"])
    if name.endswith("_gpu") and name.removesuffix("_gpu") in NAMES:
        name, options = name.removesuffix("_gpu"), {"gpu_tree": True}
    if name not in NAMES:
        raise ValueError(f"ComfyUI's sampler {name[:60]!r} is not spoken here")
    fields["sampler"], fields["schedule"] = NAMES[name], str(inputs["scheduler"])
    if fields["schedule"] not in SCHEDULERS:
        raise ValueError(f"ComfyUI's scheduler {fields['schedule'][:60]!r} is not spoken here")
    numbers = {"steps": "steps", "guidance": "cfg", "seed": "noise_seed" if is_advanced else "seed"}
    for field, key in numbers.items():
        value = inputs[key]
        if isinstance(value, list):
            raise ValueError(f"the {key} of its KSampler comes from another node")
        if field == "seed" and isinstance(value, int) and value >= 2**32:
            notes.append(
                f"the seed {value} has over 32 bits: on a CPU, {value % 2**32} is the same"
            )
            value %= 2**32
        try:
            fields[field] = read_value(BY_FIELD[field], str(value))
        except OutOfRange as error:
            notes.append(f"{key} was left out: {error}")
    fields["prompt"], fields["clip_skip"] = reader.text(inputs["positive"])
    fields["negative_prompt"], negative_skip = reader.text(inputs["negative"])
    if negative_skip != fields["clip_skip"]:
        raise ValueError("its two prompts have different CLIPSetLastLayer nodes")
    if is_advanced:
        options |= {"start_step": inputs["start_at_step"], "end_step": inputs["end_at_step"]}
        options["full_denoise"] = inputs["return_with_leftover_noise"] != "enable"
        options["end_step"] = min(10_000, options["end_step"])
        if inputs["add_noise"] != "enable":
            raise ValueError("its KSamplerAdvanced adds no noise, which is not read here")
    denoise = 1.0 if is_advanced else float(inputs["denoise"])
    more_fields, more_options = reader.latent(inputs["latent_image"], denoise)
    fields |= more_fields | {"options": options | more_options}
    unused = [
        f"{node['class_type']}"[:60]
        for key, node in graph.items()
        if key not in reader.used and node["class_type"] not in OUTPUTS
    ]
    if unused:
        notes.append(f"nodes that lead elsewhere were left out: {', '.join(unused)[:400]}")
    return fields, [*notes, UNRECORDED]


def is_node(node: Any) -> bool:
    return (
        isinstance(node, dict)
        and isinstance(node.get("class_type"), str)
        and isinstance(node.get("inputs"), dict)
    )


class Reader:
    """It follows links, and notes which nodes it has used."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.used: set[str] = set()

    def node(self, link: Any, *classes: str) -> dict[str, Any]:
        """The inputs of the linked node. Raises ValueError if it is of another class."""
        if not isinstance(link, list) or not link or str(link[0]) not in self.graph:
            raise ValueError(f"its graph has no node for the link {str(link)[:60]}")
        key = str(link[0])
        node = self.graph[key]
        if node["class_type"] not in classes:
            kind = node["class_type"][:60]
            wanted = " or ".join(classes)
            raise ValueError(f"its graph has the node {kind} where {wanted} is read")
        self.used.add(key)
        return {"class_type": node["class_type"], **node["inputs"]}

    def find_sampler(self) -> str:
        """The sampler's node, from the picture that is saved backwards."""
        ends = [node for node in self.graph.values() if node["class_type"] in OUTPUTS]
        links = [node["inputs"].get("images") for node in ends]
        keys = set()
        for link in links:
            decode = self.node(link, "VAEDecode")
            self.node(decode["vae"], "CheckpointLoaderSimple")
            self.node(decode["samples"], *SAMPLERS)
            keys.add(str(decode["samples"][0]))
        if not links:
            keys = {key for key, node in self.graph.items() if node["class_type"] in SAMPLERS}
        if len(keys) != 1:
            raise ValueError(
                f"its graph has {len(keys)} nodes KSampler that make a picture, not one"
            )
        (key,) = keys
        self.used.add(key)
        return key

    def text(self, link: Any) -> tuple[str, int]:
        """A prompt, and its clip skip."""
        encode = self.node(link, "CLIPTextEncode")
        if not isinstance(encode["text"], str):
            raise ValueError("the text of its CLIPTextEncode comes from another node")
        clip = self.node(encode["clip"], "CLIPSetLastLayer", "CheckpointLoaderSimple")
        if clip["class_type"] == "CheckpointLoaderSimple":
            return encode["text"], 1
        self.node(clip["clip"], "CheckpointLoaderSimple")
        return encode["text"], -int(clip["stop_at_clip_layer"])

    def latent(self, link: Any, denoise: float) -> tuple[dict[str, Any], dict[str, Any]]:
        """Fields and options: the size of an empty latent, or the init image."""
        latent = self.node(link, "EmptyLatentImage", "VAEEncode")
        if latent["class_type"] == "VAEEncode":
            self.node(latent["vae"], "CheckpointLoaderSimple")
            image = self.node(latent["pixels"], "LoadImage")["image"]
            return {"image": str(image), "strength": min(1.0, max(0.0, denoise))}, {}
        if denoise <= 0.9999:
            raise ValueError(f"its KSampler has denoise {denoise:g} without a picture to draw on")
        sides = {key: read_value(BY_FIELD[key], str(latent[key])) for key in ("width", "height")}
        batch = int(latent.get("batch_size", 1))
        return sides, {"batch": batch} if batch > 1 else {}


# ---- writing -------------------------------------------------------------------------------------


def graph_of(recipe: Recipe, size: tuple[int, int], checkpoint: str = "model.safetensors") -> Graph:
    """The graph of a recipe in the dialect comfyui. size: width and height in pixels."""
    names = {own: name for name, own in NAMES.items()} | {"dpmpp_2m": "dpmpp_2m"}
    options = recipe.options
    sampler = names[name_of(recipe.sampler)] + ("_gpu" if options.get("gpu_tree") else "")
    clip: list[Any] = ["4", 1]
    common = {
        "steps": recipe.steps,
        "cfg": recipe.guidance,
        "sampler_name": sampler,
        "scheduler": name_of(recipe.schedule or "normal"),
        "model": ["4", 0],
        "positive": ["6", 0],
        "negative": ["7", 0],
        "latent_image": ["5", 0],
    }
    graph: Graph = {}
    if options.get("start_step") is not None or options.get("end_step") is not None:
        leftover = "disable" if options.get("full_denoise") else "enable"
        ends = {"start_at_step": options.get("start_step") or 0, "add_noise": "enable"}
        ends |= {"end_at_step": options.get("end_step", 10_000), "noise_seed": recipe.seed}
        ends |= {"return_with_leftover_noise": leftover}
        graph["3"] = node("KSamplerAdvanced", common | ends)
    else:
        denoise = recipe.strength if recipe.image else 1.0
        graph["3"] = node("KSampler", common | {"seed": recipe.seed, "denoise": denoise})
    graph["4"] = node("CheckpointLoaderSimple", {"ckpt_name": checkpoint})
    if recipe.image:
        graph["5"] = node("VAEEncode", {"pixels": ["10", 0], "vae": ["4", 2]})
        graph["10"] = node("LoadImage", {"image": str(recipe.image)})
    else:
        sides = {"width": size[0], "height": size[1], "batch_size": options.get("batch", 1)}
        graph["5"] = node("EmptyLatentImage", sides)
    if recipe.clip_skip > 1:
        layer = {"stop_at_clip_layer": -recipe.clip_skip, "clip": clip}
        graph["11"], clip = node("CLIPSetLastLayer", layer), ["11", 0]
    graph["6"] = node("CLIPTextEncode", {"text": recipe.prompt, "clip": clip})
    graph["7"] = node("CLIPTextEncode", {"text": recipe.negative_prompt, "clip": clip})
    graph["8"] = node("VAEDecode", {"samples": ["3", 0], "vae": ["4", 2]})
    graph["9"] = node("SaveImage", {"images": ["8", 0], "filename_prefix": "minisd"})
    return graph


def node(class_type: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": dict(inputs)}
