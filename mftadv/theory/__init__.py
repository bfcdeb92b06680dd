"""Closed forms of the mean-field theory; none of them samples."""

from mftadv.theory._laws import (
    alpha,
    finite_width_factor,
    jacobian_kurtosis,
    jacobian_variance,
    propagation_factor,
    shift_variance,
)
from mftadv.theory._residual import ResidualLaw, residual_law
from mftadv.theory._joint import jacobian_shift_square_correlation
from mftadv.theory._coefficients import has_sharp_coefficient, operator_norm_coefficient, operator_norm_deviation
from mftadv.theory._bound import adversarial_loss_bound, finite_width_bound, width_mean, width_quantile
from mftadv.theory._correlation import gate_correlation, jacobian_correlation, kappa, one_step_loss
from mftadv.theory._evolution import weight_variance, weight_variance_rate
from mftadv.theory._kernel import adversarial_loss_decay_rate, validity_horizon
from mftadv.theory._spectral import spectral_norm_mean
from mftadv.theory._trainability import max_trainable_depth
from mftadv.theory._capacity import fisher_rao_norm

__all__ = [
    "ResidualLaw",
    "adversarial_loss_bound",
    "adversarial_loss_decay_rate",
    "alpha",
    "finite_width_bound",
    "finite_width_factor",
    "fisher_rao_norm",
    "gate_correlation",
    "has_sharp_coefficient",
    "jacobian_correlation",
    "jacobian_kurtosis",
    "jacobian_shift_square_correlation",
    "jacobian_variance",
    "kappa",
    "max_trainable_depth",
    "one_step_loss",
    "operator_norm_coefficient",
    "operator_norm_deviation",
    "propagation_factor",
    "residual_law",
    "shift_variance",
    "spectral_norm_mean",
    "validity_horizon",
    "weight_variance",
    "weight_variance_rate",
    "width_mean",
    "width_quantile",
]
