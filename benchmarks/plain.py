"""What one writes by hand in plain JAX: two classifiers, and projected gradient descent."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Key

from mftadv import Attack
from mftadv.attack import RandomStarts, Vertices, named_attack


def draw(shapes: Sequence[tuple[int, ...]], key: Key[Array, ""]) -> Any:
    """Layers with weights of variance 2 over the number of inputs of a unit, and biases of 0."""
    keys = jax.random.split(key, len(shapes))
    return [
        (jax.random.normal(key, shape) * math.sqrt(2 / math.prod(shape[1:])), jnp.zeros(shape[0]))
        for key, shape in zip(keys, shapes, strict=True)
    ]


def mlp(params: Any, x: Float[Array, " d"]) -> Float[Array, " K"]:
    """Dense layers with ReLU between them."""
    for weight, bias in params[:-1]:
        x = jax.nn.relu(weight @ x + bias)
    weight, bias = params[-1]
    return weight @ x + bias


def conv(params: Any, x: Float[Array, " d"]) -> Float[Array, " K"]:
    """Convolutions of an image of 8 x 8, each with ReLU and a maximum over squares of 2 x 2, and a dense layer."""
    image, window = x.reshape(1, 1, 8, 8), (1, 1, 2, 2)
    for kernel, bias in params[:-1]:
        image = jax.nn.relu(lax.conv_general_dilated(image, kernel, (1, 1), "SAME") + bias[None, :, None, None])
        image = lax.reduce_window(image, -jnp.inf, lax.max, window, window, "VALID")
    weight, bias = params[-1]
    return weight @ image.ravel() + bias


def pgd(
    f: Callable, x: Array, eps: ArrayLike, p: float, q: float, key: Key[Array, ""], steps: int, restarts: int
) -> Array:
    """The perturbation with the largest |f(x + eta) - f(x)|_q that projected gradient ascent meets; p is 1, 2 or inf.

    Its steps shrink from the diameter of the ball to 0, which finds more than steps of one size, 2.5 eps / steps.
    """
    start, direction, project = DESCENT[p]
    base = f(x)

    def value(eta):
        return jnp.linalg.norm(f(x + eta) - base, ord=q)

    def step(t, state):
        eta, best, most = state
        now, gradient = jax.value_and_grad(value)(eta)
        best, most = jnp.where(now > most, eta, best), jnp.maximum(now, most)
        return project(eta + 2 * eps * (1 - t / steps) * direction(gradient), eps), best, most

    def restart(key):
        eta = eps * start(key, x.shape)
        eta, best, most = lax.fori_loop(0, steps, step, (eta, eta, jnp.zeros((), eta.dtype)))
        last = value(eta)
        return jnp.where(last > most, eta, best), jnp.maximum(last, most)

    etas, values = jax.vmap(restart)(jax.random.split(key, restarts))
    return etas[jnp.argmax(values)]


def _of_norm_one(v: Array, p: float) -> Array:
    return v / jnp.maximum(jnp.linalg.norm(v, ord=p), 1e-30)


def _in_ball(draw: Callable, p: float) -> Callable:
    """A uniform point of the unit ball: a direction, and the d-th root of a uniform number."""

    def point(key, shape):
        direction, radius = jax.random.split(key)
        return _of_norm_one(draw(direction, shape), p) * jax.random.uniform(radius) ** (1 / shape[0])

    return point


def _coordinate(gradient: Array) -> Array:
    """The steepest direction of the l1 ball: along the largest entry alone."""
    largest = jnp.argmax(jnp.abs(gradient))
    return jnp.where(jnp.arange(len(gradient)) == largest, jnp.sign(gradient), 0)


def _onto_l1_ball(eta: Array, eps: ArrayLike) -> Array:
    """Duchi et al. 2008: all sizes shrink by one number, which the sorted sizes tell."""
    sizes = jnp.sort(jnp.abs(eta), descending=True)
    shrink = jnp.max((jnp.cumsum(sizes) - eps) / jnp.arange(1, len(eta) + 1, dtype=eta.dtype))
    return jnp.sign(eta) * jnp.maximum(jnp.abs(eta) - jnp.maximum(shrink, 0), 0)


# for each p: a random point of the unit ball, the direction of a step, the projection onto the ball
DESCENT = {
    1.0: (_in_ball(jax.random.laplace, 1), _coordinate, _onto_l1_ball),
    2.0: (
        _in_ball(jax.random.normal, 2),
        lambda gradient: _of_norm_one(gradient, 2),
        lambda eta, eps: eta * jnp.minimum(1, eps / jnp.linalg.norm(eta)),
    ),
    math.inf: (
        lambda key, shape: jax.random.uniform(key, shape, minval=-1, maxval=1),
        jnp.sign,
        lambda eta, eps: jnp.clip(eta, -eps, eps),
    ),
}


def gradients_taken(attack: str | Attack, p: float, input_dim: int, output_dim: int) -> int:
    """How many gradients our attack takes of a function; a value without a gradient at its point counts as one."""
    attack = named_attack(attack, p)
    alone = attack.count  # what follows the last step
    for start in attack.starts:
        if isinstance(start, Vertices):
            alone += 2 * input_dim
        elif isinstance(start, RandomStarts) and start.among > 1:
            alone += start.count * start.among
    return alone + attack.queries(input_dim, output_dim)[1]
