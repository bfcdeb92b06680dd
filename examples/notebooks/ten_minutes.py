# %% [markdown]
# ## The law of a random network
#
# A random ReLU network f of depth L and width N is linear around an input x: f(x + eta) = J (x + eta) + a as long as no
# unit switches. The paper says that J [K, d] has independent entries N(0, omega^L / d), where omega = s / 2 for ReLU
# and weights of variance s / N. `mf.monte_carlo` draws many networks; `mf.theory` holds the closed forms.

# %%
import jax
import jax.numpy as jnp

import mftadv as mf

spec = mf.NetworkSpec(input_dim=20, output_dim=1, width=50, depth=3, weight_variance=2.2, bias_variance=0.1)
x, eps = jnp.ones(20), 0.2


def measure(key, spec, x):
    net = mf.init(key, spec)
    found = mf.adversarial_loss(net, x, eps, p=2, q=2, key=key, attack="fast")
    rep = mf.linear_representation(net, x)
    squares = {"J_ij^2": jnp.mean(rep.jacobian**2), "a^2": jnp.mean(rep.shift**2)}
    return {**squares, "|J|": jnp.linalg.norm(rep.jacobian), "L_adv": found.value}


measured = mf.monte_carlo(measure, jax.random.key(0), spec, x, num_networks=1500)
theory = {"J_ij^2": mf.theory.jacobian_variance(spec), "a^2": mf.theory.shift_variance(spec)}
for name, expected in theory.items():
    print(f"E {name} {measured[name].mean:.4f} +- {measured[name].standard_error:.4f}, theory {expected:.4f}")

# %% [markdown]
# At finite width the entries of one network share a random scale, so that their mean square scatters more than that of
# d Gaussian numbers, 2 / d relative. How much is known exactly at every width, and is this project's.

# %%
scatter = (measured["J_ij^2"].deviation / measured["J_ij^2"].mean) ** 2
expected = (1 + 2 / 20) * mf.theory.finite_width_factor(spec) - 1
print(f"relative variance of the mean square {scatter:.3f}, theory {expected:.3f}, independent entries {2 / 20}")

# %% [markdown]
# ## The adversarial loss and its bound
#
# L_adv = max |f(x + eta) - f(x)| over |eta|_p <= eps is nearly eps |J|, whose mean is eps beta omega^(L/2), with beta
# the mean p->q norm of a Gaussian matrix. An attack gives a lower value of L_adv.

# %%
loss = measured["L_adv"]
print(f"L_adv {loss.mean:.4f} +- {loss.standard_error:.4f}, eps E|J| {eps * measured['|J|'].mean:.4f}")
for kind in ("sharp", "chevet", "published"):
    print(f"eps beta omega^(L/2), {kind}: {mf.theory.adversarial_loss_bound(spec, eps, 2, 2, kind):.4f}")

# %% [markdown]
# For p = 1 and one output the published coefficient is no bound: it is a leading order for many outputs.

# %%
for kind in ("sharp", "chevet", "published"):
    print(f"beta_12 at d = 1000, K = 1, {kind}: {mf.theory.operator_norm_coefficient(1, 2, 1000, 1, kind):.4f}")

# %% [markdown]
# ## What training does
#
# Gradient flow on L_adv shrinks the weights. The published s(t) assumes that L_adv stays eps beta omega^(L/2). But
# training lowers L_adv itself, so the closed form is right at t = 0 and overstates the change after
# `mf.theory.validity_horizon`. What holds at all times is an identity: |W_l|^2 falls at the rate of twice the loss.

# %%
law = mf.NetworkSpec(input_dim=20, output_dim=1, width=100, depth=3)
config = mf.TrainingConfig(100, 0.01, eps, standard_loss=None, attack="fast", evaluate_every=50)
record = jax.jit(mf.train)(jax.random.key(1), law, (x[None], None), config)
print("L_adv at the start and at t = .5 and 1", record.adversarial_loss)
print("change of |W_l|^2", record.norm_change[-1])
print("by the identity  ", record.norm_change_predicted[-1])
change = law.width * (mf.theory.weight_variance(law, 1.0, eps, 2, 2) - law.weight_variance)
print("by the published s(t)", change, "which holds up to t =", mf.theory.validity_horizon(law, eps, jnp.sqrt(20.0)))

# %% [markdown]
# ## Which depths can be trained
#
# The paper calls a depth trainable where omega(t)^L stays between two limits. A vanilla network of omega = 1 loses its
# signal by the shrinking weights, the sooner the deeper it is. By the published s(t), with a warning that it is used
# far beyond its horizon (`mftadv trainability` trains networks to see):

# %%
import warnings

with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    law = mf.NetworkSpec(input_dim=20, output_dim=1, width=1000, depth=1)
    print("largest depth", mf.theory.max_trainable_depth(law, eps, 2, 2, horizon=100.0, lower=0.5, upper=2.0))
print(said[0].message)

# %% [markdown]
# ## Capacity
#
# The Fisher-Rao norm measures how much a network can express. It is proportional to omega^L, so that it falls as
# training shrinks the weights, at a rate of 1/N.

# %%
for s in (2.0, 1.9):
    law = mf.NetworkSpec(input_dim=20, output_dim=1, width=1000, depth=10, weight_variance=s)
    print("s", s, "squared Fisher-Rao norm", mf.theory.fisher_rao_norm(law, 20.0))
