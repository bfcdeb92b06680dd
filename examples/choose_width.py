"""How wide a network must be for the limit of infinite width, and how many networks show it: theory alone.

    python examples/choose_width.py

For each depth: the least width at which an entry of J has a kurtosis within 5% of a Gaussian's, the same for the
bound on L_adv of ten outputs, and how many networks of that width see an error of 5% in the variance of J.
"""

import mftadv as mf


def least_width(depth, is_close, lower=1, upper=2**24):
    """By bisection."""
    while upper - lower > 1:
        middle = (lower + upper) // 2
        close = is_close(mf.NetworkSpec(input_dim=100, output_dim=10, width=middle, depth=depth))
        lower, upper = (lower, middle) if close else (middle, upper)
    return upper


for depth in (2, 5, 20):
    gaussian = least_width(depth, lambda spec: mf.theory.finite_width_factor(spec) < 1.05)
    bounded = least_width(depth, lambda spec: mf.theory.chevet_excess(spec, 2, 2) < 0.05)
    spec = mf.NetworkSpec(input_dim=100, output_dim=10, width=gaussian, depth=depth)
    networks = mf.statistics.networks_needed(float(mf.theory.relative_spread(spec, "jacobian_variance")))
    print(f"L={depth}: N >= {gaussian} for J, N >= {bounded} for the bound, {networks} networks")
