"""The sampler laboratory: `certify` measures what a sampler does, on models that are known exactly."""

from minisd.lab.certificate import Certificate, certify
from minisd.lab.subject import Line, Theory
from minisd.lab.exact import Mixture, Pictures

__all__ = ["Certificate", "Line", "Mixture", "Pictures", "Theory", "certify"]
