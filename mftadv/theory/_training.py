"""Outputs, adversarial loss and weight variance while a network is trained on a standard and the adversarial loss."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import scipy
from jaxtyping import ArrayLike

from mftadv.spec import NetworkSpec
from mftadv.theory._kernel import adversarial_rate, check_kernel_law, kernel_defect
from mftadv.theory._laws import alpha, check_size, propagation_factor
from mftadv.theory._training_curve import training_curve


class TrainingPrediction(NamedTuple):
    """Two curves, for the linear and the rough start of `training_curve`, at S times, for B inputs."""

    t: np.ndarray  # [S]
    f: np.ndarray  # [2, S, B]
    adversarial_loss: np.ndarray  # [2, S, B]
    weight_variance: np.ndarray  # [2, S], of each layer


def predict_training(
    inputs: ArrayLike,
    f0: ArrayLike,
    *,
    spec: NetworkSpec,
    eps: float,
    horizon: float,
    dloss: Callable[[np.ndarray], np.ndarray] | None = None,
    adversarial_loss: ArrayLike | Callable[[float], ArrayLike] | None = None,
    num_times: int = 101,
) -> TrainingPrediction:
    """What gradient flow on (1/B) sum_b [loss(f_b) + L_adv(x_b)] does to outputs, adversarial loss and variance.

        df_b/dt = -(1/B) sum_b' Theta(x_b, x_b') [loss'(f_b') + theta_b'^2 f_b' / L_b'],
        L_b = hypot(L_perp,b l(t / (B t*_b)), theta_b f_b),                 theta_b = eps / |x_b|,
        ds/dt = -(2/N) (1/B) sum_b [f_b loss'(f_b) + L_b]

    with l of `training_curve` and t*_b = L_perp,b / `adversarial_rate`(...).rate. A perturbation along x_b alone flips
    no gate: it changes f by theta_b f_b, which is added in squares and shrinks with f.

    Args:
        inputs: x [B, d], none of them 0.
        f0: f(x_b) at t = 0, [B].
        spec: the law at t = 0: "vanilla", K = 1, no bias, u != v, with concrete scalar leaves.
        eps: the radius of the l2 attack, > 0, at most the least |x_b|.
        horizon: the training time > 0 up to which to predict, at most 8 B t* of every input, where l ends.
        dloss: the derivative of each input's standard loss by its output, f [B] -> [B], in NumPy; None for none.
        adversarial_loss: L_b at t = 0, [B], if it is known; else L_perp,b is its mean, eps beta omega^{L/2}. Or L_b at
            all times, a function of t to [B], which takes the place of l: both curves are then one, of any horizon.
        num_times: S >= 2, evenly spaced times from 0 to the horizon.

    Returns:
        The times, f, L_adv and s, in float64 on the host.

    Raises:
        ValueError: an argument is outside its range; as for `adversarial_rate` and `training_curve`.

    Source: ours, in the limit of `training_curve` and for inputs of nearly orthogonal kernels, so that each L_perp
    falls as if B t* were its own time; the equation of s is the identity of `variance_from_losses`. l is taken at
    theta_b of two digits. At width 400 and L = 2 s was seen to fall by a quarter more than for the rough start, since
    L_adv falls more slowly than l, and by 4% more with the measured L_adv in its place. See `kernel_regime` for what
    the limit needs.
    """
    check_kernel_law(spec, variance=True)
    for name, value in (("eps", eps), ("horizon", horizon)):
        check_size(name, value, positive=True)
    points, start = np.asarray(inputs, np.float64), np.asarray(f0, np.float64)
    if points.ndim != 2 or points.shape[1] != spec.input_dim or not points.size or not np.all(points.any(axis=1)):
        raise ValueError(f"inputs: expected [B, {spec.input_dim}] without zeros, got {list(points.shape)}")
    B = len(points)
    if start.shape != (B,):
        raise ValueError(f"f0: expected [{B}] for the inputs, got {list(start.shape)}")
    if num_times < 2:
        raise ValueError(f"num_times: expected an integer >= 2, got {num_times!r}")
    norms = np.linalg.norm(points, axis=1)
    theta = eps / norms
    if np.any(theta > 1):
        raise ValueError(f"eps: expected at most the least |x_b|, {norms.min():.4g}, got {eps!r}")
    if dloss is None:
        dloss = np.zeros_like
    with jax.enable_x64(True):
        rate, time = (np.asarray(x) for x in adversarial_rate(spec, norms, eps))
        directions = points / norms[:, None]
        chords = np.linalg.norm(directions[:, None] - directions, axis=2)
        defect = np.asarray(kernel_defect(spec, 2 * np.arcsin(np.minimum(chords / 2, 1))))
        gain = float(alpha(spec)) * float(propagation_factor(spec)) ** (spec.depth - 1)
    scale = spec.width / spec.input_dim * gain
    kernel = scale * norms[:, None] * norms * (spec.depth - defect)
    times = np.linspace(0, horizon, num_times)

    def solved(loss: Callable[[float, np.ndarray], np.ndarray]):
        """f, L_adv and s at all times, where L_adv is a function of t and f."""

        def flow(t, state):
            f = state[:-1]
            present, slope = loss(t, f), np.asarray(dloss(f), np.float64)
            moved = kernel @ (slope + theta**2 * f / present) / B
            return np.append(-moved, np.mean(f * slope + present) / horizon)

        first, least = np.append(start, 0.0), 1e-8 * float(np.max(across))
        solution = scipy.integrate.solve_ivp(flow, (0, horizon), first, "LSODA", times, rtol=1e-7, atol=least)
        if not solution.success:
            raise ValueError(f"dloss, horizon: the equation could not be solved: {solution.message}")
        f = solution.y[:-1].T
        losses = np.array([loss(t, row) for t, row in zip(times, f, strict=True)])
        return f, losses, float(spec.weight_variance) - 2 / spec.width * horizon * solution.y[-1]

    across = rate * time
    if callable(adversarial_loss):
        known = solved(lambda t, _: np.broadcast_to(np.asarray(adversarial_loss(t), np.float64), (B,)))
        return TrainingPrediction(times, *(np.stack([each, each]) for each in known))
    if adversarial_loss is not None:
        known = np.broadcast_to(np.asarray(adversarial_loss, np.float64), (B,))
        if not np.all(known > theta * np.abs(start)):
            raise ValueError(f"adversarial_loss: expected more than theta |f0|, got {adversarial_loss!r}")
        across = np.sqrt(known**2 - (theta * start) ** 2)
    longest = 8 * B * float(np.min(across / rate))
    if horizon > longest:
        raise ValueError(f"horizon: expected at most 8 B t* = {longest:.4g}, got {horizon!r}")

    def by_curve(roughness: bool):
        laws = (spec.depth, float(spec.positive_slope), float(spec.negative_slope))
        angles = [float(f"{angle:.2g}") for angle in theta]  # curves are solved one by one, for each angle there is
        curves = [training_curve(laws[0], angle, *laws[1:], roughness=roughness) for angle in angles]

        def loss(t, f):
            fall = [curve(t / B * r / a) for curve, r, a in zip(curves, rate, across, strict=True)]
            return np.hypot(across * fall, theta * f)

        return solved(loss)

    return TrainingPrediction(times, *(np.stack(pair) for pair in zip(*map(by_curve, (False, True)), strict=True)))
