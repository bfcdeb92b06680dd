"""Draw the networks of many cells, by few programs that are compiled ahead; results are handed on as they are done."""

import dataclasses
import functools
import itertools
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mftadv.statistics import Moments, merge, to_host
from mftadv.store import Part, RunFolder, gaps
from mftadv.sweep._cells import Cell, Observer
from mftadv.sweep._monte_carlo import check_range
from mftadv.sweep._program import Program, Traced, compile_program, trace
from mftadv.sweep._static import Static

_LONG = 5.0  # seconds from which on it is said how long a run will take
_STRETCH = 2.0  # seconds since results were last stored; after these they are stored when a chunk ends

Layout = Mapping[str, tuple[tuple[int, ...], str]]
Arrays = Mapping[str, np.ndarray]


class InMemory:
    """Where results go that are stored in no folder; the methods are those of `mftadv.store.RunFolder`."""

    def __init__(self):
        self.parts: list[Part] = []
        self._arrays: dict[Part, Arrays] = {}

    def missing(self, cell: int, stop: int, start: int = 0) -> Sequence[range]:
        done = [part.networks for part in self.parts if cell in part.cells]
        return gaps(sorted(done, key=lambda networks: networks.start), stop, start)

    def write_part(self, cells: range, networks: range, arrays: Arrays) -> None:
        self.parts.append(Part(cells, networks, Path(str(len(self.parts)))))
        self._arrays[self.parts[-1]] = dict(arrays)

    def load(self, part: Part) -> Arrays:
        return self._arrays[part]


Store = InMemory | RunFolder


@dataclasses.dataclass(frozen=True)
class Plan:
    """The cells of a run, and by which programs they are drawn.

    Attributes:
        cells: the cells.
        groups: the programs, as traced.
        group_of: for each cell the number of its program.
        axes: for each program 0 for each leaf of (spec, operands) that differs between its cells, None for the others.
        reduced: whether networks are reduced to `Moments`.
        mesh: the devices, or None.
    """

    cells: Sequence[Cell]
    groups: Sequence[Traced]
    group_of: Sequence[int]
    axes: Sequence[tuple[int | None, ...] | None]
    reduced: bool
    mesh: Mesh | None

    def layout(self, cell: int) -> Layout:
        """The name, the shape and the dtype of each array of a network, or of the moments of one cell."""
        named = names(self.groups[self.group_of[cell]].out_info)
        if not self.reduced:
            return {name: (leaf.shape, np.dtype(leaf.dtype).name) for name, leaf in named.items()}
        kinds = {"count": "int64", "nonfinite": "int64"}
        return {
            f"{name}.{field.name}": (leaf.shape, kinds.get(field.name, "float64"))
            for name, leaf in named.items()
            for field in dataclasses.fields(Moments)
        }

    def bytes_stored(self, cell: int) -> int:
        """Bytes of the results of one network, or of the moments of one cell."""
        return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in self.layout(cell).values())

    def runs(self) -> Iterator[range]:
        """The longest stretches of cells that share a program."""
        for _, numbers in itertools.groupby(range(len(self.cells)), key=lambda i: self.group_of[i]):
            some = list(numbers)
            yield range(some[0], some[-1] + 1)

    def arguments(self, some: Sequence[int]) -> Any:
        """(spec, operands) of some cells of one program, stacked where they differ."""
        group = self.group_of[some[0]]
        traced, axes = self.groups[group], self.axes[group]
        leaves, structure = jax.tree.flatten((traced.spec, traced.operands))
        if axes is None:
            return traced.spec, traced.operands
        own = [jax.tree.leaves((self.cells[i].spec, self.cells[i].operands)) for i in some]
        stacked = [
            leaf if axis is None else np.stack([np.asarray(each[k], leaf.dtype) for each in own])
            for k, (leaf, axis) in enumerate(zip(leaves, axes, strict=True))
        ]
        return jax.tree.unflatten(structure, stacked)


