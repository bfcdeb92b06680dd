"""Sweeps over named axes: the same numbers as one network at a time, however they are cut, stored and gone on with."""

import dataclasses
import functools
import math
import os
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray

from mftadv import theory
from mftadv.linear import linear_representation
from mftadv.network import init
from mftadv.norms import vector_norm
from mftadv.spec import NetworkSpec
from mftadv.sweep import (
    Cell,
    InMemory,
    _compute,
    compute,
    dataset,
    monte_carlo,
    plan_cells,
    sample_of,
    sweep,
)
from tests.runs import Told

SPEC, KEY = NetworkSpec(4, 2, 6, 1, 2.0, 0.1), jax.random.key(0)
GRID = {"output_dim": [1, 2], "weight_variance": [1.0, 2.0], "scale": [1.0, 3.0], "p": [1, math.inf]}


def energy(key, spec, x, scale=1.0, p=2.0):
    rep = linear_representation(init(key, spec), x)
    return {"J2": scale * jnp.mean(rep.jacobian**2), "rows": vector_norm(rep.jacobian, p)}


def run_grid(**options):
    return sweep(energy, KEY, SPEC, GRID, np.ones(4), static=("p",), **{"num_networks": 20, **options})


@pytest.fixture(scope="module")
def whole():
    return run_grid()


def same(a, b):
    xarray.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_every_point_is_monte_carlo_there(whole):
    assert dict(whole.sizes) == {"output_dim": 2, "weight_variance": 2, "scale": 2, "p": 2, "rows_0": 2}
    for K, s, scale, p in ((1, 2.0, 3.0, 1.0), (2, 1.0, 1.0, math.inf)):
        spec = SPEC.replace(output_dim=K, weight_variance=s)
        expected = monte_carlo(lambda *args, p=p: energy(*args, p=p), KEY, spec, np.ones(4), scale, num_networks=20)
        at = whole.sel(output_dim=K, weight_variance=s, scale=scale, p=p)
        for name in ("J2", "rows"):
            for suffix, field in (("", "mean"), ("_standard_error", "standard_error"), ("_count", "count")):
                got = at[name + suffix].values[..., :K] if name == "rows" else at[name + suffix].values
                np.testing.assert_allclose(got, getattr(expected[name], field), rtol=2e-5)
    # one output has one row, and the second is padding
    assert np.all(np.isnan(whole["rows"].sel(output_dim=1).values[..., 1]))
    assert np.all(whole["rows_count"].sel(output_dim=1).values[..., 1] == 0)


@pytest.mark.slow
def test_traced_axes_share_a_compilation():
    counted = chex.assert_max_traces(energy, n=2 * 4)  # for its shapes, and for the program: each of 2 x 2 shapes
    sweep(counted, KEY, SPEC, GRID, np.ones(4), static=("p",), num_networks=20)


@pytest.mark.parametrize("options", [{"batch_size": 7}, {"batch_size": 1}])
@pytest.mark.slow
def test_chunked_is_whole(whole, options, monkeypatch):
    monkeypatch.setattr(_compute, "_LONG", 0)
    told = Told()
    same(run_grid(observer=told, **options), whole)
    assert told.shares == sorted(told.shares)
    assert (told.shares[0], told.shares[-1]) == (0, 1)
    assert told.lines[0].startswith("plan      16 cells by 4 programs")
    assert [line.split()[0] for line in told.lines] == ["plan", "time"]


@pytest.mark.slow
def test_stored_extended_and_sharded_is_whole(whole, tmp_path):
    run = functools.partial(run_grid, batch_size=4)  # one size for all, however many are missing
    same(run(folder=tmp_path / "a", num_networks=8), run(num_networks=8))
    before = set((tmp_path / "a" / "parts").iterdir())
    same(run(folder=tmp_path / "a"), whole)
    assert before < set((tmp_path / "a" / "parts").iterdir())  # what was drawn stays
    with xarray.open_dataset(tmp_path / "a" / "data.nc") as stored:
        same(stored, whole)
    for i in range(2):
        part = run(folder=tmp_path / "b", shard=(i, 2))
        assert int(part["J2_count"].max()) == 10 * (i + 1)
    same(run(folder=tmp_path / "b"), whole)


