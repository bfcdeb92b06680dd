"""Closed forms held against many random networks, each with a verdict; one is known to fail.

    python examples/theory_against_measurement.py

Without biases f(x) = J x. For a residual network the published law of J misses what happens along x, of which
mf.theory.residual_law knows. A claim is "underpowered" where too few networks were drawn to see an error of 5%.
"""

import jax
import numpy as np

import mftadv as mf

x = np.ones(10, np.float32)


@jax.jit
def outputs(keys, spec):
    def draw(key):
        net = mf.init(key, spec, engine="matrix_free", capacity=mf.capacity_for(spec, evaluate=1))
        return mf.evaluate(net, x)[0]

    return jax.vmap(draw)(keys)


claims = []
for block in ("vanilla", "residual"):
    spec = mf.NetworkSpec(input_dim=10, output_dim=50, width=1000, depth=4, weight_variance=1.0, block=block)
    square = mf.statistics.mean_estimate(np.asarray(outputs(jax.random.split(jax.random.key(0), 1500), spec)) ** 2)
    published = float(10 * mf.theory.jacobian_variance(spec))
    expected = "holds" if block == "vanilla" else "fails"
    claims.append(mf.Claim.of(f"{block}: E (J x)^2, published", published, square, expected=expected))
    if block == "residual":
        corrected = float(mf.theory.residual_law(spec, 10.0, finite_width=True).along_input)
        claims.append(mf.Claim.of("residual: E (J x)^2, corrected", corrected, square, allowance=0.01))
for judged in mf.judge(claims):
    claim = judged.claim
    print(f"{claim.quantity}: {claim.theory:.4f}, measured {claim.measured:.4f}, {judged.verdict}")
