"""The cells of a run and by which programs they are drawn, and where results go."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mftadv.statistics import Moments
from mftadv.store import PROGRESS, Part, RunFolder, gaps
from mftadv.sweep._cells import Cell, Segmented
from mftadv.sweep._memory import all_devices
from mftadv.sweep._program import Traced, as_arrays, trace
from mftadv.sweep._static import Static

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

    checkpoints = None


Store = InMemory | RunFolder


@dataclasses.dataclass(frozen=True)
class Plan:
    """The cells of a run, and by which programs they are drawn.

    Attributes:
        cells: the cells.
        groups: the programs, as traced.
        group_of: for each cell the number of its program.
        axes: for each program 0 for each leaf of (spec, operands) that differs between its cells, None for the others;
            None for a program of one cell at a time.
        reduced: whether networks are reduced to `Moments`.
        mesh: the devices, or None.
    """

    cells: Sequence[Cell]
    groups: Sequence[Traced]
    group_of: Sequence[int]
    axes: Sequence[tuple[int | None, ...] | None]
    reduced: bool
    mesh: Mesh | None

    def segments(self, cell: int) -> int | None:
        """In how many segments the networks of a cell are computed; None for in one go."""
        statistic = self.cells[cell].statistic
        return statistic.segments if isinstance(statistic, Segmented) and not self.reduced else None

    def layout(self, cell: int) -> Layout:
        """The name, the shape and the dtype of each array of a network, or of the moments of one cell."""
        named = names(self.groups[self.group_of[cell]].out_info)
        if not self.reduced:
            leading = () if (segments := self.segments(cell)) is None else (segments,)
            return {name: ((*leading, *leaf.shape), np.dtype(leaf.dtype).name) for name, leaf in named.items()}
        kinds = {"count": "int64", "nonfinite": "int64"}
        return {
            f"{name}.{field.name}": (leaf.shape, kinds.get(field.name, "float64"))
            for name, leaf in named.items()
            for field in dataclasses.fields(Moments)
        }

    def layout_on_the_way(self, cell: int) -> Layout:
        """The same of a network between two segments: its state, what was found so far, and how many are done."""
        if self.segments(cell) is None:
            return {}
        state = names(self.groups[self.group_of[cell]].state)
        return {
            PROGRESS: ((), "int64"),
            **{f"state.{name}": (leaf.shape, np.dtype(leaf.dtype).name) for name, leaf in state.items()},
            **{f"found.{name}": layout for name, layout in self.layout(cell).items()},
        }

    def bytes_stored(self, cell: int) -> int:
        """Bytes of the results of one network, or of the moments of one cell."""
        return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in self.layout(cell).values())

    def weight(self, cell: int, networks: float) -> float:
        """The work of some networks, in a unit of its own: it is about proportional to the memory of a network."""
        return self.groups[self.group_of[cell]].bytes_each * networks

    def runs(self) -> Iterator[range]:
        """The longest stretches of cells that share a program."""
        for _, numbers in itertools.groupby(range(len(self.cells)), key=lambda i: self.group_of[i]):
            some = list(numbers)
            yield range(some[0], some[-1] + 1)

    def arguments(self, some: Sequence[int]) -> Any:
        """(spec, operands) of some cells of one program, stacked where they differ."""
        group = self.group_of[some[0]]
        traced, axes = self.groups[group], self.axes[group]
        if traced.state is not None:  # one cell at a time
            return as_arrays((self.cells[some[0]].spec, self.cells[some[0]].operands))
        if axes is None:
            return traced.spec, traced.operands
        leaves, structure = jax.tree.flatten((traced.spec, traced.operands))
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
        mesh: the devices over which networks are sharded; None for all of this process.

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
            segmented = isinstance(cell.statistic, Segmented) and not reduced
            groups.append(trace(cell.statistic, key, cell.spec, cell.operands, segmented))
            firsts.append(values)
            differs.append([False] * len(values))
        group = numbers[kind]
        group_of.append(group)
        for k, (first, value) in enumerate(zip(firsts[group], values, strict=True)):
            differs[group][k] = differs[group][k] or first.tobytes() != value.tobytes()
    axes = [
        tuple(0 if each else None for each in varied) if any(varied) and traced.state is None else None
        for varied, traced in zip(differs, groups, strict=True)
    ]
    return Plan(cells, groups, group_of, axes, reduced, all_devices() if mesh is None else mesh)


def names(tree: Any) -> dict[str, Any]:
    """The leaves of what a statistic returns, by name: keys, fields and positions joined by "_"; "value" for a leaf.

    Raises:
        ValueError: two have the same name.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: isinstance(node, Moments))[0]
    named = {"_".join(map(_key, path)) or "value": leaf for path, leaf in leaves}
    if len(named) < len(leaves):
        every = [jax.tree_util.keystr(path) for path, _ in leaves]
        raise ValueError(f"statistic: expected arrays of different names, got {every}")
    return named


def _key(entry: Any) -> str:
    return str(next(getattr(entry, name) for name in ("key", "idx", "name") if hasattr(entry, name)))
