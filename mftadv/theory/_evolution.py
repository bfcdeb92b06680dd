"""Weight variance under adversarial training: gradient flow on L_adv = eps beta omega^{L/2}.

With y = ln A, A = alpha s the branch gain, kappa = 2 eps beta alpha / N and m = L/2 - 1, every block obeys

    dy/dt = -kappa omega^m,      omega = e^y ("vanilla") or 1 + e^y ("residual", "signed"),

so y depends on time through kappa t alone, the "elapsed" time below.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from mftadv.spec import NetworkSpec, check_positive
from mftadv.theory._coefficients import operator_norm_coefficient
from mftadv.theory._laws import (
    Scalar,
    alpha,
    branch_gain,
    check_size,
    compiled,
    leaves,
    propagation_factor,
    saturation,
    scaled_power,
)

# of Gauss-Legendre quadrature in v; below -_REACH the integrand is 1 to rounding, and after _REACH it has died out
_PANELS = 20
_REACH = 40.0
_ABSCISSAE, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_OFFSETS = (np.arange(_PANELS)[:, None] + (_ABSCISSAE + 1) / 2).ravel()
_NEWTON_STEPS = 8


def _loss_share(spec: NetworkSpec, eps: ArrayLike, p: float, q: float, kind: str) -> Scalar:
    """2 eps beta_{p,q} / N."""
    beta = operator_norm_coefficient(p, q, spec.input_dim, spec.output_dim, kind=kind)
    return check_size("eps", eps) * (2 * beta / spec.width)


def decay_constant(spec: NetworkSpec, eps: ArrayLike, p: float, q: float, kind: str) -> Scalar:
    """Kappa = 2 eps beta_{p,q} alpha / N, the rate of ln s where omega = 1."""
    return _loss_share(spec, eps, p, q, kind) * alpha(spec)


def vanilla_log_gain(log_gain: Any, elapsed: Any, m: Any, layers: int, xp: Any = jnp) -> Any:
    """The root y of e^{-m y} = e^{-m y_0} + m elapsed; -inf once a single layer is extinct.

    `layers` is the depth, 3 standing for all greater ones: these share one program, in which m is traced.
    """
    if layers == 1:
        return 2 * xp.log(xp.maximum(xp.exp(log_gain / 2) - elapsed / 2, 0.0))
    if layers == 2:
        return log_gain - elapsed
    return -xp.logaddexp(-m * log_gain, xp.log(m) + xp.log(elapsed)) / m


def _inverse_softplus(x: Scalar) -> Scalar:
    return x + jnp.log(-jnp.expm1(-x))


def _log_density(v: Scalar, m: Scalar) -> Scalar:
    """Ln of omega^{-m} dy/dv = e^{-z} (1 - e^{-z}) / (m (1 - e^{-z/m})), z = m ln omega = softplus(v); 0 at v = -inf.

    v is linear in y where m A is small and in m ln omega beyond, and no singularity comes nearer than pi to the real
    axis: panels no longer than 4 resolve every depth to rounding.
    """
    power = jax.nn.softplus(jnp.maximum(v, -_REACH))
    return -power + jnp.log(jnp.expm1(-power) / jnp.expm1(-power / m) / m)


def _log_age(v: Scalar, m: Scalar) -> Scalar:
    """Ln of the integral of omega^{-m} dy from v to infinity: the elapsed time since an infinite variance."""
    start = jnp.maximum(v, -_REACH)
    panel = (jnp.maximum(start, 0.0) + _REACH - start) / _PANELS
    nodes = start + panel * jnp.asarray(_OFFSETS, dtype=panel.dtype)
    weights = panel / 2 * jnp.asarray(np.tile(_WEIGHTS, _PANELS), dtype=panel.dtype)
    # scaled by its value at the start, which may underflow
    scale = -jax.nn.softplus(start)
    integral = scale + jnp.log(jnp.sum(weights * jnp.exp(_log_density(nodes, m) - scale)))
    return jnp.logaddexp(jnp.log(start - v), integral)


def _straighten(log_age: Scalar) -> tuple[Scalar, Scalar]:
    """Ln(e^age - 1), nearly linear in v, and its derivative in ln age."""
    age = jnp.maximum(jnp.exp(log_age), jnp.finfo(log_age.dtype).tiny)
    ratio = -jnp.expm1(-age) / age
    return log_age + age + jnp.log(ratio), 1 / ratio


def _deep_shortcut(log_gain: Scalar, elapsed: Scalar, m: Scalar) -> Scalar:
    """The root y of age(y) = age(y_0) + elapsed for m > 0, by Newton's method in v (5 steps reach rounding)."""
    initial = _inverse_softplus(m * jax.nn.softplus(log_gain))
    target, _ = _straighten(jnp.logaddexp(_log_age(initial, m), jnp.log(elapsed)))

    def newton_step(_, v):
        log_age = _log_age(v, m)
        value, derivative = _straighten(log_age)
        return v + (value - target) / (derivative * jnp.exp(_log_density(v, m) - log_age))

    v = jax.lax.fori_loop(0, _NEWTON_STEPS, newton_step, initial)
    return _inverse_softplus(jax.nn.softplus(v) / m)


