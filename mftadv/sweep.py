"""Many draws of a network: the only place with a vmap over draws, chunks and device meshes."""

import dataclasses
import math
import numbers
import os
import time
from collections.abc import Callable, Iterator
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Key

from mftadv.spec import NetworkSpec
from mftadv.statistics import Moments, merge, moments, to_host

__all__ = ["Draws", "draws", "monte_carlo"]

Statistic = Callable[..., Any]

# A chunk on a CPU gains nothing from memory past the caches' reach, and progress should show.
_CPU_BUDGET = 16 * 2**20
_PROBE = 8  # networks in the program whose memory is measured: one alone is compiled differently


def monte_carlo(
    statistic: Statistic,
    key: Key[Array, ""],
    spec: NetworkSpec,
    *operands: Any,
    num_networks: int = 256,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Any:
    """The moments of a statistic over independent random networks.

    Network i of a run has the key fold_in(key, i), whatever the batch size and the devices, so a run can be split,
    extended and replayed. Each chunk is reduced to moments on the device; chunks are merged in float64 on the host.
    Nothing recompiles when leaves of `spec` or values of `operands` change.

    Args:
        statistic: statistic(key, spec, *operands) -> pytree of real arrays, for one network.
        key: the root key of the run; not of the "rbg" kinds, whose numbers depend on how many are drawn at once.
        spec: the law of the networks.
        operands: pytrees of arrays handed to the statistic, traced.
        num_networks: number of networks, any number >= 1; the last chunk is padded and masked.
        batch_size: networks drawn at once; None takes as many as half of an accelerator's free memory, or 16 MiB on
            a CPU, can hold.
        mesh: a `jax.sharding.Mesh` over whose devices the draws of a chunk are sharded; None runs on one device.
        progress: called as progress(networks done, networks in all) after every chunk.

    Returns:
        The pytree of the statistic with `Moments` for arrays: .count, .mean, .variance, .standard_error, .nonfinite.
        Non-finite draws are counted in .nonfinite, entry by entry, and enter nothing else.

    Raises:
        ValueError: num_networks or batch_size is not a positive integer, mesh is not a Mesh, the key is of an "rbg"
            kind, the statistic does not return real arrays, or a chunk does not fit into memory.

    Source: ours; the merging of moments is that of `mftadv.statistics.merge`.
    """
    chunks = draws(
        statistic, key, spec, *operands, num_networks=num_networks, batch_size=batch_size, mesh=mesh, reduced=True
    )
    total = None
    for first, parts in chunks:
        parts = [jax.tree.map(to_host, part, is_leaf=_is_moments) for part in parts]
        parts = parts if total is None else [total, *parts]
        total = reduce(lambda a, b: jax.tree.map(merge, a, b, is_leaf=_is_moments), parts)
        if progress:
            progress(min(first + chunks.batch_size, num_networks), num_networks)
    return total


@dataclasses.dataclass(frozen=True)
class Draws:
    """A planned, compiled run over networks; iterating computes it, chunk by chunk.

    Iterating gives (index of the chunk's first network, the statistic of its networks with a leading axis), or the
    list of each device's `Moments` for a reduced run, as NumPy arrays.

    Attributes:
        num_networks: number of networks.
        batch_size: networks in a chunk, padding included.
        bytes_per_network: device memory one network takes beside its arguments, as compiled.
        compile_seconds: what planning and compiling took.
    """

    num_networks: int
    batch_size: int
    bytes_per_network: int
    compile_seconds: float
    _chunk: Callable[[int], Any]
    _reduced: bool

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        for first in range(0, self.num_networks, self.batch_size):
            values = jax.device_get(self._chunk(first))
            if self._reduced:
                devices = len(jax.tree.leaves(values)[0])
                yield first, [jax.tree.map(lambda leaf, i=i: leaf[i], values) for i in range(devices)]
            else:
                drawn = min(self.batch_size, self.num_networks - first)
                yield first, jax.tree.map(lambda leaf, drawn=drawn: leaf[:drawn], values)


def draws(
    statistic: Statistic,
    key: Key[Array, ""],
    spec: NetworkSpec,
    *operands: Any,
    num_networks: int = 256,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    reduced: bool = False,
) -> Draws:
    """Plan and compile a run over networks whose every value is wanted; the arguments are those of `monte_carlo`.

    Args:
        reduced: whether chunks are reduced to `Moments` on the device.
    """
    for name, value in (("num_networks", num_networks), ("batch_size", 1 if batch_size is None else batch_size)):
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not 1 <= value < 2**31:
            raise ValueError(f"{name}: expected an integer from 1 to 2^31 - 1, got {value!r}")
    if mesh is not None and not isinstance(mesh, Mesh):
        raise ValueError(f"mesh: expected a jax.sharding.Mesh or None, got {type(mesh).__name__}")
    if "rbg" in str(jax.random.key_impl(key)):
        raise ValueError(f"key: expected one whose draws do not depend on the batch, got {jax.random.key_impl(key)}")
    # Python numbers and arrays trace differently, so that changing one for the other would recompile.
    spec, operands = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.asarray(leaf).dtype), (spec, operands))
    result = jax.tree.leaves(jax.eval_shape(statistic, key, spec, *operands))
    if not result or any(not jnp.issubdtype(leaf.dtype, np.number) and leaf.dtype != bool for leaf in result):
        raise ValueError(f"statistic: expected a pytree of real arrays, got {result}")
    if any(jnp.issubdtype(leaf.dtype, np.complexfloating) for leaf in result):
        raise ValueError(f"statistic: expected a pytree of real arrays, got {result}")

    start = time.perf_counter()
    devices = mesh.size if mesh else 1
    lower = partial(_chunk.lower, key, np.int32(0), np.int32(num_networks), spec, operands)
    static = {"statistic": statistic, "mesh": mesh, "reduced": reduced}
    limit, budget = _memory(mesh)
    if batch_size is None:
        probe = lower(batch_size=_PROBE * devices, **static).compile()
        batch_size = max(1, int(budget // max(_bytes(probe) / _PROBE, 1))) * devices
    batch_size = -(-min(batch_size, num_networks) // devices) * devices
    # chunks of even size leave the least padding
    num_chunks = -(-num_networks // batch_size)
    batch_size = -(-math.ceil(num_networks / num_chunks) // devices) * devices
    taken = _bytes(lower(batch_size=batch_size, **static).compile())
    if taken > limit:
        raise ValueError(
            f"spec, batch_size: expected {batch_size} networks to fit into {limit / 2**30:.3g} GiB of memory, "
            f"got {taken / 2**30:.3g} GiB"
        )
    elapsed = time.perf_counter() - start

    def chunk(first: int):
        return _chunk(key, np.int32(first), np.int32(num_networks), spec, operands, batch_size=batch_size, **static)

    return Draws(num_networks, batch_size, taken * devices // batch_size, elapsed, chunk, reduced)


@partial(jax.jit, static_argnames=("statistic", "batch_size", "mesh", "reduced"))
def _chunk(key, first, stop, spec, operands, *, statistic, batch_size, mesh, reduced):
    """The statistic of networks first ... first + batch_size - 1, of which those before `stop` count."""

    def one_device(key, first, stop, spec, operands):
        local = batch_size // (mesh.size if mesh else 1)
        offset = jax.lax.axis_index(mesh.axis_names) * local if mesh else 0
        index = first + offset + jnp.arange(local, dtype=jnp.int32)
        # Keys come from a loop of their own: fused into a draw, their derivation is repeated for every entry drawn.
        keys = jax.lax.map(lambda i: jax.random.fold_in(key, i), index)
        if local == 1:  # left as it is: a vmap takes both branches of a condition, and products of one row slower code
            values = jax.tree.map(lambda value: jnp.asarray(value)[None], statistic(keys[0], spec, *operands))
        else:
            values = jax.vmap(lambda key: statistic(key, spec, *operands))(keys)
        if not reduced:
            return values
        return jax.tree.map(lambda value: jax.tree.map(lambda m: m[None], moments(value, index < stop)), values)

    if mesh is None:
        return one_device(key, first, stop, spec, operands)
    # Devices share nothing but read-only operands, so there is no replication for JAX to check.
    sharded = jax.shard_map(
        one_device, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(mesh.axis_names), check_vma=False
    )
    return sharded(key, first, stop, spec, operands)


def _is_moments(node: Any) -> bool:
    return isinstance(node, Moments)


def _bytes(compiled) -> int:
    """Bytes of a device a compiled chunk takes beside its arguments; 0 where a backend does not say."""
    analysis = compiled.memory_analysis()
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes if analysis else 0


def _memory(mesh: Mesh | None) -> tuple[float, float]:
    """Bytes of each device: all there are, inf where that is not known, and those a chunk may take."""
    device = mesh.devices.flat[0] if mesh else jax.devices()[0]
    if device.platform == "cpu":
        try:
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, OSError, ValueError):  # not every system says
            return math.inf, _CPU_BUDGET
        return total, min(_CPU_BUDGET, total // 4)
    memory = device.memory_stats() or {}
    total = memory.get("bytes_limit", math.inf)
    return total, (total - memory.get("bytes_in_use", 0)) // 2 if math.isfinite(total) else _CPU_BUDGET
