"""A statistic over a grid of named axes, as one labelled dataset."""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key

from mftadv import store
from mftadv.spec import NetworkSpec, check_positive
from mftadv.statistics import Moments
from mftadv.sweep._cells import Cell, Dataset, Observer, identity_of_draws, import_xarray
from mftadv.sweep._compute import as_shard, compute, shares
from mftadv.sweep._dataset import moments_of
from mftadv.sweep._plan import InMemory, Plan, plan_cells

_STATIC = {"input_dim", "output_dim", "width", "depth", "block"}
_FIELDS = {field.name for field in dataclasses.fields(NetworkSpec)}


@dataclasses.dataclass(frozen=True)
class _ByName:
    """A statistic that takes axes by name: those that are traced are its last operands, the static ones are fixed."""

    statistic: Callable[..., Any]
    traced: tuple[str, ...]
    static: tuple[tuple[str, Any], ...]

    def __call__(self, key: Any, spec: NetworkSpec, *operands: Any) -> Any:
        split = len(operands) - len(self.traced)
        named = dict(zip(self.traced, operands[split:], strict=True))
        return self.statistic(key, spec, *operands[:split], **named, **dict(self.static))


def sweep(
    statistic: Callable[..., Any],
    key: Key[Array, ""],
    spec: NetworkSpec,
    grid: Mapping[str, Sequence[Any]],
    *operands: Any,
    num_networks: int = 256,
    static: Sequence[str] = (),
    folder: Path | str | None = None,
    mesh: Mesh | None = None,
    shard: tuple[int, int] | str | None = None,
    target: float | None = None,
    max_networks: int = 2**20,
    batch_size: int | None = None,
    theory: Callable[..., Mapping[str, float]] | None = None,
    observer: Observer | None = None,
    options: Mapping[str, Any] | None = None,
) -> Dataset:
    """The moments of a statistic over independent random networks, at every point of a grid of named axes.

    Network i of every point has the key fold_in(key, i): differences between points have less noise than the points.
    Axes that are traced (variances and slopes of the spec, numbers that the statistic is given) share one compilation,
    static ones compile once for each shape, ahead of their turn. The statistic is as for `monte_carlo`.

        def energy(key, spec, x, eps):
            def of(net):
                return mf.adversarial_loss(net, x, eps, 2, 2, key).value

            return of(mf.init(key, spec, engine="auto", capacity=mf.capacity_for(spec, of)))

        mf.sweep(energy, key, spec, {"depth": [2, 4, 8], "weight_variance": [1.0, 2.0], "eps": [0.1, 0.3]}, x)

    With `target`, every point has as many networks as bring the standard errors of all its means to at most that share
    of the means, by doubling: errors are compared with the target after num_networks, twice, four times as many.
    Stopping at a small estimate of the error favours samples that happen to have one, so that the mean of a skewed
    statistic is biased, towards small values for a long tail of large ones: for a lognormal law of deviation 1 and a
    target of 10% from 16 networks on, by 1.4% of the mean; from 256 on by less than .3%.

    Args:
        statistic: statistic(key, spec, *operands, **axes) -> pytree of real arrays, for one network.
        key: the root key, see `monte_carlo`.
        spec: the law of the networks where the grid says nothing else.
        grid: for each axis its values: a field of the spec, or else a keyword argument of the statistic.
        operands: what the statistic is given beside, traced.
        num_networks: networks of each point; with `target` the first number that is tried.
        static: those keyword arguments that are constants of the program, such as exponents of norms.
        folder: where to store what is drawn, see `mftadv.run`; the same call goes on after an interruption, and with
            more networks draws those that are missing.
        mesh: devices over which networks are sharded; None for all of this process.
        shard: (i, n), or "i/n": draw the i-th of n shares of the networks alone; it takes a folder.
        target: the relative standard error to reach, or None.
        max_networks: of a point, where the target is not reached before.
        batch_size: networks of a point drawn at once; None to decide by memory.
        theory: theory(spec, **axes) -> numbers by name, what theory says at a point; stored beside, as theory_NAME.
        observer: is told the plan and how it goes.
        options: what describes the sweep elsewhere, a file say; recorded as part of what is run.

    Returns:
        An `xarray.Dataset` with a dimension for each axis: NAME (the mean), NAME_standard_error, NAME_count and
        NAME_nonfinite for every name that the statistic returns ("value" if it returns one array); shapes that differ
        along a static axis are padded with nan.

    Raises:
        ValueError: an axis is empty or has a value that the spec refuses, `static` names no axis, or what
            `monte_carlo` and `mftadv.run` refuse.

    Source: ours.
    """
    observer = observer or Observer()
    import_xarray()  # before any work
    check_positive("num_networks", num_networks)
    if target is not None and not 0 < target < 1:
        raise ValueError(f"target: expected a share in (0, 1), got {target!r}")
    shard = as_shard((0, 1) if shard is None else shard)
    if not 0 <= shard[0] < shard[1] or (shard[1] > 1 and (folder is None or target is not None)):
        raise ValueError(f"shard: expected (i, n) with 0 <= i < n, a folder and no target, got {shard!r}")
    # Axes that are traced vary fastest, so that points which share a program are next to each other.
    dims = sorted(grid, key=lambda name: name not in _STATIC and name not in static)
    points = list(_points(statistic, spec, {name: grid[name] for name in dims}, operands, tuple(static)))
    cells = [cell for cell, _ in points]
    planned = plan_cells(cells, key, reduced=True, mesh=mesh)
    identity = {
        "name": "sweep",
        "axes": {name: len(values) for name, values in grid.items()},
        **({} if options is None else {"options": options}),
        **identity_of_draws(cells, key),
    }
    with contextlib.ExitStack() as stack:
        into: Any = InMemory()
        if folder is not None:
            layouts = [planned.layout(i) for i in range(len(cells))]
            session = store.provenance(mesh=planned.mesh, batch_size=batch_size)
            opened = store.RunFolder.open(folder, identity, layouts, session, observer.say, reduced=True)
            into = stack.enter_context(opened)
            into.aim([max(num_networks, before) for before in into.networks])
        observer.say(f"plan      {describe(planned)}")
        counts = [num_networks] * len(cells)
        while True:
            own = shares(counts, shard)
            compute(planned, own, into, observer, batch_size=batch_size)
            found = moments_of(planned, into)
            more = [target is not None and _is_above(each, target) for each in found]
            counts = [min(2 * n, max_networks) if again else n for n, again in zip(counts, more, strict=True)]
            if not any(again and n > part.stop for n, part, again in zip(counts, own, more, strict=True)):
                break
            if folder is not None:
                into.aim([max(pair) for pair in zip(counts, into.networks, strict=True)])
        data = _dataset(
            {name: grid[name] for name in dims},
            found,
            [theory(cell.spec, **axes) for cell, axes in points] if theory else [],
        )
        data = data.transpose(*grid, ...)
        if shard[1] > 1:
            observer.say(f"share {shard[0]} of {shard[1]} is drawn; its numbers are not those of the whole")
        if folder is not None and shard[1] == 1 and not into.is_published:
            into.publish({"data.nc": lambda path: data.to_netcdf(path, engine="h5netcdf")})
    return data


