"""A figure that shows what k_lms_guarded does: python -m bench.guarded_lms docs/guarded-lms.svg

Above, the noise gain of k_lms at every strength, with the guard and without it. Below, short
img2img runs on the weights that come with minisd, beside the exact solution of the same run:
k_heun with 8 steps for each step, from the same noise. The guidance is 7.5 and 15. The distances
are also printed.
"""

import base64
import io
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import minisd
from minisd.figures.svg import WIDTH, plot
from minisd.guidance import Guided
from minisd.images import to_pil, to_tensor
from minisd.lab.quality import noise_gain
from minisd.more_samplers.guarded_lms import k_lms_guarded
from minisd.samplers import Sampler, k_euler, k_heun, k_lms
from minisd.schedule import SCHEDULES, start_index

DRAWING = Path(__file__).parent.parent / "tests" / "seed" / "fire-drawing.png"
SAMPLERS: dict[str, Sampler] = {
    "k_lms": k_lms,
    "k_lms_guarded": k_lms_guarded,
    "k_euler": k_euler,
}
STEPS, STRENGTH, GUIDANCES, SEEDS = 50, 0.1, (7.5, 15.0), range(3)
ENLARGED = 16  # factor by which the differences are shown


def gain_plot() -> str:
    strengths = [i / 50 for i in range(1, 51)]
    curves = {
        f"{schedule}, {name}": [
            (s, noise_gain(SAMPLERS[name], SCHEDULES[schedule](STEPS)[start_index(STEPS, s) :]))
            for s in strengths
        ]
        for name in ("k_lms", "k_lms_guarded")
        for schedule in ("model", "karras")
    }
    return plot(f"Noise gain of k_lms, {STEPS} steps", curves, "strength", "noise gain", log_y=True)


def refined(sigmas: list[float], parts: int) -> list[float]:
    """Each step divided into `parts`, except the last, the jump from sigma 0.0292 to 0."""
    fine = [
        a + (b - a) * j / parts for a, b in zip(sigmas[:-2], sigmas[1:-1]) for j in range(parts)
    ]
    return [*fine, *sigmas[-2:]]


def final_latents(sd: minisd.StableDiffusion, guidance: float, seed: int) -> dict[str, Tensor]:
    """The picture's latent, the solution, and each sampler's result from the same noise."""
    picture = Image.open(DRAWING).convert("RGB").resize((sd.native_size, sd.native_size))
    x0 = sd.vae.encode(to_tensor(picture))
    predict_eps = Guided(sd.unet, sd.text_states("fire"), sd.text_states(""), guidance)
    sigmas = SCHEDULES["model"](STEPS)[start_index(STEPS, STRENGTH) :]
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed))
    x = x0 + sigmas[0] * noise
    *_, solution = k_heun(predict_eps, x, refined(sigmas, 8))
    latents = {"picture": x0, "exact": solution.x_next}
    for name, sampler in SAMPLERS.items():
        *_, last = sampler(predict_eps, x, sigmas)
        latents[name] = last.x_next
    return latents


def rms_of_255(difference: Tensor) -> float:
    """The root mean square of a difference of pictures in [-1, 1], in 8-bit levels."""
    return 127.5 * difference.pow(2).mean().sqrt().item()


def columns(
    decoded: Mapping[str, Tensor], distances: Mapping[str, float], y: int, size: int, left: int
) -> list[str]:
    """A picture for each entry, with its distance and, below, its difference from the solution."""
    parts = []
    for column, (name, image) in enumerate(decoded.items()):
        x, label = left + column * (size + 8), name
        parts.append(image_tag(to_pil(image), x, y, size))
        if name in distances:
            label = f"{name}: {distances[name]:.1f}"
            difference = ENLARGED * (image - decoded["exact"])
            parts.append(image_tag(to_pil(difference), x, y + size + 20, size))
        parts.append(f'<text x="{x}" y="{y + size + 14}">{label}</text>')
    return parts


def image_tag(image: Image.Image, x: int, y: int, size: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<image x="{x}" y="{y}" width="{size}" height="{size}" '
        f'style="image-rendering:pixelated" href="data:image/png;base64,{data}"/>'
    )


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/guarded-lms.svg")
    sd = minisd.load()
    size, left, top = 128, 130, 390
    parts = []
    for row, guidance in enumerate(GUIDANCES):
        runs = [
            {name: sd.vae.decode(x) for name, x in final_latents(sd, guidance, seed).items()}
            for seed in SEEDS
        ]
        distances = {
            name: sum(rms_of_255(run[name] - run["exact"]) for run in runs) / len(runs)
            for name in SAMPLERS
        }
        for name, distance in distances.items():
            print(f"guidance {guidance:4g}  {name:14} {distance:6.2f} of 255 from exact")
        y = top + row * (2 * size + 40)
        parts.append(f'<text x="10" y="{y + 60}">guidance {guidance:g}</text>')
        parts.append(f'<text x="10" y="{y + size + 90}">minus exact, x {ENLARGED}</text>')
        parts += columns(runs[0], distances, y, size, left)
    width, height = left + 5 * (size + 8), top + len(GUIDANCES) * (2 * size + 40) + 4
    title = (
        f"img2img with the prompt &quot;fire&quot;, {STEPS} steps, strength {STRENGTH}, model "
        f"schedule; RMS distance to exact, of 255 (mean of {len(SEEDS)} seeds)"
    )
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="system-ui, sans-serif" font-size="12">'
        f'<rect width="{width}" height="{height}" fill="#fff"/>'
        f'<g transform="translate({(width - WIDTH) // 2} 0)">{gain_plot()}</g>'
        f'<text x="10" y="{top - 14}">{title}</text>{"".join(parts)}</svg>\n',
        encoding="utf-8",
    )
    print(f"written: {path}")


if __name__ == "__main__":
    main()
