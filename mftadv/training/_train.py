"""Training one network in segments, with a record of what theory speaks about."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from mftadv import network as networks
from mftadv.attack import named_attack
from mftadv.network import Evaluation, Network
from mftadv.norms import operator_norm, vector_norm
from mftadv.spec import NetworkSpec, fold_in_loop, key_for
from mftadv.theory import alpha, propagation_factor
from mftadv.training._config import LOSSES, Data, TrainingConfig, check_data, is_right, targets_of
from mftadv.training._step import State, attacked, gradient_at, gradient_norms, init, search, step, weight_variances

_PROBES = 8  # inputs of the tangent kernel and of the gates

Record = dict[str, Array]


class Reference(NamedTuple):
    """What later evaluations are compared with: the tangent kernel [n, n] and the gates [L, n, N] of the start."""

    kernel: Float[Array, "n n"]
    gates: Any


class Training(NamedTuple):
    """A network between two segments of its training."""

    state: State
    reference: Reference


class TrainingRecord(NamedTuple):
    """What was measured at the E evaluations of one network, and the network at the end.

    Means are over the evaluation inputs x, L_adv at the perturbations that the attack found. From the first step on
    whose loss was not finite everything is nan but `step` and `stopped`.

    Attributes:
        step: steps taken; the training time of theory is the learning rate times these.
        stopped: the step at which the loss was not finite, -1 for none so far.
        weight_variance: |W_l|_F^2 / N.
        propagation_factor: omega_l of that variance.
        propagation: the product of all omega_l, omega^L.
        jacobian: mean of |J(x)|_F^2 / (K omega_0^L), with omega_0 of the law: 1 for wide random networks.
        jacobian_norm: mean of |J(x)|_{p->q}, from below where it has no formula.
        standard_loss: mean of L_std; nan where there is none.
        adversarial_loss: mean of max |f(x + eta) - f(x)|_q.
        accuracy: share of the inputs classified as labelled; nan without labels.
        robust_accuracy: the same at x + eta, eta of the adversarial loss, which knows no label.
        attacked_accuracy: the same at the eta that maximises L_std, which knows the label; nan without L_std.
        gradient_norm: |dloss/dW_l|_F of the loss that is trained on.
        fisher_rao: mean of <theta, dL_std/dtheta>^2, theta the trained parts; without L_std of
            sum_k <theta, df_k/dtheta>^2.
        cotangent: mean of |dL_std/df|^2, to which theory's Fisher-Rao norm is proportional; K without L_std.
        kernel_similarity: the cosine between the tangent kernels, traced over outputs, of now and of the start.
        gates_flipped: share of the gates of a layer that differ from those of the start, on the first eight inputs.
        norm_change: |W_l|_F^2 - |W_l(0)|_F^2.
        norm_change_predicted: the same by the exact identity, see `mftadv.training.step`.
        output: f(x).
        network: the network at the end.
    """

    step: Int[Array, " E"]
    stopped: Int[Array, " E"]
    weight_variance: Float[Array, "E L"]
    propagation_factor: Float[Array, "E L"]
    propagation: Float[Array, " E"]
    jacobian: Float[Array, " E"]
    jacobian_norm: Float[Array, " E"]
    standard_loss: Float[Array, " E"]
    adversarial_loss: Float[Array, " E"]
    accuracy: Float[Array, " E"]
    robust_accuracy: Float[Array, " E"]
    attacked_accuracy: Float[Array, " E"]
    gradient_norm: Float[Array, "E L"]
    fisher_rao: Float[Array, " E"]
    cotangent: Float[Array, " E"]
    kernel_similarity: Float[Array, " E"]
    gates_flipped: Float[Array, "E L"]
    norm_change: Float[Array, "E L"]
    norm_change_predicted: Float[Array, "E L"]
    output: Float[Array, "E n K"]
    network: Network


def train(
    key: Key[Array, ""],
    spec: NetworkSpec,
    data: Data,
    config: TrainingConfig,
    evaluation: Data | None = None,
    engine: str = "dense",
) -> TrainingRecord:
    """Draw one network, train it, and record what theory speaks about.

    A pure function, to be jitted; the leaves of `spec` and `config` are traced. `jax.vmap` over keys trains many.

        train = jax.jit(mf.train)
        record = train(key, spec, (x, y), config)
        many = jax.vmap(lambda key: mf.train(key, spec, (x, y), config)._replace(network=None))(keys)

    A matrix-free network trains without its matrices, exactly: a step of gradient descent is a sum of outer products of
    vectors that the network was queried with. It takes a memory of L N queries and a time of L N queries^2, see
    `queries_of_training`: for few inputs, tens of steps and an attack of few evaluations, with `warm_start`, widths of
    10^5 are trained in minutes.

    Args:
        key: of the network and of its training: the network is `mf.init(key, spec)`.
        spec: the law of the network.
        data: (x, y): inputs [n, d], and labels 0 ... K-1 [n] (0 and 1 for one output), or None.
        config: how it is trained.
        evaluation: the inputs and labels of the record; None for those of `data`.
        engine: "dense", "matrix_free", or "auto" for whichever costs less, see `mftadv.init`.

    Returns:
        A `TrainingRecord`; the results of a matrix-free network have exactly its law where `.network.law_exact`.

    Raises:
        ValueError: the data are not what `config` needs, see `TrainingConfig`, or not of the dimension of `spec`; or
            there is no such engine, or it does not train what `config` asks for.

    Source: ours; the paper's adversarial training.
    """
    data, evaluation = check_both(spec, data, config, evaluation)
    training = begin(key, spec, data, config, evaluation, engine)
    numbers = jnp.arange(config.num_segments, dtype=jnp.int32)
    training, record = jax.lax.scan(
        lambda training, number: segment(key, training, number, data, config, evaluation), training, numbers
    )
    return TrainingRecord(**record, network=training.state.network)


def check_both(spec: NetworkSpec, data: Any, config: TrainingConfig, evaluation: Any) -> tuple[Any, Any]:
    """The data to train on and to evaluate with, as arrays.

    Raises:
        ValueError: see `train`.
    """
    checked = check_data("data", spec, data, config)
    return checked, checked if evaluation is None else check_data("evaluation", spec, evaluation, config)


def begin(
    key: Key[Array, ""], spec: NetworkSpec, data: Any, config: TrainingConfig, evaluation: Any, engine: str = "dense"
) -> Training:
    """A network before its training; its reference is set by segment 0."""
    capacity = None
    if engine != "dense":
        capacity = queries_of_training(spec, config, len(data[0]), len(evaluation[0]))
    state = init(networks.init(key, spec, engine, capacity), config)
    if config.warm_start and config.adversarial is not None:
        x, y = data
        targets = None if y is None else targets_of(y, spec.output_dim, state.network.dtype)
        base = networks.forward(state.network, x)
        found, network = search(fold_in_loop(key_for("step", key), [[2]])[0], base, x, targets, config)
        state = state._replace(network=network, perturbations=found.candidates)
    probes, N = min(_PROBES, len(evaluation[0])), spec.width
    return Training(state, Reference(jnp.zeros((probes, probes)), jnp.zeros((spec.depth, probes, N), bool)))


def queries_of_training(
    spec: NetworkSpec, config: TrainingConfig, inputs: int, evaluation_inputs: int
) -> tuple[int, int]:
    """How many directions the queries of a training add to a matrix-free network: its capacity, inputs and cotangents.

    Each step takes of every input of its batch the input, the evaluations of its attack, and two cotangents of its
    gradient; with `warm_start` the input, one difference for each start, and as many cotangents and one more. What was
    queried before adds none. Each evaluation takes the input, its attacks, J and a gradient.

    Source: counting.
    """
    attack, K = named_attack(config.attack, config.p), spec.output_dim
    own = attack.queries(spec.input_dim, K)
    of_step = (attack.count, attack.count - 1) if config.warm_start else own if config.adversarial else (0, 0)
    batch, attacks = min(config.batch_size or inputs, inputs), 2 if config.standard_loss else 1

    def total(of_step: int, of_own: int, of_gradient: int, of_evaluation: int) -> int:
        steps = config.steps * batch * (of_step + of_gradient)
        first = inputs * of_own if config.warm_start else 0
        return steps + first + config.num_segments * evaluation_inputs * (attacks * of_own + of_evaluation)

    return total(of_step[0], own[0], 1, 1), total(of_step[1], own[1], 2, K + 2)


def segment(
    key: Key[Array, ""],
    training: Training,
    number: Int[Array, ""],
    data: Any,
    config: TrainingConfig,
    evaluation: Any,
) -> tuple[Training, Record]:
    """The steps up to the next evaluation, and that evaluation; segment 0 has no steps, and sets the reference."""
    interval, (state, reference) = config.evaluate_every, training
    steps = jnp.where(number == 0, 0, jnp.minimum(interval, config.steps - interval * (number - 1)))
    state = jax.lax.fori_loop(0, steps, lambda _, state: step(key, state, data, config), state)
    attack_key = fold_in_loop(key_for("evaluation", key), [[0]])[0]
    return _evaluate(attack_key, state, number, reference, config, evaluation)


def _evaluate(
    key: Key[Array, ""], state: State, number: Array, reference: Reference, config: TrainingConfig, evaluation: Any
) -> tuple[Training, Record]:
    """The training after an evaluation, whose reference is of now at number 0, and the record."""
    network, (x, y) = state.network, evaluation
    spec, x = network.spec, x.astype(network.dtype)
    targets = None if y is None else targets_of(y, spec.output_dim, network.dtype)
    standard = None if config.standard_loss is None else LOSSES[config.standard_loss]
    base = networks.forward(network, x)

    def difference(network, found):
        return networks.difference(network, base, found.perturbation)

    free, network = attacked(key, base, x, None, None, config)
    moved = difference(network, free)
    # The loss that is trained on is evaluated at the perturbations of its own attack.
    trained_on, network = None if config.adversarial is None else moved, moved.network

    def share(outputs):
        return missing if y is None else jnp.mean(is_right(outputs, y).astype(network.dtype))

    missing = jnp.full((), jnp.nan, network.dtype)
    attacked_accuracy = standard_loss = missing
    if standard is not None and targets is not None:
        standard_loss = jnp.mean(standard(base.output, targets))
        labelled, network = attacked(key, base._replace(network=network), x, standard, targets, config)
        of_labelled = difference(network, labelled)
        attacked_accuracy, network = share(base.output + of_labelled.output), of_labelled.network
        trained_on = of_labelled if config.adversarial == "madry" else trained_on

    unit = jnp.eye(spec.output_dim, dtype=network.dtype)[None]
    jacobian, cotangents, network = networks.backward(network, base, unit)  # J(x) and the c_l of every output
    gradient, network = gradient_at(network, base, trained_on, targets, config)
    kernel = _tangent_kernel(base, cotangents, config)
    gates = jnp.stack([z[: len(kernel)] >= 0 for z in base.at])
    reference = jax.tree.map(lambda now, then: jnp.where(number == 0, now, then), Reference(kernel, gates), reference)

    fisher_rao, cotangent = _fisher_rao(network, base, cotangents, targets, config)
    variance = weight_variances(state)
    omega = alpha(spec) * variance + float(spec.has_shortcut)
    record = {
        "weight_variance": variance,
        "propagation_factor": omega,
        "propagation": jnp.prod(omega),
        "jacobian": jnp.mean(jnp.sum(jacobian**2, (1, 2))) / (spec.output_dim * propagation_factor(spec) ** spec.depth),
        "jacobian_norm": jnp.mean(operator_norm(jacobian, config.p, config.q).lower),
        "standard_loss": standard_loss,
        "adversarial_loss": jnp.mean(vector_norm(moved.output, config.q)),
        "accuracy": share(base.output),
        "robust_accuracy": share(base.output + moved.output),
        "attacked_accuracy": attacked_accuracy,
        "gradient_norm": gradient_norms(network, gradient),
        "fisher_rao": fisher_rao,
        "cotangent": cotangent,
        "kernel_similarity": _cosine(kernel, reference.kernel),
        "gates_flipped": jnp.mean((gates != reference.gates).astype(network.dtype), axis=(1, 2)),
        "norm_change": state.norm_change,
        "norm_change_predicted": state.norm_change_predicted,
        "output": base.output,
    }
    record = {name: jnp.where(state.stopped < 0, value, jnp.nan) for name, value in record.items()}
    training = Training(state._replace(network=network), reference)
    return training, {"step": state.step, "stopped": state.stopped, **record}


def _tangent_kernel(base: Evaluation, cotangents: tuple[Array, ...], config: TrainingConfig) -> Float[Array, "n n"]:
    """sum_k <df_k(x)/dtheta, df_k(x')/dtheta> of the trained parts, on the first inputs, without any gradient.

    The derivative of f_k in W_l is the outer product of the cotangent c_l of f_k and h_{l-1}.
    """

    def gram(rows):
        rows = rows[:_PROBES].reshape(min(_PROBES, len(rows)), -1)
        return rows @ rows.T

    total = jnp.zeros(())
    *hidden, last = base.hidden
    for h, c in zip(hidden, cotangents, strict=True):
        total += gram(c) * (gram(h) * float("weights" in config.trained) + float("biases" in config.trained))
    return total + base.output.shape[-1] * gram(last) * float("readout" in config.trained)


def _fisher_rao(
    network: Network, base: Evaluation, cotangents: tuple[Array, ...], targets: Array | None, config: TrainingConfig
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Means of <theta, dL_std/dtheta>^2 and |dL_std/df|^2; of sum_k <theta, df_k/dtheta>^2 and K without L_std."""
    along = jnp.zeros_like(base.output)  # <theta, df_k/dtheta>
    for z, c, bias in zip(base.at, cotangents, network.params.biases, strict=True):
        shift = jnp.sum(c * bias[None, None], -1)
        along += (jnp.sum(c * z[:, None], -1) - shift) * float("weights" in config.trained)
        along += shift * float("biases" in config.trained)
    along += base.output * float("readout" in config.trained)
    if config.standard_loss is None or targets is None:
        return jnp.mean(jnp.sum(along**2, axis=1)), jnp.asarray(along.shape[1], along.dtype)
    loss = LOSSES[config.standard_loss]
    slope = jax.grad(lambda output: jnp.sum(loss(output, targets)))(base.output)
    return jnp.mean(jnp.sum(along * slope, axis=1) ** 2), jnp.mean(jnp.sum(slope**2, axis=1))


def _cosine(a: Array, b: Array) -> Array:
    return jnp.sum(a * b) / jnp.sqrt(jnp.sum(a**2) * jnp.sum(b**2))
