"""Random ReLU-like networks: drawing one, its forward pass, differences, pullback and pushforward.

Everything is written for one network at one input [d] or a block of inputs [B, d], over the interface of a matrix; the
network that is returned is the one to use next (see `mftadv.matrices.Matrix`).
"""

import dataclasses
import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key

from mftadv.matrices import Matrix, dense_gaussian, matrix_free_gaussian, noise_size
from mftadv.spec import NetworkSpec, key_for

__all__ = ["Evaluation", "Network", "Params", "apply", "difference", "evaluate", "forward", "init", "pullback"]


class Params(NamedTuple):
    """The trained part: W_l [N, N] and b_l [N], one entry a layer."""

    weights: tuple[Matrix, ...]
    biases: tuple[Float[Array, " N"], ...]


class Frozen(NamedTuple):
    """The part that is never trained: P_in [N, d], P_out [K, N], and the signs S_l [N] of a "signed" network."""

    embedding: Matrix
    readout: Matrix
    signs: tuple[Float[Array, " N"], ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Network:
    """One draw from the law of a `NetworkSpec`."""

    params: Params
    frozen: Frozen
    spec: NetworkSpec

    @property
    def dtype(self) -> jnp.dtype:
        return self.frozen.embedding.dtype

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """P_in, the W_l, P_out."""
        return (self.frozen.embedding, *self.params.weights, self.frozen.readout)

    @property
    def is_dense(self) -> bool:
        """Whether every query leaves the network as it is."""
        return not any(matrix.lazy for matrix in self.matrices)

    @property
    def law_exact(self) -> Any:
        """Whether all results so far have exactly the law of the network: a boolean, traced in traced code.

        False once a matrix-free network was queried beyond its capacity; where the program alone determines the number
        of queries, that is an error instead.
        """
        return functools.reduce(operator.and_, (matrix.law_exact for matrix in self.matrices))

    def check_capacity(self, inputs: int, cotangents: int) -> None:
        """Raise now the ValueError that so many further inputs and cotangents would raise."""
        for matrix in self.matrices:
            matrix.check_capacity(inputs, cotangents)

    def __repr__(self) -> str:
        return f"Network({self.spec}, {'dense' if self.is_dense else 'matrix_free'})"


class Evaluation(NamedTuple):
    """The value of a function at a point, with what its differences and derivatives at that point need.

    `output` is f(x) or a difference of f, [..., K]. `at` is what the derivatives need: the preactivations of every
    layer, [..., N] each, or the input itself of a plain function. `network` is the `Network` to use next, None for a
    plain function.
    """

    output: Float[Array, "*points K"]
    at: tuple[Float[Array, "*points _"], ...]
    network: Any


ENGINES = ("dense", "matrix_free")

_ONE_DRAW = 2**22  # dense entries that are drawn in one call: it compiles faster, and needs memory for a copy


def init(
    key: Key[Array, ""], spec: NetworkSpec, engine: str = "dense", capacity: tuple[int, int] | None = None
) -> Network:
    """Draw one network.

    P_in ~ N(0, 1/d), W_l ~ N(0, s/N), b_l ~ N(0, b2), P_out ~ N(0, 1/N), S_l = +-1 with equal odds.

    A "matrix_free" network holds no matrix: each query draws the O(L N) numbers that it needs, and the results have
    exactly the joint law of a dense network's. What a result reveals of the network belongs to its law from then on,
    so go on with the network that comes with the result: two queries of the same network, neither made on the network
    that the other returned, are each right alone and wrong together.

        y, net = mf.evaluate(net, x)
        rep = mf.linear_representation(net, x)
        net = rep.network

    Args:
        key: a JAX key; "threefry4x32" keys draw two to three times as fast as the default on a CPU.
        spec: the law of the network; handed to a jitted function as an argument, its leaves do not recompile, and on
            a CPU a matrix-free draw compiles to less code.
        engine: how its matrices are held: "dense", entry by entry; "matrix_free"; or "auto", whichever costs less for
            the queries of the capacity, see `engine_for`.
        capacity: how many inputs (those of differences counted) and how many cotangents a matrix-free network can be
            queried with, see `capacity_for`; it needs memory in proportion. None for "dense".

    Returns:
        The network, in the default float type of JAX.

    Raises:
        ValueError: key is not a key, spec is not one NetworkSpec with scalar leaves, the engine does not exist, or
            capacity is not a pair of counts, or not None for "dense".

    Source: the paper, its random network; the matrix-free law is that of `mftadv.matrices.MatrixFree`.
    """
    key = key_for("init", key)
    if not isinstance(spec, NetworkSpec):
        raise ValueError(f"spec: expected a NetworkSpec, got {type(spec).__name__}")
    if any(jnp.ndim(leaf) for leaf in jax.tree.leaves(spec)):
        raise ValueError(
            f"spec: expected the law of one network, got {spec}; for one network of each law, "
            "jax.vmap(mf.init, (None, spec.in_axes))(key, spec)"
        )
    if engine == "dense" and capacity is not None:
        raise ValueError(f'capacity: expected None with engine "dense", got {capacity!r}')
    if engine != "dense" and engine_for(spec, capacity, engine) == "dense":
        capacity = None
    d, N, L = spec.input_dim, spec.width, spec.depth
    # The keys are derived in a loop: a compiler that fuses a key's derivation into a draw repeats it for every entry
    # drawn. Their words come out separately: concatenated inside a batched loop, each would repeat the derivation.
    words = jax.lax.map(lambda tag: tuple(jax.random.key_data(jax.random.fold_in(key, tag))), jnp.arange(4 + L))
    keys = jax.random.wrap_key_data(jnp.stack(words, -1), impl=jax.random.key_impl(key))
    weight_variance, bias_variance = (jnp.asarray(v, float) for v in (spec.weight_variance, spec.bias_variance))
    shapes = _shapes(spec)
    variances = [1 / d, 1 / N, *[weight_variance / N] * L]
    sizes = [m * n if capacity is None else noise_size((m, n), capacity) for m, n in shapes]
    if capacity is None and sum(sizes) > _ONE_DRAW:
        noise = [jax.random.normal(key, (size,)) for key, size in zip([*keys[:2], *keys[4:]], sizes, strict=True)]
    else:  # a multiple of 1024, which every generator draws efficiently
        length = -(-sum(sizes) // 1024) * 1024
        noise = jnp.split(draw_if(weight_variance >= 0, keys[0], (length,), jnp.nan), np.cumsum(sizes))[:-1]
    make = dense_gaussian if capacity is None else functools.partial(matrix_free_gaussian, capacity=capacity)
    matrices = [make(*each) for each in zip(noise, shapes, variances, strict=True)]
    embedding, readout, *weights = matrices
    biases = jnp.sqrt(jnp.where(bias_variance > 0, bias_variance, 1)) * draw_if(bias_variance > 0, keys[2], (L, N), 0)
    signs = jax.random.rademacher(keys[3], (L, N), float) if spec.block == "signed" else ()
    return Network(Params(tuple(weights), tuple(biases)), Frozen(embedding, readout, tuple(signs)), spec)


def engine_for(spec: NetworkSpec, capacity: Any, engine: str = "auto") -> str:
    """The engine that `init` takes: the one named, or for "auto" the one by which a network and its queries cost less.

    Args:
        spec: the law of the network, of which the shapes count.
        capacity: (inputs, cotangents), see `capacity_for`.
        engine: "auto", "dense" or "matrix_free".

    Returns:
        "dense" or "matrix_free".

    Raises:
        ValueError: there is no such engine, or the capacity is not a pair of counts.
    """
    if engine not in ("auto", *ENGINES):
        raise ValueError(f"engine: expected one of auto, {', '.join(ENGINES)}, got {engine!r}")
    if not _is_capacity(capacity):
        raise ValueError(f"capacity: expected (inputs, cotangents), see mftadv.capacity_for, got {capacity!r}")
    costs = engine_costs(spec, capacity)
    return min(costs, key=lambda name: costs[name]) if engine == "auto" else engine


def engine_costs(spec: NetworkSpec, capacity: tuple[int, int]) -> dict[str, float]:
    """The cost of drawing a network and of `capacity` queries by each engine, in units of one normal drawn.

    Dense: N (N L + d + K) normals, and as many multiply-adds for each query. Matrix-free: C inputs and D
    cotangents take C (N L + N + K) + D (N L + N + d) normals, and Gram-Schmidt with the images about
    4 (C + D)^2 multiply-adds for every row of every matrix. A normal costs about 16 multiply-adds on a CPU.
    """
    shapes = _shapes(spec)
    entries, queries = sum(m * n for m, n in shapes), sum(capacity)
    drawn, rows = sum(noise_size(shape, capacity) for shape in shapes), sum(m + n for m, n in shapes) / 2
    return {"dense": entries * (1 + queries / 16), "matrix_free": drawn + 4 * queries**2 * rows / 16}


def _shapes(spec: NetworkSpec) -> list[tuple[int, int]]:
    """Of P_in, P_out and the W_l."""
    d, K, N, L = spec.input_dim, spec.output_dim, spec.width, spec.depth
    return [(N, d), (K, N), *[(N, N)] * L]


def _is_capacity(value: Any) -> bool:
    counts = isinstance(value, tuple) and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in value)
    return counts and len(value) == 2


def draw_if(condition: Array, key: Array, shape: tuple[int, ...], otherwise: float, dtype: Any = float) -> Array:
    """Standard normals, or a constant.

    Not only to save the draw: a compiler that fuses a draw into its uses repeats it in each, and it does not fuse
    through a branch.
    """
    return jax.lax.cond(
        condition, lambda: jax.random.normal(key, shape, dtype), lambda: jnp.full(shape, otherwise, dtype)
    )


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
        before = _of_points(z, dz)
        after = before + dz
        switches = (after >= 0) != (before >= 0)
        jump = _activation(network.spec, after) - _activation(network.spec, before)
        return matrix, after, jnp.where(switches, jump, _slope(network.spec, after) * dz)

    return _through_layers(network, embedding, dh, layer, base.at)


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
    params, frozen, spec = network.params, network.frozen, network.spec
    readout, g = frozen.readout.rmatvec(cotangents)
    weights, shift = [], jnp.zeros((), g.dtype)
    for i in reversed(range(spec.depth)):
        c = g * _trailing(frozen.signs[i], g) if frozen.signs else g
        c = c * _of_points(_slope(spec, at.at[i]), c)
        shift = shift + jnp.sum(c * _trailing(params.biases[i], c), axis=-1)
        matrix, below = params.weights[i].rmatvec(c)
        weights.append(matrix)
        g = g + below if spec.has_shortcut else below
    embedding, rows = frozen.embedding.rmatvec(g)
    return rows, shift, _with_matrices(network, embedding, weights[::-1], readout)


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
    weights, at = [], []
    for i, (matrix, bias) in enumerate(zip(params.weights, params.biases, strict=True)):
        matrix, z, branch = layer(matrix, bias, base[i] if base else None, h)
        branch = branch * _trailing(frozen.signs[i], branch) if frozen.signs else branch
        h = h + branch if network.spec.has_shortcut else branch
        weights.append(matrix)
        at.append(z)
    readout, output = frozen.readout.matvec(h)
    return Evaluation(output, tuple(at), _with_matrices(network, embedding, weights, readout))


def _with_matrices(network: Network, embedding: Matrix, weights, readout: Matrix) -> Network:
    params = network.params._replace(weights=tuple(weights))
    return Network(params, network.frozen._replace(embedding=embedding, readout=readout), network.spec)


def _slope(spec: NetworkSpec, z: Array) -> Array:
    """phi'(z), with the gate of z = 0 open."""
    return jnp.where(z >= 0, jnp.asarray(spec.positive_slope, z.dtype), jnp.asarray(spec.negative_slope, z.dtype))


def _activation(spec: NetworkSpec, z: Array) -> Array:
    return _slope(spec, z) * z


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
