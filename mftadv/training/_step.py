"""One step of training of one network: perturb a batch, descend at the perturbations held fixed."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mftadv.attack import AdversarialLoss, Objective, Problem, attacked_from, named_attack
from mftadv.matrices import DenseMatrix, matmul_precision
from mftadv.network import (
    Evaluation,
    Network,
    at_rows,
    backward,
    backward_pair,
    difference,
    forward,
    forward_pair,
)
from mftadv.norms import vector_norm
from mftadv.spec import fold_in_loop, key_for
from mftadv.theory import alpha
from mftadv.training._config import LOSSES, Data, TrainingConfig, targets_of


class State(NamedTuple):
    """A network in training.

    Attributes:
        network: as it is now.
        optimizer: the state of the optax transformation, () for plain gradient descent.
        step: how many steps were taken.
        stopped: the number of the step at which the loss, or what the step would have led to, was not finite: from
            then on the parameters do not change; -1 while there was none.
        norm_change: |W_l|_F^2 - |W_l(0)|_F^2 for each layer, summed step by step.
        norm_change_predicted: the same by the exact identity, see `step`.
        perturbations: those at which the next step trains, and from which they ascend; None without `warm_start`.
    """

    network: Network
    optimizer: Any
    step: Int[Array, ""]
    stopped: Int[Array, ""]
    norm_change: Float[Array, " L"]
    norm_change_predicted: Float[Array, " L"]
    perturbations: Any = None  # [n, R, d]


class Gradient(NamedTuple):
    """The gradient of the training loss, and the loss.

    A gradient in a matrix is sum_r left_r right_r^T for few vectors, which serves a matrix that is held entry by entry
    and one that is not. `homogeneous` is the mean over the batch of <f, dloss/df> + <f' - f, dloss/d(f' - f)>, with
    f = f(x) and f' = f(x + eta): for the paper's loss <f, dL_std/df> + lambda L_adv.
    """

    weights: tuple[tuple[Float[Array, "R N"], Float[Array, "R N"]], ...]
    biases: tuple[Float[Array, " N"], ...]
    readout: tuple[Float[Array, "R K"], Float[Array, "R N"]]
    loss: Float[Array, ""]
    homogeneous: Float[Array, ""]


def trained_parts(network: Network, config: TrainingConfig) -> dict[str, Any]:
    """The parts of a network that are trained, by name."""
    return {name: getattr(network.frozen if name == "readout" else network.params, name) for name in config.trained}


def with_parts(network: Network, parts: dict[str, Any]) -> Network:
    """The network with other values of these parts."""
    frozen = network.frozen._replace(**{name: part for name, part in parts.items() if name == "readout"})
    params = network.params._replace(**{name: part for name, part in parts.items() if name != "readout"})
    return Network(params, frozen, network.spec)


def init(network: Network, config: TrainingConfig) -> State:
    """The state before the first step; with `warm_start` the starts of its attack are still to be set.

    Args:
        network: of either engine; a matrix-free one can be trained in W and b by plain gradient descent.
        config: how it is trained.

    Raises:
        ValueError: the network is matrix-free, and the configuration asks for more.

    Source: ours.
    """
    zero = jnp.zeros(network.spec.depth, network.dtype)
    if not network.is_dense:
        if config.optimizer is not None:
            raise ValueError(f"optimizer: expected None for a matrix-free network, got {config.optimizer!r}")
        if "readout" in config.trained:
            raise ValueError(f"trained: expected no readout for a matrix-free network, got {config.trained!r}")
        none = jnp.zeros((0, network.spec.width), network.dtype)
        weights = [matrix.rank_one_update(none, none).matrix for matrix in network.params.weights]
        network = with_parts(network, {"weights": tuple(weights)})
    optimizer = config.optimizer(config.learning_rate).init(trained_parts(network, config)) if config.optimizer else ()
    return State(network, optimizer, jnp.zeros((), jnp.int32), jnp.full((), -1, jnp.int32), zero, zero)


def step(key: Key[Array, ""], state: State, data: Data, config: TrainingConfig) -> State:
    """One step: a batch, its worst perturbations eta as far as the attack finds them, a step down the gradient there.

    Beside it goes an identity. In W_l, b_l, ..., b_L together f of a "vanilla" network is homogeneous of degree one,
    and so is f(x + eta) - f(x) at fixed eta, since scaling these moves no gate. For plain gradient descent by the rate
    r this gives exactly, with E the `homogeneous` of the gradient and g_l the gradient in W_l,

        |W_l'|^2 - |W_l|^2 = -2 r (E - sum_{k >= l} <b_k, dloss/db_k>) + r^2 |g_l|^2

    For shortcuts the first bracket is multiplied by A_l / (1 + A_l), A_l = alpha |W_l|^2 / N, the share of the branch
    of layer l in the mean over wide random networks; training turns the branch against the skip and lowers that share.
    The state sums both sides, the right one nan with an optimizer.

    Args:
        key: of the whole training of this network: step t draws its perturbations
            from fold_in(key, t), and epoch e its order.
        state: before the step.
        data: inputs [n, d], and labels [n] or None.
        config: how it is trained; its leaves are traced.

    Returns:
        The state after the step.

    Source: ours; in the limit of small r the identity is d|W_l|^2/dt = -2 <f, dL_std/df> - 2 lambda L_adv.
    """
    n = jnp.shape(data[0])[0]
    size = min(config.batch_size or n, n)
    epoch, place = state.step // (n // size), state.step % (n // size)
    batch_key, attack_key = fold_in_loop(key_for("step", key), [[0, epoch], [1, state.step]])
    x, y = _batch(batch_key, data, place, size)
    targets = None if y is None else targets_of(y, state.network.spec.output_dim, state.network.dtype)
    if state.perturbations is None:
        base, perturbations = forward(state.network, x), None
        changed = _changed(attack_key, base, x, targets, config)
        gradient, network = gradient_at((changed or base).network, base, changed, targets, config)
    else:
        gradient, perturbations, network = _at_worst(state.network, x, state.perturbations, targets, config)
    moved, optimizer, changes, sizes = _descend(network, gradient, state.optimizer, config)
    running = (state.stopped < 0) & jnp.isfinite(gradient.loss) & jnp.all(jnp.isfinite(changes))

    def unless_stopped(new, old):
        # What a step leaves as it is, such as the queries of a matrix-free network, need not be copied.
        return new if new is old else jnp.where(running, new, old)

    zero = jnp.zeros_like(changes)
    predicted = _predicted_change(state, gradient, sizes, config)
    network, optimizer, changes, predicted = jax.tree.map(
        unless_stopped, (moved, optimizer, changes, predicted), (network, state.optimizer, zero, zero)
    )
    return State(
        network,
        optimizer,
        state.step + 1,
        jnp.where(running | (state.stopped >= 0), state.stopped, state.step),
        state.norm_change + changes,
        state.norm_change_predicted + predicted,
        perturbations,
    )


def _changed(key: Array, base: Evaluation, x: Array, targets: Array | None, config: TrainingConfig) -> Any:
    """f(x + eta) - f(x) at the perturbations of the attack, which are not searched for where they have no weight.

    None where there is no adversary.
    """
    if config.adversarial is None:
        return None

    def worst():
        found, _ = search(key, base, x, targets, config)
        return found.perturbation, found.network

    def nothing():
        return jnp.zeros(x.shape, base.output.dtype), None if base.network.is_dense else base.network

    eta, network = jax.lax.cond(jnp.asarray(config.adversarial_weight) != 0, worst, nothing)
    return difference(network or base.network, base, eta)


def search(
    key: Key[Array, ""], base: Evaluation, x: Array, targets: Array | None, config: TrainingConfig
) -> tuple[AdversarialLoss, Network]:
    """The worst perturbations for the adversarial loss that is trained on, as far as found, and the network to use."""
    return attacked(key, base, x, _attacked_loss(config), targets, config)


def attacked(
    key: Key[Array, ""],
    base: Evaluation,
    x: Array,
    loss: Any,
    targets: Array | None,
    config: TrainingConfig,
) -> tuple[AdversarialLoss, Network]:
    """The result of the attack of a configuration where a network was evaluated, and the network to use next."""
    attack, targets = named_attack(config.attack, config.p), None if loss is None else targets
    size = config.eps, config.p, config.q
    found = attacked_from(base.network, x, base, *size, key, attack, loss=loss, targets=targets)
    return found, found.network or base.network


def _attacked_loss(config: TrainingConfig) -> Any:
    """The loss that the adversary maximises, None for the q-norm of the change of f."""
    return None if config.adversarial == "paper" else LOSSES[str(config.standard_loss)]


def gradient_at(
    network: Network, base: Evaluation, moved: Evaluation | None, targets: Array | None, config: TrainingConfig
) -> tuple[Gradient, Network]:
    """The gradient of the training loss, and the network to use next.

    Args:
        network: the network to query.
        base: it at the inputs x.
        moved: f(x + eta) - f(x) at perturbations that are held fixed; None for none.
        targets: of the labels, None for none.
        config: the loss.
    """
    change = jnp.zeros_like(base.output) if moved is None else moved.output
    loss, slopes = _loss(config, base.output, change, targets)
    if moved is not None:
        every = jnp.ones((len(change), 1), change.dtype)
        of_changes = slopes[1][:, None]
        gradient, _, network = _gradient(
            network, base, at_rows(moved, None), loss, slopes[0], of_changes, every, every > 0
        )
        return gradient, network
    _, here, network = backward(network, base, slopes[0])
    weights = tuple(zip(here, base.hidden[:-1], strict=True))
    biases = tuple(jnp.sum(c, axis=0) for c in here)
    homogeneous = jnp.sum(base.output * slopes[0])
    return Gradient(weights, biases, (slopes[0], base.hidden[-1]), loss, homogeneous), network


def _at_worst(
    network: Network, x: Array, eta: Float[Array, "n R d"], targets: Array | None, config: TrainingConfig
) -> tuple[Gradient, Float[Array, "n R d"], Network]:
    """The gradient of the training loss at the worst of some perturbations, and where one step of ascent leads each.

    Each matrix is queried twice, forward for the inputs and all their perturbations, and back for both gradients.
    """
    base, moved = forward_pair(network, x, eta)
    attacked_loss = _attacked_loss(config)
    objective = Objective(config.q, attacked_loss, None if attacked_loss is None else targets)
    size = jnp.full((len(x), 1), config.eps, x.dtype)
    problem = Problem(network, base, None, x.shape[-1], size, config.p, objective, (None, None))
    cotangents = problem.cotangent(moved.output)
    chosen = jax.nn.one_hot(jnp.argmax(problem.value(moved.output), axis=1), eta.shape[1], dtype=bool)
    loss, (of_base, _) = _loss(config, base.output, _pick(chosen, moved.output), targets)
    weights = jnp.where(chosen, jnp.asarray(config.adversarial_weight / len(x), x.dtype), 0)
    gradient, below, network = _gradient(moved.network, base, moved, loss, of_base, cotangents, weights, chosen)
    embedding, rows = network.frozen.embedding.rmatvec(below)
    network = Network(network.params, network.frozen._replace(embedding=embedding), network.spec)
    return gradient, problem.best_response(rows), network


def _gradient(
    network: Network,
    base: Evaluation,
    moved: Evaluation,
    loss: Array,
    of_base: Float[Array, "n K"],
    of_changes: Float[Array, "n R K"],
    weights: Float[Array, "n R"],
    chosen: Bool[Array, "n R"],
) -> tuple[Gradient, Float[Array, "n R N"], Network]:
    """The gradient for derivatives of the loss in f(x) and in the chosen changes, see `backward_pair`."""
    layers, below, network = backward_pair(network, base, moved, of_base, of_changes, weights)

    def pair(of_inputs, of_perturbations):
        return jnp.concatenate([of_inputs, _pick(chosen, of_perturbations)])

    scale = weights[..., None]
    lefts = [pair(bracket, scale * changes) for bracket, changes in layers]
    rights = [pair(*rows) for rows in zip(base.hidden, moved.hidden, strict=True)]
    biases = tuple(jnp.sum(bracket, axis=0) for bracket, _ in layers)
    readout = pair(of_base, scale * of_changes), rights[-1]
    homogeneous = jnp.sum(readout[0] * pair(base.output, moved.output))
    return Gradient(tuple(zip(lefts, rights[:-1], strict=True)), biases, readout, loss, homogeneous), below, network


def _pick(chosen: Bool[Array, "n R"], rows: Float[Array, "n R _"]) -> Float[Array, "n _"]:
    """Of each input the row of the perturbation that is chosen."""
    return jnp.sum(jnp.where(chosen[..., None], rows, 0), axis=1)


def _loss(config: TrainingConfig, output: Array, change: Array, targets: Any) -> tuple[Array, tuple[Array, Array]]:
    """The training loss for outputs f(x) and f(x + eta) - f(x), and its derivatives in both."""

    def loss_of(output, change):
        standard = _mean_loss(config, output, targets)
        weight = jnp.asarray(config.adversarial_weight, output.dtype)
        if config.adversarial == "paper":
            return standard + weight * jnp.mean(vector_norm(change, config.q))
        if config.adversarial == "madry":
            return (1 - weight) * standard + weight * _mean_loss(config, output + change, targets)
        return standard

    return jax.value_and_grad(loss_of, (0, 1))(output, change)


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
    return jnp.asarray(x)[rows], None if y is None else jnp.asarray(y)[rows]


def _descend(
    network: Network, gradient: Gradient, optimizer: Any, config: TrainingConfig
) -> tuple[Network, Any, Float[Array, " L"], Float[Array, " L"]]:
    """The network after a step, the optimizer's state, |W_l'|^2 - |W_l|^2, and without one |W_l' - W_l|^2."""
    if config.optimizer is not None:
        import optax  # where it is used: importing this package should not take a quarter of a second more

        parts, slopes = trained_parts(network, config), _entries(gradient)
        # The rate is an array of the trace and no constant of the program, so that optax bakes nothing in.
        updates, optimizer = config.optimizer(config.learning_rate).update(
            {name: slopes[name] for name in parts}, optimizer, parts
        )
        moved = with_parts(network, cast(dict[str, Any], optax.apply_updates(parts, updates)))
        pairs = list(zip(weights_of(network), weights_of(moved), strict=True))
        changes = jnp.stack([jnp.sum((after - before) * (after + before)) for before, after in pairs])
        return moved, optimizer, changes, jnp.full_like(changes, jnp.nan)
    rate, moved = jnp.asarray(config.learning_rate, network.dtype), {}
    changes = sizes = jnp.zeros(network.spec.depth, network.dtype)
    if "weights" in config.trained:
        pairs = zip(network.params.weights, gradient.weights, strict=True)
        updates = [matrix.rank_one_update(-rate * left, right) for matrix, (left, right) in pairs]
        moved["weights"] = tuple(update.matrix for update in updates)
        changes = jnp.stack([update.norm_change for update in updates])
        sizes = jnp.stack([update.size for update in updates])
    if "biases" in config.trained:
        moved["biases"] = tuple(b - rate * g for b, g in zip(network.params.biases, gradient.biases, strict=True))
    if "readout" in config.trained:
        left, right = gradient.readout
        moved["readout"] = network.frozen.readout.rank_one_update(-rate * left, right).matrix
    return with_parts(network, moved), optimizer, changes, sizes


