"""Moments that merge, estimates with errors by network, and how many networks a claim needs."""

from mftadv.statistics._moments import Moments, merge, moments, to_host
from mftadv.statistics._planner import networks_needed, smallest_visible_deviation
from mftadv.statistics._tests import (
    Estimate,
    LawTest,
    correlation_estimate,
    kurtosis_estimate,
    law_test,
    mean_estimate,
    pair_correlation_estimate,
    pair_square_estimate,
    ratio_estimate,
    scale_mixture_cdf,
    smooth_estimate,
)

__all__ = [
    "Estimate",
    "LawTest",
    "Moments",
    "correlation_estimate",
    "kurtosis_estimate",
    "law_test",
    "mean_estimate",
    "merge",
    "moments",
    "networks_needed",
    "pair_correlation_estimate",
    "pair_square_estimate",
    "ratio_estimate",
    "scale_mixture_cdf",
    "smallest_visible_deviation",
    "smooth_estimate",
    "to_host",
]
