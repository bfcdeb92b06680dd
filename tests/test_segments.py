"""Statistics in segments: whole or on their way, in any chunks, interrupted at any moment, the numbers are the same."""

import collections
import dataclasses
import errno
import functools
import json
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray

import mftadv as mf
from mftadv import experiments, store
from mftadv.compare import Claim
from mftadv.experiments import EXPERIMENTS, Budget, Experiment
from mftadv.spec import NetworkSpec
from mftadv.statistics import mean_estimate
from mftadv.sweep import (
    Cell,
    InMemory,
    Segmented,
    _compute,
    _segments,
    compute,
    dataset,
    monte_carlo,
    plan_cells,
)
from tests.runs import Told

pytestmark = pytest.mark.slow  # nearly every one compiles
ROOT = Path(__file__).parent.parent
NETWORKS, SEGMENTS = 8, 4


@dataclasses.dataclass(frozen=True)
class Walk(Segmented):
    """A random walk: where it is, the sum of where it was, and whether its first coordinate was ever above 1."""

    segments: int = SEGMENTS

    def begin(self, key, spec, drift):
        start = spec.weight_variance * jax.random.normal(key, (3,))
        return {"at": start, "sums": (jnp.zeros(3), jnp.array(False))}

    def segment(self, key, spec, number, state, drift):
        at = state["at"] + jax.random.normal(jax.random.fold_in(key, number), (3,)) + drift
        total, above = state["sums"]
        total, above = total + at, above | (at[0] > 1)
        return {"at": at, "sums": (total, above)}, {"at": at, "sum": jnp.sum(total), "above": above, "number": number}


def square(key, spec, drift):
    """The mean square of a normal vector, in one go."""
    return {"square": jnp.mean(jax.random.normal(key, (3,)) ** 2) + drift}


def cell(variance, drift=0.5, statistic=Walk()):
    spec = NetworkSpec(2, 1, 3, 1, weight_variance=variance)
    return Cell({"s": variance, "d": drift, "of": type(statistic).__name__}, spec, (np.float32(drift),), statistic)


MIXED = [cell(1.0), cell(4.0), cell(1.0, 0.25), cell(1.0, 0.5, square), cell(2.0, 0.5, Walk(2)), cell(3.0, 0.5, square)]


def root():
    """The root key; made at import it would start threads, which a fork does not survive."""
    return jax.random.key(3)


@dataclasses.dataclass(frozen=True)
class Walks(Experiment):
    """Two walks of one program, one of another, and a statistic in one go."""

    name: ClassVar[str] = "walks"
    source: ClassVar[str] = "ours"
    axes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "at": ("time", "entry"), "sum": ("time",), "above": ("time",), "number": ("time",), "square": (),
    }  # fmt: skip

    drift: float = 0.5
    """What is added in every segment."""

    def cells(self):
        return [cell(1.0, self.drift), cell(4.0, self.drift), cell(1.0, self.drift, square), cell(2.0, 0.5, Walk(2))]

    def networks(self, cells):
        return [NETWORKS] * len(cells)

    def claims(self, data):
        """The mean of the last positions is that of the drifts."""
        last = data["at"].values[0, :, -1].astype(float)
        return [Claim.of("drift", SEGMENTS * self.drift, mean_estimate(last.mean(1)), id="drift")]


class Computed:
    """The segments of networks that were computed, how often each; `stop(n, error)` raises it after n more."""

    def __init__(self):
        self.times = collections.Counter()
        self.calls, self.at, self.error = 0, None, KeyboardInterrupt

    def stop(self, calls, error=KeyboardInterrupt):
        self.calls, self.at, self.error = 0, calls, error

    def go_on(self, way, *arguments):
        if self.calls == self.at:
            self.at = None
            raise self.error
        self.calls += 1
        GO_ON(way, *arguments)
        self.times.update((way.cell, network, way.done - 1) for network in way.networks)

    def check_each_once(self, cells, networks=NETWORKS):
        every = {(number, i, k) for number, segments in cells.items() for i in range(networks) for k in range(segments)}
        assert self.times == dict.fromkeys(every, 1)


GO_ON = _segments.OnTheWay.go_on
OF_WALKS = {0: SEGMENTS, 1: SEGMENTS, 3: 2}  # the numbers of cells in segments, and how many


