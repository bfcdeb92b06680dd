"""The pieces that attacks are made of: where to start, and how to go on.

All are written over the functions of `mftadv.oracle`, for one input [d] or a block [B, d] with R candidates each. A
piece is a value, so that equal ones share a compiled program; `queries` says how many differences and how many
cotangents it takes at each input, `normals` how many random numbers it is handed, and `uses_jacobian` whether it
reads J(x), which all starts of an attack share.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mftadv import oracle
from mftadv.matrices import matmul_precision
from mftadv.network import Evaluation, Network
from mftadv.norms import dual_vector, maximise_linear, maximising_vector, project, vector_norm
from mftadv.oracle import Function
from mftadv.spec import check_positive, dual_exponent

_CHUNK = 128  # candidates evaluated at once where there are many
_RESTARTS = 64  # of the search for the best perturbation of a linear function


class Problem(NamedTuple):
    """max |f(x + eta) - f(x)|_q over |eta|_p <= eps, with x + eta in the box; the box is one of eta.

    `jacobian` is J(x) [*B, K, d], None where no start uses it.
    """

    source: Network | Function
    base: Evaluation
    jacobian: Any
    input_dim: int
    eps: Float[Array, "*B 1"]
    p: float
    q: float
    box: tuple[Array | None, Array | None]


class Candidates(NamedTuple):
    """R perturbations of each input, and the best that each has been.

    `network` is the one to use next, None where the source stays what it is. `nonfinite` counts the evaluations whose
    value was not finite: they enter nothing else. `zero_gradients` counts the finite ones whose gradient was 0.
    """

    network: Any
    eta: Float[Array, "*B R d"]
    value: Float[Array, "*B R"]
    best: Float[Array, "*B R d"]
    nonfinite: Int[Array, "*B"]
    zero_gradients: Int[Array, "*B"]


def start(network: Any, eta: Array) -> Candidates:
    """Candidates before their first evaluation: the best so far is no perturbation."""
    zero, none = jnp.zeros_like(eta), jnp.zeros(eta.shape[:-2], jnp.int32)
    return Candidates(network, eta, zero[..., 0], zero, none, none)


def evaluate(problem: Problem, candidates: Candidates) -> tuple[Candidates, Array, Array]:
    """Evaluate every candidate and remember the best of each; the values, and the gradients, 0 where not finite."""
    network, eta, value, best, nonfinite, zero_gradients = candidates
    network, at, values = _differences(problem, network, eta)
    rows, _, used = oracle.pullback(network or problem.source, at, dual_vector(at.output, dual_exponent(problem.q)))
    finite = jnp.isfinite(values)
    better = finite & (values > value)
    value, best = jnp.where(better, values, value), jnp.where(better[..., None], eta, best)
    largest = jnp.max(jnp.abs(rows), axis=-1)  # one pass tells zero from not finite
    nonfinite += jnp.sum(~finite, axis=-1, dtype=jnp.int32)
    zero_gradients += jnp.sum(finite & (largest == 0), axis=-1, dtype=jnp.int32)
    gradient = jnp.where(jnp.isfinite(largest)[..., None], rows, 0)
    return Candidates(_if_needed(network, used), eta, value, best, nonfinite, zero_gradients), values, gradient


def _differences(problem: Problem, network: Any, eta: Array) -> tuple[Any, Evaluation, Array]:
    """The difference of f at each candidate, and its q-norm: 0 for a ball of radius 0, where f - f is rounding."""
    at = oracle.difference(network or problem.source, problem.base, eta)
    return _if_needed(network, at.network), at, jnp.where(problem.eps == 0, 0, vector_norm(at.output, problem.q))


def _if_needed(network: Any, used: Any) -> Any:
    return None if network is None else used


def _scores(problem: Problem, network: Any, items: Array, build: Callable) -> tuple[Any, Array]:
    """The value of each of n items [*B, n, ...], where `build` makes candidates of some, -1 where not finite."""
    axis = problem.base.output.ndim - 1
    points, number = items.shape[:axis], items.shape[axis]

    def score(network, some):
        network, _, values = _differences(problem, network, build(some))
        return network, jnp.where(jnp.isfinite(values), values, -1)

    chunks = -(-number // _CHUNK)
    if chunks == 1:  # a loop takes longer to compile
        return score(network, items)
    each = -(-number // chunks)
    padded = jnp.take(items, jnp.minimum(jnp.arange(chunks * each), number - 1), axis=axis)
    split = jnp.moveaxis(padded.reshape(*points, chunks, each, *items.shape[axis + 1 :]), axis, 0)
    network, scores = jax.lax.scan(score, network, split)
    return network, jnp.moveaxis(scores, 0, -2).reshape(*points, chunks * each)[..., :number]


def _best_response(problem: Problem, gradient: Array) -> Array:
    """The candidate that a linear function with these gradients is largest at."""
    return maximise_linear(gradient, problem.eps, problem.p, *problem.box)


@dataclasses.dataclass(frozen=True)
class LinearStarts:
    """The best perturbation of the linear representation at x that is found; of both signs for 2.

    Random directions where J is 0 or not finite: no start is 0.
    """

    count: int = 2
    uses_jacobian: ClassVar = True

    def __post_init__(self):
        if self.count not in (1, 2):
            raise ValueError(f"count: expected 1 or 2, got {self.count!r}")

    def queries(self, input_dim: int) -> tuple[int, int]:
        return 0, 0

    def normals(self, points: tuple[int, ...], input_dim: int) -> int:
        return _RESTARTS * input_dim

    def __call__(self, problem: Problem, network: Any, normals: Float[Array, " T"]) -> tuple[Any, Array]:
        jacobian = problem.jacobian
        random = normals.reshape(_RESTARTS, problem.input_dim)
        several = jnp.broadcast_to(random, (*jacobian.shape[:-2], *random.shape))
        # Some rows of J too: each is the best start for one output.
        several = jnp.concatenate([several, jacobian[..., : _RESTARTS // 4, :]], axis=-2)
        v = maximising_vector(jacobian, problem.p, problem.q, several)
        largest = jnp.max(jnp.abs(v), axis=-1)
        known = jnp.isfinite(largest) & (largest > 0)
        if problem.box[0] is None:
            v = jnp.where(known[..., None], v, dual_vector(random[0], problem.p))[..., None, :]
            both = jnp.concatenate([v, -v][: self.count], axis=-2) * problem.eps[..., None]
            return network, both
        image = jnp.squeeze(jnp.matmul(jacobian, v[..., None], precision=matmul_precision()), -1)
        w = dual_vector(image, dual_exponent(problem.q))[..., None, :]
        row = jnp.where(known[..., None, None], jnp.matmul(w, jacobian, precision=matmul_precision()), random[0])
        return network, _best_response(problem, jnp.concatenate([row, -row][: self.count], axis=-2))


@dataclasses.dataclass(frozen=True)
class RandomStarts:
    """Random points of the ball's boundary: uniform directions, and for every other one a random best response.

    With `among` > 1 each is the best of so many points, which see regions where the gradient at x does not point; not
    so of a matrix-free network, too wide for a random point to be a good one.
    """

    count: int
    among: int = 1
    uses_jacobian: ClassVar = False

    def __post_init__(self):
        check_positive("count", self.count)
        check_positive("among", self.among)

    def queries(self, input_dim: int) -> tuple[int, int]:
        return 0, 0

    def normals(self, points: tuple[int, ...], input_dim: int) -> int:
        return self.count * self.among * math.prod(points) * input_dim

    def __call__(self, problem: Problem, network: Any, normals: Float[Array, " T"]) -> tuple[Any, Array]:
        points, d = problem.base.output.shape[:-1], problem.input_dim
        directions = jnp.moveaxis(normals.reshape(-1, *points, d), 0, -2)
        among = self.among if network is None else 1
        eta = self._points(problem, directions[..., : self.count * among, :])
        if among == 1:
            return network, eta
        network, scores = _scores(problem, network, eta, lambda eta: eta)
        scores, eta = scores.reshape(*points, self.count, among), eta.reshape(*points, self.count, among, d)
        largest = jnp.argmax(scores, axis=-1, keepdims=True)
        best = jax.lax.broadcasted_iota(largest.dtype, scores.shape, scores.ndim - 1) == largest
        return network, jnp.sum(jnp.where(best[..., None], eta, 0), axis=-2)

    def _points(self, problem: Problem, directions: Array) -> Array:
        """The points of these directions [*B, n, d]."""
        inside = directions / vector_norm(directions, problem.p)[..., None] * problem.eps[..., None]
        inside = inside if problem.box[0] is None else jnp.clip(inside, *problem.box)
        return jnp.where(_every_other(directions), _best_response(problem, directions), inside)


def _every_other(rows: Array) -> np.ndarray:
    return (np.arange(rows.shape[-2]) % 2 == 0)[:, None]


@dataclasses.dataclass(frozen=True)
class OutputStarts(RandomStarts):
    """Random best responses, for every other one to the gradient at x of a random combination of the outputs.

    The combination is the one that J u singles out, for a random direction u: the maximiser of <w, J u> over
    |w|_q* <= 1. Where there is one output, its gradient is that of `LinearStarts`, and all are random instead.

    Source: Tashiro, Song and Ermon 2020, "Diversity can be transferred: output diversification for white- and black-box
    attacks" (random outputs).
    """

    uses_jacobian: ClassVar = True

    def _points(self, problem: Problem, directions: Array) -> Array:
        jacobian, precision = problem.jacobian, matmul_precision()
        if jacobian.shape[-2] > 1:
            images = jnp.matmul(directions, jnp.swapaxes(jacobian, -1, -2), precision=precision)
            gradients = jnp.matmul(dual_vector(images, dual_exponent(problem.q)), jacobian, precision=precision)
            finite = jnp.all(jnp.isfinite(jacobian), axis=(-2, -1))[..., None, None]
            directions = jnp.where(finite, jnp.where(_every_other(directions), gradients, directions), directions)
        return _best_response(problem, directions)


@dataclasses.dataclass(frozen=True)
class Vertices:
    """The best `count` of the 2 d vertices of the l1 ball, exact on the linear region of x if it holds the ball.

    All are scored, save by a matrix-free network: there those of the `columns` of J with the largest norm.
    """

    count: int
    columns: int = 16
    uses_jacobian: ClassVar = True

    def __post_init__(self):
        check_positive("count", self.count)
        check_positive("columns", self.columns)

    def queries(self, input_dim: int) -> tuple[int, int]:
        return 2 * min(self.columns, input_dim), 0

    def normals(self, points: tuple[int, ...], input_dim: int) -> int:
        return 0

    def __call__(self, problem: Problem, network: Any, normals: Float[Array, " T"]) -> tuple[Any, Array]:
        output, d = problem.base.output, problem.input_dim
        points = output.shape[:-1]
        columns = jnp.broadcast_to(jnp.arange(d), (*points, d))
        if network is not None:
            norms = vector_norm(jnp.swapaxes(problem.jacobian, -1, -2), problem.q)
            columns = jax.lax.top_k(norms, min(self.columns, d))[1]
        signed = jnp.concatenate([columns, columns + d], axis=-1)  # d more stands for the other sign

        def vertices(signed):
            sign = jnp.where(signed < d, 1, -1)[..., None].astype(output.dtype)
            return _best_response(problem, sign * jax.nn.one_hot(signed % d, d, dtype=output.dtype))

        network, scores = _scores(problem, network, signed, vertices)
        best = jax.lax.top_k(scores, min(self.count, signed.shape[-1]))[1]
        return network, vertices(jnp.take_along_axis(signed, best, axis=-1))


# Rules: rule.memory(problem, candidates) before the first step, then at each step, of which `number` counts those by
# this rule, rule(problem, candidates, values, gradient, memory, number) -> (eta, memory).


@dataclasses.dataclass(frozen=True)
class _Rule:
    """A rule of so many steps, which remembers nothing from one to the next."""

    steps: int

    def __post_init__(self):
        check_positive("steps", self.steps)

    def memory(self, problem: Problem, candidates: Candidates) -> Any:
        return ()


@dataclasses.dataclass(frozen=True)
class PowerMethod(_Rule):
    """Go from each candidate to the best response to its gradient: the generalised power method, FGSM as one step.

    No perturbation is the response to a gradient of 0.
    """

    def __call__(self, problem: Problem, candidates: Candidates, values, gradient, memory, number):
        return _best_response(problem, gradient), memory


@dataclasses.dataclass(frozen=True)
class SteepestAscent(_Rule):
    """Projected ascent in the direction that is steepest in the p-norm, by steps that shrink to 0.

    eta <- P(eta + 2 eps (1 - t/T)^2 v), t = 0 ... T - 1, with v the maximiser of <g, v> over |v|_p <= 1 (sign steps for
    p = inf) and P the Euclidean projection. Long first steps cross many regions, so that many starts of few steps find
    more than few starts of many steps. A candidate that has never had a finite value is halved instead.
    """

    def __call__(self, problem: Problem, candidates: Candidates, values, gradient, memory, number):
        size = 2 * problem.eps * (1 - number.astype(values.dtype) / self.steps) ** 2
        moved = candidates.eta + size[..., None] * dual_vector(gradient, problem.p)
        return _nearer_where_lost(candidates, values, _into_ball(problem, moved)), memory


def _into_ball(problem: Problem, eta: Array) -> Array:
    return project(eta, problem.eps, problem.p, *problem.box)


def _nearer_where_lost(candidates: Candidates, values: Array, moved: Array) -> Array:
    """Half of each candidate that has never had a finite value, the others where they moved."""
    lost = ~jnp.isfinite(values) & (candidates.value == 0)
    return jnp.where(lost[..., None], candidates.eta / 2, moved)


@dataclasses.dataclass(frozen=True)
class Ascent(_Rule):
    """Projected ascent with momentum, from the best of each candidate, whose steps shrink by the schedule of APGD.

    eta <- P(eta + 3/4 (P(eta + r g) - eta) + 1/4 (eta - eta_before)), g the gradient over its 2-norm, P the Euclidean
    projection. r begins at the diameter of the ball in the 2-norm; at each checkpoint it is halved, with a return to
    the best, where fewer than three steps in four rose, or where neither r nor the best had changed. A candidate that
    has never had a finite value is halved instead.

    Source: Croce and Hein 2020, "Reliable evaluation of adversarial robustness" (the schedule).
    """

    def memory(self, problem: Problem, candidates: Candidates) -> Any:
        eta, value = candidates.eta, candidates.value
        return eta, value, value, jnp.zeros(value.shape, jnp.int32), (value, value)

    def __call__(self, problem: Problem, candidates: Candidates, values, gradient, memory, number):
        (before, last, size, rises, settled), eta, value = memory, candidates.eta, candidates.value
        first, interval = number == 0, jnp.asarray(_intervals(self.steps))[number]
        reach = problem.input_dim ** max(0.0, 1 / 2 - 1 / problem.p)  # of the unit ball, in the 2-norm
        size = jnp.where(first, 2 * reach * problem.eps, size)
        before, last, rises = jnp.where(first, eta, before), jnp.where(first, values, last), jnp.where(first, 0, rises)
        rises = jnp.where(values > last, rises + 1, rises)
        stuck = (settled[0] == size) & (settled[1] == value)
        halve = (interval > 0) & ((4 * rises < 3 * interval) | stuck)
        # Nothing is settled at the first step: no value is -1.
        settled = jnp.where(interval > 0, size, settled[0]), jnp.where(interval > 0, value, settled[1])
        settled = settled[0], jnp.where(first, -1, settled[1])
        size, rises = jnp.where(halve, size / 2, size), jnp.where(interval > 0, 0, rises)
        moved = _into_ball(problem, eta + size[..., None] * dual_vector(gradient, 2))
        moved = _into_ball(problem, eta + 0.75 * (moved - eta) + 0.25 * (eta - before))
        back = (halve | (first & ~(values >= value)))[..., None]
        moved, before = jnp.where(back, candidates.best, moved), jnp.where(back, candidates.best, eta)
        return _nearer_where_lost(candidates, values, moved), (before, values, size, rises, settled)


def _intervals(steps: int) -> np.ndarray:
    """For each step the number of steps since the last checkpoint if it is one, else 0."""
    intervals, last, fraction, length = np.zeros(steps, np.int32), 0, 0.22, 0.22
    while (end := math.ceil(fraction * steps)) < steps:
        if end > last:
            intervals[end], last = end - last, end
        length = max(length - 0.03, 0.06)
        fraction += length
    return intervals
