"""How much memory there is, and how much a program takes: estimated before it is compiled, and as compiled."""

import contextlib
import math
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.extend.core import Jaxpr, Literal
from jax.sharding import Mesh

from mftadv.network import inner_programs

# A chunk on a CPU gains nothing from memory past the caches' reach, and progress should show.
_CPU_BUDGET = 16 * 2**20
_CONTAINERS = (  # the memory that a container may take, and takes: control groups of version 2 and 1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def check_devices() -> None:
    """Refuse to go on without any device.

    Raises:
        RuntimeError: JAX finds no device of the platforms that it is told to use.
    """
    try:
        jax.devices()
    except Exception as error:  # an AssertionError without words, for some platforms
        platforms = os.environ.get("JAX_PLATFORMS")
        raise RuntimeError(f"JAX finds no device of the platform {platforms!r}: {error}") from None


def all_devices() -> Mesh | None:
    """The devices of this process as a mesh; None where there is one, or `jax_default_device` says which."""
    devices = jax.local_devices()
    return Mesh(np.array(devices), ("networks",)) if _named_device() is None and len(devices) > 1 else None


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_on_cpu(mesh: Mesh | None) -> bool:
    """Whether the devices of a mesh, or for None the default one, are processors, which share the host's memory."""
    return _first(mesh).platform == "cpu"


def enough_devices(mesh: Mesh | None, num_networks: int, bytes_each: int) -> Mesh | None:
    """The part of a mesh that has something to do, and the memory for it: a network for each device at once."""
    if mesh is None:
        return None
    most = host_memory() // (2 * bytes_each) if is_on_cpu(mesh) else math.inf
    count = int(max(1, min(mesh.size, num_networks, most)))
    return mesh if count == mesh.size else Mesh(mesh.devices.flat[:count], ("networks",))


def memory(mesh: Mesh | None) -> tuple[float, int]:
    """Bytes of each device: those that are free, inf where that is not known, and those a chunk may take."""
    device = _first(mesh)
    if is_on_cpu(mesh):
        free = host_memory() / (mesh.size if mesh else 1)
        return free, int(min(_CPU_BUDGET, free // 4))
    stats = device.memory_stats() or {}
    total = stats.get("bytes_limit", math.inf)
    return total, int(total - stats.get("bytes_in_use", 0)) // 2 if math.isfinite(total) else _CPU_BUDGET


def _first(mesh: Mesh | None) -> Any:
    if mesh:
        return mesh.devices.flat[0]
    named = _named_device()
    return named if isinstance(named, jax.Device) else jax.devices(named)[0]


def _named_device() -> Any:
    """The device, or the name of a platform, that `jax_default_device` says; None where it says nothing."""
    return jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]


def host_memory() -> float:
    """Bytes of the host that this process may still take: the free ones, within the limit of its container."""
    found = [math.inf]
    with contextlib.suppress(OSError, ValueError, IndexError):  # Linux
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024)
    for limit, used in _CONTAINERS:
        with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
            found.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
    if found == [math.inf]:
        with contextlib.suppress(AttributeError, OSError, ValueError):  # not every system says
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return max(0, min(found))


def bytes_taken(compiled: jax.stages.Compiled) -> int:
    """Bytes of a device a compiled program takes beside its arguments; 0 where a backend does not say."""
    analysis = compiled.memory_analysis()
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes if analysis else 0


def estimated_bytes(jaxpr: Jaxpr) -> int:
    """About the bytes that a program will take beside its arguments, from its jaxpr alone.

    The larger of two sizes: the most that is alive at once when the equations run in their order and nothing is fused;
    and four times all random bits, which is what XLA takes on a CPU, where it draws the bits of all arrays before it
    uses any. For networks with dense matrices the second is exact to a few percent.

    Source: ours; measured on JAX 0.10.2.
    """
    return max(_peak(jaxpr), 4 * _random_bytes(jaxpr))


def _peak(jaxpr: Jaxpr) -> int:
    """The most bytes of intermediate values alive at once; a result lives to the end."""
    inputs = {*jaxpr.invars, *jaxpr.constvars}
    last_use: dict[Any, int] = {}
    for i, equation in enumerate(jaxpr.eqns):
        last_use |= {var: i for var in equation.invars if not isinstance(var, Literal)}
    last_use |= {var: len(jaxpr.eqns) for var in jaxpr.outvars if not isinstance(var, Literal)}
    dying: list[list[Any]] = [[] for _ in range(len(jaxpr.eqns) + 1)]
    for var, i in last_use.items():
        dying[i] += [] if var in inputs else [var]
    alive = peak = 0
    for equation, dead in zip(jaxpr.eqns, dying, strict=False):
        results = sum(map(_size, equation.outvars))
        inside = max(map(_peak, inner_programs(equation)), default=0)
        peak = max(peak, alive + max(results, inside))
        alive += sum(_size(var) for var in equation.outvars if var in last_use) - sum(map(_size, dead))
    return peak


def _random_bytes(jaxpr: Jaxpr) -> int:
    """The bytes of all random bits that are drawn, those of a loop once."""
    drawn = (_size(e.outvars[0]) for e in jaxpr.eqns if e.primitive.name == "random_bits")
    return sum(drawn) + sum(_random_bytes(inner) for equation in jaxpr.eqns for inner in inner_programs(equation))


def _size(var: Any) -> int:
    return math.prod(var.aval.shape) * getattr(var.aval.dtype, "itemsize", 4)
