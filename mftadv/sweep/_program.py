"""One compiled program for many networks of many cells."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mftadv.spec import LARGEST, NetworkSpec, check_key, check_positive
from mftadv.statistics import moments
from mftadv.sweep._memory import bytes_taken, enough_devices, estimated_bytes, is_on_cpu, memory
from mftadv.sweep._static import Static

DEEPEST = 2000  # layers; each is traced and compiled on its own
_SHARE = 4  # the part of the memory that networks computed in segments may take at once
_CELLS = 16  # how many times the networks that fit into the memory budget one call draws, cell after cell


@dataclasses.dataclass(frozen=True)
class Traced:
    """A statistic as traced at one cell.

    Attributes:
        static: the statistic.
        key: the root key of the run.
        spec: the law, its leaves as arrays.
        operands: as arrays.
        out_info: the shapes and dtypes that the statistic returns, in its structure; those of a segment where it is
            computed in segments.
        state: the shapes and dtypes of the state between segments, None where there are none.
        bytes_each: about the bytes that one network takes.
        chunk: the jitted function of many networks.
        compiled: what is compiled of it, by what it was compiled for.
    """

    static: Static
    key: jax.Array
    spec: NetworkSpec
    operands: Any
    out_info: Any
    state: Any
    bytes_each: int
    chunk: Any = dataclasses.field(repr=False)
    compiled: dict[Hashable, Any] = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program for some networks of some cells.

    Attributes:
        num_cells: cells at once; None for one cell, whose results have no axis of cells.
        batch_size: networks at once, padding included.
        devices: how many devices share them.
        bytes_taken: bytes that a device needs beside the arguments, as compiled.
        compile_seconds: what compiling took.
        call: call(first, count, spec, operands) -> the statistic of networks first ... first + batch_size - 1, [C, R,
            ...] or [R, ...] each; or Moments of the leading `count` of them, [D, C, ...] or [D, ...] for D devices.
            For a segment call(first, count, spec, operands, (number, state)) -> the next state [R, ...], which stays on
            the devices, and what the segment found; None is the state before segment 0.
    """

    num_cells: int | None
    batch_size: int
    devices: int
    bytes_taken: int
    compile_seconds: float
    call: Callable[..., Any]


def _check_sizes(spec: NetworkSpec) -> None:
    """Refuse networks that no program can be made for: it would take minutes, and all memory, to find that out.

    Raises:
        ValueError: the depth or a dimension is too large.
    """
    for name in ("width", "input_dim", "output_dim"):
        check_positive(name, getattr(spec, name), LARGEST)
    check_positive("depth", spec.depth, DEEPEST)


def trace(statistic: Any, key: jax.Array, spec: NetworkSpec, operands: Any, segmented: bool = False) -> Traced:
    """Trace a statistic at one cell, or a segment of it; nothing is compiled.

    Raises:
        ValueError: the key is not one JAX key or of an "rbg" kind, the networks are too large, the statistic is not a
            hashable function or does not return real arrays.
    """
    static = Static(statistic)
    check_key(key)
    _check_sizes(spec)
    if "rbg" in str(jax.random.key_impl(key)):
        raise ValueError(f"key: expected one whose draws do not depend on the batch, got {jax.random.key_impl(key)}")
    spec, operands = as_arrays((spec, operands))
    leaves, structure = jax.tree.flatten((key, spec, operands))
    one, chunk, programs = _programs(static, (structure, *((leaf.shape, leaf.dtype) for leaf in leaves)))
    state = jax.eval_shape(statistic.begin, key, spec, *operands) if segmented else None
    traced = one.trace(static, key, spec, operands, _point(state))
    if segmented and _kinds(traced.out_info[0]) != _kinds(state):
        raise ValueError(f"statistic: expected segments that return a state {state}, got {traced.out_info[0]}")
    results = jax.tree.leaves(traced.out_info)
    if not results or not all(_is_real(result.dtype) for result in results):
        raise ValueError(f"statistic: expected a pytree of real arrays, got {traced.out_info}")
    # JAX returns the program it traced before, or another one where a setting has changed, such as a precision.
    jaxpr = traced.jaxpr.jaxpr
    if jaxpr not in programs:
        programs[jaxpr] = estimated_bytes(jaxpr) + key.dtype.itemsize, {}
    out_info = traced.out_info[1] if segmented else traced.out_info
    return Traced(static, key, spec, operands, out_info, state, programs[jaxpr][0], chunk, programs[jaxpr][1])


def _kinds(tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]


