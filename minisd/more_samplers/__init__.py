"""Samplers, schedules and guidance rules beyond those of the core, by their names."""

from typing import Any

from minisd.more_samplers import schedules
from minisd.more_samplers.cfg_pp import ddim_cfg_pp, euler_cfg_pp
from minisd.more_samplers.guarded_lms import k_lms_guarded
from minisd.more_samplers.multistep import (
    deis,
    euler_ge,
    ipndm,
    res_multistep,
    uni_pc,
    uni_pc_bh2,
)
from minisd.more_samplers.stochastic import (
    dpmpp_2m_sde,
    dpmpp_3m_sde,
    dpmpp_sde,
    er_sde,
    lcm,
    restart,
)
from minisd.samplers import Facts, Sampler, k_dpmpp_2
from minisd.schedule import Schedule, karras, model

SAMPLERS: dict[str, Sampler] = {
    "k_lms_guarded": k_lms_guarded,
    "dpmpp_2m": k_dpmpp_2,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_3m_sde": dpmpp_3m_sde,
    "dpmpp_sde": dpmpp_sde,
    "uni_pc": uni_pc,
    "uni_pc_bh2": uni_pc_bh2,
    "deis": deis,
    "ipndm": ipndm,
    "res_multistep": res_multistep,
    "er_sde": er_sde,
    "euler_ge": euler_ge,
    "lcm": lcm,
    "restart": restart,
    "euler_cfg_pp": euler_cfg_pp,
    "ddim_cfg_pp": ddim_cfg_pp,
}
# The fresh noise is not eta times DDPM's, so it is only measured.
OTHER_NOISE: dict[str, Any] = {"eta": None}
# `defect` is what the formula misses in the four steps of minisd/lab/formula.py.
FACTS: dict[str, Facts] = {
    "k_lms_guarded": Facts("LMS", 4, "0123", memory=True, more={"defect": 0.007537524}),
    "dpmpp_2m": Facts("DPM++ 2M", 2, "0000", memory=True, more={"defect": -0.043504835}),
    "dpmpp_2m_sde": Facts(
        "DPM++ 2M SDE", 2, "0000", memory=True, normals=9,
        more=OTHER_NOISE | {"defect": -0.043504835},
    ),
    "dpmpp_3m_sde": Facts(
        "DPM++ 3M SDE", 2, "0000", memory=True, normals=9,
        more=OTHER_NOISE | {"defect": 0.011412151},
    ),
    "dpmpp_sde": Facts(
        "DPM++ SDE", 2, "0000", calls=19, normals=18,
        more={"weak_order": 1, "defect": -0.008053796},
    ),
    "uni_pc": Facts("UniPC", 4, "0000", memory=True, more={"defect": -0.002236832}),
    "uni_pc_bh2": Facts("UniPC", 4, "0000", memory=True, more={"defect": 0.005253571}),
    "deis": Facts("DEIS", 3, "0000", memory=True, more={"defect": 0.019107067}),
    "ipndm": Facts(
        "iPNDM", 2, "0123", memory=True, uneven_order=1, more={"defect": 0.010436519}
    ),
    "res_multistep": Facts("Res Multistep", 2, "0000", memory=True, more={"defect": -0.050537119}),
    "er_sde": Facts(
        "ER SDE", 2, "0000", memory=True, normals=9, more=OTHER_NOISE | {"defect": -0.016364732}
    ),
    "euler_ge": Facts("Gradient Estimation", 1, "0000", memory=True, more={"defect": -0.053306656}),
    "lcm": Facts("LCM", 0, "", normals=9, more=OTHER_NOISE),
    "restart": Facts(
        "Restart", 2, "", calls=None, normals=1,
        more=OTHER_NOISE | {"resumes": False, "strong_order": None},
    ),
    "euler_cfg_pp": Facts("Euler CFG++", 1, "0000", more={"defect": 0.876441807}),
    "ddim_cfg_pp": Facts("DDIM CFG++", 1, "0000", normals=10, more={"defect": 0.876441807}),
}  # fmt: skip
SCHEDULES: dict[str, Schedule] = {
    "exponential": schedules.exponential,
    "polyexponential": schedules.polyexponential,
    "ddim_original": schedules.ddim_original,
    "ddim_uniform": schedules.ddim_uniform,
    "sgm_uniform": schedules.sgm_uniform,
    "trailing": schedules.trailing,
    "simple": schedules.simple,
    "beta": schedules.beta,
    "beta_a1111": schedules.beta_a1111,
    "linear_quadratic": schedules.linear_quadratic,
    "kl_optimal": schedules.kl_optimal,
    "kl_optimal_a1111": schedules.kl_optimal_a1111,
    "align_your_steps": schedules.align_your_steps,
    "model_discard": schedules.discard_next_to_last(model),
    "karras_discard": schedules.discard_next_to_last(karras),
    "exponential_discard": schedules.discard_next_to_last(schedules.exponential),
} | schedules.OTHER_NAMES
