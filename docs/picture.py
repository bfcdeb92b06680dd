"""The picture of the README: theory against measurement, for random networks and for one quantity in training.

python docs/picture.py            # writes docs/picture.png
"""

from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

import mftadv as mf
from mftadv.report import BLUE, GREY, ORANGE

DEPTHS, NETWORKS, x = (1, 2, 4, 6, 8, 10), 300, np.ones(10, np.float32)


@jax.jit
def outputs(keys, spec):  # f(x) = J x without biases
    def draw(key):
        net = mf.init(key, spec, engine="matrix_free", capacity=mf.capacity_for(spec, evaluate=1))
        return mf.evaluate(net, x)[0]

    return jax.vmap(draw)(keys)


plt.rcParams["font.size"] = 8
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.9), layout="constrained")
for block, s, colour in (("residual", 0.5, ORANGE), ("signed", 0.3, BLUE), ("vanilla", 1.5, GREY)):
    specs = [mf.NetworkSpec(10, 50, 1000, depth, weight_variance=s, block=block) for depth in DEPTHS]
    keys = jax.random.split(jax.random.key(0), NETWORKS)
    squares = [np.mean(np.asarray(outputs(keys, spec)) ** 2, axis=-1) for spec in specs]
    errors = [3 * each.std() / NETWORKS**0.5 for each in squares]
    left.errorbar(DEPTHS, [each.mean() for each in squares], errors, fmt="o", ms=3, color=colour, label=block)
    left.plot(DEPTHS, [10 * mf.theory.jacobian_variance(spec) for spec in specs], "--", color=colour, lw=1)
    if block == "residual":
        left.plot(DEPTHS, [mf.theory.residual_law(spec, 10.0).along_input for spec in specs], color=colour, lw=1)
left.plot([], [], "--", color="k", lw=1, label="published law")
left.plot([], [], color="k", lw=1, label="corrected law")
left.set(yscale="log", xlabel="depth L", ylabel="E (J x)$^2$", title="random networks, N = 1000, |x|$^2$ = d")
left.legend(fontsize=7)

spec, eps, rate, steps = mf.NetworkSpec(20, 1, 400, 3), 0.2, 2e-4, 200
config = mf.TrainingConfig(steps, rate, eps, standard_loss=None, attack="fast", evaluate_every=5)
points = np.sqrt(20) * np.eye(20, dtype=np.float32)[:1]
train = jax.jit(jax.vmap(lambda key: mf.train(key, spec, (points, None), config)))
record = train(jax.random.split(jax.random.key(1), 16))
times = rate * np.asarray(record.step[0])
change, identity = (np.asarray(values).mean(-1) for values in (record.norm_change, record.norm_change_predicted))
closed = spec.width * (np.asarray(mf.theory.weight_variance(spec, times, eps, 2, 2, "sharp")) - spec.weight_variance)
right.errorbar(
    times[::4], change.mean(0)[::4], 3 * change.std(0)[::4] / 4, fmt="o", ms=3, color=BLUE, label="16 networks"
)
right.plot(times, identity.mean(0), color=BLUE, lw=1, label="identity")
right.plot(times, closed, "--", color="k", lw=1, label="published")
right.axvline(
    float(mf.theory.validity_horizon(spec, eps, 20**0.5)), color=GREY, lw=0.8, ls=":", label="its horizon (10%)"
)
right.set(
    xlabel="training time t", ylabel=r"change of $|W_l|^2$", title="training on L$_{adv}$, N = 400, L = 3",
    ylim=(1.6 * change.mean(0)[-1], 0.0005),
)  # fmt: skip
right.legend(fontsize=7, loc="upper right")
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
figure.savefig(Path(__file__).parent / "picture.png", dpi=130, metadata={"Software": None})
