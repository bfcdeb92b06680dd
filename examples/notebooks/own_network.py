# %% [markdown]
# ## Any JAX function
#
# Whatever maps one input [d] to one output [K] can be measured. Here it is a small tanh network; a flax module goes in
# as `lambda x: model.apply(variables, x)`, see [flax.md](flax.md).

# %%
import jax
import jax.numpy as jnp

import mftadv as mf

keys = jax.random.split(jax.random.key(0), 3)
shapes = [(20, 64), (64, 64), (64, 3)]
weights = [jax.random.normal(key, shape) / jnp.sqrt(shape[0]) for key, shape in zip(keys, shapes, strict=True)]
x = jax.random.normal(jax.random.key(1), 20)


def f(weights, x):
    first, second, last = weights
    return jnp.tanh(jnp.tanh(x @ first) @ second) @ last


rep = mf.linear_representation(lambda x: f(weights, x), x)
print("f(x)", f(weights, x), "is J x + a,", rep.jacobian @ x + rep.shift)
print("2->2 norm of J", mf.operator_norm(rep.jacobian, 2, 2).lower)

# %% [markdown]
# ## Its adversarial loss
#
# The weights are an argument of the jitted function: new ones do not compile again. `eps` is traced too.


# %%
@jax.jit
def attack(weights, x, eps, key):
    return mf.adversarial_loss(lambda x: f(weights, x), x, eps, p=2, q=2, key=key)


norm = mf.operator_norm(rep.jacobian, 2, 2).lower
for eps in (0.01, 0.1, 1.0, 10.0):
    found = attack(weights, x, eps, jax.random.key(2))
    print(f"eps {eps:5g}: L_adv {found.value:.4f}, over eps |J| {found.value / (eps * norm):.3f},", end=" ")
    print(f"converged {found.converged}, spread of the starts {found.spread:.1e}, rounding {found.rounding:.1e}")

# %% [markdown]
# Where the ratio is near 1 the function is linear in the ball. `converged` says that nothing speaks against a local
# maximum that two starts agree on; it is no proof of a global one. `rounding` is what the subtraction f(x + eta) - f(x)
# may have made of the value in float32; a `mf.Network` propagates the difference instead.
#
# ## Beside a random network of the theory
#
# Theory speaks of ReLU-like networks. For one of the same shape it says how large the loss is in the mean, and which
# value it exceeds in 1% of the networks at most:

# %%
spec = mf.NetworkSpec(input_dim=20, output_dim=3, width=64, depth=2, weight_variance=2.0)
print("eps |J| in the mean at most", mf.theory.finite_width_bound(spec, 0.1, 2, 2))
print("and in 99% of the networks below", mf.theory.adversarial_loss_bound(spec, 0.1, 2, 2, confidence=0.99))

# %% [markdown]
# ## The derivative of the loss
#
# In the weights, at the worst perturbation: what an adversarial training of your own needs, one more backward pass.

# %%
gradient = jax.grad(lambda weights: attack(weights, x, 0.1, jax.random.key(2)).value)(weights)
print("norms of the gradient", [float(jnp.linalg.norm(each)) for each in gradient])
