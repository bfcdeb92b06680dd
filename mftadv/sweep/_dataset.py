"""What was drawn, as one labelled dataset."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mftadv.statistics import Moments
from mftadv.sweep._cells import Dataset, import_xarray
from mftadv.sweep._compute import as_moments, merged
from mftadv.sweep._plan import Plan, Store


def dataset(
    plan: Plan, networks: Sequence[range], store: Store, axes: Mapping[str, tuple[str, ...]] | None = None
) -> Dataset:
    """Every value that was drawn, with the dimensions "cell", "network" and the named axes of each variable.

    Cells with fewer networks or shorter axes are padded with nan at the end; the coordinate `networks` says how many
    networks a cell has, `first_network` which is its first, and the coordinates of the cells are those of "cell".

    Args:
        plan: the cells.
        networks: for each cell those that are wanted; what the store lacks is nan.
        store: where they are.
        axes: the names of the axes of each variable; "NAME_0", "NAME_1", ... where they are not given.
    """
    xarray = import_xarray()

    layouts = [plan.layout(i) for i in range(len(plan.cells))]
    most = max(map(len, networks))
    arrays = {}
    for name in dict.fromkeys(name for layout in layouts for name in layout):
        own = [layout[name] for layout in layouts if name in layout]
        shape = tuple(map(max, zip(*(shape for shape, _ in own), strict=True)))
        dtype = np.dtype(own[0][1])
        whole = len(own) == len(layouts) and all(each == shape for each, _ in own) and len(set(map(len, networks))) == 1
        if not whole and not np.issubdtype(dtype, np.floating):
            dtype = np.dtype(np.float64)
        filler = np.nan if np.issubdtype(dtype, np.floating) else 0
        arrays[name] = np.full((len(layouts), most, *shape), filler, dtype)
    for part in reversed(store.parts):  # where two overlap, the first counts
        content = store.load(part)
        for cell in part.cells:
            start, stop = networks[cell].start, networks[cell].stop
            low, high = max(part.networks.start, start), min(part.networks.stop, stop)
            for name, values in content.items() if low < high else ():
                values = values[cell - part.cells.start, low - part.networks.start : high - part.networks.start]
                arrays[name][(cell, slice(low - start, high - start), *map(slice, values.shape[1:]))] = values
    axes = axes or {}
    variables = {
        name: (("cell", "network", *axes.get(name, [f"{name}_{i}" for i in range(values.ndim - 2)])), values)
        for name, values in arrays.items()
    }
    counts = {"networks": list(map(len, networks)), "first_network": [some.start for some in networks]}
    coords = {**_coordinates(plan), **{name: ("cell", values) for name, values in counts.items()}}
    return xarray.Dataset(variables, coords)


def _coordinates(plan: Plan) -> dict[str, Any]:
    """The coordinates of the cells: numbers where all are numbers, else words; nan or "" where a cell has none."""
    coords = {}
    for name in dict.fromkeys(name for cell in plan.cells for name in cell.coords):
        values = [cell.coords.get(name) for cell in plan.cells]
        words = any(isinstance(value, str) for value in values)
        values = ["" if words and value is None else str(value) if words else value for value in values]
        coords[name] = ("cell", [np.nan if value is None else value for value in values])
    return coords


def sample_of(data: Dataset, cell: int) -> dict[str, np.ndarray]:
    """The values of one cell by name, [n, ...] each, of its n networks."""
    own = data.isel(cell=cell)
    count = int(own["networks"])
    return {str(name): each.values[:count] for name, each in own.data_vars.items() if "network" in each.dims}


def moments_of(plan: Plan, store: Store) -> list[dict[str, Moments]]:
    """The moments of every cell, merged over the parts of the store."""
    total: list[dict[str, Moments]] = [{} for _ in plan.cells]
    for part in store.parts:
        content = store.load(part)
        for i, cell in enumerate(part.cells):
            own = as_moments({name: values[i, ...] for name, values in content.items()})
            total[cell] = merged(total[cell], own) if total[cell] else own
    return total
