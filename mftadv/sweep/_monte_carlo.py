"""Moments of a statistic over many networks, or all its values, chunk by chunk."""

import dataclasses
import functools
import math
import numbers
import time
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Key

from mftadv.spec import NetworkSpec, check_key, check_positive
from mftadv.statistics import Moments, merge, moments, to_host
from mftadv.sweep._memory import bytes_taken, estimated_bytes, memory
from mftadv.sweep._static import Static

Statistic = Callable[..., Any]

_INDICES = 2**32  # of networks: a key folds in 32 bits
_LARGEST = 2**31 - 1  # networks of a chunk, which are counted in int32


def monte_carlo(
    statistic: Statistic,
    key: Key[Array, ""],
    spec: NetworkSpec,
    *operands: Any,
    num_networks: int = 256,
    first: int = 0,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Any:
    """The moments of a statistic over independent random networks.

    Network i of a run has the key fold_in(key, i), whatever the batch size and the devices, so a run can be split,
    extended and replayed. Each chunk is reduced to moments on the device; chunks are merged in float64 on the host.

    **A statistic is a pure function of its arguments.** Whatever else it reads is a constant of its compiled program,
    so what varies belongs in `spec` or `operands`, whose values never recompile. A change of its code, of a variable
    in its closure, of a default, of a global that it names, or of an attribute of an object among these is seen, and
    compiles again; what functions of other modules read is not looked at. Statistics in which nothing of this differs
    share a program: a lambda in a loop compiles once as long as what it closes over stays the same. The 32 programs
    used last are cached, and no function is kept alive.

    Args:
        statistic: statistic(key, spec, *operands) -> pytree of real arrays, for one network.
        key: the root key of the run; not of the "rbg" kinds, whose numbers depend on how many are drawn at once.
        spec: the law of the networks.
        operands: pytrees of arrays handed to the statistic, traced.
        num_networks: number of networks, any number >= 1; the last chunk is padded and masked.
        first: index of the first network. The moments of networks 0 ... n - 1 and those with first=n merge to the
            moments of one longer run.
        batch_size: networks drawn at once; None takes about as many as half of an accelerator's free memory, or 16 MiB
            on a CPU, can hold.
        mesh: a `jax.sharding.Mesh` over whose devices the draws of a chunk are sharded; None runs on one device.
        progress: called as progress(networks done, networks in all) after every chunk.

    Returns:
        The pytree of the statistic with `Moments` for arrays: .count, .mean, .variance, .standard_error, .nonfinite.
        Non-finite draws are counted in .nonfinite, entry by entry, and enter nothing else.

    Raises:
        ValueError: num_networks or batch_size is not a positive integer, an index is negative or beyond 2^32 - 1, mesh
            is not a Mesh, the key is not one JAX key or of an "rbg" kind, the statistic is not a hashable function or
            does not return real arrays, or a chunk does not fit into memory.

    Source: ours; the merging of moments is that of `mftadv.statistics.merge`.
    """
    run = draws(
        statistic, key, spec, *operands,
        num_networks=num_networks, first=first, batch_size=batch_size, mesh=mesh, reduced=True,
    )  # fmt: skip
    total = None
    for index, parts in run:
        parts = [jax.tree.map(to_host, part, is_leaf=_is_moments) for part in parts]
        parts = parts if total is None else [total, *parts]
        total = functools.reduce(lambda a, b: jax.tree.map(merge, a, b, is_leaf=_is_moments), parts)
        if progress:
            progress(min(index - first + run.batch_size, num_networks), num_networks)
    return total


@dataclasses.dataclass(frozen=True)
class Draws:
    """A planned, compiled run over networks; iterating computes it, chunk by chunk.

    Iterating gives (index of the chunk's first network, the statistic of its networks with a leading axis), or the
    list of each device's `Moments` for a reduced run, as NumPy arrays.

    Attributes:
        num_networks: number of networks.
        first: index of the first.
        batch_size: networks in a chunk, padding included.
        bytes_per_network: device memory one network takes beside its arguments, as compiled.
        compile_seconds: what planning and compiling took.
    """

    num_networks: int
    first: int
    batch_size: int
    bytes_per_network: int
    compile_seconds: float
    _chunk: Callable[[np.uint32, np.uint32], Any]
    _reduced: bool

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        for done in range(0, self.num_networks, self.batch_size):
            index, count = self.first + done, min(self.batch_size, self.num_networks - done)
            values = jax.device_get(self._chunk(np.uint32(index), np.uint32(count)))
            if self._reduced:
                devices = len(jax.tree.leaves(values)[0])
                yield index, [jax.tree.map(lambda leaf, i=i: leaf[i], values) for i in range(devices)]
            else:
                yield index, jax.tree.map(lambda leaf, count=count: leaf[:count], values)


def draws(
    statistic: Statistic,
    key: Key[Array, ""],
    spec: NetworkSpec,
    *operands: Any,
    num_networks: int = 256,
    first: int = 0,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    reduced: bool = False,
) -> Draws:
    """Plan and compile a run over networks whose every value is wanted; the arguments are those of `monte_carlo`.

    Args:
        reduced: whether chunks are reduced to `Moments` on the device.
    """
    static = Static(statistic)
    num_networks = check_positive("num_networks", num_networks)
    if isinstance(first, bool) or not isinstance(first, numbers.Integral) or first < 0:
        raise ValueError(f"first: expected an integer >= 0, got {first!r}")
    if first + num_networks > _INDICES:
        raise ValueError(f"first + num_networks: expected at most 2^32, got {first} + {num_networks}")
    if mesh is not None and not isinstance(mesh, Mesh):
        raise ValueError(f"mesh: expected a jax.sharding.Mesh or None, got {type(mesh).__name__}")
    check_key(key)
    if "rbg" in str(jax.random.key_impl(key)):
        raise ValueError(f"key: expected one whose draws do not depend on the batch, got {jax.random.key_impl(key)}")

    start = time.perf_counter()
    # Python numbers and arrays trace differently, so that changing one for the other would recompile.
    spec, operands = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.asarray(leaf).dtype), (spec, operands))
    leaves, structure = jax.tree.flatten((key, spec, operands))
    one, chunk = _programs(static, (structure, *((leaf.shape, leaf.dtype) for leaf in leaves)))
    traced = one.trace(static, key, spec, operands)
    results = jax.tree.leaves(traced.out_info)
    if not results or not all(_is_real(result.dtype) for result in results):
        raise ValueError(f"statistic: expected a pytree of real arrays, got {traced.out_info}")

    devices = mesh.size if mesh else 1
    limit, budget = memory(mesh)

    def even(size: float) -> int:
        """The batch size next to `size` of which every device has as much, and whose chunks need the least padding."""
        num_chunks = math.ceil(num_networks / max(1, min(size, num_networks, _LARGEST)))
        return math.ceil(math.ceil(num_networks / num_chunks) / devices) * devices

    def compiled(size: int) -> tuple[jax.stages.Compiled, int]:
        scalar = jax.ShapeDtypeStruct((), np.uint32)
        lowered = chunk.lower(static, key, scalar, scalar, spec, operands, batch_size=size, mesh=mesh, reduced=reduced)
        program = lowered.compile()
        return program, bytes_taken(program)

    planned = batch_size is None
    each = estimated_bytes(traced.jaxpr.jaxpr) + key.dtype.itemsize
    size = even(budget // each * devices if planned else check_positive("batch_size", batch_size))
    program, taken = compiled(size)
    if planned and taken > limit:  # the estimate was too low: once more, by what was measured
        size = even(size * budget // taken)
        program, taken = compiled(size)
    if taken > limit:
        raise ValueError(
            f"spec, batch_size: expected {size} networks to fit into {limit / 2**30:.3g} GiB of memory, "
            f"got {taken / 2**30:.3g} GiB"
        )
    return Draws(
        num_networks, int(first), size, taken * devices // size, time.perf_counter() - start,
        lambda index, count: program(key, index, count, spec, operands), reduced,
    )  # fmt: skip


@functools.lru_cache(maxsize=32)
def _programs(statistic: Static, structure: Hashable) -> tuple[Any, Any]:
    """The jitted functions of one network and of a chunk; what they compile is freed with them.

    JAX would cache the programs of functions at the top of a module for ever, and with them the statistics. Equal
    statistics share these functions, so that the one which is traced is the one at hand, an argument.
    """

    @functools.partial(jax.jit, static_argnums=0)
    def one(statistic, key, spec, operands):
        return statistic.function()(key, spec, *operands)

    @functools.partial(jax.jit, static_argnums=0, static_argnames=("batch_size", "mesh", "reduced"))
    def chunk(statistic, key, first, count, spec, operands, *, batch_size, mesh, reduced):
        """The statistic of networks first ... first + batch_size - 1, of which the leading `count` are no padding."""

        def one_device(key, first, count, spec, operands):
            local = batch_size // (mesh.size if mesh else 1)
            position = jnp.arange(local, dtype=np.uint32)
            if mesh:
                position += jax.lax.axis_index(mesh.axis_names).astype(np.uint32) * local
            # Keys come from a loop of their own: fused into a draw, their derivation is repeated for every entry drawn.
            keys = jax.lax.map(lambda i: jax.random.fold_in(key, i), first + position)
            if local == 1:  # a vmap takes both branches of a condition, and products of one row slower code
                values = jax.tree.map(lambda value: value[None], one(statistic, keys[0], spec, operands))
            else:
                values = jax.vmap(lambda key: one(statistic, key, spec, operands))(keys)
            if not reduced:
                return values
            return jax.tree.map(lambda value: jax.tree.map(lambda m: m[None], moments(value, position < count)), values)

        if mesh is None:
            return one_device(key, first, count, spec, operands)
        # Devices share nothing but read-only operands, so there is no replication for JAX to check.
        sharded = jax.shard_map(
            one_device, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(mesh.axis_names), check_vma=False
        )
        return sharded(key, first, count, spec, operands)

    return one, chunk


def _is_moments(node: Any) -> bool:
    return isinstance(node, Moments)


def _is_real(dtype: Any) -> bool:
    return any(jnp.issubdtype(dtype, kind) for kind in (np.floating, np.integer, np.bool_))
