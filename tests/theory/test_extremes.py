"""No closed form gives nan for a finite law and finite arguments, however extreme."""

import inspect
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mftadv import theory
from mftadv.spec import NetworkSpec

VARIANCES = (0.0, 1e-12, 1.0, 50.0, 1e12)
SLOPES = ((1.0, 0.0), (1.0, 1.0), (1.0, -1.0), (1e-6, 0.0), (30.0, -1.0))
SIZES = (0.0, 1e-30, 1e-3, 1.0, 1e12, 1e30)
HOST = {  # of static arguments, in float64 on the host
    "AdversarialRate",
    "KernelRegime",
    "QUANTITIES",
    "ResidualLaw",
    "TrainingPrediction",
    "has_sharp_coefficient",
    "kernel_regime",
    "log_scale_skewness",
    "max_trainable_depth",
    "operator_norm_coefficient",
    "operator_norm_deviation",
    "predict_training",
    "relative_spread",
    "spectral_norm_mean",
    "training_curve",
    "variance_from_losses",
}


def formulas(spec, a, b):
    """Every closed form that the block has, of two sizes >= 0; cosines are taken from the first."""
    single = NetworkSpec(spec.input_dim, 1, spec.width, spec.depth, spec.weight_variance, 0.0, spec.positive_slope,
                         spec.negative_slope)  # fmt: skip
    cosine, length = jnp.clip(a, 0, 1), (a + 1e-30, b + 1e-30)
    values = {
        "alpha": theory.alpha(spec),
        "propagation_factor": theory.propagation_factor(spec),
        "jacobian_variance": theory.jacobian_variance(spec),
        "shift_variance": theory.shift_variance(spec),
        "adversarial_loss_bound": theory.adversarial_loss_bound(spec, a, 2, 2),
        "kappa": theory.kappa(spec, cosine),
        "gate_correlation": theory.gate_correlation(spec, -cosine),
        "jacobian_correlation": theory.jacobian_correlation(spec, cosine, (a, b)),
        "jacobian_correlation of opposite inputs": theory.jacobian_correlation(spec, -cosine, (b, None)),
        "weight_variance": theory.weight_variance(spec, a, b, 2, 2),
        "weight_variance_rate": theory.weight_variance_rate(spec, a, 2, 2),
        "chevet_excess": theory.chevet_excess(spec, 2, math.inf),
        "norm_correction": jnp.stack(theory.norm_correction(spec)),
        "growth_along_input": theory.growth_along_input(spec, length[0], jnp.sqrt(length[0]), 2),
    }
    if spec.block == "residual":
        values["residual_law"] = jnp.stack(theory.residual_law(spec, a))
        values["residual_law_error"] = theory.residual_law_error(spec, a)
        values["residual_law at finite width"] = jnp.stack(theory.residual_law(spec, a, finite_width=True))
        return values
    values |= {
        "finite_width_factor": theory.finite_width_factor(spec),
        "jacobian_kurtosis": theory.jacobian_kurtosis(spec),
        "entry_law_error": theory.entry_law_error(spec),
        "shift_kurtosis": theory.shift_kurtosis(spec),
        "jacobian_shift_square_correlation": theory.jacobian_shift_square_correlation(spec),
        "adversarial_loss_bound at a confidence": theory.adversarial_loss_bound(spec, a, 2, 2, confidence=0.9),
        "finite_width_bound": theory.finite_width_bound(spec, a, 2, math.inf),
        "width_mean": theory.width_mean(spec),
        "width_quantile": theory.width_quantile(spec, 0.01),
        "one_step_loss": theory.one_step_loss(spec, a, b),
        "fisher_rao_norm": theory.fisher_rao_norm(spec, a, b),
    }
    if spec.block == "vanilla":
        values["adversarial_loss_decay_rate"] = theory.adversarial_loss_decay_rate(single, *length)
        values["adversarial_rate"] = jnp.stack(theory.adversarial_rate(single, *length[::-1]))
        values["validity_horizon"] = theory.validity_horizon(single, *length)
    return values


@pytest.mark.slow
def test_every_traced_formula_is_tried():
    tried = set()
    for block in ("vanilla", "residual"):
        spec = NetworkSpec(10, 3, 50, 2, 2.0, 0.1, block=block)
        tried |= set(jax.eval_shape(lambda *sizes, spec=spec: formulas(spec, *sizes), 0.5, 0.5))
    public = {name for name in theory.__all__ if not inspect.ismodule(getattr(theory, name))}
    assert {name.split(" ")[0] for name in tried} == public - HOST


@pytest.mark.parametrize("block", ["vanilla", "signed", "residual"])
@pytest.mark.slow
def test_programs_do_not_grow_with_depth(block):
    """Layers are looped over, so that depth costs no compilation."""

    def operations(depth):
        spec = NetworkSpec(10, 3, 50, depth, 2.0, 0.1, block=block)
        return str(jax.make_jaxpr(lambda a: formulas(spec, a, a))(0.5)).count(" = ")

    assert operations(2000) == operations(20)


@pytest.mark.parametrize(("depth", "width", "x64"), [(1, 50, False), (2, 3, False), (220, 50, False), (5, 2, True)])
@pytest.mark.parametrize("block", ["vanilla", "signed", "residual"])
@pytest.mark.slow
def test_never_nan(block, depth, width, x64):
    with jax.enable_x64(x64):

        def values(leaves, a, b):
            s, b2, u, v = leaves
            return formulas(NetworkSpec(10, 3, width, depth, s, b2, u, v, block), a, b)

        grid = itertools.product(VARIANCES, VARIANCES, SLOPES, SIZES, SIZES)
        points = np.array([(s, b2, *slopes, a, b) for s, b2, slopes, a, b in grid], np.float64 if x64 else np.float32)
        points = points[:: 7 if depth > 5 else 1]  # each layer costs; 7 shares no factor with the grid
        found = jax.jit(jax.vmap(values))(tuple(points.T[:4]), *points.T[4:])
    for name, value in found.items():
        flawed = np.isnan(value).reshape(len(points), -1).any(axis=1)
        assert not flawed.any(), (name, points[np.argmax(flawed)])


@pytest.mark.parametrize("depth", [1, 2, 3, 50])
@pytest.mark.parametrize("block", ["vanilla", "signed", "residual"])
@pytest.mark.slow
def test_nothing_is_left_where_kappa_t_overflows(block, depth):
    """The variance decays to 0 with every derivative; one that a finite time leaves decreases to it."""

    def value(s, t, eps):
        return theory.weight_variance(NetworkSpec(10, 3, 50, depth, s, block=block), t, eps, 2, 2)

    every = jax.jit(lambda *point: (value(*point), jax.grad(value, (0, 1, 2))(*point)))
    for t, eps in ((1e30, 1e30), (3e38, 3e38), (1e38, 1e6)):
        final, slopes = every(1.0, t, eps)
        assert final == 0
        assert np.all(np.isfinite(slopes))
    assert value(1.0, 1e30, 1e30) <= value(1.0, 1e6, 1.0) < 1
    assert every(1.0, 0.0, 3e38)[0] == pytest.approx(1.0, rel=1e-6)