def describe(planned: Plan) -> str:
    """How many cells, programs and bytes, in a line."""
    each = max(traced.bytes_each for traced in planned.groups)
    cells, programs = len(planned.cells), len(planned.groups)
    return (
        f"{cells} cell{'s' * (cells > 1)} by {programs} program{'s' * (programs > 1)}; "
        f"a network takes about {in_bytes(each)}"
    )


def in_bytes(count: float) -> str:
    """A size with its unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


def _is_above(found: Mapping[str, Moments], target: float) -> bool:
    """Whether some mean has a relative error above the target; not one that never varies, or has no finite draws."""
    errors = [(m.standard_error, np.abs(m.mean)) for m in found.values()]
    return any(bool(np.any(error > target * size)) for error, size in errors)


def _points(
    statistic: Callable[..., Any],
    spec: NetworkSpec,
    grid: Mapping[str, Sequence[Any]],
    operands: tuple[Any, ...],
    static: tuple[str, ...],
) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """The cells of a grid, in order, and for each what the axes say that are no fields of the spec."""
    for name, values in grid.items():
        if isinstance(values, str) or not hasattr(values, "__len__") or len(values) == 0:
            raise ValueError(f"grid: expected a sequence of at least one value for {name}, got {values!r}")
    if unknown := set(static) - grid.keys():
        raise ValueError(f"static: expected names of axes ({', '.join(grid)}), got {min(unknown)!r}")
    traced = tuple(name for name in grid if name not in _FIELDS and name not in static)
    bound = functools.lru_cache(maxsize=None)(lambda fixed: _ByName(statistic, traced, fixed))
    for point in itertools.product(*(range(len(values)) for values in grid.values())):
        at = {name: _plain(values[i]) for (name, values), i in zip(grid.items(), point, strict=True)}
        fields = {name: value for name, value in at.items() if name in _FIELDS}
        fixed = tuple((name, at[name]) for name in static if name not in _FIELDS)
        coords = {name: _label(value, i) for (name, value), i in zip(at.items(), point, strict=True)}
        cell = Cell(coords, spec.replace(**fields), (*operands, *(at[name] for name in traced)), bound(fixed))
        yield cell, {name: value for name, value in at.items() if name not in _FIELDS}


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _dataset(
    grid: Mapping[str, Sequence[Any]],
    found: Sequence[Mapping[str, Moments]],
    predicted: Sequence[Mapping[str, float]],
) -> Dataset:
    """The moments of the cells, which are in the order of the grid, with a dimension for each axis."""
    xarray = import_xarray()

    shape = tuple(map(len, grid.values()))
    variables = {}
    for name in dict.fromkeys(name for each in found for name in each):
        inner = tuple(map(max, zip(*(np.shape(each[name].mean) for each in found if name in each), strict=True)))
        dims = (*grid, *(f"{name}_{k}" for k in range(len(inner))))
        fields = {"": "mean", "_standard_error": "standard_error", "_count": "count", "_nonfinite": "nonfinite"}
        for suffix, field in fields.items():
            integer = field in ("count", "nonfinite")
            values = np.full((len(found), *inner), 0 if integer else np.nan, np.int64 if integer else np.float64)
            for cell, each in enumerate(found):
                if name in each:
                    own = np.asarray(getattr(each[name], field))
                    values[(cell, *map(slice, own.shape))] = own
            variables[f"{name}{suffix}"] = (dims, values.reshape(*shape, *inner))
    for name in dict.fromkeys(name for each in predicted for name in each):
        variables[f"theory_{name}"] = (tuple(grid), np.reshape([each.get(name, np.nan) for each in predicted], shape))
    labels = {name: [_label(value, i) for i, value in enumerate(values)] for name, values in grid.items()}
    return xarray.Dataset(variables, labels)


def _label(value: Any, position: int) -> Any:
    """What a point of an axis is called: its value where that is a number or a word, else its position."""
    return _plain(value) if np.ndim(value) == 0 else position
