"""The runner of every experiment: what is stored, gone on with, extended, divided, joined, refused."""

import ast
import dataclasses
import errno
import inspect
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import xarray

import mftadv as mf
from mftadv import experiments, store
from mftadv.experiments import EXPERIMENTS, Budget, Experiment, _runner
from mftadv.sweep import Cell, _compute, plan_cells
from tests.runs import Told, Toy, scaled

ROOT = Path(__file__).parent.parent


@pytest.fixture
def drawn(monkeypatch):
    """The cells and networks that are drawn; the toy is known by its name, and each chunk is a part of its own."""
    found, draw = [], _compute._draw

    def counted(plan, program, cells, networks):
        found.extend((cell, network) for cell in cells for network in networks)
        return draw(plan, program, cells, networks)

    monkeypatch.setattr(_compute, "_draw", counted)
    monkeypatch.setattr(_compute, "_STRETCH", 0.0)
    monkeypatch.setitem(EXPERIMENTS, "toy", Toy)
    return found


FEW = Budget(networks=600, batch_size=200)


def content(folder):
    """The claims as they are stored, and the data."""
    with xarray.open_dataset(Path(folder) / "data.nc", engine="h5netcdf") as stored:
        return (Path(folder) / "claims.json").read_bytes(), stored.load()


def check_same(folder, other):
    (claims, data), (expected, whole) = content(folder), content(other)
    xarray.testing.assert_identical(data, whole)
    assert claims == expected


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Every experiment


