"""The adversarial loss over a grid of depths and weight variances, beside its bound.

    python examples/sweep.py

Needs `pip install "mftadv[cli]"`. With folder="results/loss" the sweep is stored, and goes on where it was stopped.
"""

import jax
import jax.numpy as jnp

import mftadv as mf

EPS = 0.1


def loss(key, spec, x):  # of one network; mf.sweep batches it
    net = mf.init(key, spec)
    return mf.adversarial_loss(net, x, EPS, p=2, q=2, key=key, attack="fast").value


def bound(spec):
    return {"bound": float(mf.theory.adversarial_loss_bound(spec, EPS, 2, 2))}


spec = mf.NetworkSpec(input_dim=20, output_dim=1, width=50, depth=2)
grid = {"depth": [2, 4], "weight_variance": [1.0, 2.0, 3.0]}
found = mf.sweep(loss, jax.random.key(0), spec, grid, jnp.ones(20), num_networks=100, theory=bound)
for depth in found["depth"].values:
    for s in found["weight_variance"].values:
        at = found.sel(depth=depth, weight_variance=s)
        mean, error, most = (float(at[name]) for name in ("value", "value_standard_error", "theory_bound"))
        print(f"L={depth} s={s:g}: L_adv {mean:.4f} +- {error:.4f}, bound {most:.4f}")
