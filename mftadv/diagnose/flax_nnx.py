"""A random network as a module of flax.nnx, to and from `mftadv.Network`."""

import jax
from flax import nnx
from jaxtyping import Array, ArrayLike, Float

from mftadv.diagnose._arrays import from_arrays, to_arrays, typed_key
from mftadv.network import Network, apply, init
from mftadv.spec import NetworkSpec

__all__ = ["Frozen", "RandomNetwork", "from_network", "to_network"]


class Frozen(nnx.Variable):
    """An array that is never trained."""


class RandomNetwork(nnx.Module):
    """The random network of the paper, x [d] or [B, d] -> f(x) [K] or [B, K].

        model = RandomNetwork(spec, rngs=nnx.Rngs(0))
        y = model(x)

    It is drawn by the law of `mftadv.init`, with the stream `rngs.params`; for the very draw of mf.init(key, spec) take
    `from_network(mf.init(key, spec))`. What the paper trains, weight_l [N, N] and bias_l [N], are of type `nnx.Param`,
    by which an optimiser selects them; the rest, embedding [N, d], readout [K, N] and the signs sign_l [N] of a
    "signed" network, are `Frozen`. The output is that of `mftadv.apply`.

    Args:
        spec: the law of the network; its variances and slopes are numbers, since they are no state of the module.
        rngs: of which the stream "params" is used.

    Raises:
        ValueError: as `mftadv.init`.

    Source: the paper, its random network.
    """

    spec: NetworkSpec

    def __init__(self, spec: NetworkSpec, *, rngs: nnx.Rngs):
        _assign(self, init(typed_key(rngs.params()), spec))

    def __call__(self, x: Float[ArrayLike, "*B d"]) -> Float[Array, "*B K"]:
        return apply(to_network(self), x)


def from_network(network: Network) -> RandomNetwork:
    """The module that is this network.

    Args:
        network: a dense network, whose variances and slopes are not traced.

    Raises:
        ValueError: the network is matrix-free.
    """
    spec = jax.tree.map(float, network.spec)
    module = nnx.eval_shape(lambda: RandomNetwork(spec, rngs=nnx.Rngs(0)))
    _assign(module, network)
    return module


def to_network(module: RandomNetwork) -> Network:
    """The network that this module is: for attacks, exact derivatives, theory.

    Args:
        module: the module, also one merged from a state in traced code.

    Returns:
        The network, of the same arrays.

    Raises:
        ValueError: the module's state has an array of another shape than its spec says.
    """
    trained, frozen = (
        {name: variable[...] for name, variable in vars(module).items() if isinstance(variable, kind)}
        for kind in (nnx.Param, Frozen)
    )
    return from_arrays(module.spec, trained, frozen)


def _assign(module: RandomNetwork, network: Network) -> None:
    # Python's numbers, which make the module's definition hashable; a network that was drawn under jit has arrays.
    module.spec = jax.tree.map(float, network.spec)
    for kind, arrays in zip((nnx.Param, Frozen), to_arrays(network), strict=True):
        for name, array in arrays.items():
            setattr(module, name, kind(array))