@pytest.fixture
def computed(monkeypatch):
    counted = Computed()
    monkeypatch.setattr(_segments.OnTheWay, "go_on", lambda *arguments: counted.go_on(*arguments))
    monkeypatch.setitem(EXPERIMENTS, "walks", Walks)
    return counted


@pytest.fixture
def every_time(monkeypatch):
    """A checkpoint after every segment, and a part for every chunk."""
    monkeypatch.setattr(_compute, "_STRETCH", -1.0)
    monkeypatch.setattr(_compute, "_WRITING", -1.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    mf.run(Walks(), folder, Budget(NETWORKS))
    return folder


def content(folder):
    with xarray.open_dataset(folder / "data.nc", engine="h5netcdf") as stored:
        return json.loads((folder / "claims.json").read_text())["claims"], stored.load()


once = functools.cache(content)  # of a folder that stays as it is


def check_finished(folder, whole):
    """The results are those of a run that nothing interrupted, and nothing else is left."""
    (claims, data), (expected, uninterrupted) = content(folder), once(whole)
    xarray.testing.assert_identical(data, uninterrupted)
    assert claims == expected
    assert not checkpoints(folder)
    assert not [path for path in folder.rglob("*") if path.suffix == ".tmp"]


def checkpoints(folder):
    """The checkpoints by the networks in their names."""
    found = sorted((folder / "checkpoints").glob("*.npz"))
    return {tuple(map(int, path.name.split("-")[1:3] + path.name.split("-")[4:6])): path for path in found}


def interrupted(folder, computed, calls=1, batch_size=NETWORKS):
    computed.stop(calls)
    with pytest.raises(KeyboardInterrupt):
        mf.run(Walks(), folder, Budget(NETWORKS, batch_size))


# In memory


def drawn(cells, networks=NETWORKS, **options):
    plan, into = plan_cells(cells, root(), mesh=options.pop("mesh", None)), InMemory()
    compute(plan, [range(networks)] * len(cells), into, **options)
    return dataset(plan, [range(networks)] * len(cells), into)


def by_numpy(at, networks, segments=SEGMENTS):
    """The same walk, one network after the other, in NumPy."""
    variance, drift = np.float32(at.spec.weight_variance), at.operands[0]
    found = collections.defaultdict(list)
    for i in range(networks):
        key = jax.random.fold_in(root(), i)
        place, total, above = variance * np.asarray(jax.random.normal(key, (3,))), np.zeros(3, np.float32), False
        for k in range(segments):
            place = place + np.asarray(jax.random.normal(jax.random.fold_in(key, k), (3,))) + drift
            total, above = total + place, above or place[0] > 1
            for name, value in {"at": place, "sum": total.sum(), "above": above, "number": k}.items():
                found[name].append(value)
    return {name: np.reshape(values, (networks, segments, *np.shape(values[0]))) for name, values in found.items()}


def test_segments_make_the_walk_whatever_the_chunks(computed):
    data = drawn(MIXED)
    computed.check_each_once({0: SEGMENTS, 1: SEGMENTS, 2: SEGMENTS, 4: 2})
    assert 0.1 < data["above"].values[0].mean() < 0.9
    for number, segments in {0: SEGMENTS, 1: SEGMENTS, 2: SEGMENTS, 4: 2}.items():
        for name, values in by_numpy(MIXED[number], NETWORKS, segments).items():
            got = data[name].values[number][:, :segments]
            np.testing.assert_allclose(got, values, rtol=1e-5, atol=1e-6)
    for number in (3, 5):
        expected = [square(jax.random.fold_in(root(), i), None, 0.5)["square"] for i in range(NETWORKS)]
        np.testing.assert_allclose(data["square"][number], expected, rtol=1e-5)
    for batch_size in (1, 3):
        xarray.testing.assert_allclose(drawn(MIXED, batch_size=batch_size), data, rtol=1e-6)


@pytest.mark.parametrize("kind", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
def test_devices_share_the_networks(tmp_path, computed, whole, kind):
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(kind, kind))
    for networks, batch_size in ((NETWORKS, None), (7, 4)):
        sharded = drawn(MIXED[:2], networks, mesh=mesh, batch_size=batch_size)
        xarray.testing.assert_allclose(sharded, drawn(MIXED[:2], networks), rtol=1e-6)
    interrupted(tmp_path / "run", computed, 2)
    computed.stop(1)
    with pytest.raises(KeyboardInterrupt):
        mf.run(Walks(), tmp_path / "run", mesh=mesh)
    mf.run(Walks(), tmp_path / "run")
    xarray.testing.assert_allclose(content(tmp_path / "run")[1], once(whole)[1], rtol=1e-6)


def test_a_statistic_in_segments_is_a_plain_one_to_monte_carlo_and_sweep():
    values = by_numpy(MIXED[0], NETWORKS)
    found = monte_carlo(Walk(), root(), MIXED[0].spec, np.float32(0.5), num_networks=NETWORKS, batch_size=3)
    np.testing.assert_allclose(found["at"].mean, values["at"].mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["above"].mean, values["above"].mean(0), rtol=1e-6)
    grid = {"weight_variance": [1.0, 4.0]}
    swept = mf.sweep(Walk(), root(), MIXED[0].spec, grid, np.float32(0.5), num_networks=NETWORKS)
    for i in range(2):
        expected = by_numpy(MIXED[i], NETWORKS)["at"].mean(0)
        np.testing.assert_allclose(swept["at"][i], expected, rtol=1e-5, atol=1e-6)


@dataclasses.dataclass(frozen=True)
class Growing(Walk):
    """A walk whose state changes its data type on the way."""

    def segment(self, key, spec, number, state, drift):
        state, found = super().segment(key, spec, number, state, drift)
        return {**state, "at": state["at"].astype(jnp.float16)}, found


def test_a_state_that_changes_its_kind_is_refused():
    with pytest.raises(ValueError, match=r"statistic: expected segments that return a state .*float32.* got .*float16"):
        plan_cells([cell(1.0, 0.5, Growing())], root())


def ambiguous(key, spec, drift):
    return {"a_b": drift, "a": {"b": drift}}


def test_two_results_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"statistic: expected arrays of different names, got .*'a'.*'b'.*'a_b'"):
        plan_cells([cell(1.0, 0.5, ambiguous)], root()).layout(0)


