"""Adversarial training in a loop of your own: optax on the parameters of one network, with the paper's L_adv.

    python examples/optax_loop.py

What is printed is of images that are not trained on; the two accuracies are of the images as they are, and moved by the
perturbation that changes the outputs most. Needs `pip install "mftadv[cli]"`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

import mftadv as mf

digits = mf.load_inputs("digits", 1700, seed=0)
images, classes = jnp.asarray(digits.values, jnp.float32), jnp.asarray(digits.labels)
net = mf.init(jax.random.key(0), mf.NetworkSpec(input_dim=64, output_dim=10, width=100, depth=3))
optimiser = optax.adam(2e-3)


def losses(params, x, labels, key):
    trained = dataclasses.replace(net, params=params)
    found = mf.adversarial_loss(trained, x, eps=1.0, p=2, q=2, key=key, attack="fast")
    outputs, moved = mf.apply(trained, x), mf.apply(trained, x + found.perturbation)
    standard = optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()
    accuracies = [jnp.mean(jnp.argmax(f, axis=-1) == labels) for f in (outputs, moved)]
    return standard, found.value.mean(), *accuracies


@jax.jit
def step(params, state, key):
    batch = jax.random.randint(key, [32], 0, 1500)

    def objective(params):
        standard, adversarial, *_ = losses(params, images[batch], classes[batch], key)
        return standard + 0.3 * adversarial

    updates, state = optimiser.update(jax.grad(objective)(params), state)
    return optax.apply_updates(params, updates), state


params, state = net.params, optimiser.init(net.params)
for i, key in enumerate(jax.random.split(jax.random.key(1), 301)):
    if i % 100 == 0:
        standard, adversarial, clean, moved = jax.jit(losses)(params, images[1500:], classes[1500:], key)
        print(f"{i}: cross entropy {standard:.3f}, L_adv {adversarial:.3f}, accuracies {clean:.3f} and {moved:.3f}")
    params, state = step(params, state, key)