def _single_shortcut(log_gain: Scalar, elapsed: Scalar) -> Scalar:
    """The root y of h(y) = h(y_0) - elapsed, h = 2 sqrt(omega) + ln((sqrt(omega) - 1) / (sqrt(omega) + 1))."""

    def clock(y):
        bulk = jnp.maximum(y, -_REACH)
        log_omega = jax.nn.softplus(bulk)
        return 2 * jnp.exp(log_omega / 2) + jnp.log(jnp.tanh(log_omega / 4)) + (y - bulk)

    target = clock(log_gain) - elapsed
    # the logarithm is above -ln 3 for sqrt(omega) >= 2; from above the root of a convex function Newton only descends
    above = jnp.maximum((target + math.log(3)) / 2, 2.0)

    def newton_step(_, y):
        return y - (clock(y) - target) * jnp.exp(-jax.nn.softplus(y) / 2)

    return jax.lax.fori_loop(0, _NEWTON_STEPS, newton_step, jnp.minimum(log_gain, jnp.log(above**2 - 1)))


@partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _log_gain(log_gain: Scalar, elapsed: Scalar, m: Scalar, layers: int, shortcut: bool) -> Scalar:
    """Y after the elapsed time, from y_0."""
    if not shortcut or layers == 2:
        return vanilla_log_gain(log_gain, elapsed, m, layers)
    return _single_shortcut(log_gain, elapsed) if layers == 1 else _deep_shortcut(log_gain, elapsed, m)


@_log_gain.defjvp
def _log_gain_jvp(layers, shortcut, primals, tangents):
    """Dy = (omega / omega_0)^m dy_0 - omega^m d elapsed, by the flow itself: no root is differentiated."""
    final, m = _log_gain(*primals, layers, shortcut), primals[2]
    powers = [m * (jax.nn.softplus(y) if shortcut else y) for y in (final, primals[0])]
    ceiling = math.log(saturation(final.dtype))
    from_start, from_elapsed = (jnp.exp(jnp.minimum(x, ceiling)) for x in (powers[0] - powers[1], powers[0]))
    return final, from_start * tangents[0] - from_elapsed * tangents[1]


@compiled("layers", "shortcut")
def _decayed(start: Scalar, mean_slope: Scalar, elapsed: Scalar, m: ArrayLike, layers: int, shortcut: bool) -> Scalar:
    """s(t) from s_0, alpha and kappa t / alpha."""
    gain = mean_slope * start
    positive, limits = gain > 0, jnp.finfo(gain.dtype)
    # any gain far below 1 / L has the limit of a vanishing one
    log_gain = jnp.log(jnp.where(positive, gain, float(limits.tiny) ** 0.5))
    elapsed *= mean_slope
    # a shortcut has nothing left by then
    counted = jnp.minimum(elapsed, saturation(gain.dtype) if shortcut else limits.max)
    flow = jnp.vectorize(partial(_log_gain, layers=layers, shortcut=shortcut))
    final = flow(log_gain, counted, jnp.asarray(m, gain.dtype))
    variance = jnp.where(positive, jnp.exp(final) / mean_slope, start * jnp.exp(final - log_gain))
    return jnp.where(jnp.isinf(elapsed), 0.0, variance)


def weight_variance(
    spec: NetworkSpec, t: ArrayLike, eps: ArrayLike, p: float, q: float, kind: str = "chevet"
) -> Scalar:
    """The weight variance s(t) after adversarial training for a time t, from s_0 = `spec.weight_variance`.

    With kappa = 2 eps beta_{p,q} alpha / N, m = L/2 - 1 and omega_0 the initial propagation factor,

        vanilla            s_0 (1 + m kappa t omega_0^m)^{-1/m}     m > 0
                           s_0 exp(-kappa t)                        L = 2
                           s_0 max(0, 1 - kappa t / (2 sqrt(omega_0)))^2      L = 1
        residual, signed   the root s of  kappa t = int_{ln alpha s}^{ln alpha s_0} (1 + e^y)^{-m} dy

    Derivatives in t, eps and the leaves of `spec` are exact; where omega_0^m overflows they saturate. Where kappa t
    overflows, s(t) is its limit 0.

    Args:
        spec: the initial law; every leaf is traced.
        t: the training time t >= 0, traced: the learning rate times the number of steps of gradient descent on the
            mean of the loss over the inputs (100 steps at .05: t = 5); it broadcasts against the leaves.
        eps: the radius of the attack, >= 0, traced.
        p: the norm of the attack, in [1, inf].
        q: the norm of the output, in [1, inf].
        kind: the coefficient beta, see `operator_norm_coefficient`.

    Returns:
        s(t), of the broadcast shape of t, eps and the leaves; 0 stays 0.

    Raises:
        ValueError: an argument is outside its range, or (p, q) has no coefficient of that kind.

    Source: the paper, weight variance under adversarial training, for "vanilla" with m > 0 (gradient flow on L_adv
    alone, infinite width); the other depths and the shortcut, whose flow is ds/dt = -kappa s (1 + alpha s)^m, are ours.
    It is right at t = 0 and does not hold for long: training also turns the weights towards the adversarial direction
    and the loss falls much faster than omega^{L/2}, so that the variance decays less than this. `validity_horizon` says
    for how long it may be used.
    """
    elapsed = _loss_share(spec, eps, p, q, kind) * check_size("t", t)
    shape = spec.depth / 2 - 1, min(spec.depth, 3), spec.has_shortcut
    return _decayed(leaves(spec)[0], alpha(spec), elapsed, *shape)


