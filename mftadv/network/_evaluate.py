"""The forward pass of a random network, its differences, pullback and pushforward.

Everything is written for one network at one input [d] or a block of inputs [B, d], over the interface of a matrix; the
network that is returned is the one to use next (see `mftadv.matrices.Matrix`).
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from mftadv.matrices import Matrix
from mftadv.network._init import Network
from mftadv.spec import NetworkSpec


class Evaluation(NamedTuple):
    """The value of a function at a point, with what its differences and derivatives at that point need.

    `output` is f(x) or a difference of f, [..., K]. `at` is what the derivatives need: the preactivations of every
    layer, [..., N] each, or the input itself of a plain function. `network` is the `Network` to use next, None for a
    plain function. `hidden` are the inputs h_0, ..., h_{L-1} of the layers and h_L of the readout, or the differences
    of these, [..., N] each; none of a plain function.
    """

    output: Float[Array, "*points K"]
    at: tuple[Float[Array, "*points _"], ...]
    network: Any
    hidden: tuple[Float[Array, "*points _"], ...] = ()


def apply(network: Network, x: Float[ArrayLike, "*B d"]) -> Float[Array, "*B K"]:
    """The output f(x) of a dense network.

    Args:
        network: a network whose matrices are dense.
        x: one input [d] or a block of inputs [B, d].

    Returns:
        f(x), [K] or [B, K].

    Raises:
        ValueError: the network is matrix-free, so that a result without the network to use next would be useless (use
            `evaluate`); or x has the wrong shape.

    Source: the paper, its network.
    """
    if not network.is_dense:
        raise ValueError("network: expected dense matrices, got others; use evaluate(network, x), and its network next")
    return evaluate(network, x)[0]


def evaluate(network: Network, x: Float[ArrayLike, "*B d"]) -> tuple[Float[Array, "*B K"], Network]:
    """The output f(x) of any network, and the network to use next.

    Args:
        network: the network.
        x: one input [d] or a block of inputs [B, d].

    Returns:
        f(x), [K] or [B, K], and the network to use next: what a result reveals belongs to its law from then on.

    Raises:
        ValueError: x is not [d] or [B, d] with the d of the network.

    Source: the paper, its network.
    """
    evaluation = forward(network, x)
    return evaluation.output, evaluation.network


def forward(network: Network, x: Float[ArrayLike, "*B d"]) -> Evaluation:
    """Evaluate f at x, with what differences and derivatives at x need."""
    x = check_input(network, x)
    embedding, h = network.frozen.embedding.matvec(x)

    def layer(matrix, bias, _, h):
        matrix, z = matrix.matvec(h)
        z = z + _trailing(bias, z)
        return matrix, z, _activation(network.spec, z)

    return _through_layers(network, embedding, h, layer)


def difference(network: Network, base: Evaluation, eta: Float[Array, "*points d"]) -> Evaluation:
    """The difference f(x + eta) - f(x), with no subtraction of nearly equal numbers, and the derivatives at x + eta.

    dz = W dh;  dh' = e dh + S (phi(z + dz) - phi(z)), which is slope * dz where no gate switches.

    Args:
        network: the network to query.
        base: `forward(network, x)` for one input [d] or a block [B, d].
        eta: perturbations of the shape of x, or [R, d] ([B, R, d]) for several of each input.
    """
    points, d = base.output.shape[:-1], network.spec.input_dim
    if eta.shape != (*points, d) and eta.shape != (*points, *eta.shape[-2:-1], d):
        raise ValueError(f"eta: expected shape {[*points, d]} or {[*points, 'R', d]}, got {list(eta.shape)}")
    embedding, dh = network.frozen.embedding.matvec(jnp.asarray(eta, network.dtype))

    def layer(matrix, _, z, dh):
        matrix, dz = matrix.matvec(dh)
        return matrix, *_moved(network.spec, _of_points(z, dz), dz)

    return _through_layers(network, embedding, dh, layer, base.at)


def forward_pair(network: Network, x: Float[Array, "B d"], eta: Float[Array, "B R d"]) -> tuple[Evaluation, Evaluation]:
    """`forward` at x and `difference` at perturbations of each input, in one pass: each matrix is queried once.

    Args:
        network: the network to query; both results name the same one to use next.
        x: a block of inputs.
        eta: perturbations of each.
    """
    embedding, h = network.frozen.embedding.matvec(jnp.concatenate([x[:, None], eta], axis=1).astype(network.dtype))

    def layer(matrix, bias, _, h):
        matrix, product = matrix.matvec(h)
        z = product[:, :1] + _trailing(bias, product)
        after, change = _moved(network.spec, z, product[:, 1:])
        rows = jnp.concatenate([z, after], axis=1), jnp.concatenate([_activation(network.spec, z), change], axis=1)
        return matrix, *rows

    both = _through_layers(network, embedding, h, layer)
    return at_rows(both, 0), at_rows(both, slice(1, None))


def at_rows(evaluation: Evaluation, rows: Any) -> Evaluation:
    """The evaluation with another second axis: of points [B, R] some rows, or of points [B] with None an axis of 1."""
    output, at, network, hidden = evaluation
    at, hidden = (tuple(each[:, rows] for each in part) for part in (at, hidden))
    return Evaluation(output[:, rows], at, network, hidden)


def pullback(
    network: Network, at: Evaluation, cotangents: Float[Array, "*queries K"]
) -> tuple[Float[Array, "*rows d"], Float[Array, "*rows"], Network]:
    """The rows g J(x) and the numbers g . a(x) for cotangents g, and the network to use next.

    One backward pass gives both: with c_l the cotangent of the preactivation of layer l, g J = c_1 W_1 P_in ... and
    g . a = sum_l <c_l, b_l>, free of the cancellation of f - J x.

    Args:
        network: the network to query.
        at: the point: the result of `forward` or `difference`.
        cotangents: g, one of each point, [*points, K], or several, [*points, R, K]; axes of points may have size 1.
    """
    rows, layers, used = backward(network, at, cotangents)
    shift = jnp.zeros((), rows.dtype)
    for c, bias in zip(layers[::-1], network.params.biases[::-1], strict=True):
        shift = shift + jnp.sum(c * _trailing(bias, c), axis=-1)
    return rows, shift, used


def backward(
    network: Network, at: Evaluation, cotangents: Float[Array, "*queries K"]
) -> tuple[Float[Array, "*rows d"], tuple[Float[Array, "*rows N"], ...], Network]:
    """The rows g J(x), the cotangents c_l of the preactivations of all layers, and the network to use next.

    The arguments are those of `pullback`. c_l is the derivative of g . f(x) in b_l, and its outer product with h_{l-1}
    that in W_l.
    """
    params, frozen, spec = network.params, network.frozen, network.spec
    readout, g = frozen.readout.rmatvec(cotangents)
    weights, layers = [], []
    for i in reversed(range(spec.depth)):
        c = g * _trailing(frozen.signs[i], g) if frozen.signs else g
        c = c * _of_points(_slope(spec, at.at[i]), c)
        matrix, below = params.weights[i].rmatvec(c)
        weights.append(matrix)
        layers.append(c)
        g = g + below if spec.has_shortcut else below
    embedding, rows = frozen.embedding.rmatvec(g)
    return rows, tuple(layers[::-1]), _with_matrices(network, embedding, weights[::-1], readout)


def backward_pair(
    network: Network,
    base: Evaluation,
    moved: Evaluation,
    cotangents: Float[Array, "B K"],
    of_changes: Float[Array, "B R K"],
    weights: Float[Array, "B R"],
) -> tuple[tuple[tuple[Float[Array, "B N"], Float[Array, "B R N"]], ...], Float[Array, "B R N"], Network]:
    """The gradient of a loss of f(x) and of changes f(x + eta_r) - f(x) in all layers, and the network to use next.

    With c_l(g) the cotangent of the preactivation of layer l at x for a cotangent g of the output, c_l^r(g) the same at
    x + eta_r, h and dh^r the inputs of a layer and their differences, the gradient in W_l is the sum over the inputs of

        (c_l(g) + sum_r w_r (c_l^r(g_r) - c_l(g_r))) h_{l-1}^T + sum_r w_r c_l^r(g_r) (dh_{l-1}^r)^T

    and that in b_l the sum of the first bracket, whose differences are carried along and not subtracted.

    Args:
        network: the network to query.
        base: f at x [B, d].
        moved: f(x + eta_r) - f(x), for R perturbations of each input.
        cotangents: g, the derivative of the loss in f(x).
        of_changes: g_r, whose products with the w_r are the derivatives in f(x + eta_r) - f(x).
        weights: w_r.

    Returns:
        For each layer the bracket [B, N] and the c_l^r(g_r) [B, R, N]; the cotangents of the embedded x + eta_r.
    """
    params, frozen, spec = network.params, network.frozen, network.spec
    readout, g = frozen.readout.rmatvec(jnp.concatenate([cotangents[:, None], of_changes], axis=1))
    matrices, layers = [], []
    for i in reversed(range(spec.depth)):
        c = g * _trailing(frozen.signs[i], g) if frozen.signs else g
        here, there = _slope(spec, base.at[i])[:, None], _slope(spec, moved.at[i])
        bracket = here * c[:, :1] + jnp.sum(weights[..., None] * (there - here) * c[:, 1:], axis=1, keepdims=True)
        changes = there * c[:, 1:]
        layers.append((bracket[:, 0], changes))
        matrix, below = params.weights[i].rmatvec(jnp.concatenate([bracket, changes], axis=1))
        matrices.append(matrix)
        g = g + below if spec.has_shortcut else below
    return tuple(layers[::-1]), g[:, 1:], _with_matrices(network, frozen.embedding, matrices[::-1], readout)


def pushforward(
    network: Network, at: Evaluation, tangents: Float[Array, "*queries d"], constants: Float[Array, "*queries"]
) -> tuple[Float[Array, "*rows K"], Network]:
    """J(x) t + c a(x) for tangents t and constants c, and the network to use next.

    The same gates carry tangents and, in proportion to c, the biases: t = 0 with c = 1 is the shift, t = x with
    c = 1 is f(x).

    Args:
        network: the network to query.
        at: the point: the result of `forward` or `difference`.
        tangents: t, one of each point, [*points, d], or several, [*points, R, d]; axes of points may have size 1.
        constants: c, one of each tangent.
    """
    embedding, h = network.frozen.embedding.matvec(tangents)

    def layer(matrix, bias, z, h):
        matrix, t = matrix.matvec(h)
        t = t + constants[..., None] * _trailing(bias, t)
        return matrix, z, _of_points(_slope(network.spec, z), t) * t

    evaluation = _through_layers(network, embedding, h, layer, at.at)
    return evaluation.output, evaluation.network


def _through_layers(network: Network, embedding: Matrix, h: Array, layer, base=None) -> Evaluation:
    """Propagate h: layer(W_l, b_l, z_l, h) gives the W_l to use next, the preactivation at the new point, the branch.

    z_l is the preactivation at the base point, None where there is none.
    """
    params, frozen = network.params, network.frozen
    weights, at, hidden = [], [], [h]
    for i, (matrix, bias) in enumerate(zip(params.weights, params.biases, strict=True)):
        matrix, z, branch = layer(matrix, bias, base[i] if base else None, h)
        h = _after_block(network, i, h, branch)
        weights.append(matrix)
        at.append(z)
        hidden.append(h)
    readout, output = frozen.readout.matvec(h)
    return Evaluation(output, tuple(at), _with_matrices(network, embedding, weights, readout), tuple(hidden))


def _after_block(network: Network, i: int, h: Array, branch: Array) -> Array:
    """The output e h + S_l branch of block l = i + 1 for its input h."""
    signs = network.frozen.signs
    branch = branch * _trailing(signs[i], branch) if signs else branch
    return h + branch if network.spec.has_shortcut else branch


def _with_matrices(network: Network, embedding: Matrix, weights, readout: Matrix) -> Network:
    params = network.params._replace(weights=tuple(weights))
    return Network(params, network.frozen._replace(embedding=embedding, readout=readout), network.spec)


def _slope(spec: NetworkSpec, z: Array) -> Array:
    """phi'(z), with the gate of z = 0 open."""
    return jnp.where(z >= 0, jnp.asarray(spec.positive_slope, z.dtype), jnp.asarray(spec.negative_slope, z.dtype))


