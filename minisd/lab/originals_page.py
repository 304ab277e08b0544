"""The report of the originals as a page of Markdown."""

from importlib.metadata import PackageNotFoundError, version

import torch

from minisd.lab.board_page import MARK
from minisd.lab.certificate import number
from minisd.lab.originals import SKIPPED, Examined, Finding
from minisd.more_samplers.adapted_schedulers import TAKE_ALL

INTRODUCTION = f"""# Samplers of k-diffusion and diffusers, certified

Made by `minisd lab --report docs/samplers-certified.md`, which can be repeated by anyone.

The certificate runs a sampler on data whose best noise prediction and whose exact solution are
known. [Write your own sampler](write-your-own-sampler.md) explains it. Here it judges the samplers
of two libraries **as they are installed**, through adapters that change no arithmetic:

* A function of k-diffusion gets the levels of the run, as img2img programs pass them. So one
  certificate covers runs from noise and runs that start in the middle.
* A scheduler of diffusers gets a table of training levels that are exactly those of the run. It is
  then driven as the pipelines do: `set_timesteps`, `scale_model_input`, `step`. *From the middle*
  means that its schedule has {SKIPPED} more levels above the start. img2img skips them with
  `set_begin_index`. It computes in float64 in place of float32. Its options are the defaults, but
  for {", ".join(f"`{name}={value!r}`" for name, value in TAKE_ALL.items())}, and a `tau_func` of
  1 for `SASolverScheduler`.
* Fresh noise comes from minisd, so that its share in each result is known.

A failure is listed only if the library alone shows it too, without an adapter: with its own
schedule, SD 1.5's configuration and float32. A run from noise is made on a network that knows one
picture only, which every correct method returns. A run from the middle is made on a mixture of two
normals, whose exact solution is known, beside minisd's sampler of the same method on the same
levels. The list names the shortest such run. Two lines are left out for schedulers: the orders of
one uneven step need steps of a millionth of a level.

The orders are those of the methods' papers. *Order* is that of the ODE's solver, measured with the
noise switched off where that is possible; *weak order* is that of the distribution of results.
"""
NOT_HERE = """## Left out

* `sample_dpm_fast` and `sample_dpm_adaptive` of k-diffusion choose their own levels: they take
  `sigma_min` and `sigma_max`, not a list.
* `LCMScheduler` and `TCDScheduler` are for networks that were trained for them; their formulas use
  the number of the timestep, not only its level.
* `IPNDMScheduler`, the `EDM...`, `CosineDPM...`, `FlowMatch...` and other schedulers have another
  noise schedule or another scaling of the network's input than SD 1.x.
"""


def report_page(results: list[Examined], seconds: float) -> str:
    versions = ", ".join(
        f"{name} {installed(name)}" for name in ("minisd", "k-diffusion", "diffusers", "torch")
    )
    parts = [MARK, INTRODUCTION, f"Versions: {versions}. It took {seconds:.0f} seconds.", ""]
    parts += ["## Verdicts", ""]
    parts += ["| sampler | from noise | from the middle | order | weak order |"]
    parts += ["| --- | --- | --- | ---: | ---: |"]
    parts += [row(result) for result in results]
    parts += ["", "## Failures", ""]
    failures = [(r, f) for r in results for f in r.findings if f.confirmation]
    for result, finding in failures:
        parts += [failure(result, finding), ""]
    if not failures:
        parts += ["None.", ""]
    parts += ["## Differences from minisd's own contract", "", CONTRACT, ""]
    parts += [habit(result) for result in results if result.habits]
    parts += ["", NOT_HERE]
    return "\n".join(parts)


NOTES = {
    "PNDMScheduler": "Its rule counts its calls, and takes the second call for the second half of "
    "the first step. From the middle, that step is done twice, and every later call gets a latent "
    "one level noisier than its timestep.",
    "LMSDiscreteScheduler": "The order of its formula follows from the step's number in the whole "
    "schedule. From the middle, the first steps use the cubic's weights on one, two and three "
    "slopes, so the weights do not add up.",
    "DEISMultistepScheduler": "Its schedule ends at the lowest level of the training and not at 0, "
    "so noise of that level stays in the latent.",
    "SASolverScheduler": "Its schedule ends at the lowest level of the training and not at 0, so "
    "noise of that level stays in the latent.",
    "sample_dpmpp_2m_sde": "A run of one step goes straight to 0, and the length of the step is "
    "used before it is set: img2img of one step raises an error.",
    "sample_dpmpp_3m_sde": "A run of one step goes straight to 0, and the length of the step is "
    "used before it is set: img2img of one step raises an error.",
}
CONTRACT = """These change no picture in the libraries' own programs. They matter to those who port
a sampler, and to those who compare random numbers.
"""


def installed(name: str) -> str:
    if name == "torch":
        return torch.__version__
    try:
        return version(name)
    except PackageNotFoundError:
        return "(not installed)"


def row(result: Examined) -> str:
    values = {}
    for certificate in result.certificates.values():
        for line in certificate.lines:
            values.setdefault(line.check, line)

    def value(check: str) -> str:
        line = values.get(check)
        if line is None:
            return ""
        return f"{line.value:.2f}" if line.value == line.value else ""  # NaN: not measured

    verdicts = {finding.where: finding for finding in result.findings}
    cells = []
    for where in result.certificates:
        finding = verdicts.get(where)
        if finding is None:
            cells.append("the same lines fail" if "from noise" in verdicts else "passes")
        else:
            count = f"{len(finding.lines)} of {len(result.certificates[where].lines)} lines fail"
            cells.append(f"**{count}**" if finding.confirmation else f"{count}, not confirmed")
    cells = cells * 2 if len(cells) == 1 else cells
    name = f"`{result.original.library}` {result.original.name}"
    return f"| {name} | {' | '.join(cells)} | {value('order')} | {value('weak order')} |"


def failure(result: Examined, finding: Finding) -> str:
    lines = [f"### {result.original.name}, {finding.where}", ""]
    lines += [f"Smallest run, of the library alone: {finding.confirmation}.", ""]
    if note := NOTES.get(result.original.name):
        lines += [note, ""]
    lines += [
        "| line of the certificate | measured | expected | usually means |",
        "| --- | ---: | --- | --- |",
    ]
    for line in finding.lines:
        check = line.check.replace("|", "\\|")
        meaning = line.meaning.replace("|", "\\|")
        lines.append(f"| {check} | {number(line.value)} | {line.expected} | {meaning} |")
    return "\n".join(lines)


def habit(result: Examined) -> str:
    texts = "; ".join(f"{line.check}: {number(line.value)}" for line in result.habits)
    return f"* `{result.original.name}`: {texts}."