@pytest.mark.parametrize("kind", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_every_experiment_is_as_the_runner_needs_it(kind):
    assert EXPERIMENTS[kind.name] is kind
    assert issubclass(kind, Experiment)
    assert kind.version >= 1
    assert kind.source
    assert kind.__doc__
    helped = set()  # the text below a field is its help on the command line
    for base in filter(dataclasses.is_dataclass, kind.__mro__):
        (body,) = ast.parse(inspect.getsource(base)).body
        for field, text in itertools.pairwise(body.body):
            match field, text:
                case ast.AnnAssign(), ast.Expr(ast.Constant(str())):
                    helped.add(field.target.id)
    assert {field.name for field in dataclasses.fields(kind)} <= helped
    experiment = kind()
    cells, again = experiment.cells(), kind().cells()
    assert [cell.fingerprint() for cell in cells] == [cell.fingerprint() for cell in again]
    assert len({json.dumps(store.jsonable(cell.coords)) for cell in cells}) == len(cells)
    networks = experiment.networks(cells)
    assert len(networks) == len(cells)
    assert min(networks) >= 2
    assert list(networks) == list(kind().networks(again))
    key = _runner.fastest_key(experiment.seed)
    identity = _runner.identity_of(experiment, cells, key)
    assert json.loads(json.dumps(store.jsonable(identity), allow_nan=False))["name"] == kind.name
    for cell in (cells[0], cells[-1]):
        shapes = jax.eval_shape(cell.statistic, key, cell.spec, *cell.operands)
        assert {name: len(kind.axes[name]) for name in shapes} == {name: each.ndim for name, each in shapes.items()}
        assert all(isinstance(value, float) for value in experiment.predict(cell).values())
    options = {field.name: getattr(experiment, field.name) for field in dataclasses.fields(kind)}
    there = json.loads(json.dumps({name: store.jsonable(value) for name, value in options.items()}))
    assert kind(**{name: _runner._from_json(value) for name, value in there.items()}) == experiment


# A run and its folder


def test_a_run_is_stored_shown_and_not_drawn_again(tmp_path, drawn):
    said = Told()
    result = mf.run(Toy(), tmp_path / "run", FEW, observer=said)
    assert sorted(drawn) == [(cell, i) for cell in range(2) for i in range(600)]
    assert result.counts == {"holds": 2}
    assert result.folder == tmp_path / "run"
    assert any(line.startswith("plan      2 cells by 1 program") for line in said.lines)
    assert result.data["x"].dims == ("cell", "network", "entry")
    memory = mf.run(Toy(), None, FEW)
    for name in ("x", "square"):
        np.testing.assert_array_equal(result.data[name], memory.data[name])
    # network i is that of the key fold_in(key, i)
    key, cell = jax.random.fold_in(_runner.fastest_key(0), 417), Toy().cells()[1]
    expected = scaled(key, cell.spec, *cell.operands)["x"]
    np.testing.assert_allclose(result.data["x"][1, 417], expected, rtol=1e-6)
    record = json.loads((tmp_path / "run" / "claims.json").read_text())
    assert [(claim["id"], claim["coords"], claim["verdict"]) for claim in record["claims"]] == [
        ("square", {"s": s}, "holds") for s in (1.0, 4.0)
    ]
    rows = (tmp_path / "run" / "claims.csv").read_text().splitlines()
    assert rows[0].split(",")[:2] == ["id", "s"]
    assert len(rows) == 3
    drawn.clear()
    before = files(tmp_path / "run")
    again, shown = mf.run(Toy(), tmp_path / "run"), experiments.show(tmp_path / "run")
    assert not drawn
    assert again.judged == result.judged == shown.judged
    assert shown.experiment == Toy()
    assert files(tmp_path / "run") == before


def test_a_wrong_theory_fails(drawn):
    assert mf.run(Toy(shift=0.5), None, FEW).counts == {"fails": 2}


def interrupt_after(monkeypatch, parts, error=KeyboardInterrupt):
    write, count = store.RunFolder.write_part, []

    def stopped(self, *arguments):
        if len(count) == parts:
            raise error
        count.append(None)
        write(self, *arguments)

    monkeypatch.setattr(store.RunFolder, "write_part", stopped)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
def test_an_interrupted_run_goes_on(tmp_path, drawn, error):
    mf.run(Toy(), tmp_path / "whole", FEW)
    with pytest.MonkeyPatch.context() as context:
        interrupt_after(context, 2, error)
        with pytest.raises(type(error) if isinstance(error, OSError) else error):
            mf.run(Toy(), tmp_path / "run", FEW)
    assert store.status(tmp_path / "run", check=True).networks == [400, 400]
    with pytest.raises(ValueError, match=r"folder: expected a finished run, got .* 400 networks missing"):
        experiments.show(tmp_path / "run")
    drawn.clear()
    mf.run(Toy(), tmp_path / "run")  # as many as were asked for at first
    assert sorted(drawn) == [(cell, i) for cell in range(2) for i in range(400, 600)]
    check_same(tmp_path / "run", tmp_path / "whole")


def test_results_that_could_not_be_written_are_written_by_the_next_call(tmp_path, drawn, monkeypatch):
    with monkeypatch.context() as context:
        context.setattr(store.RunFolder, "publish", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(OSError, match="full"):
            mf.run(Toy(), tmp_path / "run", FEW)
    drawn.clear()
    mf.run(Toy(), tmp_path / "run", FEW)
    mf.run(Toy(), tmp_path / "whole", FEW)
    assert len(drawn) == 1200
    check_same(tmp_path / "run", tmp_path / "whole")


def test_more_networks_draw_those_that_are_missing(tmp_path, drawn):
    mf.run(Toy(), tmp_path / "run", FEW)
    drawn.clear()
    mf.run(Toy(), tmp_path / "run", Budget(900, 150))
    assert sorted(drawn) == [(cell, i) for cell in range(2) for i in range(600, 900)]
    mf.run(Toy(), tmp_path / "whole", Budget(900))
    check_same(tmp_path / "run", tmp_path / "whole")
    # fewer are shown where fewer are asked for, and nothing is lost
    mf.run(Toy(), tmp_path / "run", FEW)
    assert content(tmp_path / "run")[1].sizes["network"] == 600
    drawn.clear()
    mf.run(Toy(), tmp_path / "run", Budget(900))
    assert not drawn
    check_same(tmp_path / "run", tmp_path / "whole")


def test_damaged_parts_are_computed_again(tmp_path, drawn):
    mf.run(Toy(), tmp_path / "whole", FEW)
    mf.run(Toy(), tmp_path / "run", FEW)
    part = sorted((tmp_path / "run" / "parts").iterdir())[1]
    part.write_bytes(part.read_bytes()[:-1])
    drawn.clear()
    said = Told()
    mf.run(Toy(), tmp_path / "run", FEW, observer=said)
    assert sorted(drawn) == [(cell, i) for cell in range(2) for i in range(200, 400)]
    assert any("set aside" in line for line in said.lines)
    assert Path(f"{part}.damaged").exists()
    check_same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (Toy(seed=1), r"options.seed is 0 there and 1 here"),
        (Toy(variances=(1.0, 9.0)), r"options.variances.1 is 4.0 there and 9.0 here"),
        (Toy(x64=True), r"options.x64 is false there and true here.*dtype is"),
    ],
)
def test_another_configuration_is_refused_and_what_differs_is_named(tmp_path, drawn, other, words):
    mf.run(Toy(), tmp_path / "run", FEW)
    before = files(tmp_path / "run")
    drawn.clear()
    with pytest.raises(ValueError, match=f"folder: expected the run in .*{words}"):
        mf.run(other, tmp_path / "run", FEW)
    with pytest.raises(ValueError, match=r"key.data"):
        mf.run(Toy(), tmp_path / "run", FEW, key=jax.random.key(3))
    assert not drawn
    assert files(tmp_path / "run") == before


