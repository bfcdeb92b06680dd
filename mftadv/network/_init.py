"""Random ReLU-like networks: what one is, and drawing it."""

import dataclasses
import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from mftadv.matrices import Matrix, dense_gaussian, matrix_free_gaussian, noise_size
from mftadv.spec import NetworkSpec, fold_in_loop, key_for


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
    keys = fold_in_loop(key, jnp.arange(4 + L)[:, None])
    weight_variance, bias_variance = (jnp.asarray(v, float) for v in (spec.weight_variance, spec.bias_variance))
    shapes = shapes_of(spec)
    variances = [1 / d, 1 / N, *[weight_variance / N] * L]
    sizes = [m * n if capacity is None else noise_size((m, n), capacity) for m, n in shapes]
    if capacity is None and sum(sizes) > _ONE_DRAW:
        noise = [jax.random.normal(key, (size,)) for key, size in zip([*keys[:2], *keys[4:]], sizes, strict=True)]
    else:  # a multiple of 1024, which every generator draws efficiently
        length = -(-sum(sizes) // 1024) * 1024
        noise = jnp.split(_draw_if(weight_variance >= 0, keys[0], (length,), jnp.nan), np.cumsum(sizes))[:-1]
    make = dense_gaussian if capacity is None else functools.partial(matrix_free_gaussian, capacity=capacity)
    matrices = [make(*each) for each in zip(noise, shapes, variances, strict=True)]
    embedding, readout, *weights = matrices
    biases = jnp.sqrt(jnp.where(bias_variance > 0, bias_variance, 1)) * _draw_if(bias_variance > 0, keys[2], (L, N), 0)
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
    shapes = shapes_of(spec)
    entries, queries = sum(m * n for m, n in shapes), sum(capacity)
    drawn, rows = sum(noise_size(shape, capacity) for shape in shapes), sum(m + n for m, n in shapes) / 2
    return {"dense": entries * (1 + queries / 16), "matrix_free": drawn + 4 * queries**2 * rows / 16}


def shapes_of(spec: NetworkSpec) -> list[tuple[int, int]]:
    """Of P_in, P_out and the W_l."""
    d, K, N, L = spec.input_dim, spec.output_dim, spec.width, spec.depth
    return [(N, d), (K, N), *[(N, N)] * L]


def _is_capacity(value: Any) -> bool:
    counts = isinstance(value, tuple) and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in value)
    return counts and len(value) == 2


def _draw_if(condition: Array, key: Array, shape: tuple[int, ...], otherwise: float, dtype: Any = float) -> Array:
    """Standard normals, or a constant.

    Not only to save the draw: a compiler that fuses a draw into its uses repeats it in each, and it does not fuse
    through a branch.
    """
    return jax.lax.cond(
        condition, lambda: jax.random.normal(key, shape, dtype), lambda: jnp.full(shape, otherwise, dtype)
    )
