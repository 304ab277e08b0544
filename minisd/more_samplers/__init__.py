"""Samplers and schedules beyond those of the core, by their names."""

from minisd.more_samplers.guarded_lms import k_lms_guarded
from minisd.more_samplers.schedules import ddim_original, exponential
from minisd.samplers import Facts, Sampler
from minisd.schedule import Schedule

SAMPLERS: dict[str, Sampler] = {"k_lms_guarded": k_lms_guarded}
FACTS: dict[str, Facts] = {"k_lms_guarded": Facts("LMS", 4, "0123", memory=True)}
SCHEDULES: dict[str, Schedule] = {"exponential": exponential, "ddim_original": ddim_original}
