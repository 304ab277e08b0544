"""The sampler laboratory: `certify` measures what a sampler does, on exactly known models."""

from minisd.lab.certificate import Certificate, certify
from minisd.lab.exact import Mixture, Pictures
from minisd.lab.subject import Line, Theory

__all__ = ["Certificate", "Line", "Mixture", "Pictures", "Theory", "certify"]
