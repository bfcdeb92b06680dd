"""A model of your own, here of flax: its linear representation, its adversarial loss, and how linear it is.

    python examples/flax_model.py

Needs `pip install "mftadv[cli,flax]"`. An input of nothing but numbers [d] goes in; the model may reshape it.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

import mftadv as mf

model = nn.Sequential([
    nn.Conv(8, (3, 3)), nn.relu, lambda h: nn.max_pool(h, (2, 2), (2, 2)), lambda h: h.reshape(-1), nn.Dense(10),
])  # fmt: skip
image = jnp.asarray(mf.load_inputs("digits", 1, seed=0).values[0], jnp.float32)
variables = model.init(jax.random.key(0), image.reshape(8, 8, 1))


@jax.jit
def diagnose(variables, x, key):
    def f(x):
        return model.apply(variables, x.reshape(8, 8, 1))

    losses = jax.vmap(lambda eps: mf.adversarial_loss(f, x, eps, p=2, q=2, key=key, attack="fast").value)(SIZES)
    return mf.linear_representation(f, x), losses


SIZES = jnp.array([0.01, 0.1, 1.0])
rep, losses = diagnose(variables, image, jax.random.key(1))
norm = mf.operator_norm(rep.jacobian, 2, 2).lower
print(f"|J| {norm:.3f}")
for eps, loss in zip(SIZES, losses, strict=True):
    print(f"eps {eps:g}: L_adv {loss:.4f}, which is {loss / (eps * norm):.3f} eps |J|")
