"""A random network as a module of flax.linen, and its variables to and from `mftadv.Network`."""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
from jaxtyping import Array, ArrayLike, Float

from mftadv.diagnose._arrays import from_arrays, to_arrays, typed_key
from mftadv.network import Network, apply, init
from mftadv.spec import NetworkSpec

__all__ = ["RandomNetwork", "from_network", "to_network"]


class RandomNetwork(nn.Module):
    """The random network of the paper, x [d] or [B, d] -> f(x) [K] or [B, K].

        model = RandomNetwork(spec)
        variables = model.init(jax.random.key(0), x)
        y = model.apply(variables, x)

    `init` draws by the law of `mftadv.init`, with the rng "params"; for the very draw of mf.init(key, spec) take
    `from_network(mf.init(key, spec))`. The collection "params" holds what the paper trains, weight_l [N, N] and
    bias_l [N], which an optimiser is given; "frozen" holds the rest, embedding [N, d], readout [K, N] and the signs
    sign_l [N] of a "signed" network. The output is that of `mftadv.apply`.

    Attributes:
        spec: the law of the network.

    Source: the paper, its random network.
    """

    spec: NetworkSpec

    @nn.compact
    def __call__(self, x: Float[ArrayLike, "*B d"]) -> Float[Array, "*B K"]:
        if self.is_initializing() and not self.has_variable("params", "weight_1"):
            drawn = from_network(init(typed_key(self.make_rng("params")), self.spec))
            for collection, arrays in drawn.items():
                for name, array in arrays.items():
                    self.put_variable(collection, name, array)
        return apply(to_network(self.spec, self.variables), x)


def from_network(network: Network) -> dict[str, dict[str, Array]]:
    """The variables with which RandomNetwork(network.spec) is this network.

    Args:
        network: a dense network.

    Returns:
        {"params": weights and biases, "frozen": the rest}, see `RandomNetwork`.

    Raises:
        ValueError: the network is matrix-free.
    """
    trained, frozen = to_arrays(network)
    return {"params": trained, "frozen": frozen}


def to_network(spec: NetworkSpec, variables: Mapping[str, Any]) -> Network:
    """The network that RandomNetwork(spec) is with these variables: for attacks, exact derivatives, theory.

    Args:
        spec: the law of the network.
        variables: the collections "params" and "frozen".

    Returns:
        The network, of the same arrays.

    Raises:
        ValueError: an array is missing, has another shape than the spec says, or is not the network's.
    """
    return from_arrays(spec, variables.get("params", {}), variables.get("frozen", {}))
