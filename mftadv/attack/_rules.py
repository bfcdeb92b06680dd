"""Rules: how the candidates of an attack change after each evaluation."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mftadv.attack._pieces import Candidates, Problem, Rule
from mftadv.norms import dual_vector


@dataclasses.dataclass(frozen=True)
class PowerMethod(Rule):
    """Replace each candidate by the best response to its gradient: the generalised power method, FGSM as one step.

    The response to a gradient of 0 is no perturbation.
    """

    def __call__(self, problem: Problem, candidates: Candidates, values, gradient, memory, number):
        return problem.best_response(gradient), memory


@dataclasses.dataclass(frozen=True)
class SteepestAscent(Rule):
    """Projected ascent in the direction that is steepest in the p-norm, by steps that shrink to 0.

    eta <- P(eta + 2 eps (1 - t/T)^2 v), t = 0 ... T - 1, with v the maximiser of <g, v> over |v|_p <= 1 (sign steps for
    p = inf) and P the Euclidean projection. Long first steps cross many regions, so that many starts of few steps find
    more than few starts of many steps. A candidate that has never had a finite value is halved instead.
    """

    def __call__(self, problem: Problem, candidates: Candidates, values, gradient, memory, number):
        size = problem.eps * (2 * (1 - number.astype(values.dtype) / self.steps) ** 2)
        eta = problem.project(candidates.eta + size[..., None] * dual_vector(gradient, problem.p))
        return _halved_unless_finite(candidates, values, eta), memory


def _halved_unless_finite(candidates: Candidates, values: Array, eta: Array) -> Array:
    """The next candidates eta, but half of each candidate that has never had a finite value."""
    never_finite = ~jnp.isfinite(values) & (candidates.value == 0)
    return jnp.where(never_finite[..., None], candidates.eta / 2, eta)


@dataclasses.dataclass(frozen=True)
class Ascent(Rule):
    """Projected ascent with momentum, from the best of each candidate, whose steps shrink by the schedule of APGD.

    eta <- P(eta + 3/4 (P(eta + r g) - eta) + 1/4 (eta - eta_before)), g the gradient over its 2-norm, P the Euclidean
    projection. r begins at the diameter of the ball in the 2-norm; at each checkpoint it is halved, with a return to
    the best, where fewer than three steps in four rose, or where neither r nor the best had changed. A candidate that
    has never had a finite value is halved instead.

    Source: Croce and Hein 2020, "Reliable evaluation of adversarial robustness" (the schedule).
    """

    def memory(self, problem: Problem, candidates: Candidates) -> Any:
        value, radius = candidates.value, problem.input_dim ** max(0.0, 1 / 2 - 1 / problem.p)
        size = jnp.broadcast_to(2 * radius * problem.eps, value.shape)  # radius is that of the unit ball, in the 2-norm
        # No value rises above inf, and -1 differs from every value at a checkpoint.
        last, checkpoint = jnp.full_like(value, jnp.inf), (size, jnp.full_like(value, -1))
        return candidates.eta, last, size, jnp.zeros(value.shape, jnp.int32), checkpoint

    def __call__(self, problem: Problem, candidates: Candidates, values, gradient, memory, number):
        (before, last, size, rises, checkpoint), eta, value = memory, candidates.eta, candidates.value
        first, interval = number == 0, jnp.asarray(_intervals(self.steps))[number]
        before = jnp.where(first, eta, before)
        rises = jnp.where(values > last, rises + 1, rises)
        stuck = (checkpoint[0] == size) & (checkpoint[1] == value)
        halve = (interval > 0) & ((4 * rises < 3 * interval) | stuck)
        checkpoint = jnp.where(interval > 0, size, checkpoint[0]), jnp.where(interval > 0, value, checkpoint[1])
        size, rises = jnp.where(halve, size / 2, size), jnp.where(interval > 0, 0, rises)
        ascended = problem.project(eta + size[..., None] * dual_vector(gradient, 2))
        ascended = problem.project(eta + 0.75 * (ascended - eta) + 0.25 * (eta - before))
        back = (halve | (first & ~(values >= value)))[..., None]
        ascended, before = jnp.where(back, candidates.best, ascended), jnp.where(back, candidates.best, eta)
        return _halved_unless_finite(candidates, values, ascended), (before, values, size, rises, checkpoint)


def _intervals(steps: int) -> np.ndarray:
    """For each step the number of steps since the last checkpoint if it is one, else 0."""
    intervals, last, fraction, length = np.zeros(steps, np.int32), 0, 0.22, 0.22
    while (end := math.ceil(fraction * steps)) < steps:
        if end > last:
            intervals[end], last = end - last, end
        length = max(length - 0.03, 0.06)
        fraction += length
    return intervals
