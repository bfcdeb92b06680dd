"""How many networks a claim needs, before any is drawn."""

import math

import scipy


def smallest_visible_deviation(
    relative_standard_deviation: float, num_networks: int, false_alarm: float = 1e-3, power: float = 0.9
) -> float:
    """The smallest relative deviation that a two-sided Student t test over networks sees.

    (t_{1 - false_alarm/2} + t_{power}) spread / sqrt(n), quantiles at n - 1 degrees of freedom.

    Args:
        relative_standard_deviation: of one network's value, relative to what the deviation is measured against.
        num_networks: n >= 2.
        false_alarm: probability of rejecting a true claim; in a table of m claims, the family error over m.
        power: probability of rejecting a claim that is off by the returned deviation.

    Returns:
        The deviation, relative.

    Raises:
        ValueError: an argument is outside its range.

    Source: the usual approximation of the power of a t test.
    """
    if not relative_standard_deviation >= 0:
        raise ValueError(f"relative_standard_deviation: expected a number >= 0, got {relative_standard_deviation!r}")
    if num_networks < 2:
        raise ValueError(f"num_networks: expected at least 2, got {num_networks!r}")
    for name, value in (("false_alarm", false_alarm), ("power", power)):
        if not 0 < value < 1:
            raise ValueError(f"{name}: expected a probability in (0, 1), got {value!r}")
    quantiles = -scipy.special.stdtrit(num_networks - 1, [false_alarm / 2, 1 - power])
    return float(quantiles.sum()) * float(relative_standard_deviation) / math.sqrt(num_networks)


def networks_needed(
    relative_standard_deviation: float, deviation: float = 0.05, false_alarm: float = 1e-3, power: float = 0.9
) -> float:
    """The smallest number of networks that sees a relative deviation; the inverse of `smallest_visible_deviation`.

    Args:
        relative_standard_deviation: of one network's value.
        deviation: the relative deviation to see, > 0.
        false_alarm: see `smallest_visible_deviation`.
        power: see `smallest_visible_deviation`.

    Returns:
        An integer >= 2, or inf where no number below 2^62 will do.

    Raises:
        ValueError: an argument is outside its range.

    Source: the usual approximation of the power of a t test.
    """
    if not deviation > 0:
        raise ValueError(f"deviation: expected a number > 0, got {deviation!r}")

    def sees(n):
        return smallest_visible_deviation(relative_standard_deviation, n, false_alarm, power) <= deviation

    if not sees(2**62):
        return math.inf
    low, high = 1, 2
    while not sees(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if sees(middle) else (middle, high)
    return high