def test_another_version_is_refused(tmp_path, drawn, monkeypatch):
    mf.run(Toy(), tmp_path / "run", FEW)
    monkeypatch.setattr(Toy, "version", 2)
    with pytest.raises(ValueError, match="version is 1 there and 2 here"):
        mf.run(Toy(), tmp_path / "run", FEW)
    with pytest.raises(ValueError, match="folder: expected a run of version 2 of toy, got one of version 1"):
        experiments.show(tmp_path / "run")
    monkeypatch.delitem(EXPERIMENTS, "toy")
    with pytest.raises(ValueError, match=r"folder: expected a run of .*, got one of 'toy'"):
        experiments.show(tmp_path / "run")


def test_other_inputs_in_the_same_file_are_refused(tmp_path, drawn, not_rendered):
    kind = experiments.JacobianLaw
    inputs = np.random.default_rng(0).standard_normal((4, 5))
    np.save(tmp_path / "x.npy", inputs)
    options = {"data": str(tmp_path / "x.npy"), "width": 8, "depth": 1}
    mf.run(kind(**options), tmp_path / "run", Budget(20))
    np.save(tmp_path / "x.npy", inputs[:, ::-1])  # of the same mean square
    with pytest.raises(ValueError, match=r"cells.0.fingerprint"):
        mf.run(kind(**options), tmp_path / "run", Budget(20))
    with pytest.raises(ValueError, match=r"cells.0.fingerprint|another"):
        mf.run(kind(**options), tmp_path / "run", Budget(30))


def test_shards_join_to_the_single_run(tmp_path, drawn):
    whole = mf.run(Toy(), tmp_path / "whole", FEW)
    for share in range(2):
        part = mf.run(Toy(), tmp_path / f"{share}", dataclasses.replace(FEW, shard=f"{share}/2"))
        assert (part.data, part.judged) == (None, ())
        assert not (tmp_path / f"{share}" / "claims.json").exists()
    before = [files(tmp_path / f"{share}") for share in range(2)]
    drawn.clear()
    joined = experiments.merge(tmp_path / "joined", [tmp_path / "0", tmp_path / "1"])
    assert not drawn
    assert joined.judged == whole.judged
    check_same(tmp_path / "joined", tmp_path / "whole")
    assert before == [files(tmp_path / f"{share}") for share in range(2)]
    # a shard that is missing is drawn
    experiments.merge(tmp_path / "half", [tmp_path / "1"])
    assert sorted(drawn) == [(cell, i) for cell in range(2) for i in range(300)]
    check_same(tmp_path / "half", tmp_path / "whole")
    mf.run(Toy(seed=1), tmp_path / "other", dataclasses.replace(FEW, shard=(0, 2)))
    with pytest.raises(ValueError, match=r"sources: expected folders of one run, got .*options.seed"):
        experiments.merge(tmp_path / "mixed", [tmp_path / "0", tmp_path / "other"])
    assert not (tmp_path / "mixed").exists()