def plan_cells(cells: Sequence[Cell], key: jax.Array, *, reduced: bool = False, mesh: Mesh | None = None) -> Plan:
    """Trace the statistic of every kind of cell; nothing is compiled.

    Args:
        cells: at least one.
        key: the root key; network i of every cell has fold_in(key, i).
        reduced: whether networks are reduced to `Moments`.
        mesh: the devices over which networks are sharded, or None.

    Raises:
        ValueError: there is no cell, or `monte_carlo` would refuse a cell's statistic or the key.
    """
    if not cells:
        raise ValueError("cells: expected at least one, got none")
    numbers: dict[Any, int] = {}
    groups, group_of, firsts, differs = [], [], [], []
    statics: dict[int, Static] = {}  # by address, which is unique as long as the cells hold them
    for cell in cells:
        static = statics.get(id(cell.statistic)) or statics.setdefault(id(cell.statistic), Static(cell.statistic))
        leaves, structure = jax.tree.flatten((cell.spec, cell.operands))
        values = [np.asarray(leaf) for leaf in leaves]
        kind = static, structure, tuple((value.shape, jax.dtypes.canonicalize_dtype(value.dtype)) for value in values)
        if kind not in numbers:
            numbers[kind] = len(groups)
            groups.append(trace(cell.statistic, key, cell.spec, cell.operands))
            firsts.append(values)
            differs.append([False] * len(values))
        group = numbers[kind]
        group_of.append(group)
        for k, (first, value) in enumerate(zip(firsts[group], values, strict=True)):
            differs[group][k] = differs[group][k] or first.tobytes() != value.tobytes()
    axes = [tuple(0 if each else None for each in varied) if any(varied) else None for varied in differs]
    return Plan(cells, groups, group_of, axes, reduced, mesh)