@pytest.mark.slow
def test_interrupted_goes_on(whole, tmp_path, monkeypatch):
    draw, drawn = _compute._draw, []

    def interrupted(*args):
        if len(drawn) == 5:
            raise KeyboardInterrupt
        drawn.append(args)
        return draw(*args)

    monkeypatch.setattr(_compute, "_draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_grid(folder=tmp_path / "a", batch_size=8)
    monkeypatch.setattr(_compute, "_draw", lambda *args: drawn.append(args) or draw(*args))
    drawn.clear()
    same(run_grid(folder=tmp_path / "a", batch_size=8), whole)
    assert len(drawn) == 4 * 3 - 5  # the chunks that were drawn are not drawn again


def test_programs_are_compiled_with_the_settings_of_the_caller(monkeypatch):
    """They are compiled in a thread of their own, and JAX has settings for each thread."""
    compile_program, seen = _compute.compile_program, []

    def noted(*args, **options):
        seen.append((jnp.zeros(()).devices(), jnp.zeros(()).dtype, jax.config.jax_default_matmul_precision))
        return compile_program(*args, **options)

    monkeypatch.setattr(_compute, "compile_program", noted)
    device = jax.devices()[2]
    with jax.default_device(device), jax.enable_x64(True), jax.default_matmul_precision("tensorfloat32"):
        sweep(energy, KEY, SPEC, {"scale": [1.0, 3.0]}, np.ones(4), num_networks=3)
    assert seen == [({device}, "float64", "tensorfloat32")]


@pytest.mark.parametrize(("devices", "fit"), [(None, 5), (4, 1)])
@pytest.mark.slow
def test_a_chunk_that_does_not_fit_is_halved(whole, devices, fit, monkeypatch):
    draw, told = _compute._draw, Told()
    mesh = None if devices is None else jax.make_mesh((devices,), ("networks",))

    def failing(plan, program, *args):
        if program.batch_size > fit:
            raise MemoryError
        return draw(plan, program, *args)

    monkeypatch.setattr(_compute, "_draw", failing)
    grid = {**GRID, "output_dim": [2], "p": [1]}
    run = functools.partial(sweep, energy, KEY, SPEC, grid, np.ones(4), static=("p",), num_networks=20, mesh=mesh)
    found = run(observer=told)
    same(found, whole.sel(output_dim=[2], p=[1.0]))
    assert [line for line in told.lines if line.startswith("out of memory with 20 networks at once: half as many")]
    monkeypatch.setattr(_compute, "_draw", lambda *_: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        run()


@pytest.mark.slow
def test_raw_draws_are_those_of_each_network():
    cells = [
        Cell({"s": s, "d": d}, SPEC.replace(weight_variance=s, input_dim=d), (np.ones(d), 2.0), energy)
        for d in (4, 3)
        for s in (1.0, 2.0)
    ]
    plan, networks, store = plan_cells(cells, KEY), [range(5), range(3), range(2, 6), range(5)], InMemory()
    compute(plan, networks, store, batch_size=2)
    data = dataset(plan, networks, store, {"rows": ("output",)})
    assert data["rows"].dims == ("cell", "network", "output")
    assert data["networks"].values.tolist() == [5, 3, 4, 5]
    assert np.all(np.isnan(data["J2"].values[1, 3:]))
    alone = jax.jit(energy)
    for number, (cell, some) in enumerate(zip(cells, networks, strict=True)):
        own = sample_of(data, number)
        for i, index in enumerate(some):
            expected = alone(jax.random.fold_in(KEY, index), cell.spec, *cell.operands)
            np.testing.assert_allclose(own["J2"][i], expected["J2"], rtol=1e-5)
            np.testing.assert_allclose(own["rows"][i], expected["rows"], rtol=1e-5)


@pytest.mark.slow
def test_theory_lies_beside():
    found = sweep(
        energy, KEY, SPEC, {"weight_variance": [1.0, 2.0], "scale": [1.0, 3.0]}, np.ones(4), num_networks=2,
        theory=lambda spec, scale: {"J2": scale * float(theory.jacobian_variance(spec))},
    )  # fmt: skip
    np.testing.assert_allclose(found["theory_J2"], [[0.125, 0.375], [0.25, 0.75]])


def lognormal(key, spec):
    return jnp.exp(jax.random.normal(key))


@pytest.mark.law
def test_a_target_is_reached_and_its_bias_is_what_is_said():
    # 20,000 sweeps at once: the rule that `sweep` applies, on independent draws
    draws = np.exp(np.random.default_rng(0).normal(size=(20_000, 2048)))

    def stopped(first, target=0.1):
        means, going = np.zeros(len(draws)), np.ones(len(draws), bool)
        for n in (first * 2**k for k in range(12) if first * 2**k <= draws.shape[1]):
            some = draws[going, :n]
            means[going] = some.mean(1)
            going[going] = some.std(1, ddof=1) / math.sqrt(n) > target * some.mean(1)
        assert not going.any()
        return means / math.exp(0.5) - 1

    few, many = stopped(16), stopped(256)
    error = few.std() / math.sqrt(len(few))
    assert abs(few.mean() + 0.014) < 4 * error < 0.004
    assert abs(many.mean()) < 0.003
    found = sweep(lognormal, KEY, SPEC, {"weight_variance": [1.0]}, num_networks=16, target=0.1)
    assert float(found["value_standard_error"][0]) <= 0.1 * float(found["value"][0])
    count = int(found["value_count"][0])
    assert count in (64, 128, 256, 512, 1024)
    half = sweep(lognormal, KEY, SPEC, {"weight_variance": [1.0]}, num_networks=count // 2)
    assert float(half["value_standard_error"][0]) > 0.1 * float(half["value"][0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": {"depth": []}}, "grid: expected a sequence of at least one value for depth"),
        ({"grid": {"depth": "23"}}, "grid: expected a sequence"),
        ({"grid": {"depth": [0]}}, "depth: expected a positive integer, got 0"),
        ({"static": ("q",)}, "static: expected names of axes"),
        ({"target": 2.0}, "target: expected a share"),
        ({"shard": (0, 2)}, "shard: expected"),
        ({"num_networks": 0}, "num_networks: expected a positive integer"),
    ],
)
def test_what_is_refused(options, message):
    grid = options.pop("grid", {"depth": [1]})
    with pytest.raises(ValueError, match=message):
        sweep(lognormal, KEY, SPEC, grid, **options)


def test_without_xarray_it_is_said_before_any_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ModuleNotFoundError, match=r'a dataset needs `pip install "mftadv\[cli\]"`'):
        sweep(lambda key, spec: pytest.fail("traced"), KEY, SPEC, {"depth": [1]})


@dataclasses.dataclass(frozen=True)
class Scaled:
    inner: object
    factor: float = 2.0

    def __call__(self, key, spec):
        return self.factor * self.inner(key, spec)


_PROGRAM = """
import numpy as np
from mftadv.spec import NetworkSpec
from mftadv.sweep import Cell
from tests.test_grid import Scaled, lognormal
print(Cell({"a": 1}, NetworkSpec(4, 2, 6, 1), (np.ones(4), 2.0), Scaled(lognormal)).fingerprint())
"""


@pytest.mark.slow
def test_a_fingerprint_is_the_same_in_every_process_and_sees_what_changes():
    def of(coords=None, spec=None, operands=None, statistic=None):
        cell = Cell(
            coords or {"a": 1},
            spec or NetworkSpec(4, 2, 6, 1),
            operands or (np.ones(4), 2.0),
            statistic or Scaled(lognormal),
        )
        return cell.fingerprint()

    others = [
        of({"a": 2}),
        of(spec=NetworkSpec(4, 2, 6, 1, 1.9)),
        of(spec=NetworkSpec(4, 2, 6, 2)),
        of(operands=(np.ones(4), 2.1)),
        of(operands=(np.ones(4, np.float32), 2.0)),
        of(statistic=Scaled(lognormal, 3.0)),
        of(statistic=Scaled(lambda key, spec: jnp.exp(-jax.random.normal(key)))),
    ]
    assert len({of(), *others}) == 1 + len(others)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, env=environment)
    assert found.stdout.strip() == of(), found.stderr
