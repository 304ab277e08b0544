"""The evidence for `k_lms(max_gain=1.1)`, as a figure: python bench/guarded_lms.py
[docs/guarded-lms.svg]

Above, the noise gain of k_lms at every strength, with the guard and without. Below, what it does
to pictures: short img2img runs on the weights that come with minisd, beside the exact solution of
the same run (k_heun, 8 steps for each one from the same noise), for guidance 4, 7.5 and 15. It
prints the distances.
"""

import base64
import io
import sys
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import minisd
from minisd.guidance import guided
from minisd.images import to_pil, to_tensor
from minisd.lab.plot import WIDTH, plot
from minisd.lab.quality import noise_gain
from minisd.samplers import k_euler, k_heun, k_lms
from minisd.schedule import SCHEDULES, start_index

DRAWING = Path(__file__).parent.parent / "tests" / "seed" / "fire-drawing.png"
SAMPLERS = {
    "k_lms": k_lms,
    "max_gain=1.1": partial(k_lms, max_gain=1.1),
    "k_euler": k_euler,
}
STEPS, STRENGTH, GUIDANCES, SEEDS = 50, 0.1, (7.5, 15.0), range(3)
ENLARGED = 16  # times, the differences that are shown


def gains() -> str:
    strengths = [i / 50 for i in range(1, 51)]
    curves = {
        f"{grid}, {name}": [
            (s, noise_gain(sampler, SCHEDULES[grid](STEPS)[start_index(STEPS, s) :]))
            for s in strengths
        ]
        for name, sampler in list(SAMPLERS.items())[:2]
        for grid in ("model", "karras")
    }
    return plot(f"Noise gain of k_lms, {STEPS} steps", curves, "strength", "noise gain", log_y=True)


def refine(sigmas: list[float], parts: int) -> list[float]:
    """Each gap in `parts`, but the last, to 0, which ends at sigma 0.0292 before it jumps."""
    fine = [
        a + (b - a) * j / parts for a, b in zip(sigmas[:-2], sigmas[1:-1]) for j in range(parts)
    ]
    return [*fine, *sigmas[-2:]]


def runs(sd: minisd.StableDiffusion, guidance: float, seed: int) -> dict[str, Tensor]:
    """Final latents by sampler, all from the same noise, and the solution."""
    picture = Image.open(DRAWING).convert("RGB").resize((sd.native_size, sd.native_size))
    x0 = sd.vae.encode(to_tensor(picture))
    predict_eps = guided(sd.unet, sd.text_states("fire"), sd.text_states(""), guidance)
    sigmas = SCHEDULES["model"](STEPS)[start_index(STEPS, STRENGTH) :]
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed))
    x = x0 + sigmas[0] * noise
    *_, solution = k_heun(predict_eps, x, refine(sigmas, 8))
    latents = {"picture": x0, "exact": solution.x_next}
    for name, sampler in SAMPLERS.items():
        *_, last = sampler(predict_eps, x, sigmas)
        latents[name] = last.x_next
    return latents


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
    size, gap, left, top = 128, 8, 110, 390
    parts = []
    for row, guidance in enumerate(GUIDANCES):
        distances: dict[str, list[float]] = {name: [] for name in SAMPLERS}
        for seed in SEEDS:
            decoded = {name: sd.vae.decode(x) for name, x in runs(sd, guidance, seed).items()}
            differences = {name: decoded[name] - decoded["exact"] for name in SAMPLERS}
            for name, difference in differences.items():
                distances[name].append(127.5 * difference.pow(2).mean().sqrt().item())
            if seed == SEEDS[0]:
                shown = decoded | {f"{name} -": ENLARGED * d for name, d in differences.items()}
        y = top + row * (2 * size + 40)
        parts.append(f'<text x="10" y="{y + 60}">guidance {guidance:g}</text>')
        parts.append(f'<text x="10" y="{y + size + 90}">less exact, x {ENLARGED}</text>')
        for column, name in enumerate(decoded):
            x = left + column * (size + gap)
            parts.append(image_tag(to_pil(shown[name]), x, y, size))
            label = name
            if name in distances:
                mean = sum(distances[name]) / len(distances[name])
                label = f"{name}: {mean:.1f}"
                print(f"guidance {guidance:4g}  {name:14} {mean:6.2f} of 255 from exact")
                parts.append(image_tag(to_pil(shown[f"{name} -"]), x, y + size + 20, size))
            parts.append(f'<text x="{x}" y="{y + size + 14}">{label}</text>')
    width, height = left + 5 * (size + gap), top + len(GUIDANCES) * (2 * size + 40) + 4
    title = (
        f"img2img of the drawing towards &quot;fire&quot;, {STEPS} steps, strength {STRENGTH}, "
        f"model grid; RMS distance to exact, of 255 ({len(SEEDS)} seeds)"
    )
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="system-ui, sans-serif" font-size="12">'
        f'<rect width="{width}" height="{height}" fill="#fff"/>'
        f'<g transform="translate({(width - WIDTH) // 2} 0)">{gains()}</g>'
        f'<text x="10" y="{top - 14}">{title}</text>{"".join(parts)}</svg>\n',
        encoding="utf-8",
    )
    print(f"written: {path}")


if __name__ == "__main__":
    main()
