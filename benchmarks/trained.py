"""Attacks on trained classifiers of handwritten digits: ours against projected gradient descent.

The digits are the images of 8 x 8 pixels that scikit-learn ships, divided by 16, their largest value: pixels lie in
[0, 1], and eps is in their units. The loss is that of the ten logits, without labels and without a box.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Key
from sklearn.datasets import load_digits

import mftadv as mf
from benchmarks.harness import to_numpy
from benchmarks.plain import conv, draw, gradients_taken, mlp, pgd

CLASSES, PIXELS, HELD_OUT = 10, 64, 297
SIZES = {1.0: (1.0, 4.0), 2.0: (0.3, 1.2), math.inf: (0.05, 0.2)}  # eps for each p
TRAININGS = {"standard": 0.0, "adversarial": 0.1}  # the radius of the perturbations, in the maximum norm
MODELS = {
    mlp: ((128, PIXELS), (128, 128), (CLASSES, 128)),
    conv: ((8, 1, 3, 3), (16, 8, 3, 3), (CLASSES, 64)),
}
CONTENDERS = ("PGD 2 x 40", "PGD", "torchattacks", "foolbox", "thorough")


@dataclasses.dataclass(frozen=True)
class Reached:
    """The losses that contenders reach on one kind of network, each [seeds, inputs]."""

    model: str
    training: str
    p: float
    q: float
    eps: float
    gradients: int  # that the default attack takes, and every other save "PGD 2 x 40" and "thorough"
    losses: dict[str, np.ndarray]

    def ratio(self, name: str) -> np.ndarray:
        """The loss of the default attack over that of another; of the thorough attack over that of the default."""
        default, other = self.losses["default"], self.losses[name]
        return other / default if name == "thorough" else default / other

    def __str__(self):
        return f"{self.model:4} {self.training:11} {self.p:3g} -> {self.q:<3g} eps={self.eps:<4g}"


def against_trained(
    seeds: int = 2,
    inputs: int = 5,
    steps: int = 300,
    models: Iterable[Callable] = (mlp, conv),
    norms: Sequence[float] = (1.0, 2.0, math.inf),
    libraries: bool = True,
) -> Iterator[Reached]:
    """Attack networks of each kind, trained from several seeds, at inputs that were held out, with two sizes eps."""
    for model in models:
        params = _trained(model, seeds, steps)
        for p, q in itertools.product(norms, repeat=2):
            xs = np.tile(digits()[0][-inputs:], (len(SIZES[p]), 1))
            eps = np.repeat(np.asarray(SIZES[p], np.float32), inputs)
            losses = {}
            for name, attack in _contenders(model, p, q, libraries).items():
                etas = np.asarray(attack(params, xs, eps), np.float64)
                norm = np.linalg.norm(etas, ord=p, axis=-1) if p == 2 else {1: np.sum, np.inf: np.max}[p](abs(etas), -1)
                if not np.all(norm <= eps * (1 + 1e-5)):
                    raise ValueError(f"{name}: expected perturbations in the ball, got {np.max(norm / eps)} of eps")
                losses[name] = _losses(model, params, xs, etas, q).reshape(len(TRAININGS), seeds, -1, inputs)
            gradients = gradients_taken("default", p, PIXELS, CLASSES)
            for (i, training), (j, size) in itertools.product(enumerate(TRAININGS), enumerate(SIZES[p])):
                each = {name: values[i, :, j] for name, values in losses.items()}
                yield Reached(model.__name__, training, p, q, size, gradients, each)


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """All images, as rows of pixels in [0, 1], and their classes; the last `HELD_OUT` are not trained on."""
    images, labels = map(np.asarray, load_digits(return_X_y=True))
    return (images / 16).astype(np.float32), labels.astype(np.int32)


@functools.partial(jax.jit, static_argnames=("model", "steps"))
def train(model: Callable, key: Key[Array, ""], radius: float, xs: Array, labels: Array, steps: int) -> Any:
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


def _trained(model: Callable, seeds: int, steps: int) -> Any:
    """The weights of a model in each training, from each seed, one after the other along the leading axis."""
    xs, labels = (values[:-HELD_OUT] for values in digits())
    each = [train(model, jax.random.key(i), r, xs, labels, steps) for r in TRAININGS.values() for i in range(seeds)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)


def _contenders(model: Callable, p: float, q: float, libraries: bool) -> dict[str, Callable]:
    """Ways from networks [M], inputs [C, d] and eps [C] to perturbations [M, C, d]."""

    def batched(attack):
        def one_network(params, xs, eps, keys):
            return jax.vmap(lambda x, eps, key: attack(lambda x: model(params, x), x, eps, key))(xs, eps, keys)

        @jax.jit
        def all_networks(params, xs, eps):
            keys = jax.random.split(jax.random.key(0), len(xs))
            return lax.map(lambda params: one_network(params, xs, eps, keys), params)

        return all_networks

    def ours(preset):
        return batched(
            lambda f, x, eps, key: mf.adversarial_loss(f, x, eps=eps, p=p, q=q, key=key, attack=preset).perturbation
        )

    def by_hand(steps, restarts):
        return batched(lambda f, x, eps, key: pgd(f, x, eps, p, q, key, steps, restarts))

    gradients = gradients_taken("default", p, PIXELS, CLASSES)
    contenders = {preset: ours(preset) for preset in ("default", "thorough")}
    contenders |= {"PGD 2 x 40": by_hand(40, 2), "PGD": by_hand(-(-gradients // 8), 8)}
    if libraries:
        from benchmarks import peers

        def library(attack):
            return lambda params, xs, eps: [
                _by_library(attack, model, jax.tree.map(lambda leaf, i=i: leaf[i], params), xs, eps, p, q, gradients)
                for i in range(len(jax.tree.leaves(params)[0]))
            ]

        contenders |= {name: library(attack) for name, (attack, norms) in peers.PGD.items() if p in norms}
    return contenders


def _by_library(
    attack: Callable, model: Callable, params: Any, xs: np.ndarray, eps: np.ndarray, p: float, q: float, gradients: int
) -> np.ndarray:
    """The perturbations of one network by four restarts of a library's attack."""
    from benchmarks import peers

    f = functools.partial(getattr(peers, model.__name__), jax.tree.map(peers.tensor, params))
    inputs, sizes = peers.tensor(xs), peers.tensor(eps)
    ours = np.asarray(jax.vmap(model, (None, 0))(params, xs))
    if np.max(np.abs(to_numpy(f(inputs)) - ours)) > 1e-5 * np.max(np.abs(ours)):
        raise ValueError(f"model: expected the same outputs of {model.__name__} in torch, got others")
    peers.torch.manual_seed(0)
    return to_numpy(peers.best_of(4, attack, f, inputs, sizes, p, q, -(-gradients // 4)))


def _losses(model: Callable, params: Any, xs: np.ndarray, etas: np.ndarray, q: float) -> np.ndarray:
    """|f(x + eta) - f(x)|_q [M, C] of networks [M], each at inputs [C, d] with perturbations [M, C, d]."""
    moved, base = (_outputs(model, params, np.broadcast_to(at, etas.shape)) for at in (xs + np.float32(etas), xs))
    return np.linalg.norm(np.asarray(moved, np.float64) - np.asarray(base, np.float64), ord=q, axis=-1)


@functools.partial(jax.jit, static_argnames="model")
def _outputs(model: Callable, params: Any, xs: Array) -> Array:
    return jax.vmap(jax.vmap(model, (None, 0)))(params, xs)
