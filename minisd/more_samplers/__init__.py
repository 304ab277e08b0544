"""Samplers beyond those of the core. Import `SAMPLERS` and `FACTS` from here to see them all."""

from minisd.more_samplers.guarded_lms import k_lms_guarded
from minisd.samplers import Facts, Sampler

SAMPLERS: dict[str, Sampler] = {"k_lms_guarded": k_lms_guarded}
FACTS: dict[str, Facts] = {"k_lms_guarded": Facts("LMS", 4, "0123", memory=True)}
