"""The runner of every experiment: plan, draw, store, judge, publish."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mftadv import compare, store
from mftadv.compare import Judgement
from mftadv.experiments._experiment import Experiment, fastest_key
from mftadv.experiments._outputs import outputs, predictions
from mftadv.spec import NetworkSpec, check_positive
from mftadv.sweep import (
    Cell,
    Dataset,
    InMemory,
    Observer,
    Plan,
    as_shard,
    compute,
    dataset,
    describe,
    enough_devices,
    host_memory,
    identity_of_draws,
    import_xarray,
    in_bytes,
    memory,
    plan_cells,
    shares,
)

if TYPE_CHECKING:
    from mftadv.experiments.sweep_file import SweepFile


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much to compute, and how; nothing here changes what a number means.

    Args:
        networks: of each cell; None for what the folder's run has, or else for what the experiment's claims need.
        batch_size: networks of a cell drawn at once; None to decide by memory.
        shard: (i, n), or "i/n": draw the i-th of n shares of every cell's networks alone, i from 0. Shards in folders
            of their own are joined by `merge`.
        dry_run: say what would be done; compile, draw and write nothing.

    Raises:
        ValueError: an argument is outside its range.
    """

    networks: int | None = None
    batch_size: int | None = None
    shard: tuple[int, int] | str = (0, 1)
    dry_run: bool = False

    def __post_init__(self):
        if self.networks is not None and check_positive("networks", self.networks) < 2:
            raise ValueError(f"networks: expected at least 2, for an error bar, got {self.networks}")
        if self.batch_size is not None:
            check_positive("batch_size", self.batch_size)
        share, shares = as_shard(self.shard)
        if not 0 <= share < shares:
            raise ValueError(f"shard: expected i/n with 0 <= i < n, got {share}/{shares}")
        if shares > 1 and self.networks is None:
            raise ValueError("networks: expected a number where a run is divided into shards, got None")


