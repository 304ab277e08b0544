"""k_lms with a limit on how much it amplifies the network's errors."""

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from minisd.samplers import PredictEps, Step, lms_weights


def k_lms_guarded(
    predict_eps: PredictEps,
    x: Tensor,
    sigmas: list[float],
    order: int = 4,
    max_gain: float = 1.1,
) -> Iterator[Step]:
    """k_lms, but each step uses the highest order that keeps the noise gain within `max_gain`.

    max_gain is 1 (every step is Euler's) or more. If the guard never acts, the result is k_lms's.
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"the order of k_lms_guarded must be 1, 2, 3 or 4, not {order}")
    slopes: list[Tensor] = []  # newest first
    orders = guarded_orders(sigmas, order, max_gain)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = predict_eps(x, sigma)
        slopes = [eps, *slopes][:order]
        weights = lms_weights(sigmas, i, orders[i])
        used = slopes[: orders[i]]
        x_next = x + sum(w * slope for w, slope in zip(weights, used, strict=True))
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x = x_next


def guarded_orders(sigmas: list[float], order: int, max_gain: float) -> list[int]:
    """For each step, the highest order up to `order` that keeps the noise gain within `max_gain`.

    The result of a run is x + sum of W * eps over all calls, where W is the total weight that a
    call's eps gets in all steps. The weights sum to -sigmas[0]. If some are positive, the others
    overshoot. The network's errors are then amplified by the noise gain, sum |W| / sigmas[0].

    With 50 steps and strength 0.1, k_lms of order 4 has a gain of 6.5 on the model schedule and 27
    on Karras's. The last steps are much longer than the ones before, so the cubic is extrapolated
    far outside the points it was fitted to.

    Falling back to Euler (order 1) never increases the gain, so any max_gain >= 1 can be kept.
    """
    if max_gain < 1:
        raise ValueError(f"max_gain must be 1 (plain Euler) or more, not {max_gain}")
    totals = [0.0] * len(sigmas)  # W of each call so far
    orders = []
    for i, sigma_next in enumerate(sigmas[1:]):
        for candidate in range(min(order, i + 1), 0, -1):
            trial = totals.copy()
            for j, weight in enumerate(lms_weights(sigmas, i, candidate)):
                trial[i - j] += weight
            # Were every later step Euler's, this would be the gain of the whole run.
            gain = (sum(map(abs, trial)) + sigma_next) / sigmas[0]
            if candidate == 1 or gain <= max_gain:
                totals = trial
                orders.append(candidate)
                break
    return orders