def _point(state: Any, leading: tuple[int, ...] = (), mesh: Mesh | None = None) -> Any:
    """Where a segment begins, as shapes: its number and the state, of many networks maybe; None for no segments."""
    if state is None:
        return None
    divided = NamedSharding(mesh, PartitionSpec(mesh.axis_names)) if mesh else None  # as the segment before leaves it
    shape = lambda leaf: jax.ShapeDtypeStruct((*leading, *leaf.shape), leaf.dtype, sharding=divided)  # noqa: E731
    return jax.ShapeDtypeStruct((), np.int32), jax.tree.map(shape, state)


def as_arrays(tree: Any) -> Any:
    """The leaves as arrays: Python numbers trace differently, so that changing one for the other would recompile."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.asarray(leaf).dtype), tree)


def even(size: float, num_networks: int, devices: int) -> int:
    """The batch size near `size` that all devices share equally, and whose chunks need the least padding."""
    num_chunks = math.ceil(num_networks / max(1, min(size, num_networks, LARGEST)))
    return math.ceil(math.ceil(num_networks / num_chunks) / devices) * devices


def compile_program(
    traced: Traced,
    num_networks: int,
    *,
    batch_size: int | None = None,
    axes: tuple[int | None, ...] | None = None,
    num_cells: int | None = None,
    mesh: Mesh | None = None,
    reduced: bool = False,
) -> Program:
    """Compile a traced statistic for as many networks at once as memory allows, or for `batch_size`.

    Args:
        traced: the statistic.
        num_networks: of the run, at most so many are drawn at once.
        batch_size: networks drawn at once in each cell; None to decide by memory.
        axes: for each leaf of (spec, operands) 0 where it has a leading axis of cells, None where all cells share it;
            None for one cell.
        num_cells: how many cells there are; a call takes as many as make it worth its while, one after the other.
        mesh: the devices, of which no more are used than there are networks at once and memory for them; or None.
        reduced: whether the networks of a chunk are reduced to `Moments`.

    Raises:
        ValueError: a chunk does not fit into memory.
    """
    start = time.perf_counter()
    planned = batch_size is None
    most = num_networks if planned else min(num_networks, check_positive("batch_size", batch_size))
    mesh = enough_devices(mesh, most, traced.bytes_each)
    devices = mesh.size if mesh else 1
    limit, budget = memory(mesh)
    scalar = jax.ShapeDtypeStruct((), np.uint32)

    def compiled(cells: int | None, size: int) -> tuple[Any, int]:
        kind = cells, size, axes, mesh, reduced
        if kind not in traced.compiled:
            key, *shapes = _shapes((traced.key, traced.spec, traced.operands), axes, cells)
            options = {"batch_size": size, "axes": axes, "mesh": mesh, "reduced": reduced}
            point = _point(traced.state, (size,), mesh)
            lowered = traced.chunk.lower(traced.static, key, scalar, scalar, *shapes, point, **options)
            program = lowered.compile()
            traced.compiled[kind] = program, bytes_taken(program)
        return traced.compiled[kind]

    if traced.state is not None and math.isfinite(limit):  # the products of many networks at once use all cores
        budget = max(budget, int(limit) // _SHARE)
    size = even(budget // traced.bytes_each * devices if planned else most, num_networks, devices)
    worth = _CELLS * budget * devices // (traced.bytes_each * size)
    cells = None if num_cells is None else min(num_cells, max(1, worth))
    if traced.bytes_each > 2 * limit:  # too large even if the estimate is twice too high; compiling takes memory too
        raise ValueError(
            f"spec: expected a network that fits into {limit / 2**30:.3g} GiB of memory, got one of about "
            f"{traced.bytes_each / 2**30:.3g} GiB"
        )
    program, taken = compiled(cells, size)
    if planned and taken > limit:  # the estimate was too low: once more, by what was measured
        size = even(size * budget // taken, num_networks, devices)
        program, taken = compiled(cells, size)
    if taken > limit and devices > 1 and is_on_cpu(mesh):  # which share the host's memory, so that fewer have more each
        fewer = enough_devices(mesh, devices // 2, traced.bytes_each)
        return compile_program(
            traced, num_networks, batch_size=batch_size, axes=axes, num_cells=num_cells, mesh=fewer, reduced=reduced
        )
    if taken > limit:
        raise ValueError(
            f"spec, batch_size: expected {size} networks to fit into {limit / 2**30:.3g} GiB of memory, "
            f"got {taken / 2**30:.3g} GiB"
        )

    def execute(*arguments: Any) -> Any:  # wherever they are
        return program(*jax.device_put((traced.key, *arguments), program.input_shardings[0]))

    def call(first: int, count: int, spec: Any, operands: Any, point: Any = None) -> Any:
        if traced.state is None:
            return jax.device_get(execute(np.uint32(first), np.uint32(count), spec, operands, None))
        number, state = point
        if state is None:
            state = jax.tree.map(lambda leaf: np.zeros((size, *leaf.shape), leaf.dtype), traced.state)
        point = np.int32(number), state
        state, found = execute(np.uint32(first), np.uint32(count), spec, operands, point)
        return state, jax.device_get(found)

    return Program(cells, size, devices, taken, time.perf_counter() - start, call)


def _shapes(tree: Any, axes: tuple[int | None, ...] | None, cells: int | None) -> Any:
    """The shapes of (key, spec, operands), with the axis of cells where there is one."""
    leaves, structure = jax.tree.flatten(tree)
    varied = (None,) * len(leaves) if axes is None else (None, *axes)
    shapes = [
        jax.ShapeDtypeStruct(leaf.shape if axis is None else (cells, *leaf.shape), leaf.dtype)
        for leaf, axis in zip(leaves, varied, strict=True)
    ]
    return jax.tree.unflatten(structure, shapes)


@functools.lru_cache(maxsize=32)
def _programs(statistic: Static, structure: Hashable) -> tuple[Any, Any, dict[Any, tuple[int, dict[Hashable, Any]]]]:
    """The jitted functions of one network and of a chunk, and a dictionary of what is compiled, freed with them.

    JAX would cache the programs of functions at the top of a module for ever, and with them the statistics. Equal
    statistics share these functions; the statistic is an argument, so that one which still exists is traced.
    """

    @functools.partial(jax.jit, static_argnums=0)
    def one(statistic, key, spec, operands, point):
        function = statistic.function()
        if point is None:
            return function(key, spec, *operands)
        number, state = point
        state = jax.lax.cond(number == 0, lambda: function.begin(key, spec, *operands), lambda: state)
        return function.segment(key, spec, number, state, *operands)

    @functools.partial(jax.jit, static_argnums=0, static_argnames=("batch_size", "axes", "mesh", "reduced"))
    def chunk(statistic, key, first, count, spec, operands, point, *, batch_size, axes, mesh, reduced):
        """The statistic of networks first ... first + batch_size - 1, of which the leading `count` are no padding."""

        def one_device(key, first, count, spec, operands, point):
            local = batch_size // (mesh.size if mesh else 1)
            position = jnp.arange(local, dtype=np.uint32)
            if mesh:
                position += jax.lax.axis_index(mesh.axis_names).astype(np.uint32) * local
            # Keys come from a loop of their own: fused into a draw, their derivation is repeated for every entry drawn.
            keys = jax.lax.map(lambda i: jax.random.fold_in(key, i), first + position)

            def of_cell(spec, operands):
                def network(key, state):
                    return one(statistic, key, spec, operands, None if point is None else (point[0], state))

                states = None if point is None else point[1]
                if local == 1:  # a vmap takes both branches of a condition, and products of one row slower code
                    values = network(keys[0], jax.tree.map(lambda value: value[0], states))
                    values = jax.tree.map(lambda value: value[None], values)
                elif mesh and is_on_cpu(mesh):  # a core multiplies one matrix faster than a batch of them
                    values = jax.lax.map(lambda each: network(*each), (keys, states))
                else:
                    values = jax.vmap(network)(keys, states)
                return jax.tree.map(lambda value: moments(value, position < count), values) if reduced else values

            if axes is None:
                values = of_cell(spec, operands)
            else:  # one cell after the other: a vmap over cells would draw once for all, and still takes twice the time
                leaves, structure = jax.tree.flatten((spec, operands))
                varied = [leaf for leaf, axis in zip(leaves, axes, strict=True) if axis == 0]

                def body(varied):
                    own = iter(varied)
                    mixed = [leaf if axis is None else next(own) for leaf, axis in zip(leaves, axes, strict=True)]
                    return of_cell(*jax.tree.unflatten(structure, mixed))

                values = jax.lax.map(body, varied)
            return jax.tree.map(lambda leaf: leaf[None], values) if reduced else values

        if mesh is None:
            return one_device(key, first, count, spec, operands, point)
        specs = PartitionSpec(mesh.axis_names) if reduced or axes is None else PartitionSpec(None, mesh.axis_names)
        # Devices share nothing but read-only operands, so there is no replication for JAX to check.
        whole = PartitionSpec()
        inputs = (whole,) * 5 + (None if point is None else (whole, specs),)
        sharded = jax.shard_map(one_device, mesh=mesh, in_specs=inputs, out_specs=specs, check_vma=False)
        return sharded(key, first, count, spec, operands, point)

    return one, chunk, {}


def _is_real(dtype: Any) -> bool:
    return any(jnp.issubdtype(dtype, kind) for kind in (np.floating, np.integer, np.bool_))