def compute(
    plan: Plan,
    networks: Sequence[range],
    store: Store,
    observer: Observer | None = None,
    *,
    batch_size: int | None = None,
) -> None:
    """Draw the networks of every cell that the store does not have, and store them.

    A chunk that does not fit into memory is halved and tried again. An interruption (KeyboardInterrupt) loses at most
    the last two seconds of work.

    Args:
        plan: see `plan_cells`.
        networks: for each cell its networks.
        store: where results go.
        observer: is told how it goes.
        batch_size: networks of a cell drawn at once; None to decide by memory.

    Raises:
        ValueError: one network does not fit into memory.
    """
    observer = observer or Observer()
    for some in networks:
        check_range(some.start, len(some))
    work = list(_work(plan, networks, store))
    weight = [traced.bytes_each for traced in plan.groups]  # the work of a network is about proportional to its memory
    total = sum(weight[plan.group_of[i]] * len(some) for i, some in enumerate(networks))
    left = sum(weight[plan.group_of[cells[0]]] * len(cells) * len(some) for cells, some in work)
    needed = dict.fromkeys(plan.group_of[cells[0]] for cells, _ in work)
    most = {group: max(len(some) for cells, some in work if plan.group_of[cells[0]] == group) for group in needed}

    def compiled(group: int, batch_size: int | None) -> Program:
        axes = plan.axes[group]
        return compile_program(
            plan.groups[group], most[group], batch_size=batch_size, axes=axes, mesh=plan.mesh, reduced=plan.reduced,
            num_cells=None if axes is None else plan.group_of.count(group),
        )  # fmt: skip

    ahead, programs = _compiled_ahead(compiled, list(needed), batch_size), {}
    stored, estimated = time.monotonic(), False
    for cells, some in work:
        group = plan.group_of[cells[0]]
        if group not in programs:
            observer.progress(1 - left / total, f"compiling {_coordinates(plan.cells[cells[0]])}")
            programs[group] = next(ahead)
        for at in _slices(cells, programs[group].num_cells or 1):
            start = begin = some.start
            pending: list[Arrays] = []
            try:
                while begin < some.stop:
                    observer.progress(1 - left / total, _coordinates(plan.cells[at[0]]))
                    chunk = range(begin, min(begin + programs[group].batch_size, some.stop))
                    begun = time.monotonic()
                    try:
                        pending.append(_draw(plan, programs[group], at, chunk))
                    except (jax.errors.JaxRuntimeError, MemoryError) as error:
                        size = programs[group].batch_size
                        if not _out_of_memory(error) or size <= (plan.mesh.size if plan.mesh else 1):
                            raise
                        observer.say(f"out of memory with {size} networks at once: half as many from here on")
                        programs[group] = compiled(group, size // 2)
                        continue
                    begin = chunk.stop
                    drawn = weight[group] * len(at) * len(chunk)
                    left -= drawn
                    if not estimated and (seconds := left / drawn * (time.monotonic() - begun)) > _LONG:
                        observer.say(f"time      about {seconds:.0f} s, by the first chunk, compiling aside")
                    estimated = True
                    if begin == some.stop or time.monotonic() - stored > _STRETCH:
                        store.write_part(at, range(start, begin), _joined(pending, plan.reduced))
                        start, pending, stored = begin, [], time.monotonic()
            except KeyboardInterrupt:
                if pending:
                    store.write_part(at, range(start, begin), _joined(pending, plan.reduced))
                raise
    observer.progress(1, "")


def shares(counts: Sequence[int], shard: tuple[int, int]) -> list[range]:
    """For each cell the networks of the i-th of n shares, (i, n), of so many."""
    i, n = shard
    return [range(i * count // n, (i + 1) * count // n) for count in counts]


def _work(plan: Plan, networks: Sequence[range], store: Store) -> Iterator[tuple[range, range]]:
    """The cells and networks to draw: cells in a row that share a program and lack the same networks."""
    for run in plan.runs():
        lacking = {i: tuple(store.missing(i, networks[i].stop, networks[i].start)) for i in run}
        for missing, some in itertools.groupby(run, key=lambda i: lacking[i]):
            cells = list(some)
            yield from ((range(cells[0], cells[-1] + 1), part) for part in missing)


def _slices(cells: range, size: int) -> Iterator[range]:
    return (cells[i : i + size] for i in range(0, len(cells), size))


def _compiled_ahead(compiled: Any, groups: Sequence[int], batch_size: int | None) -> Iterator[Program]:
    """The program of each group, each compiled by a thread while those before it run.

    The thread is a daemon, so that an interrupted process does not wait for the compiler.
    """
    futures = [Future() for _ in groups]
    double = jnp.result_type(float) == np.float64  # each thread has its own setting
    stop = threading.Event()

    def work():
        with jax.enable_x64(double):
            for group, future in zip(groups, futures, strict=True):
                if stop.is_set():
                    return
                try:
                    future.set_result(compiled(group, batch_size))
                except BaseException as error:
                    future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        for future in futures:
            yield future.result()
    finally:
        stop.set()


def _draw(plan: Plan, program: Program, cells: range, networks: range) -> Arrays:
    """The results of some networks of some cells, no more of them than the program takes: [C, R, ...] each."""
    padded = [*cells, *[cells[-1]] * ((program.num_cells or 1) - len(cells))]
    values = program.call(networks.start, len(networks), *plan.arguments(padded))
    if plan.reduced:
        devices = len(jax.tree.leaves(values)[0])
        parts = [to_host(jax.tree.map(lambda leaf, i=i: leaf[i], values)) for i in range(devices)]
        values = _by_field(names(functools.reduce(merge, parts)))
    else:
        values = names(values)
    trimmed = {}
    for name, leaf in values.items():
        leaf = leaf[None] if program.num_cells is None else leaf[: len(cells)]
        trimmed[name] = leaf if plan.reduced else leaf[:, : len(networks)]
    return trimmed


def _joined(chunks: Sequence[Arrays], reduced: bool) -> Arrays:
    """The results of consecutive chunks of networks as those of one."""
    if not reduced:
        return {name: np.concatenate([chunk[name] for chunk in chunks], axis=1) for name in chunks[0]}
    return _by_field(functools.reduce(merged, map(as_moments, chunks)))


def merged(a: Mapping[str, Moments], b: Mapping[str, Moments]) -> dict[str, Moments]:
    """The moments by name of two sets of networks together."""
    return {name: merge(each, b[name]) for name, each in a.items()}


def _by_field(total: Mapping[str, Moments]) -> Arrays:
    """The fields of moments as arrays, NAME.FIELD each."""
    return {f"{name}.{field}": leaf for name, each in total.items() for field, leaf in vars(each).items()}


def as_moments(arrays: Arrays) -> dict[str, Moments]:
    """The moments by name whose fields these arrays are."""
    fields = [field.name for field in dataclasses.fields(Moments)]
    found = [name.removesuffix(".count") for name in arrays if name.endswith(".count")]
    return {name: Moments(**{field: arrays[f"{name}.{field}"] for field in fields}) for name in found}


def names(tree: Any) -> dict[str, Any]:
    """The leaves of what a statistic returns, by name: keys, fields and positions joined by "_"; "value" for a leaf."""
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: isinstance(node, Moments))[0]
    return {"_".join(map(_key, path)) or "value": leaf for path, leaf in leaves}


def _key(entry: Any) -> str:
    return str(next(getattr(entry, name) for name in ("key", "idx", "name") if hasattr(entry, name)))


def _coordinates(cell: Cell) -> str:
    return " ".join(f"{name}={value}" for name, value in cell.coords.items())


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()