def test_what_is_the_users_stays(tmp_path, drawn):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "mine" / "results.json").write_text("{}")
    before = files(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"folder: expected a new or empty folder, .*, got .* with notes"):
        mf.run(Toy(), tmp_path / "mine", FEW)
    assert files(tmp_path / "mine") == before
    assert not drawn
    mf.run(Toy(), tmp_path / "run", FEW)
    notes = {name: tmp_path / "run" / name for name in ("notes.txt", "parts/notes.txt", "figures/notes.txt")}
    (tmp_path / "run" / "figures").mkdir(exist_ok=True)
    for path in notes.values():
        path.write_text("mine")
    next(iter((tmp_path / "run" / "parts").glob("*.npz"))).write_bytes(b"")
    mf.run(Toy(), tmp_path / "run", FEW)
    mf.run(Toy(), tmp_path / "run", Budget(700))
    assert {path.read_text() for path in notes.values()} == {"mine"}
    assert experiments.show(tmp_path / "run").data.sizes["network"] == 700


def test_a_finished_run_where_nothing_can_be_written(tmp_path, drawn, monkeypatch):
    result = mf.run(Toy(), tmp_path / "run", FEW)
    drawn.clear()

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("rename", "replace", "unlink", "mkdir"):
        monkeypatch.setattr(os, name, refuse)
    for name in ("write_text", "write_bytes"):
        monkeypatch.setattr(Path, name, refuse)
    assert mf.run(Toy(), tmp_path / "run", FEW).judged == result.judged
    assert experiments.show(tmp_path / "run").judged == result.judged
    assert not drawn
    with pytest.raises(OSError, match="Read-only"):
        mf.run(Toy(), tmp_path / "run", Budget(700))


def test_a_dry_run_compiles_and_writes_nothing(tmp_path, drawn, monkeypatch):
    monkeypatch.setattr(_compute, "compile_program", lambda *_, **__: pytest.fail("compiled"))
    monkeypatch.chdir(tmp_path)
    said = Told()
    result = mf.run(Toy(), tmp_path / "run", Budget(dry_run=True), observer=said)
    assert (result.data, result.judged, result.folder) == (None, (), None)
    assert "all results of 600 networks" in said.lines[-1]
    assert not list(tmp_path.iterdir())


