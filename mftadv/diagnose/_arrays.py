"""A network as named arrays, the form in which a module of flax holds it, and back."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array

from mftadv.matrices import DenseMatrix
from mftadv.network import Frozen, Network, Params
from mftadv.spec import NetworkSpec

Arrays = dict[str, Array]


def to_arrays(network: Network) -> tuple[Arrays, Arrays]:
    """The trained arrays of a network, and the frozen ones.

    Args:
        network: a dense network.

    Returns:
        weight_1 [N, N], bias_1 [N] ... weight_L, bias_L; and embedding [N, d], readout [K, N], and for a "signed"
        network sign_1 ... sign_L [N]. A weight is W_l itself, h -> W_l h, not the transpose that flax calls kernel.

    Raises:
        ValueError: the network is matrix-free.
    """
    entries = [matrix.entries for matrix in network.matrices if isinstance(matrix, DenseMatrix)]
    if len(entries) != len(network.matrices):
        raise ValueError("network: expected dense matrices, got others; a flax module holds every entry")
    embedding, *weights, readout = entries
    trained = {**_numbered("weight", weights), **_numbered("bias", network.params.biases)}
    return trained, {"embedding": embedding, "readout": readout, **_numbered("sign", network.frozen.signs)}


def from_arrays(spec: NetworkSpec, trained: Mapping, frozen: Mapping) -> Network:
    """The network of these arrays, the inverse of `to_arrays`.

    Raises:
        ValueError: an array is missing, has another shape than the spec says, or is not the network's.
    """
    d, K, N, layers = spec.input_dim, spec.output_dim, spec.width, range(1, spec.depth + 1)
    signs = [f"sign_{l}" for l in layers] if spec.block == "signed" else []
    of_trained = {f"weight_{l}": (N, N) for l in layers} | {f"bias_{l}": (N,) for l in layers}
    of_frozen = {"embedding": (N, d), "readout": (K, N)} | dict.fromkeys(signs, (N,))
    for part, expected, got in (("trained", of_trained, trained), ("frozen", of_frozen, frozen)):
        for name in sorted({*expected, *got}):
            shape = jnp.shape(got[name]) if name in got else None
            if shape != expected.get(name):
                raise ValueError(f"{name} ({part}): expected {_say(expected.get(name))}, got {_say(shape)}")
    value = {name: jnp.asarray(array) for name, array in (*trained.items(), *frozen.items())}
    weights = tuple(DenseMatrix(value[f"weight_{l}"]) for l in layers)
    params = Params(weights, tuple(value[f"bias_{l}"] for l in layers))
    fixed = Frozen(DenseMatrix(value["embedding"]), DenseMatrix(value["readout"]), tuple(value[name] for name in signs))
    return Network(params, fixed, spec)


def typed_key(key: Array) -> Array:
    """The key, also where flax was given one of the older kind, `jax.random.PRNGKey`."""
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)


def _numbered(name: str, arrays) -> Arrays:
    return {f"{name}_{l}": array for l, array in enumerate(arrays, 1)}


def _say(shape: tuple[int, ...] | None) -> str:
    return "no such array" if shape is None else f"shape {list(shape)}"
