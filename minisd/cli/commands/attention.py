"""`minisd attention PROMPT -I FILE`: how much attention each word gets, where, step by step."""

import argparse

import torch

from minisd.cli import sheets, switches
from minisd.cli.studio import Studio, describe_steps
from minisd.explorer.runs import prompt_texts
from minisd.figures.attention import attention_strip
from minisd.files import check_folder, next_number, numbered, open_folder, png_bytes, write_first
from minisd.images import to_pil
from minisd.observe.attention_maps import AttentionMaps
from minisd.recipes.recipe import DIALECTS, name_of
from minisd.run import Event
from minisd.samplers import Step

HELP = "show which words of the prompt get attention, where and at which step"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="what to draw; [words in brackets] are avoided")
    switches.add_recipe_switches(parser)
    switches.add_folder_switch(parser)
    switches.add_model_switches(
        parser,
        torch_only="attention maps need the network's layers, and openvino runs it as a whole",
    )


def run(args: argparse.Namespace) -> int:
    studio = Studio(args)
    request = studio.resolve(switches.request_from(vars(args)))
    if request.recipe.image is None:
        raise ValueError("attention needs a picture to draw on: -I FILE")
    if DIALECTS[request.recipe.dialect]:
        raise ValueError("attention to words is for minisd's own prompts: leave --dialect out")
    prompts = prompt_texts(request.recipe.prompt)
    folder = check_folder(request.outdir)
    job = studio.prepare(request.recipe)
    open_folder(folder)
    recipe, sd = job.recipe, job.sd
    print(describe_steps(recipe))

    x0_list: list[torch.Tensor] = []

    def record(event: Event) -> None:
        if isinstance(event, Step):
            x0_list.append(event.x0)

    with AttentionMaps(sd, prompts) as maps:
        studio.draw(job, record, maps, refuse=not request.wrong_anyway)
    if not maps.steps:
        raise ValueError(f"strength {recipe.strength:g} runs no step: there is no attention")
    with torch.inference_mode():
        pictures = [to_pil(sd.vae.decode(x0)) for x0 in x0_list]
    title = f"{recipe.prompt} -s {recipe.steps} -S {recipe.seed} -C {name_of(recipe.guidance)}"
    title += f" -A {name_of(recipe.sampler)} -f {recipe.strength:g}: attention to each word"
    sheet = attention_strip(maps, pictures, title)
    texts = sheets.texts(title, [recipe], studio.facts) | studio.texts(recipe, job.size)
    names = numbered(folder, next_number(folder), f"{recipe.seed}.attention.png")
    path = write_first(names, png_bytes(sheet, texts))
    shares = ", ".join(f"{w.text} {maps.word(i).mean():.1%}" for i, w in enumerate(maps.words))
    print(f"of all attention: {shares}; the rest goes to the start, the end and punctuation")
    print(path)
    return 0
