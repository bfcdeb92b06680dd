"""Closed forms of the mean-field theory; none of them samples.

The line "Source:" of a docstring says whose the formula is and where it holds: "the paper" is Kumano, Kera, Yamasaki,
"Adversarial Training from Mean Field Perspective", NeurIPS 2023 (arXiv 2505.14021); "ours" is not in it.
"""

from mftadv.theory._laws import (
    alpha,
    finite_width_factor,
    jacobian_kurtosis,
    jacobian_variance,
    propagation_factor,
    shift_variance,
)
from mftadv.theory._residual import ResidualLaw, growth_along_input, residual_law, residual_law_error
from mftadv.theory._joint import jacobian_shift_square_correlation, shift_kurtosis
from mftadv.theory._coefficients import has_sharp_coefficient, operator_norm_coefficient, operator_norm_deviation
from mftadv.theory._bound import (
    adversarial_loss_bound,
    chevet_excess,
    finite_width_bound,
    norm_correction,
    width_mean,
    width_quantile,
)
from mftadv.theory._correlation import gate_correlation, jacobian_correlation, kappa, one_step_loss
from mftadv.theory._evolution import variance_from_losses, weight_variance, weight_variance_rate
from mftadv.theory._kernel import (
    AdversarialRate,
    KernelRegime,
    adversarial_loss_decay_rate,
    adversarial_rate,
    kernel_regime,
    validity_horizon,
)
from mftadv.theory._training_curve import training_curve
from mftadv.theory._training import TrainingPrediction, predict_training
from mftadv.theory._spectral import spectral_norm_mean
from mftadv.theory._trainability import max_trainable_depth
from mftadv.theory._capacity import fisher_rao_norm
from mftadv.theory._spread import QUANTITIES, entry_law_error, log_scale_skewness, relative_spread

__all__ = [
    "QUANTITIES",
    "AdversarialRate",
    "KernelRegime",
    "ResidualLaw",
    "TrainingPrediction",
    "adversarial_loss_bound",
    "adversarial_loss_decay_rate",
    "adversarial_rate",
    "alpha",
    "chevet_excess",
    "entry_law_error",
    "finite_width_bound",
    "finite_width_factor",
    "fisher_rao_norm",
    "gate_correlation",
    "growth_along_input",
    "has_sharp_coefficient",
    "jacobian_correlation",
    "jacobian_kurtosis",
    "jacobian_shift_square_correlation",
    "jacobian_variance",
    "kappa",
    "kernel_regime",
    "log_scale_skewness",
    "max_trainable_depth",
    "norm_correction",
    "one_step_loss",
    "operator_norm_coefficient",
    "operator_norm_deviation",
    "predict_training",
    "propagation_factor",
    "relative_spread",
    "residual_law",
    "residual_law_error",
    "shift_kurtosis",
    "shift_variance",
    "spectral_norm_mean",
    "training_curve",
    "validity_horizon",
    "variance_from_losses",
    "weight_variance",
    "weight_variance_rate",
    "width_mean",
    "width_quantile",
]
