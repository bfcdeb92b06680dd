"""Starts: where the candidates of an attack begin."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mftadv.attack._pieces import Problem, Start, differences
from mftadv.matrices import matmul_precision
from mftadv.norms import dual_vector, maximising_vector, vector_norm
from mftadv.spec import check_positive, dual_exponent

_CHUNK = 128  # the most points that are evaluated at once
_RESTARTS = 64  # directions that begin the search for the best perturbation of a linear function


@dataclasses.dataclass(frozen=True)
class LinearStarts(Start):
    """The best perturbation found of the linear representation at x; with both signs where `count` is 2.

    Where J is 0 or not finite it is a random direction: at 0 the gradient of the loss is 0 and no rule could go on.
    """

    count: int = 2
    uses_jacobian: ClassVar[bool] = True

    def __post_init__(self):
        if self.count not in (1, 2):
            raise ValueError(f"count: expected 1 or 2, got {self.count!r}")

    def normals(self, points: tuple[int, ...], input_dim: int) -> int:
        return _RESTARTS * input_dim

    def __call__(self, problem: Problem, network: Any, normals: Float[Array, " T"]) -> tuple[Any, Array]:
        jacobian = problem.jacobian
        random = normals.reshape(_RESTARTS, problem.input_dim)
        several = jnp.broadcast_to(random, (*jacobian.shape[:-2], *random.shape))
        # The search also begins at some rows of J, each the best direction for one output.
        several = jnp.concatenate([several, jacobian[..., : _RESTARTS // 4, :]], axis=-2)
        v = maximising_vector(jacobian, problem.p, problem.q, several)
        largest = jnp.max(jnp.abs(v), axis=-1)
        known = jnp.isfinite(largest) & (largest > 0)
        if problem.box[0] is None:
            # A direction of known norm: to compute one would take a compiler longer.
            other = jnp.sign(random[0]) / problem.input_dim ** (1 / problem.p)
            v = jnp.where(known[..., None], v, other)[..., None, :]
            return network, jnp.concatenate([v, -v][: self.count], axis=-2) * problem.eps[..., None]
        image = jnp.squeeze(jnp.matmul(jacobian, v[..., None], precision=matmul_precision()), -1)
        w = dual_vector(image, dual_exponent(problem.q))[..., None, :]
        row = jnp.where(known[..., None, None], jnp.matmul(w, jacobian, precision=matmul_precision()), random[0])
        return network, problem.best_response(jnp.concatenate([row, -row][: self.count], axis=-2))


@dataclasses.dataclass(frozen=True)
class RandomStarts(Start):
    """Random points of the ball's boundary: uniform directions, and for every other one a random best response.

    With `among` > 1 each is the best of so many random points, which also reach regions away from the gradient at x.
    A matrix-free network, whose capacity the extra points would use up, takes the first points as they are.
    """

    among: int = 1

    def __post_init__(self):
        super().__post_init__()
        check_positive("among", self.among)

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
        """One point of the ball and the box for each direction [*B, n, d]."""
        inside = directions / vector_norm(directions, problem.p)[..., None] * problem.eps[..., None]
        inside = inside if problem.box[0] is None else jnp.clip(inside, *problem.box)
        return jnp.where(_every_other(directions), problem.best_response(directions), inside)


def _every_other(rows: Array) -> np.ndarray:
    """Whether the number of each row is even, [n, 1]."""
    return (np.arange(rows.shape[-2]) % 2 == 0)[:, None]


@dataclasses.dataclass(frozen=True)
class OutputStarts(RandomStarts):
    """Random best responses, for every other one to the gradient at x of a random combination of the outputs.

    The combination w maximises <w, J u> over |w|_q* <= 1 for a random direction u. Where there is one output, its
    gradient would only repeat `LinearStarts`, and all responses are to random directions.

    Source: Tashiro, Song and Ermon 2020, "Diversity can be transferred: output diversification for white- and black-box
    attacks" (random outputs).
    """

    uses_jacobian: ClassVar[bool] = True

    def _points(self, problem: Problem, directions: Array) -> Array:
        jacobian, precision = problem.jacobian, matmul_precision()
        if jacobian.shape[-2] > 1:
            images = jnp.matmul(directions, jnp.swapaxes(jacobian, -1, -2), precision=precision)
            gradients = jnp.matmul(dual_vector(images, dual_exponent(problem.q)), jacobian, precision=precision)
            # Where J is not finite, neither is any entry of a gradient.
            gradients = jnp.where(jnp.isfinite(gradients), gradients, directions)
            directions = jnp.where(_every_other(directions), gradients, directions)
        return problem.best_response(directions)


@dataclasses.dataclass(frozen=True)
class Vertices(Start):
    """The best `count` of the 2 d vertices of the l1 ball, exact on the linear region of x if it holds the ball.

    All are evaluated, but for a matrix-free network only those of the `columns` columns of J with the largest norm.
    """

    columns: int = 16
    uses_jacobian: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        check_positive("columns", self.columns)

    def queries(self, input_dim: int) -> tuple[int, int]:
        return 2 * min(self.columns, input_dim), 0

    def __call__(self, problem: Problem, network: Any, normals: Float[Array, " T"]) -> tuple[Any, Array]:
        output, d = problem.base.output, problem.input_dim
        points = output.shape[:-1]
        columns = jnp.broadcast_to(jnp.arange(d), (*points, d))
        if network is not None:
            norms = vector_norm(jnp.swapaxes(problem.jacobian, -1, -2), problem.q)
            columns = jax.lax.top_k(norms, min(self.columns, d))[1]
        signed = jnp.concatenate([columns, columns + d], axis=-1)  # column + d stands for the vertex of negative sign

        def vertices(signed):
            size = jnp.where(signed < d, problem.eps, -problem.eps)[..., None]
            eta = size * jax.nn.one_hot(signed % d, d, dtype=output.dtype)
            return eta if problem.box[0] is None else jnp.clip(eta, *problem.box)

        network, scores = _scores(problem, network, signed, vertices)
        best = jax.lax.top_k(scores, min(self.count, signed.shape[-1]))[1]
        return network, vertices(jnp.take_along_axis(signed, best, axis=-1))


def _scores(problem: Problem, network: Any, items: Array, build: Callable) -> tuple[Any, Array]:
    """The value of each of n items [*B, n, ...], -1 where not finite; `build` turns items into candidates."""
    axis = problem.base.output.ndim - 1
    points, number = items.shape[:axis], items.shape[axis]

    def score(network, some):
        network, _, values = differences(problem, network, build(some))
        return network, jnp.where(jnp.isfinite(values), values, -1)

    chunks = -(-number // _CHUNK)
    if chunks == 1:  # a loop would compile more slowly
        return score(network, items)
    each = -(-number // chunks)
    padded = jnp.take(items, jnp.minimum(jnp.arange(chunks * each), number - 1), axis=axis)
    split = jnp.moveaxis(padded.reshape(*points, chunks, each, *items.shape[axis + 1 :]), axis, 0)
    network, scores = jax.lax.scan(score, network, split)
    return network, jnp.moveaxis(scores, 0, -2).reshape(*points, chunks * each)[..., :number]
