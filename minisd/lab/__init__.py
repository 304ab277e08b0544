"""The sampler laboratory: `certify` measures a sampler on models that are known exactly."""

from minisd.lab.card import Line
from minisd.lab.certificate import Certificate, certify
from minisd.lab.exact import Mixture, Pictures
from minisd.lab.subject import Theory

__all__ = ["Certificate", "Line", "Mixture", "Pictures", "Theory", "certify"]