def _entries(gradient: Gradient) -> dict[str, Any]:
    """The gradient in the parts of a dense network, entry by entry."""

    def product(left, right):
        return DenseMatrix(jnp.matmul(left.T, right, precision=matmul_precision()))

    weights = tuple(product(*pair) for pair in gradient.weights)
    return {"weights": weights, "biases": gradient.biases, "readout": product(*gradient.readout)}


def _predicted_change(
    state: State, gradient: Gradient, sizes: Float[Array, " L"], config: TrainingConfig
) -> Float[Array, " L"]:
    """The right side of the identity for every layer, see `step`, with the |W_l' - W_l|^2."""
    if "weights" not in config.trained:
        return jnp.zeros_like(sizes)
    params, rate = state.network.params, jnp.asarray(config.learning_rate, sizes.dtype)
    biases = jnp.stack([jnp.sum(b * g) for b, g in zip(params.biases, gradient.biases, strict=True)])
    through = gradient.homogeneous - jnp.cumsum(biases[::-1])[::-1]
    share = branch_share(state) if state.network.spec.has_shortcut else 1
    return -2 * rate * through * share + sizes


def gradient_norms(network: Network, gradient: Gradient) -> Float[Array, " L"]:
    """|dloss/dW_l|_F."""
    pairs = zip(network.params.weights, gradient.weights, strict=True)
    return jnp.sqrt(jnp.stack([matrix.rank_one_update(*pair).size for matrix, pair in pairs]))


def weights_of(network: Network) -> list[Float[Array, "N N"]]:
    """The matrices W_l of a dense network."""
    return [cast(DenseMatrix, matrix).entries for matrix in network.params.weights]


def weight_variances(state: State) -> Float[Array, " L"]:
    """|W_l|_F^2 / N, which is s in the mean over random networks.

    The entries of a matrix-free network are not known: s and the change by training, which is known exactly.
    """
    network, N = state.network, state.network.spec.width
    if network.is_dense:
        return jnp.stack([jnp.sum(matrix**2) for matrix in weights_of(network)]) / N
    return jnp.asarray(network.spec.weight_variance, network.dtype) + state.norm_change / N


def branch_share(state: State) -> Float[Array, " L"]:
    """A_l / (1 + A_l), A_l = alpha |W_l|_F^2 / N."""
    gain = alpha(state.network.spec) * weight_variances(state)
    return gain / (1 + gain)
