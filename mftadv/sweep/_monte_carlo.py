"""Moments of a statistic over many networks, or all its values, chunk by chunk."""

import dataclasses
import functools
import numbers
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Key

from mftadv.spec import NetworkSpec, check_positive
from mftadv.statistics import Moments, merge, to_host
from mftadv.sweep._memory import all_devices
from mftadv.sweep._program import compile_program, trace

Statistic = Callable[..., Any]

_INDICES = 2**32  # of networks: a key folds in 32 bits


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
    compiles again; what functions of other modules read is not compared. Statistics in which nothing of this differs
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
        mesh: a `jax.sharding.Mesh` over whose devices the draws of a chunk are sharded; None for all of this process.
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
    _chunk: Callable[[int, int], Any]
    _reduced: bool

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        for done in range(0, self.num_networks, self.batch_size):
            index, count = self.first + done, min(self.batch_size, self.num_networks - done)
            values = self._chunk(index, count)
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
    num_networks = check_positive("num_networks", num_networks)
    check_range(first, num_networks)
    if mesh is not None and not isinstance(mesh, Mesh):
        raise ValueError(f"mesh: expected a jax.sharding.Mesh or None, got {type(mesh).__name__}")
    start = time.perf_counter()
    traced = trace(statistic, key, spec, operands)
    mesh = all_devices() if mesh is None else mesh
    program = compile_program(traced, num_networks, batch_size=batch_size, mesh=mesh, reduced=reduced)
    each = program.bytes_taken * program.devices // program.batch_size
    return Draws(
        num_networks, int(first), program.batch_size, each, time.perf_counter() - start,
        lambda index, count: program.call(index, count, traced.spec, traced.operands), reduced,
    )  # fmt: skip


def check_range(first: int, num_networks: int) -> None:
    """Refuse networks that no key has.

    Raises:
        ValueError: an index is negative or beyond 2^32 - 1.
    """
    if isinstance(first, bool) or not isinstance(first, numbers.Integral) or first < 0:
        raise ValueError(f"first: expected an integer >= 0, got {first!r}")
    if first + num_networks > _INDICES:
        raise ValueError(f"first + num_networks: expected at most 2^32, got {first} + {num_networks}")


def _is_moments(node: Any) -> bool:
    return isinstance(node, Moments)
