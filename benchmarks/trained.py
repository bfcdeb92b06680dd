"""Trained classifiers of handwritten digits, in JAX and in torch, and projected gradient descent as one writes it.

The digits are the 8 x 8 images that scikit-learn ships, divided by their largest value, 16: pixels lie in [0, 1], in
whose units eps is given.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Key
from sklearn.datasets import load_digits

import mftadv as mf
from mftadv.attack import RandomStarts, Vertices, named_attack

CLASSES, PIXELS, HELD_OUT = 10, 64, 297
SIZES = {1.0: (1.0, 4.0), 2.0: (0.3, 1.2), math.inf: (0.05, 0.2)}  # eps for each p
TRAININGS = {"standard": 0.0, "adversarial": 0.1}  # the radius of the perturbations, in the maximum norm


def digits() -> tuple[np.ndarray, np.ndarray]:
    """All images, as rows of pixels in [0, 1], and their classes; the last `HELD_OUT` are not trained on."""
    images, labels = load_digits(return_X_y=True)
    return (images / 16).astype(np.float32), labels.astype(np.int32)


def mlp(params: Any, x: Float[Array, "64"]) -> Float[Array, "10"]:
    """Three dense layers with ReLU between them."""
    for weight, bias in params[:-1]:
        x = jax.nn.relu(weight @ x + bias)
    weight, bias = params[-1]
    return weight @ x + bias


def conv(params: Any, x: Float[Array, "64"]) -> Float[Array, "10"]:
    """Two convolutions, each with ReLU and a maximum over squares of 2 x 2 pixels, and a dense layer."""
    image, window = x.reshape(1, 1, 8, 8), (1, 1, 2, 2)
    for kernel, bias in params[:-1]:
        image = jax.nn.relu(lax.conv_general_dilated(image, kernel, (1, 1), "SAME") + bias[:, None, None])
        image = lax.reduce_window(image, -jnp.inf, lax.max, window, window, "VALID")
    weight, bias = params[-1]
    return weight @ image.ravel() + bias


MODELS = {
    mlp: ((128, PIXELS), (128, 128), (CLASSES, 128)),
    conv: ((8, 1, 3, 3), (16, 8, 3, 3), (CLASSES, 64)),
}


def draw(shapes: tuple[tuple[int, ...], ...], key: Key[Array, ""]) -> Any:
    """Weights of variance 2 over the number of inputs of a unit, biases of 0."""
    keys = jax.random.split(key, len(shapes))
    return [
        (jax.random.normal(key, shape) * math.sqrt(2 / math.prod(shape[1:])), jnp.zeros(shape[0]))
        for key, shape in zip(keys, shapes, strict=True)
    ]


@functools.partial(jax.jit, static_argnames=("model", "steps"))
def train(
    model: Callable, key: Key[Array, ""], radius: Float[Array, ""] | float, xs: Array, labels: Array, steps: int
) -> Any:
    """Adam on the cross-entropy of inputs that five sign steps have perturbed, none where the radius is 0."""
    optimiser = optax.adam(3e-3)
    params = draw(MODELS[model], jax.random.fold_in(key, steps))

    def loss(params, xs, labels):
        logits = jax.vmap(model, (None, 0))(params, xs)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    def perturbed(params, xs, labels, key):
        def ascend(_, eta):
            gradient = jax.grad(loss, 1)(params, xs + eta, labels)
            return jnp.clip(eta + radius / 2 * jnp.sign(gradient), -radius, radius)

        eta = jax.random.uniform(key, xs.shape, xs.dtype, -radius, radius)
        return xs + lax.fori_loop(0, jnp.where(radius > 0, 5, 0), ascend, eta)

    def update(carry, step):
        (params, state), (choice, start) = carry, jax.random.split(jax.random.fold_in(key, step))
        batch = jax.random.choice(choice, len(xs), (64,), replace=False)
        moved = perturbed(params, xs[batch], labels[batch], start)
        updates, state = optimiser.update(jax.grad(loss)(params, moved, labels[batch]), state)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = lax.scan(update, (params, optimiser.init(params)), jnp.arange(steps))
    return params


def sign_step(gradient: Array) -> Array:
    return jnp.sign(gradient)


def normalised_step(gradient: Array) -> Array:
    return gradient / jnp.maximum(jnp.linalg.norm(gradient), 1e-30)


def coordinate_step(gradient: Array) -> Array:
    largest = jnp.argmax(jnp.abs(gradient))
    return jax.nn.one_hot(largest, len(gradient)) * jnp.sign(gradient[largest])


def onto_l1_ball(eta: Array, eps: ArrayLike) -> Array:
    """Duchi et al. 2008: all sizes shrink by one number, which the sorted sizes tell."""
    sizes = jnp.sort(jnp.abs(eta), descending=True)
    shrinks = (jnp.cumsum(sizes) - eps) / jnp.arange(1, len(eta) + 1)
    shrink = jnp.maximum(jnp.max(shrinks), 0)
    return jnp.sign(eta) * jnp.maximum(jnp.abs(eta) - shrink, 0)


STEPS = {1.0: coordinate_step, 2.0: normalised_step, math.inf: sign_step}
PROJECTIONS = {
    1.0: onto_l1_ball,
    2.0: lambda eta, eps: eta * jnp.minimum(1, eps / jnp.linalg.norm(eta)),
    math.inf: lambda eta, eps: jnp.clip(eta, -eps, eps),
}


def pgd(
    f: Callable, x: Array, eps: ArrayLike, p: float, q: float, key: Key[Array, ""], steps: ArrayLike, restarts: int = 2
) -> Array:
    """The best perturbation that projected gradient ascent meets, from uniform points of the ball.

    Its steps shrink from the diameter of the ball to 0, which finds more than steps of one size, 2.5 eps / steps.
    """
    base = f(x)

    def value(eta):
        return jnp.linalg.norm(f(x + eta) - base, ord=q)

    def step(t, state):
        eta, best, most = state
        now, gradient = jax.value_and_grad(value)(eta)
        best, most = jnp.where(now > most, eta, best), jnp.maximum(now, most)
        return PROJECTIONS[p](eta + 2 * eps * (1 - t / steps) * STEPS[p](gradient), eps), best, most

    def restart(key):
        eta = eps * jax.random.ball(key, len(x), p)
        eta, best, most = lax.fori_loop(0, steps, step, (eta, eta, jnp.float32(0)))
        last = value(eta)
        return jnp.where(last > most, eta, best), jnp.maximum(last, most)

    etas, values = jax.vmap(restart)(jax.random.split(key, restarts))
    return etas[jnp.argmax(values)]


def gradients_taken(p: float, attack: str) -> int:
    """How many gradients a named attack takes of the logits, counting a value that it takes alone as one."""
    pieces = named_attack(attack, p)
    alone = 0
    for start in pieces.starts:
        if isinstance(start, Vertices):
            alone += 2 * PIXELS
        elif isinstance(start, RandomStarts) and start.among > 1:
            alone += start.count * start.among
    return alone + pieces.queries(PIXELS, CLASSES)[1]


def trained(model: Callable, seeds: int, steps: int) -> Any:
    """Weights of a model in each training, with leading axes [trainings, seeds]."""
    xs, labels = (values[:-HELD_OUT] for values in digits())
    each = [[train(model, jax.random.key(i), r, xs, labels, steps) for i in range(seeds)] for r in TRAININGS.values()]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *itertools.chain(*each))


def contenders(model: Callable, p: float, q: float) -> dict[str, Callable]:
    """Ways to attack many networks, each at many inputs [C, 64] with an eps and a key of its own."""

    def batched(attack):
        def network(params, xs, eps, keys):
            return jax.vmap(lambda x, eps, key: attack(lambda x: model(params, x), x, eps, key))(xs, eps, keys)

        return jax.jit(lambda params, *cases: lax.map(lambda params: network(params, *cases), params))

    def ours(attack):
        return batched(
            lambda f, x, eps, key: mf.adversarial_loss(f, x, eps=eps, p=p, q=q, key=key, attack=attack).perturbation
        )

    def theirs(restarts, steps):
        return batched(lambda f, x, eps, key: pgd(f, x, eps, p, q, key, steps, restarts))

    sizes = ((2, 40), (8, -(-gradients_taken(p, "default") // 8)))
    by_hand = {f"PGD {restarts} x {steps}": theirs(restarts, steps) for restarts, steps in sizes}
    return {"default": ours("default"), "thorough": ours("thorough"), **by_hand}


def against_trained(seeds: int = 2, inputs: int = 5, steps: int = 300, norms=(1.0, 2.0, math.inf)) -> Iterator[dict]:
    """The losses that each contender reaches on trained networks, at inputs that were held out, for both eps."""
    xs = digits()[0][-inputs:]
    for model in MODELS:
        params = trained(model, seeds, steps)
        for p, q in itertools.product(norms, repeat=2):
            eps = np.repeat(np.asarray(SIZES[p], np.float32), inputs)
            points = jnp.tile(xs, (2, 1))
            keys = jax.random.split(jax.random.key(0), len(points))
            reached = {}
            for name, attack in contenders(model, p, q).items():
                etas = np.asarray(attack(params, points, eps, keys), np.float64)
                norm = np.linalg.norm(etas, ord=p, axis=-1) if p != 1 else np.abs(etas).sum(-1)
                if not np.all(norm <= eps * (1 + 1e-5)):
                    raise ValueError(f"{name}: expected perturbations in the ball, got {np.max(norm / eps)} of eps")
                reached[name] = loss(model, params, points, etas, q)
            for (i, training), (j, size) in itertools.product(enumerate(TRAININGS), enumerate(SIZES[p])):
                cases = {
                    name: values.reshape(len(TRAININGS), seeds, 2, inputs)[i, :, j].ravel().tolist()
                    for name, values in reached.items()
                }
                yield {"model": model.__name__, "training": training, "p": p, "q": q, "eps": size, "reached": cases}


def loss(model: Callable, params: Any, xs: Array, etas: np.ndarray, q: float) -> np.ndarray:
    """|f(x + eta) - f(x)|_q of many networks, each at inputs [C, 64] with perturbations of its own."""
    outputs = jax.jit(jax.vmap(jax.vmap(model, (None, 0)), (0, 0)))
    moved, base = (outputs(params, jnp.broadcast_to(at, etas.shape)) for at in (xs + jnp.float32(etas), xs))
    return np.linalg.norm(np.asarray(moved, np.float64) - np.asarray(base, np.float64), ord=q, axis=-1)