class Result(NamedTuple):
    """What a run found.

    Attributes:
        experiment: with its options; or a sweep that a file describes.
        folder: where it is stored, None where it is not.
        data: every value that was drawn, and what theory predicts; None after a dry run, or for a shard.
        judged: the claims and their verdicts.
    """

    experiment: "Experiment | SweepFile"
    folder: Path | None
    data: Dataset | None
    judged: tuple[Judgement, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many claims have each verdict."""
        verdicts = [judgement.verdict for judgement in self.judged]
        return {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)}

    @property
    def tables(self) -> Sequence[Any]:
        """The tables of the experiment, as `rich` prints them."""
        return [] if self.data is None else self.experiment.tables(self.data, self.judged)


def run(
    experiment: Experiment,
    folder: Path | str | None = None,
    budget: Budget | None = None,
    *,
    key: jax.Array | None = None,
    mesh: Mesh | None = None,
    observer: Observer | None = None,
) -> Result:
    """Run an experiment: draw its networks, store them, judge its claims, draw its figures.

    The folder holds run.json (what is run, and where), parts/ (what was drawn, in checked files), checkpoints/
    (networks that are computed in segments, on their way), and, once all is drawn, data.nc (one xarray dataset),
    claims.json, claims.csv, figures/ and report.html. Interrupted, by Ctrl-C or by kill -9, the same call with the same
    folder goes on; with more networks it draws those that are missing; for another configuration the folder is refused.
    Nothing that the run did not write is ever deleted.

    Args:
        experiment: what to run.
        folder: where to store it; "{}" in its name stands for a number: that of the run of this configuration that is
            not finished, or else the next one that is free. None stores nothing.
        budget: how much to compute, and how.
        key: the root key; network i of every cell has fold_in(key, i). None for the fastest kind of key that is safe
            under vmap and sharding, from the experiment's seed.
        mesh: a `jax.sharding.Mesh` over whose devices networks are sharded; None for all devices of this process.
        observer: is told how it goes.

    Returns:
        A `Result`.

    Raises:
        ValueError: an option is outside its range, the folder holds anything else, or the run would not fit into
            memory.

    Source: ours.
    """
    budget, observer = budget or Budget(), observer or Observer()
    import_xarray()  # before any work
    with jax.enable_x64(experiment.x64), contextlib.ExitStack() as stack:
        cells = experiment.cells()
        key = fastest_key(experiment.seed) if key is None else key
        about = experiment.describe(cells)
        observer.say(f"run       {experiment.name}")  # planning may take seconds
        for line in about:
            observer.say(line)
        # Whatever else can be refused is, before a folder is begun.
        plan = plan_cells(cells, key, mesh=mesh)
        _check_memory(plan, [2] * len(cells))
        identity = identity_of(experiment, cells, key)
        counts = _counts(experiment, plan, budget, _networks_there(folder, identity))
        into = InMemory()
        if folder is not None and not budget.dry_run:
            numbers = range(len(cells))
            layouts = {
                "layouts": [plan.layout(i) for i in numbers],
                "on_their_way": [plan.layout_on_the_way(i) for i in numbers],
            }
            session = store.provenance(mesh=plan.mesh, batch_size=budget.batch_size)
            into = stack.enter_context(open_run(folder, identity, layouts, session, observer))
            counts = _counts(experiment, plan, budget, into.networks)
            into.aim(counts)
            observer.say(f"folder    {into.path}")
        _say_plan(observer, experiment, plan, counts)
        if budget.dry_run:
            return Result(experiment, None, None, ())
        return _finish(experiment, plan, counts, budget, into, observer)


def show(folder: Path | str) -> Result:
    """The result of a finished run, from its folder, in which nothing is changed.

    Raises:
        ValueError: the folder holds no run, or one that is not finished or of another version.

    Source: ours.
    """
    xarray = import_xarray()
    experiment, _, networks = _read(folder)
    status = store.status(folder, check=True)
    if status.missing or not (status.has_results and status.is_current) or not any(networks):
        raise ValueError(f"folder: expected a finished run, got {folder} with {status.missing} networks missing")
    with xarray.open_dataset(Path(folder) / "data.nc", engine="h5netcdf") as stored:
        data = stored.load()
    with jax.enable_x64(experiment.x64):
        claims = experiment.claims(data) if isinstance(experiment, Experiment) else ()
        return Result(experiment, Path(folder), data, compare.judge(claims))


def _read(folder: Path | str) -> tuple["Experiment | SweepFile", Any, list[int]]:
    """The experiment or sweep of a run folder, with its options; its key; how many networks each cell has.

    Raises:
        ValueError: the folder holds no run, or one of an experiment that is not known here.
    """
    from mftadv.experiments import EXPERIMENTS, SweepFile

    record = store.read_record(folder)
    identity = record.identity
    options = {name: _from_json(value) for name, value in identity.get("options", {}).items()}
    kind = EXPERIMENTS.get(str(identity.get("name")))
    swept = identity.get("name") == "sweep" and options
    if kind is None and not swept:
        known = f"{', '.join(EXPERIMENTS)} or a sweep that a file describes"
        raise ValueError(f"folder: expected a run of {known}, got one of {identity.get('name')!r}")
    words = np.asarray(identity["key"]["data"], np.uint32)
    key = jax.random.wrap_key_data(jnp.asarray(words), impl=identity["key"]["impl"])
    if kind is None:
        options |= {"spec": NetworkSpec(**options["spec"]), "networks": min(record.networks), "target": None}
        return SweepFile(**options), key, record.networks
    unknown = options.keys() - {field.name for field in dataclasses.fields(kind)}
    if unknown or identity["version"] != kind.version:
        raise ValueError(
            f"folder: expected a run of version {kind.version} of {kind.name}, got one of version {identity['version']}"
        )
    return kind(**options), key, record.networks


def merge(folder: Path | str, shards: Sequence[Path | str], observer: Observer | None = None) -> Result:
    """Join shards of one run, or of one sweep of a file, into what one process would have made.

    Args:
        folder: where it is to be: a new or empty folder, or one of the same run.
        shards: the folders; they are read only.
        observer: is told how it goes.

    Returns:
        The `Result` of the whole; where networks are missing in all shards, they are drawn now.

    Raises:
        ValueError: the shards are of different runs, or the folder holds anything else.

    Source: ours.
    """
    observer = observer or Observer()
    if not shards:
        raise ValueError("shards: expected at least one folder, got none")
    experiment, key, _ = _read(shards[0])  # before anything is copied
    store.merge(folder, shards, observer.say)
    if not isinstance(experiment, Experiment):
        experiment: Any = _read(folder)[0]  # with as many networks as the whole is to have
        return Result(experiment, Path(folder), experiment.run(folder, observer), ())
    return run(experiment, folder, key=key, observer=observer)


def identity_of(experiment: Experiment, cells: Sequence[Cell], key: jax.Array) -> dict[str, Any]:
    """All that the numbers of a run depend on: configuration, version, cells with their inputs, key, precision."""
    return store.jsonable(
        {
            "name": experiment.name,
            "version": experiment.version,
            "options": experiment,
            **identity_of_draws(cells, key),
        }
    )


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_from_json, value))
    if isinstance(value, dict):
        return {name: _from_json(each) for name, each in value.items()}
    return float(value) if value in ("inf", "-inf") else value


def _candidates(folder: Path | str, identity: Mapping[str, Any]) -> Iterator[Path]:
    """Where a run may be stored, best first, see `run`."""
    path = Path(folder)
    return store.candidates(path, identity) if "{}" in path.name else iter([path])


def open_run(
    folder: Path | str,
    identity: Mapping[str, Any],
    layouts: Mapping[str, Any],
    session: Mapping[str, Any],
    observer: Observer,
) -> store.RunFolder:
    """The folder of a run, opened; the next one where another run of its configuration is at work."""
    busy: ValueError | None = None
    for path in _candidates(folder, identity):
        try:
            return store.RunFolder.open(path, identity, provenance=session, say=observer.say, **layouts)
        except store.Busy as error:
            busy = error
    raise busy or ValueError(f"folder: expected a name that is free, got {folder}")


def _networks_there(folder: Path | str | None, identity: Mapping[str, Any]) -> Sequence[int]:
    """How many networks each cell has in the run that would be gone on with, none where a new one would be begun."""
    if folder is None:
        return ()
    with contextlib.suppress(ValueError):
        record = store.read_record(next(_candidates(folder, identity)))
        if record.identity == identity:
            return record.networks
    return ()


def _counts(experiment: Experiment, plan: Plan, budget: Budget, there: Sequence[int]) -> list[int]:
    """How many networks each cell is to have, given how many are there.

    Raises:
        ValueError: the results would not fit into memory.
    """
    if budget.networks is not None:
        counts = [budget.networks] * len(plan.cells)
    else:
        counts = list(there if any(there) else experiment.networks(plan.cells))
    _check_memory(plan, counts)
    return counts


def _say_plan(observer: Observer, experiment: Experiment, plan: Plan, counts: Sequence[int]) -> None:
    """How many networks, by how many programs, in how much memory, and how many claims need."""
    results = sum(count * plan.bytes_stored(i) for i, count in enumerate(counts))
    networks = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    observer.say(f"plan      {describe(plan)}, all results of {networks} networks each {in_bytes(results)}")
    for needed in filter(None, map(experiment.resolution, plan.cells)):
        numbers = (f"{name} {number:,.0f}" for name, number in sorted(needed.items(), key=lambda item: item[1]))
        observer.say(f"claims    networks to see 5%: {', '.join(numbers)}")


def _check_memory(plan: Plan, counts: Sequence[int]) -> None:
    """Refuse a run that is too large.

    Raises:
        ValueError: a network, or all results, would not fit into memory.
    """
    each = max(traced.bytes_each for traced in plan.groups)
    results = sum(count * plan.bytes_stored(i) for i, count in enumerate(counts))
    available, host = memory(enough_devices(plan.mesh, 1, each))[0], host_memory()
    if each > 2 * available:
        raise ValueError(
            f"width: expected networks that fit into {in_bytes(available)} of memory, "
            f'got about {in_bytes(each)} each; matrix-free networks with attack "frugal" take the least'
        )
    if 3 * results > host:  # parts, dataset, and a copy of a variable in float64
        raise ValueError(
            f"networks: expected results whose analysis fits into {in_bytes(host)} of memory, "
            f"got {in_bytes(3 * results)}"
        )


def _finish(
    experiment: Experiment, plan: Plan, counts: list[int], budget: Budget, into: Any, observer: Observer
) -> Result:
    """Draw what is missing, and judge, where it is not a shard alone."""
    shard = as_shard(budget.shard)
    compute(plan, shares(counts, shard), into, observer, batch_size=budget.batch_size)
    folder = getattr(into, "path", None)
    if any(into.missing(i, count) for i, count in enumerate(counts)):
        observer.say(f"share {shard[0]} of {shard[1]} is drawn; `mftadv merge` joins all of them")
        return Result(experiment, folder, None, ())
    data = dataset(plan, [range(count) for count in counts], into, experiment.axes)
    data = data.assign(predictions(experiment, plan.cells))
    judged = compare.judge(experiment.claims(data))
    if folder is not None and not into.is_published:
        into.publish(dict(outputs(experiment, data, judged, folder)))
    return Result(experiment, folder, data, judged)
