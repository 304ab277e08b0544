"""The same bits on every machine.

    with minisd.exact():
        result = minisd.img2img(sd, "fire", "drawing.png", seed=2)

whole_numbers.py says why floating-point sums differ between machines, and how sums of whole numbers
do not. functions.py has exp, log, sin, cos and the noise; layers.py the layers of the models;
calls.py all other calls; mode.py the switch.
"""

from minisd.exact_mode.mode import InexactError, exact, is_exact, same_arithmetic

__all__ = ["InexactError", "exact", "is_exact", "same_arithmetic"]
