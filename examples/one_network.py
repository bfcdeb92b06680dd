"""One random network at one input: its Jacobian, its shift and its adversarial loss, beside the theory of its law.

python examples/one_network.py
"""

import jax
import jax.numpy as jnp

import mftadv as mf

spec = mf.NetworkSpec(input_dim=30, output_dim=2, width=300, depth=3, weight_variance=2.0, bias_variance=0.1)
x, eps = jax.random.normal(jax.random.key(1), 30), 0.3


@jax.jit
def measure(key, spec, x):
    net = mf.init(key, spec)
    loss = mf.adversarial_loss(net, x, eps, p=2, q=2, key=key, attack="fast").value
    return mf.linear_representation(net, x), mf.apply(net, x), loss


rep, f, loss = measure(jax.random.key(0), spec, x)
print("f(x)", f, "and J x + a", rep.jacobian @ x + rep.shift)
print("mean square of J", jnp.mean(rep.jacobian**2), "and over all networks", mf.theory.jacobian_variance(spec))
print("L_adv", loss, "and eps |J|", eps * mf.operator_norm(rep.jacobian, 2, 2).lower)
print("eps |J| is in the mean at most", mf.theory.adversarial_loss_bound(spec, eps, 2, 2), "in a wide network")