def test_numbered_folders(tmp_path, drawn):
    def run(experiment=None, budget=FEW):
        return mf.run(experiment or Toy(), tmp_path / "toy-{}", budget).folder.name

    with pytest.MonkeyPatch.context() as context:
        interrupt_after(context, 1)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert run(Toy(seed=1)) == "toy-2"
    drawn.clear()
    assert run() == "toy-1"  # goes on
    assert sorted(drawn) == [(cell, i) for cell in range(2) for i in range(200, 600)]
    assert run() == "toy-3"  # that one is finished
    (tmp_path / "toy-4").write_text("a file of the user's")
    assert run() == "toy-5"
    # of two at once the second takes the next number
    cells = Toy().cells()
    key = _runner.fastest_key(0)
    planned = plan_cells(cells, key)
    identity = _runner.identity_of(Toy(), cells, key)
    layouts = [planned.layout(i) for i in range(2)]
    with store.RunFolder.open(tmp_path / "toy-6", identity, layouts, {"versions": {}}) as one:
        one.aim([600, 600])
        assert run() == "toy-7"
        with pytest.raises(ValueError, match=r"folder: another process is at work in .*toy-6"):
            mf.run(Toy(), tmp_path / "toy-6", FEW)
    assert run() == "toy-6"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"networks": 1}, "networks: expected at least 2, for an error bar, got 1"),
        ({"networks": 2.5}, "networks: expected a positive integer, got 2.5"),
        ({"batch_size": 0}, "batch_size: expected a positive integer, got 0"),
        ({"networks": 10, "shard": (2, 2)}, "shard: expected i/n with 0 <= i < n, got 2/2"),
        ({"networks": 10, "shard": (-1, 2)}, "shard: expected i/n with 0 <= i < n, got -1/2"),
        ({"networks": 10, "shard": "2/2"}, "shard: expected i/n with 0 <= i < n, got 2/2"),
        ({"networks": 10, "shard": "1"}, "shard: expected i/n, got '1'"),
        ({"shard": (0, 2)}, "networks: expected a number where a run is divided into shards, got None"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_budgets_outside_their_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        Budget(**arguments)


def test_what_does_not_fit_into_memory_is_refused_before_anything_is_compiled(tmp_path, drawn, monkeypatch):
    monkeypatch.setattr(_compute, "compile_program", lambda *_, **__: pytest.fail("compiled"))
    with pytest.raises(ValueError, match=r"networks: expected results whose analysis fits into .*iB of memory, got"):
        mf.run(Toy(), tmp_path / "run", Budget(10**12))
    monkeypatch.setattr(_runner, "memory", lambda mesh: (10, 10))
    with pytest.raises(ValueError, match="width: expected networks that fit into 10 B of memory, got about"):
        mf.run(Toy(), None, FEW)
    for sizes in ({"width": 2**31}, {"depth": 10**9}, {"output_dim": 2**40}):
        spec = Toy().cells()[0].spec.replace(**sizes)
        (name,) = sizes
        with pytest.raises(ValueError, match=f"{name}: expected at most"):
            plan_cells([Cell({}, spec, (np.float32(0),), scaled)], jax.random.key(0))


def test_results_that_do_not_fit_are_refused_before_a_folder_is_begun_but_for_the_run_that_is_in_it(
    tmp_path, drawn, monkeypatch
):
    mf.run(Toy(), tmp_path / "run", Budget(30))
    monkeypatch.setattr(_runner, "host_memory", lambda: 100_000)  # of two cells of 600 networks, 65 numbers each
    said = Told()
    for folder in ("new", "toy-{}", None):
        with pytest.raises(ValueError, match=r"networks: expected results whose analysis fits into 97\.7 KiB"):
            mf.run(Toy(), tmp_path / folder if folder else None, observer=said)
    assert said.lines == ["run       toy"] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert mf.run(Toy(), tmp_path / "run").data.sizes["network"] == 30


@pytest.mark.slow
def test_networks_too_narrow_for_an_expansion_are_drawn_all_the_same():
    result = mf.run(experiments.FiniteWidth(widths=(2,), depth=2), None, Budget(20))
    assert result.experiment.figures(result.data, result.judged).keys() == {"finite_width"}


# Killed at any moment

KILLED = """
import gc, json, os, random, signal, sys, warnings
warnings.simplefilter("ignore")  # of forks: none of these processes has computed anything
import h5netcdf, jinja2, matplotlib.figure, rich.progress, scipy.stats, xarray, mftadv.cli  # once
from mftadv.__main__ import command_line
from mftadv.experiments import EXPERIMENTS
from mftadv.sweep import _compute
from tests.runs import run_killed

gc.disable()  # of short processes
_compute._STRETCH = 0.0
for kind in EXPERIMENTS.values():
    kind.figures = lambda self, data, judged: {"empty": matplotlib.figure.Figure((1, 1))}  # its pictures take seconds
folder, kills, *command = sys.argv[1:]
chance = random.Random(0)

def work(path):
    sys.stdout = open(os.devnull, "w")
    return command_line([*command, "--out", path])

def run(path, last=None):
    return run_killed(path, lambda: work(path), last)

assert run(folder) == 0
changes = int(open(folder + ".changes").read())
assert changes > 15, changes
at = sorted(chance.sample(range(changes), int(kills)))
stops = [-signal.SIGKILL, 0]
for number, moment in enumerate(at):
    path = f"{folder}-{number // 5}"
    status = run(path, moment // (number % 5 + 1))
    assert status in stops, status
for number in range(int(kills) // 5):
    assert run(f"{folder}-{number}") == 0
"""


@pytest.mark.slow
def test_killed_at_any_moment_the_same_command_gives_the_same(tmp_path):
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }  # fmt: skip
    command = ["bounds", "--networks", "4", "--batch-size", "2", "--data", "gaussian", "--input-dim", "4",
               "--width", "8", "--depth", "1", "--p", "inf", "--q", "2", "--eps", "0.1", "1", "--dims", "4",
               "--outputs", "2", "--output-dim", "2", "--attack", "frugal"]  # fmt: skip
    subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "run"), "5", *command], check=True, env=environment, timeout=300
    )
    check_same(tmp_path / "run-0", tmp_path / "run")
    assert not [path for path in files(tmp_path / "run-0") if path.endswith(("tmp", "damaged", "yours"))]
