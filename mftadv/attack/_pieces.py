"""The pieces that attacks are made of: where to start, and how to go on.

All are written over the verbs of `mftadv.oracle`, for one input [d] or a block [B, d] with R candidates each. A piece
is a value, so that equal ones share a compiled program; `queries` says how many differences and how many cotangents it
asks for at each input, and `uses_jacobian` whether it reads J(x), which all starts of an attack share.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from mftadv import oracle
from mftadv.network import Evaluation, draw_if
from mftadv.norms import dual_vector, maximise_linear, maximising_vector, project, vector_norm
from mftadv.spec import check_positive, dual_exponent

_CHUNK = 128  # candidates evaluated at once where there are many
_RESTARTS = 64  # of the search for the best perturbation of a linear function


class Problem(NamedTuple):
    """max |f(x + eta) - f(x)|_q over |eta|_p <= eps, with x + eta in the box; the box is one of eta.

    `jacobian` is J(x) [*B, K, d], None where no start uses it.
    """

    source: Any
    base: Evaluation
    jacobian: Any
    input_dim: int
    eps: Array
    p: float
    q: float
    box: tuple[Array | None, Array | None]

    @property
    def output_dim(self) -> int:
        return self.base.output.shape[-1]


class Candidates(NamedTuple):
    """R perturbations of each input, and the best that each has been.

    `network` is the one to ask next, None where the source stays what it is. `nonfinite` counts the candidates whose
    value was not finite: they enter nothing else.
    """

    network: Any
    eta: Float[Array, "*B R d"]
    value: Float[Array, "*B R"]
    best: Float[Array, "*B R d"]
    nonfinite: Int[Array, "*B"]


def start(network: Any, eta: Array) -> Candidates:
    """Candidates that nobody has looked at: the best so far is no perturbation."""
    zero = jnp.zeros_like(eta)
    return Candidates(network, eta, zero[..., 0], zero, jnp.zeros(eta.shape[:-2], jnp.int32))


def climb(problem: Problem, candidates: Candidates) -> tuple[Candidates, Array, Array]:
    """Evaluate every candidate and keep the best of each; the values now, and the gradients, 0 where not finite."""
    network, eta, value, best, nonfinite = candidates
    network, at, seen = _look(problem, network, eta)
    finite = jnp.isfinite(seen)
    better = finite & (seen > value)
    value, best = jnp.where(better, seen, value), jnp.where(better[..., None], eta, best)
    nonfinite = nonfinite + jnp.sum(~finite, axis=-1, dtype=jnp.int32)
    network, gradient = _pull(problem, network, at, dual_vector(at.output, dual_exponent(problem.q)))
    sound = jnp.all(jnp.isfinite(gradient), axis=-1, keepdims=True)
    return Candidates(network, eta, value, best, nonfinite), seen, jnp.where(sound, gradient, 0)


def _look(problem: Problem, network: Any, eta: Array) -> tuple[Any, Evaluation, Array]:
    """The difference of f at each candidate, and its q-norm."""
    at = oracle.difference(network or problem.source, problem.base, eta)
    return _kept(network, at.network), at, vector_norm(at.output, problem.q)


def _pull(problem: Problem, network: Any, at: Evaluation, cotangents: Array) -> tuple[Any, Array]:
    rows, _, asked = oracle.pullback(network or problem.source, at, cotangents)
    return _kept(network, asked), rows


def with_jacobian(problem: Problem, network: Any) -> tuple[Any, Problem]:
    """The problem that knows J(x) of each input, by rows."""
    output, K = problem.base.output, problem.output_dim
    every = jnp.broadcast_to(jnp.eye(K, dtype=output.dtype), (*output.shape, K))
    network, jacobian = _pull(problem, network, problem.base, every)
    return network, problem._replace(jacobian=jacobian)


def _kept(network: Any, asked: Any) -> Any:
    return None if network is None else asked


def _screen(problem: Problem, network: Any, items: Array, build: Callable, count: int) -> tuple[Any, Array]:
    """The `count` best of n items [*B, n, ...] for each input, where `build` makes candidates of some [*B, m, ...]."""
    axis = problem.base.output.ndim - 1
    points, number = items.shape[:axis], items.shape[axis]
    chunks = -(-number // _CHUNK)
    each = -(-number // chunks)
    padded = jnp.take(items, jnp.minimum(jnp.arange(chunks * each), number - 1), axis=axis)
    split = jnp.moveaxis(padded.reshape(*points, chunks, each, *items.shape[axis + 1 :]), axis, 0)

    def score(network, some):
        network, _, values = _look(problem, network, build(some))
        return network, values

    network, scores = jax.lax.scan(score, network, split)
    scores = jnp.moveaxis(scores, 0, -2).reshape(*points, chunks * each)[..., :number]
    chosen = jax.lax.top_k(jnp.where(jnp.isfinite(scores), scores, -1), min(count, number))[1]
    chosen = chosen.reshape(*chosen.shape, *(1 for _ in items.shape[axis + 1 :]))
    return network, jnp.take_along_axis(items, chosen, axis=axis)


def _best_response(problem: Problem, gradient: Array) -> Array:
    """The candidate that a linear function with these gradients is largest at."""
    return maximise_linear(gradient, problem.eps, problem.p, *problem.box)


def _draw(problem: Problem, key: Array, shape: tuple[int, ...]) -> Array:
    """Standard normals of the precision of the output."""
    return draw_if(problem.eps >= 0, key, shape, jnp.nan, problem.base.output.dtype)


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

    def __call__(self, problem: Problem, network: Any, key: Key[Array, ""]) -> tuple[Any, Array]:
        jacobian = problem.jacobian
        random = _draw(problem, key, (_RESTARTS, problem.input_dim))
        v = maximising_vector(jacobian, problem.p, problem.q, random)[..., None]
        w = dual_vector(jnp.squeeze(jacobian @ v, -1), dual_exponent(problem.q))[..., None, :]
        row = w @ jacobian
        rows = jnp.concatenate([row, -row][: self.count], axis=-2)
        useful = jnp.all(jnp.isfinite(row), -1, keepdims=True) & jnp.any(row != 0, -1, keepdims=True)
        rows = jnp.where(useful, rows, jnp.broadcast_to(random[: self.count], rows.shape))
        return network, _best_response(problem, rows)


@dataclasses.dataclass(frozen=True)
class RandomStarts:
    """Random points of the ball's boundary: uniform directions, and for every other one a random best response.

    The best `count` of `drawn` points, which see regions where the gradient at x does not point; of a matrix-free
    network, too wide for a random point to be a good one, the first `count`.
    """

    count: int
    drawn: int = 0
    uses_jacobian: ClassVar = False

    def __post_init__(self):
        check_positive("count", self.count)

    def queries(self, input_dim: int) -> tuple[int, int]:
        return 0, 0

    def __call__(self, problem: Problem, network: Any, key: Key[Array, ""]) -> tuple[Any, Array]:
        output = problem.base.output
        number = max(self.count, self.drawn if network is None else 0)
        directions = _draw(problem, key, (*output.shape[:-1], number, problem.input_dim))
        inside = directions / vector_norm(directions, problem.p)[..., None] * problem.eps
        inside = inside if problem.box[0] is None else jnp.clip(inside, *problem.box)
        corner = (jnp.arange(number) % 2 == 0)[:, None]
        eta = jnp.where(corner, _best_response(problem, directions), inside)
        return _screen(problem, network, eta, lambda eta: eta, self.count) if number > self.count else (network, eta)


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

    def __call__(self, problem: Problem, network: Any, key: Key[Array, ""]) -> tuple[Any, Array]:
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

        network, signed = _screen(problem, network, signed, vertices, self.count)
        return network, vertices(signed)


# Rules: rule.memory(problem, candidates) before the first step, then at each step, of which `number` counts those by
# this rule, rule(problem, candidates, seen, gradient, memory, number) -> (eta, memory).


@dataclasses.dataclass(frozen=True)
class PowerMethod:
    """Go from each candidate to the best response to its gradient: the generalised power method, FGSM as one step."""

    steps: int

    def __post_init__(self):
        check_positive("steps", self.steps)

    def memory(self, problem: Problem, candidates: Candidates) -> Any:
        return ()

    def __call__(self, problem: Problem, candidates: Candidates, seen, gradient, memory, number):
        moves = jnp.any(gradient != 0, axis=-1, keepdims=True)
        return jnp.where(moves, _best_response(problem, gradient), candidates.eta), memory


@dataclasses.dataclass(frozen=True)
class Ascent:
    """Projected ascent with momentum, from the best of each candidate, whose steps shrink by the schedule of APGD.

    eta <- P(eta + 3/4 (P(eta + r g) - eta) + 1/4 (eta - eta_before)), g the gradient over its 2-norm, P the Euclidean
    projection. r begins at the diameter of the ball in the 2-norm; at each checkpoint it is halved, with a return to
    the best, where fewer than three steps in four rose, or where neither r nor the best had changed. A candidate that
    has never had a finite value is halved instead.

    Source: Croce and Hein 2020, "Reliable evaluation of adversarial robustness" (the schedule).
    """

    steps: int

    def __post_init__(self):
        check_positive("steps", self.steps)

    def memory(self, problem: Problem, candidates: Candidates) -> Any:
        eta, value = candidates.eta, candidates.value
        reach = problem.input_dim ** max(0.0, 1 / 2 - 1 / problem.p)  # of the unit ball, in the 2-norm
        size = jnp.broadcast_to(2 * reach * problem.eps, value.shape)
        return eta, value, size, jnp.zeros(value.shape, jnp.int32), (size, value - 1)

    def __call__(self, problem: Problem, candidates: Candidates, seen, gradient, memory, number):
        (before, last, size, rises, settled), eta, value = memory, candidates.eta, candidates.value
        first, interval = number == 0, jnp.asarray(_intervals(self.steps))[number]
        before, last = jnp.where(first, eta, before), jnp.where(first, seen, last)
        rises = jnp.where(seen > last, rises + 1, rises)
        stuck = (settled[0] == size) & (settled[1] == value)
        halve = (interval > 0) & ((4 * rises < 3 * interval) | stuck)
        settled = tuple(jnp.where(interval > 0, *pair) for pair in ((size, settled[0]), (value, settled[1])))
        size, rises = jnp.where(halve, size / 2, size), jnp.where(interval > 0, 0, rises)
        moved = self._project(problem, eta + size[..., None] * dual_vector(gradient, 2))
        moved = self._project(problem, eta + 0.75 * (moved - eta) + 0.25 * (eta - before))
        back = (halve | (first & ~(seen >= value)))[..., None]
        moved, before = jnp.where(back, candidates.best, moved), jnp.where(back, candidates.best, eta)
        lost = ~jnp.isfinite(seen) & (value == 0)
        return jnp.where(lost[..., None], eta / 2, moved), (before, seen, size, rises, settled)

    def _project(self, problem: Problem, eta: Array) -> Array:
        return project(eta, problem.eps, problem.p, *problem.box)


def _intervals(steps: int) -> np.ndarray:
    """For each step the number of steps since the last checkpoint if it is one, else 0."""
    intervals, last, fraction, length = np.zeros(steps, np.int32), 0, 0.22, 0.22
    while (end := math.ceil(fraction * steps)) < steps:
        if end > last:
            intervals[end], last = end - last, end
        length = max(length - 0.03, 0.06)
        fraction += length
    return intervals