def weight_variance_rate(spec: NetworkSpec, eps: ArrayLike, p: float, q: float, kind: str = "chevet") -> Scalar:
    """The rate ds/dt of the weight variance at the law `spec`, the start of adversarial training.

        vanilla            -(2 eps beta_{p,q} / N) omega^{L/2}
        residual, signed   -(2 eps beta_{p,q} / N) omega^{L/2} r,      r = A / (1 + A), A = alpha s

    Args:
        spec: the law; every leaf is traced.
        eps: the radius of the attack, >= 0, traced.
        p: the norm of the attack, in [1, inf].
        q: the norm of the output, in [1, inf].
        kind: the coefficient beta, see `operator_norm_coefficient`.

    Returns:
        ds/dt <= 0, shaped like the leaves of `spec`; -inf where it overflows.

    Raises:
        ValueError: an argument is outside its range, or (p, q) has no coefficient of that kind.

    Source: the paper, weight variance under adversarial training, for "vanilla"; the shortcut is ours. A layer's share
    follows from homogeneity: f and L_adv are of degree one in each W_l without bias, so d|W_l|_F^2 / dt = -2 L_adv for
    "vanilla" at any width (flow on L_adv alone); the branch carries the mean share r of it for a shortcut, at infinite
    width and before the first step: training turns the branch against the skip, and lowers its share.
    """
    share, omega = _loss_share(spec, eps, p, q, kind), propagation_factor(spec)
    if not spec.has_shortcut:
        return -scaled_power(share, omega, spec.depth / 2)
    return -scaled_power(share * branch_gain(spec), omega, spec.depth / 2 - 1)


def variance_from_losses(
    s0: ArrayLike, width: int, t: ArrayLike, adversarial_loss: ArrayLike, f_dloss: ArrayLike
) -> np.ndarray:
    """The weight variance of a layer that trains under gradient flow, from the losses measured on the way.

        ds/dt = -(2 / N) (L_adv + <f, dL_std/df>),

    integrated by the trapezoidal rule: f is homogeneous of degree one in each W_l, and s = |W_l|_F^2 / N.

    Args:
        s0: the variance at t[0], times N as everywhere; its shape broadcasts with [...].
        width: N >= 1.
        t: [S], increasing training times, the learning rate times numbers of steps.
        adversarial_loss: L_adv in the loss that is trained, the mean over inputs and times its weight, [..., S].
        f_dloss: the mean over inputs of f dL_std/df, summed over outputs, [..., S]; 0 without a standard loss.

    Returns:
        s(t) [..., S], in float64 on the host.

    Raises:
        ValueError: shapes disagree, or `t` does not increase.

    Source: ours, exact in the flow for "vanilla" without bias, at every width, depth, eps, K and q and whatever
    perturbations the attack finds. A shortcut's layer has the mean share A / (1 + A) of it at t = 0, and less and less
    as L_adv falls. Steps of size lr add lr |dL/dW_l|^2 to N ds/dt.
    """
    width, times = check_positive("width", width), np.asarray(t, np.float64)
    if times.ndim != 1 or not len(times) or not np.all(np.diff(times) > 0):
        raise ValueError(f"t: expected increasing times [S], got {t!r}")
    start, losses, products = (np.asarray(x, np.float64) for x in (s0, adversarial_loss, f_dloss))
    for name, values in (("adversarial_loss", losses), ("f_dloss", products)):
        if values.ndim and values.shape[-1] != len(times):
            raise ValueError(f"{name}: expected [..., {len(times)}] for the times t, got {list(values.shape)}")
    force = np.broadcast_to(losses + products, np.broadcast_shapes(losses.shape, products.shape, times.shape))
    elapsed = np.cumsum(np.diff(times) * (force[..., 1:] + force[..., :-1]) / 2, axis=-1)
    return start[..., None] - 2 / width * np.concatenate([np.zeros_like(force[..., :1]), elapsed], axis=-1)