def _activation(spec: NetworkSpec, z: Array) -> Array:
    return _slope(spec, z) * z


def _moved(spec: NetworkSpec, before: Array, dz: Array) -> tuple[Array, Array]:
    """The preactivations z + dz, and phi(z + dz) - phi(z), which is slope * dz where no gate switches."""
    after = before + dz
    switches = (after >= 0) != (before >= 0)
    jump = _activation(spec, after) - _activation(spec, before)
    return after, jnp.where(switches, jump, _slope(spec, after) * dz)


def _trailing(values: Array, rows: Array) -> Array:
    """`values` reshaped to broadcast against the last axes of `rows`: all points share them."""
    return values.reshape((1,) * (rows.ndim - values.ndim) + values.shape)


def _of_points(values: Array, rows: Array) -> Array:
    """`values` [*points, N] reshaped to broadcast against rows of the points, [*points, N] or [*points, R, N]."""
    return values if values.ndim == rows.ndim else values[..., None, :]


def check_input(network: Network, x: ArrayLike) -> Array:
    d = network.spec.input_dim
    x = jnp.asarray(x)
    if x.ndim not in (1, 2) or x.shape[-1] != d:
        raise ValueError(f"x: expected shape [{d}] or [B, {d}], got {list(x.shape)}")
    return x.astype(network.dtype)
