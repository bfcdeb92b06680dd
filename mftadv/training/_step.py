"""One step of training of one network: perturb a batch, descend at the perturbations held fixed."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from mftadv.attack import adversarial_loss
from mftadv.matrices import DenseMatrix
from mftadv.network import Network, difference, forward
from mftadv.norms import vector_norm
from mftadv.spec import fold_in_loop, key_for
from mftadv.theory import alpha
from mftadv.training._config import LOSSES, TrainingConfig, targets_of


class State(NamedTuple):
    """A network in training.

    Attributes:
        network: as it is now.
        optimizer: the state of the optax transformation.
        step: how many steps were taken.
        stopped: the number of the step at which the loss, or what the step would have led to, was not finite: from
            then on nothing changes; -1 while there was none.
        norm_change: |W_l|_F^2 - |W_l(0)|_F^2 for each layer, summed step by step.
        norm_change_predicted: the same by the exact identity, see `step`.
    """

    network: Network
    optimizer: Any
    step: Int[Array, ""]
    stopped: Int[Array, ""]
    norm_change: Float[Array, " L"]
    norm_change_predicted: Float[Array, " L"]


class Gradient(NamedTuple):
    """The gradient of the training loss in the weights, the biases and what else is trained, and the loss.

    `homogeneous` is the mean over the batch of <f, dloss/df> + <f' - f, dloss/d(f' - f)>, with f = f(x) and
    f' = f(x + eta): for the paper's loss <f, dL_std/df> + lambda L_adv.
    """

    parts: dict[str, Any]
    loss: Float[Array, ""]
    homogeneous: Float[Array, ""]


def trained_parts(network: Network, names: tuple[str, ...]) -> dict[str, Any]:
    """The parts of a network that are trained, by name."""
    return {name: getattr(network.frozen if name == "readout" else network.params, name) for name in names}


def with_parts(network: Network, parts: dict[str, Any]) -> Network:
    """The network with other values of these parts."""
    frozen = network.frozen._replace(**{name: part for name, part in parts.items() if name == "readout"})
    params = network.params._replace(**{name: part for name, part in parts.items() if name != "readout"})
    return Network(params, frozen, network.spec)


def init(network: Network, config: TrainingConfig) -> State:
    """The state before the first step.

    Args:
        network: a dense network.
        config: how it is trained.

    Raises:
        ValueError: the network is matrix-free.

    Source: ours.
    """
    if not network.is_dense:
        raise ValueError("network: expected a dense network, got a matrix-free one")
    zero = jnp.zeros(network.spec.depth, network.dtype)
    optimizer = _optimizer(config).init(trained_parts(network, config.trained))
    return State(network, optimizer, jnp.zeros((), jnp.int32), jnp.full((), -1, jnp.int32), zero, zero)


def step(
    key: Key[Array, ""], state: State, data: tuple[Float[Array, "n d"], Int[Array, " n"] | None], config: TrainingConfig
) -> State:
    """One step: a batch, its worst perturbations eta as far as the attack finds them, a step down the gradient there.

    Beside it goes an identity. In W_l, b_l, ..., b_L together f of a "vanilla" network is homogeneous of degree one,
    and so is f(x + eta) - f(x) at fixed eta, since scaling these moves no gate. For plain gradient descent by the rate
    r this gives exactly, with E the `homogeneous` of the gradient and g_l the gradient in W_l,

        |W_l'|^2 - |W_l|^2 = -2 r (E - sum_{k >= l} <b_k, dloss/db_k>) + r^2 |g_l|^2

    For shortcuts the first bracket is multiplied by A_l / (1 + A_l), A_l = alpha |W_l|^2 / N, the share of the branch
    of layer l, in the mean over wide random networks. The state sums both sides, the right one nan with an optimizer.

    Args:
        key: of the whole training of this network: step t draws its perturbations
            from fold_in(key, t), and epoch e its order.
        state: before the step.
        data: inputs, and labels or None.
        config: how it is trained; its leaves are traced.

    Returns:
        The state after the step.

    Source: ours; in the limit of small r the identity is d|W_l|^2/dt = -2 <f, dL_std/df> - 2 lambda L_adv.
    """
    n = len(data[0])
    size = min(config.batch_size or n, n)
    epoch, place = state.step // (n // size), state.step % (n // size)
    batch_key, attack_key = fold_in_loop(key_for("step", key), [[0, epoch], [1, state.step]])
    x, y = _batch(batch_key, data, place, size)
    network = state.network
    targets = None if y is None else targets_of(y, network.spec.output_dim, network.dtype)
    eta = perturbation(attack_key, network, x, targets, config)
    gradient = gradient_at(network, x, targets, eta, config)
    parts = trained_parts(network, config.trained)
    direction = {name: gradient.parts[name] for name in parts}
    updates, optimizer = _optimizer(config).update(direction, state.optimizer, parts)
    moved = cast(dict[str, Any], optax.apply_updates(parts, updates))
    pairs = zip(weights_of(network), weights_of(with_parts(network, moved)), strict=True)
    change = jnp.stack([jnp.sum((after - before) * (after + before)) for before, after in pairs])
    running = (state.stopped < 0) & jnp.isfinite(gradient.loss) & jnp.all(jnp.isfinite(change))
    after = moved, optimizer, change, _predicted_change(network, gradient, config)
    before = parts, state.optimizer, jnp.zeros_like(change), jnp.zeros_like(change)
    parts, optimizer, *changes = jax.tree.map(lambda new, old: jnp.where(running, new, old), after, before)
    return State(
        with_parts(network, parts),
        optimizer,
        state.step + 1,
        jnp.where(running | (state.stopped >= 0), state.stopped, state.step),
        state.norm_change + changes[0],
        state.norm_change_predicted + changes[1],
    )


def perturbation(
    key: Key[Array, ""], network: Network, x: Array, targets: Array | None, config: TrainingConfig
) -> Float[Array, "n d"] | None:
    """The worst perturbations for the loss that is trained on, as far as the attack finds them; None for none."""
    if config.adversarial is None:
        return None
    loss = {} if config.adversarial == "paper" else {"loss": LOSSES[str(config.standard_loss)], "targets": targets}
    return adversarial_loss(network, x, config.eps, config.p, config.q, key, config.attack, **loss).perturbation


def gradient_at(
    network: Network, x: Array, targets: Array | None, eta: Array | None, config: TrainingConfig
) -> Gradient:
    """The gradient of the training loss at inputs and perturbations of them, held fixed."""

    def outputs(parts):
        moved = with_parts(network, parts)
        base = forward(moved, x)
        return base.output, jnp.zeros_like(base.output) if eta is None else difference(moved, base, eta).output

    def loss_of(output, change):
        standard = _mean_loss(config, output, targets)
        weight = jnp.asarray(config.adversarial_weight, output.dtype)
        if config.adversarial == "paper":
            return standard + weight * jnp.mean(vector_norm(change, config.q))
        if config.adversarial == "madry":
            return (1 - weight) * standard + weight * _mean_loss(config, output + change, targets)
        return standard

    # The biases' gradient is part of the identity, also where they are not trained.
    both, pull = jax.vjp(outputs, trained_parts(network, tuple({"weights", "biases", *config.trained})))
    loss, slopes = jax.value_and_grad(lambda both: loss_of(*both))(both)
    homogeneous = jnp.sum(both[0] * slopes[0]) + jnp.sum(both[1] * slopes[1])
    return Gradient(pull(slopes)[0], loss, homogeneous)


def _mean_loss(config: TrainingConfig, output: Array, targets: Any) -> Array:
    """The mean of L_std, 0 where there is none."""
    if config.standard_loss is None:
        return jnp.zeros((), output.dtype)
    return jnp.mean(LOSSES[config.standard_loss](output, targets))


def _batch(key: Array, data: Any, place: Array, size: int) -> tuple[Array, Any]:
    """The inputs and labels of a step: an epoch is a permutation of the data, less an incomplete batch at its end."""
    x, y = data
    if size == len(x):
        return x, y
    rows = jax.lax.dynamic_slice_in_dim(jax.random.permutation(key, len(x)), place * size, size)
    return x[rows], None if y is None else y[rows]


def _optimizer(config: TrainingConfig) -> optax.GradientTransformation:
    # The rate is an array of the trace and no constant of the program, so that optax bakes nothing in.
    return (config.optimizer or optax.sgd)(config.learning_rate)


def _predicted_change(network: Network, gradient: Gradient, config: TrainingConfig) -> Array:
    """The right side of the identity for every layer, see `step`."""
    dtype = network.dtype
    if config.optimizer is not None:
        return jnp.full(network.spec.depth, jnp.nan, dtype)
    if "weights" not in config.trained:
        return jnp.zeros(network.spec.depth, dtype)
    rate, parts = jnp.asarray(config.learning_rate, dtype), gradient.parts
    biases = jnp.stack([jnp.sum(b * g) for b, g in zip(network.params.biases, parts["biases"], strict=True)])
    through = gradient.homogeneous - jnp.cumsum(biases[::-1])[::-1]
    share = branch_share(network) if network.spec.has_shortcut else 1
    return -2 * rate * through * share + rate**2 * layer_squares(parts)


def weights_of(network: Network) -> list[Float[Array, "N N"]]:
    """The matrices W_l of a dense network."""
    return [cast(DenseMatrix, matrix).entries for matrix in network.params.weights]


def layer_squares(parts: dict[str, Any]) -> Float[Array, " L"]:
    """|W_l|_F^2 of the weights among some parts, or of their gradient."""
    return jnp.stack([jnp.sum(matrix.entries**2) for matrix in parts["weights"]])


def weight_variances(network: Network) -> Float[Array, " L"]:
    """|W_l|_F^2 / N, which is s in the mean over random networks."""
    return layer_squares(network.params._asdict()) / network.spec.width


def branch_share(network: Network) -> Float[Array, " L"]:
    """A_l / (1 + A_l), A_l = alpha |W_l|_F^2 / N."""
    gain = alpha(network.spec) * weight_variances(network)
    return gain / (1 + gain)