@pytest.mark.parametrize("stored", [True, False])
def test_half_as_many_networks_where_memory_is_too_small(tmp_path, computed, whole, stored):
    said, other = Told(), Told()
    mf.run(Walks(), None, Budget(NETWORKS), observer=other)
    computed.times.clear()
    computed.stop(2, jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"))
    result = mf.run(Walks(), tmp_path / "run" if stored else None, Budget(NETWORKS), observer=said)
    xarray.testing.assert_allclose(result.data, once(whole)[1], rtol=1e-6)
    assert [line for line in said.lines if line.startswith("out of memory with 8 networks at once: half as many")]
    assert said.shares[-2:] == pytest.approx(other.shares[-2:])  # what is computed again counts once
    if stored:  # nothing is computed twice
        computed.check_each_once(OF_WALKS)
        assert not checkpoints(tmp_path / "run")
    else:
        assert max(computed.times.values()) == 2


# In a folder


@pytest.mark.parametrize("batch_size", [NETWORKS, 3])
def test_interrupted_after_any_segment_it_goes_on_from_there(tmp_path, computed, whole, batch_size):
    total = -(-NETWORKS // batch_size) * sum(OF_WALKS.values())
    for calls in range(0, total, 1 if batch_size == NETWORKS else 5):
        folder = tmp_path / f"{calls}"
        computed.times.clear()
        interrupted(folder, computed, calls, batch_size)
        assert len(checkpoints(folder)) <= 1
        mf.run(Walks(), folder)
        computed.check_each_once(OF_WALKS)
        check_finished(folder, whole)


def test_interrupted_again_and_again_with_other_batch_sizes(tmp_path, computed, whole):
    for number, sizes in enumerate([(8, 3, 5, 8), (3, 8), (5, 4, 8)]):
        folder = tmp_path / f"{number}"
        computed.times.clear()
        for batch_size in sizes:
            interrupted(folder, computed, 3, batch_size)
        mf.run(Walks(), folder, Budget(NETWORKS, sizes[-1]))
        computed.check_each_once(OF_WALKS)
        check_finished(folder, whole)


def test_checkpoints_replace_one_another(tmp_path, computed, every_time, whole):
    seen = []
    write = store.RunFolder.write_part

    def watched(self, *arguments):
        seen.append([*checkpoints(tmp_path / "run")])
        write(self, *arguments)

    with pytest.MonkeyPatch.context() as context:
        context.setattr(store.RunFolder, "write_part", watched)
        mf.run(Walks(), tmp_path / "run", Budget(NETWORKS, 4))
    chunks = [[(at, at + 1, *some)] for at in OF_WALKS for some in ((0, 4), (4, 8))]
    assert [each for each in seen if each] == chunks
    check_finished(tmp_path / "run", whole)


def test_status_says_how_far_networks_are(tmp_path, computed):
    folder = tmp_path / "run"
    interrupted(folder, computed, 2, 4)
    assert store.status(folder).on_their_way == {2: 4}
    (old,) = checkpoints(folder).values()
    shutil.copy(old, tmp_path)
    interrupted(folder, computed, 1, 3)
    for name in ("notes.npz", old.name.replace("cells-0", "cells-1")):
        (folder / "checkpoints" / name).write_text("mine")
    assert store.status(folder).on_their_way == {3: 3, 2: 1}
    assert str(store.status(folder, check=True)).splitlines() == [
        "walks: 0 of 32 networks in 4 cells", "begun     3 more, stored after segment 3",
        "begun     1 more, stored after segment 2", "results   not there",
    ]  # fmt: skip
    mf.run(Walks(), folder)
    shutil.copy(tmp_path / old.name, folder / "checkpoints")
    assert store.status(folder).on_their_way == {}


def test_of_two_checkpoints_the_one_further_on_is_used(tmp_path, computed, whole):
    folder = tmp_path / "run"
    interrupted(folder, computed, 1)
    (old,) = checkpoints(folder).values()
    shutil.copy(old, tmp_path)
    interrupted(folder, computed, 2)
    (new,) = checkpoints(folder).values()
    shutil.copy(tmp_path / old.name, old)  # as if the process had been killed before the old one was removed
    assert old != new
    mf.run(Walks(), folder)
    computed.check_each_once(OF_WALKS)
    check_finished(folder, whole)


def test_what_is_further_on_is_never_replaced_by_what_is_behind_it(tmp_path, computed, whole):
    folder = tmp_path / "run"
    interrupted(folder, computed, SEGMENTS + 2, 4)  # networks 0-3 have a part, 4-7 two segments behind them
    (part,) = (folder / "parts").glob("*.npz")
    part.unlink()
    computed.times = collections.Counter({each: 1 for each in computed.times if each[1] >= 4})
    interrupted(folder, computed, 1, 8)
    assert [*checkpoints(folder)] == [(0, 1, 0, 4), (0, 1, 4, 8)]
    mf.run(Walks(), folder, Budget(NETWORKS, 8))
    computed.check_each_once(OF_WALKS)
    check_finished(folder, whole)


def test_more_networks_of_a_finished_run(tmp_path, computed, whole):
    mf.run(Walks(), tmp_path / "run", Budget(5))
    computed.check_each_once(OF_WALKS, 5)
    computed.stop(2)
    with pytest.raises(KeyboardInterrupt):
        mf.run(Walks(), tmp_path / "run", Budget(NETWORKS))
    mf.run(Walks(), tmp_path / "run")
    computed.check_each_once(OF_WALKS)
    check_finished(tmp_path / "run", whole)
    mf.run(Walks(), tmp_path / "run")
    computed.check_each_once(OF_WALKS)


def test_who_writes_a_checkpoint_is_recorded(tmp_path, computed, monkeypatch):
    interrupted(tmp_path / "run", computed)
    monkeypatch.setattr(_compute, "_STRETCH", 1e9)
    for batch_size in (7, 6):
        interrupted(tmp_path / "run", computed, 1, batch_size)
    sessions = store.read_record(tmp_path / "run").sessions
    assert [session["batch_size"] for session in sessions] == [8, 7, 6]


def test_parts_are_written_as_often_beside_checkpoints(tmp_path, computed, monkeypatch):
    clock, written, said = types.SimpleNamespace(now=0.0), [], Told()
    go_on, store_it = _segments.OnTheWay.go_on, _segments.OnTheWay.store
    write = store.RunFolder.write_part

    def slowly(*arguments):
        go_on(*arguments)
        clock.now += 0.9

    def checkpoint(way, into):
        written.append(("checkpoint", way.networks.start, way.done))
        store_it(way, into)

    def part(self, cells, networks, arrays):
        written.append(("part", networks.start, networks.stop))
        write(self, cells, networks, arrays)

    monkeypatch.setattr(_compute, "time", types.SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(_segments.OnTheWay, "go_on", slowly)
    monkeypatch.setattr(_segments.OnTheWay, "store", checkpoint)
    monkeypatch.setattr(store.RunFolder, "write_part", part)
    mf.run(Walks(), tmp_path / "run", Budget(NETWORKS, 4), observer=said)
    of_cell = [("checkpoint", 0, 3), ("part", 0, 4), ("checkpoint", 4, 3), ("part", 4, 8)]
    assert written == [*of_cell, *of_cell, ("part", 0, 8), ("part", 0, 8)]  # the last chunks take less than 2 seconds
    (line,) = (line for line in said.lines if line.startswith("time"))
    assert 15 < float(line.split()[2]) < 30  # about 20 times a segment are left


def test_another_configuration_is_refused_and_the_checkpoint_stays(tmp_path, computed):
    interrupted(tmp_path / "run", computed)
    before = checkpoints(tmp_path / "run")
    for other in (Walks(seed=1), Walks(drift=0.25)):
        with pytest.raises(ValueError, match=r"folder: expected the run in .* got another: options"):
            mf.run(other, tmp_path / "run", Budget(NETWORKS))
    assert checkpoints(tmp_path / "run") == before


# Damage


def truncated(path, tmp_path):
    path.write_bytes(path.read_bytes()[:-1])


def emptied(path, tmp_path):
    path.write_bytes(b"")


def flipped(path, tmp_path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def foreign(path, tmp_path):
    """The checkpoint of another run in the place of this one's."""
    computed = Computed()
    with pytest.MonkeyPatch.context() as context:
        context.setattr(_segments.OnTheWay, "go_on", lambda *arguments: computed.go_on(*arguments))
        computed.stop(1)
        with pytest.raises(KeyboardInterrupt):
            mf.run(Walks(seed=1), tmp_path / "other", Budget(NETWORKS))
    (other,) = checkpoints(tmp_path / "other").values()
    path.unlink()
    shutil.copy(other, path.parent)


def renamed(path, tmp_path):
    path.rename(path.with_name(path.name.replace("cells-0-1", "cells-1-2")))


def linked(path, tmp_path):
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")


def a_part(path, tmp_path):
    """A part in the place of a checkpoint."""
    mf.run(Walks(), tmp_path / "other", Budget(NETWORKS))
    path.unlink()
    for part in (tmp_path / "other" / "parts").glob("cells-0-1-*.npz"):
        shutil.copy(part, path.parent)


@pytest.mark.parametrize("damage", [truncated, emptied, flipped, foreign, renamed, linked, a_part])
def test_a_damaged_checkpoint_is_set_aside_and_computed_again(tmp_path, computed, whole, damage):
    folder, said = tmp_path / "run", Told()
    interrupted(folder, computed, 2)
    (path,) = checkpoints(folder).values()
    damage(path, tmp_path)
    (path,) = checkpoints(folder).values()
    left = os.readlink(path) if path.is_symlink() else path.read_bytes()
    computed.times.clear()
    mf.run(Walks(), folder, observer=said)
    computed.check_each_once(OF_WALKS)
    aside = path.with_name(f"{path.name}.damaged")
    assert left == (os.readlink(aside) if aside.is_symlink() else aside.read_bytes())
    (line,) = (line for line in said.lines if "set aside" in line)
    assert line.startswith(f"checkpoints/{path.name} is not a checkpoint of this run (")
    assert line.endswith(f"): set aside as {aside.name}.")
    check_finished(folder, whole)
    assert aside.is_symlink() == (damage is linked)


def test_files_of_the_users_among_checkpoints_stay(tmp_path, computed, whole):
    interrupted(tmp_path / "run", computed)
    notes = [tmp_path / "run" / "checkpoints" / name for name in ("notes.txt", "best.ckpt", "mine/x.npz")]
    notes[-1].parent.mkdir()
    for path in notes:
        path.write_text("mine")
    mf.run(Walks(), tmp_path / "run")
    assert [path.read_text() for path in notes] == ["mine"] * 3
    check_finished(tmp_path / "run", whole)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("step", ["write_bytes", "replace", "mkdir"])
def test_a_checkpoint_that_cannot_be_written(tmp_path, computed, every_time, whole, step, number):
    folder = tmp_path / "run"

    def refused(real):
        def call(path, *arguments, **options):
            if "checkpoints" in str(path):
                raise OSError(number, os.strerror(number))
            return real(path, *arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as context:
        of = os if step == "replace" else Path
        context.setattr(of, step, refused(getattr(of, step)))
        with pytest.raises(OSError, match=os.strerror(number)):
            mf.run(Walks(), folder, Budget(NETWORKS))
    assert not checkpoints(folder)
    assert not [path for path in folder.rglob("*") if path.suffix == ".tmp"]
    mf.run(Walks(), folder)
    check_finished(folder, whole)


# Shards


def test_shards_with_networks_on_their_way(tmp_path, computed, whole):
    one, two, target = (tmp_path / name for name in ("one", "two", "target"))
    mf.run(Walks(), one, Budget(NETWORKS, shard=(0, 2)))
    computed.stop(SEGMENTS + 2)
    with pytest.raises(KeyboardInterrupt):
        mf.run(Walks(), two, Budget(NETWORKS, shard=(1, 2)))
    interrupted(target, computed, 2)
    kept = {folder: checkpoints(folder) for folder in (two, target)}
    assert [*kept[two]] == [(1, 2, 4, 8)]
    assert store.status(two, check=True).networks == [4, 0, 0, 0]
    assert store.merge(target, [one, two]) == len([*(one / "parts").iterdir(), *(two / "parts").iterdir()])
    assert [checkpoints(folder) for folder in (two, target)] == [*kept.values()]  # merging leaves them alone
    computed.times.clear()
    experiments.merge(target, [one, two])
    assert not [each for each in computed.times if each[0] == 0 or each[1] < 4]  # what the shards have
    assert computed.times == {(at, i, k): 1 for at in (1, 3) for i in range(4, 8) for k in range(OF_WALKS[at])}
    assert checkpoints(two) == kept[two]
    check_finished(target, whole)


# Killed at any moment

KILLED = """
import gc, random, signal, sys, warnings
warnings.simplefilter("ignore")  # of forks: none of these processes has computed anything
import h5netcdf, jinja2, scipy.stats, xarray  # once, and not in every fork
import mftadv as mf
from mftadv.experiments import Budget
from mftadv.sweep import _compute
from tests.runs import run_killed
from tests.test_segments import NETWORKS, Walks

gc.disable()  # of short processes
_compute._STRETCH = _compute._WRITING = -1.0
folder, kills = sys.argv[1], int(sys.argv[2])
chance = random.Random(1)

def run(path, last=None, batch_size=3):
    return run_killed(path, lambda: mf.run(Walks(), path, Budget(NETWORKS, batch_size)) and 0, last)

assert run(folder) == 0
changes = int(open(folder + ".changes").read())
assert changes > 60, changes
for number, moment in enumerate(chance.sample(range(changes), kills)):
    path = f"{folder}-{number // 5}"
    status = run(path, moment // (number % 5 + 1), chance.choice((2, 3, 8)))
    assert status in (-signal.SIGKILL, 0), status
for number in range(kills // 5):
    assert run(f"{folder}-{number}") == 0
"""


def test_killed_at_any_moment_it_goes_on_to_the_same_results(tmp_path, whole):
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }  # fmt: skip
    subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "run"), "10"], check=True, env=environment, timeout=300
    )
    for number in range(2):
        check_finished(tmp_path / f"run-{number}", tmp_path / "run")
        assert not [*(tmp_path / f"run-{number}").rglob("*.damaged")]
    xarray.testing.assert_allclose(content(tmp_path / "run")[1], once(whole)[1], rtol=1e-6)
