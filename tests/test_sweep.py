"""Monte Carlo over networks: the same moments whole, in chunks, on one device and on four."""

import dataclasses
import functools
import gc
import re
import weakref
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mftadv.linear import linear_representation
from mftadv.network import init
from mftadv.norms import operator_norm
from mftadv.spec import NetworkSpec
from mftadv.statistics import Moments, merge
from mftadv.sweep import _memory, _program, draws, monte_carlo
from mftadv.sweep._static import Static

SPEC = NetworkSpec(5, 2, 12, 1, 2.0, 0.1)


def statistic(key, spec, x):
    rep = linear_representation(init(key, spec), x)
    return {"J": rep.jacobian, "size": jnp.sum(rep.jacobian**2)}


def assert_same(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-4), a, b)


@pytest.fixture(scope="module")
def whole():
    return monte_carlo(statistic, jax.random.key(0), SPEC, jnp.ones(5), num_networks=37, batch_size=37)


@pytest.fixture(scope="module")
def loop():
    """The statistic of each network, one after the other."""
    one = jax.jit(lambda i: statistic(jax.random.fold_in(jax.random.key(0), i), SPEC, jnp.ones(5)))
    parts = [jax.device_get(one(i)) for i in range(37)]
    return {name: np.stack([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.slow
def test_network_i_has_key_i(whole, loop):
    values = loop["J"].astype(np.float64)
    np.testing.assert_allclose(whole["J"].mean, values.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(whole["J"].variance, values.var(0, ddof=1), rtol=1e-4)
    np.testing.assert_allclose(whole["J"].standard_error, values.std(0, ddof=1) / np.sqrt(37), rtol=1e-4)
    assert np.all(whole["J"].count == 37)


@pytest.mark.parametrize("batch_size", [None, 1, 5, 1000])
@pytest.mark.slow
def test_chunked_is_whole(whole, batch_size):
    seen = []
    chunked = monte_carlo(
        statistic, jax.random.key(0), SPEC, jnp.ones(5), num_networks=37, batch_size=batch_size,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert_same(chunked, whole)
    assert seen[-1] == (37, 37)
    assert seen == sorted(seen)


@pytest.mark.parametrize(("shape", "batch_size"), [((4,), 6), ((2, 2), None)])
@pytest.mark.slow
def test_four_devices_are_one(whole, shape, batch_size):
    mesh = jax.make_mesh(shape, ("a", "b")[: len(shape)])
    assert mesh.size == 4
    sharded = monte_carlo(
        statistic, jax.random.key(0), SPEC, jnp.ones(5), num_networks=37, batch_size=batch_size, mesh=mesh
    )
    assert_same(sharded, whole)


@pytest.mark.slow
def test_all_devices_share_the_networks_where_none_are_named(whole):
    key, x = jax.random.key(0), jnp.ones(5)
    assert _memory.all_devices() is None  # as the tests name one, which this one takes back
    with jax.default_device(None):
        assert _memory.all_devices().size == len(jax.devices()) == 4
        assert_same(monte_carlo(statistic, key, SPEC, x, num_networks=37), whole)
        assert draws(statistic, key, SPEC, x, num_networks=37, batch_size=5).batch_size == 8
        assert draws(statistic, key, SPEC, x, num_networks=3).batch_size == 3  # three of the devices
        assert draws(statistic, key, SPEC, x, num_networks=37, batch_size=1).batch_size == 1


@pytest.mark.parametrize("devices", [None, 4])
@pytest.mark.slow
def test_arguments_may_lie_on_any_device(whole, devices):
    key, x = jax.device_put((jax.random.key(0), jnp.ones(5)), jax.devices()[1])
    mesh = None if devices is None else jax.make_mesh((devices,), ("networks",))
    assert_same(monte_carlo(statistic, key, SPEC, x, num_networks=37, mesh=mesh), whole)


def test_memory_is_that_of_the_default_device(monkeypatch):
    asked = []
    monkeypatch.setattr(_memory, "is_on_cpu", lambda mesh: asked.append(_memory._first(mesh)) or True)
    for device in (jax.devices()[2], "cpu", None):
        with jax.default_device(device):
            _memory.memory(None)
    assert asked == [jax.devices()[i] for i in (2, 0, 0)]


def test_devices_that_have_nothing_to_do_or_no_memory_are_left_out(monkeypatch):
    mesh = jax.make_mesh((2, 2), ("a", "b"))
    monkeypatch.setattr(_memory, "host_memory", lambda: 1000.0)
    sizes = [
        _memory.enough_devices(mesh, *each).size for each in ((9, 1), (3, 1), (1, 1), (9, 200), (9, 400), (9, 1000))
    ]
    assert sizes == [4, 3, 1, 2, 1, 1]
    assert _memory.enough_devices(mesh, 4, 1) is mesh
    assert _memory.enough_devices(None, 4, 1) is None
    assert _memory.memory(mesh)[0] == 250


@pytest.mark.parametrize(("networks", "devices"), [(9, 4), (3, 2), (1.5, 1)])
def test_networks_larger_than_estimated_are_computed_on_fewer_devices(networks, devices, monkeypatch):
    traced = _program.trace(statistic, jax.random.key(0), SPEC, (jnp.ones(5),))
    each = _program.compile_program(traced, 1).bytes_taken
    traced = dataclasses.replace(traced, bytes_each=traced.bytes_each // 8, compiled={})
    monkeypatch.setattr(_memory, "host_memory", lambda: networks * each)
    program = _program.compile_program(traced, 4, mesh=jax.make_mesh((4,), ("networks",)))
    assert program.devices == devices
    assert program.bytes_taken <= networks * each / devices


@pytest.mark.parametrize("vmaps", [0, 1, 2])
def test_lapack_meets_one_matrix_at_a_time_where_devices_share_threads(vmaps):
    """A batch would be divided among threads that all devices wait for (jaxlib before 0.11)."""

    def norm(key, spec):
        of = lambda matrix: operator_norm(matrix, 2, 2).lower  # noqa: E731
        for _ in range(vmaps):
            of = jax.vmap(of)
        return of(jax.random.normal(key, (5, 3, 2, 4)))

    traced = _program.trace(norm, jax.random.key(0), SPEC, ())
    mesh = jax.make_mesh((2,), ("networks",), devices=jax.devices()[:2])
    _program.compile_program(traced, 10, mesh=mesh)
    ((program, _),) = traced.compiled.values()
    calls = [line for line in program.as_text().splitlines() if "lapack_sgesdd" in line]
    assert calls
    assert not any(re.search(r"f32\[\d+,\d+,\d+[],]", line.replace("f32[1,", "f32[")) for line in calls)


@pytest.mark.slow
def test_draws_give_every_network(loop):
    plan = functools.partial(draws, statistic, jax.random.key(0), SPEC, jnp.ones(5))
    firsts, parts = zip(*plan(num_networks=11, batch_size=5), strict=True)
    assert list(firsts) == [0, 4, 8]  # three chunks of even size
    assert [len(part["size"]) for part in parts] == [4, 4, 3]
    again = next(iter(plan(num_networks=2000, batch_size=4)))[1]
    np.testing.assert_allclose(again["size"], parts[0]["size"], rtol=1e-5)
    mesh = jax.make_mesh((2, 2), ("a", "b"))
    sharded = [part for _, part in plan(num_networks=37, batch_size=8, mesh=mesh)]
    for chunks in (parts, sharded):
        sizes = np.concatenate([part["size"] for part in chunks])
        np.testing.assert_allclose(sizes, loop["size"][: len(sizes)], rtol=1e-5)
    assert sizes.shape == (37,)


@pytest.mark.slow
def test_nothing_recompiles():
    leaves = (float, np.float32, jnp.float32)

    @chex.assert_max_traces(n=1)
    def traced_once(key, spec, x, scale):
        return scale * jnp.sum(linear_representation(init(key, spec), x).output)

    for i in range(3):
        spec = NetworkSpec(5, 2, 12, 3, leaves[i](1.0 + i), 0.1 * i, 1.0, 0.1 * i)
        monte_carlo(traced_once, jax.random.key(i), spec, i * jnp.ones(5), float(i), num_networks=9, batch_size=4)


@pytest.mark.slow
def test_nonfinite_draws_are_counted_and_kept_out():
    def broken(key, spec):
        value = jax.random.normal(key)
        return jnp.where(value > 0.5, jnp.inf, value)

    est = monte_carlo(broken, jax.random.key(0), SPEC, num_networks=50, batch_size=7)
    values = np.array([jax.random.normal(jax.random.fold_in(jax.random.key(0), i)) for i in range(50)])
    assert est.nonfinite == np.sum(values > 0.5)
    assert est.count == np.sum(values <= 0.5)
    np.testing.assert_allclose(est.mean, values[values <= 0.5].mean(), rtol=1e-5)


@pytest.mark.slow
def test_indicators_and_integers_are_statistics():
    est = monte_carlo(lambda key, spec: jax.random.normal(key) > 0, jax.random.key(0), SPEC, num_networks=100)
    assert 0.3 < est.mean < 0.7
    with pytest.raises(ValueError, match="key: expected one whose draws do not depend on the batch"):
        monte_carlo(statistic, jax.random.key(0, impl="rbg"), SPEC, jnp.ones(5))


@pytest.mark.slow
def test_a_run_is_extended(whole):
    run = functools.partial(monte_carlo, statistic, jax.random.key(0), SPEC, jnp.ones(5), batch_size=5)
    progress = []
    parts = run(num_networks=20), run(num_networks=17, first=20, progress=lambda *done: progress.append(done))
    assert progress == [(5, 17), (10, 17), (15, 17), (17, 17)]
    assert_same(jax.tree.map(merge, *parts, is_leaf=lambda node: isinstance(node, Moments)), whole)
    again = jax.tree.map(merge, parts[0], run(num_networks=17), is_leaf=lambda node: isinstance(node, Moments))
    with pytest.raises(AssertionError):  # the wrong networks are not the whole
        assert_same(again, whole)


@pytest.mark.slow
def test_the_last_index_is_that_of_the_last_key():
    def draw(key, spec):
        return jax.random.normal(key)

    key, last = jax.random.key(0), 2**32 - 1
    values = [jax.random.normal(jax.random.fold_in(key, np.uint32(i))) for i in range(last - 4, last + 1)]
    run = draws(draw, key, SPEC, num_networks=5, first=last - 4, batch_size=3)
    indices, parts = zip(*run, strict=True)
    assert indices == (last - 4, last - 1)
    np.testing.assert_allclose(np.concatenate(parts), values, rtol=1e-6)
    est = monte_carlo(draw, key, SPEC, num_networks=5, first=last - 4, batch_size=3)
    assert est.count == 5  # the padding is not counted, though its indices begin at 0 again
    np.testing.assert_allclose(est.mean, np.mean(values), rtol=1e-5)
    _, part = next(iter(draws(draw, key, SPEC, num_networks=2**32, batch_size=3)))
    np.testing.assert_allclose(part, [draw(jax.random.fold_in(key, i), SPEC) for i in range(3)], rtol=1e-6)
    # a chunk on both sides of 2^31
    _, part = next(iter(draws(draw, key, SPEC, num_networks=5, first=2**31 - 2, batch_size=3)))
    ends = [draw(jax.random.fold_in(key, np.uint32(2**31 - 2 + i)), SPEC) for i in range(3)]
    np.testing.assert_allclose(part, ends, rtol=1e-6)


def test_integers_reach_the_moments_as_they_are():
    run = draws(lambda key, spec: jnp.int32(2**24 + 1), jax.random.key(0), SPEC, num_networks=2)
    (_, values), *_ = run
    assert values.dtype == np.int32
    assert np.all(values == 2**24 + 1)


@pytest.mark.slow
def test_the_budget_decides_the_batch(monkeypatch):
    plan = functools.partial(draws, statistic, jax.random.key(0), SPEC, jnp.ones(5), num_networks=37, reduced=True)
    assert plan().batch_size == 37
    per_network = plan().bytes_per_network
    assert per_network > 12 * 12 * 4  # at least the weights
    monkeypatch.setattr(_memory, "_CPU_BUDGET", 10 * per_network)
    assert 5 <= plan().batch_size <= 15
    monkeypatch.setattr(_memory, "_CPU_BUDGET", 1)
    assert plan().batch_size == 1
    monkeypatch.setattr(_program, "memory", lambda mesh: (per_network, 10 * per_network))
    with pytest.raises(ValueError, match=r"spec, batch_size: expected .* to fit into"):
        plan()


@pytest.mark.slow
def test_memory_is_estimated_before_the_one_compilation(monkeypatch):
    compilations = []

    def measured(compiled):
        compilations.append(taken(compiled))
        return compilations[-1]

    def product(key, spec):
        return jnp.sum(jax.random.normal(key, (40, 40)) @ jnp.ones(40))

    traced_once = chex.assert_max_traces(product, n=1)
    taken = _program.bytes_taken
    monkeypatch.setattr(_program, "bytes_taken", measured)
    run = draws(traced_once, jax.random.key(0), SPEC, num_networks=2000)
    assert len(compilations) == 1
    in_chunk = 16 * 2**20 / run.bytes_per_network
    assert 0.7 * in_chunk < run.batch_size < 1.2 * in_chunk
    # an estimate far too low is corrected by what was measured
    monkeypatch.setattr(_program, "estimated_bytes", lambda jaxpr: run.bytes_per_network // 10)
    monkeypatch.setattr(_program, "memory", lambda mesh: (20 * run.bytes_per_network, 10 * run.bytes_per_network))
    assert 8 <= draws(product, jax.random.key(0), SPEC, num_networks=2000).batch_size <= 11
    assert len(compilations) == 3


@pytest.mark.slow
def test_no_function_is_kept_alive():
    alive = []
    for i in range(3):

        def scaled(key, spec, scale=float(i)):
            return jnp.float32(scale)

        monte_carlo(scaled, jax.random.key(0), SPEC, num_networks=3)
        alive.append(weakref.ref(scaled))
        del scaled
    gc.collect()
    assert not any(function() for function in alive)
    assert _program._programs.cache_info().maxsize == 32  # nor, for ever, its program


@dataclasses.dataclass(frozen=True)
class Scaled:
    scale: float
    draw: Callable

    def __call__(self, key, spec):
        return self.scale * self.draw(key)


@pytest.mark.parametrize(
    "make",
    [Scaled, lambda *parts: lambda *law: Scaled(*parts)(*law), lambda *parts: functools.partial(Scaled(*parts))],
    ids=["dataclass", "lambda in a loop", "partial"],
)
@pytest.mark.slow
def test_equal_statistics_share_a_program(make):
    @chex.assert_max_traces(n=1)
    def traced_once(key):
        return jax.random.normal(key)

    for _ in range(3):
        monte_carlo(make(2.0, traced_once), jax.random.key(0), SPEC, num_networks=3)
    with pytest.raises(AssertionError, match="traced"):  # another value is another program
        monte_carlo(make(3.0, traced_once), jax.random.key(0), SPEC, num_networks=3)


class Holder:
    def __init__(self):
        self.value = 1.0

    def method(self, key, spec):
        return jnp.float32(self.value)


def closure():
    cell = 1.0

    def change():
        nonlocal cell
        cell = 2.0

    def inner():
        return jnp.float32(cell)

    return lambda key, spec: inner(), change


def default():
    def function(key, spec, value=1.0):
        return jnp.float32(value)

    return function, lambda: setattr(function, "__defaults__", (2.0,))


def module():
    globals()["GLOBAL"] = 1.0
    return lambda key, spec: jnp.float32(GLOBAL), lambda: globals().update(GLOBAL=2.0)  # noqa: F821


def attribute():
    holder = Holder()
    return lambda key, spec: jnp.float32(holder.value), lambda: setattr(holder, "value", 2.0)


def bound_method():
    holder = Holder()
    return holder.method, lambda: setattr(holder, "value", 2.0)


def array_in_place():
    settings = {"deep": [np.ones(3)]}
    return lambda key, spec: jnp.float32(settings["deep"][0][1]), lambda: settings["deep"][0].fill(2.0)


def partial_argument():
    numbers = [1.0]
    function = functools.partial(lambda key, spec, numbers: jnp.float32(numbers[0]), numbers=numbers)
    return function, lambda: numbers.__setitem__(0, 2.0)


@pytest.mark.parametrize("make", [closure, default, module, attribute, bound_method, array_in_place, partial_argument])
@pytest.mark.slow
def test_a_change_outside_the_arguments_is_seen(make):
    function, change = make()
    run = functools.partial(monte_carlo, function, jax.random.key(0), SPEC, num_networks=2)
    assert run().mean == 1.0
    assert Static(function) == Static(function)
    change()
    assert run().mean == 2.0


def test_statistics_are_compared_exactly():
    def of(value):
        return Static(lambda key, spec: value)

    assert of(1.0) == of(1.0)
    assert of(float("nan")) == of(float("nan"))
    loop: list = [1]
    loop.append(loop)
    assert of(loop) == of(loop)
    for a, b in (
        (0.0, -0.0),
        (1, 1.0),
        (1, True),
        ([1, 2], (1, 2)),
        (np.ones(2), np.ones((2, 1))),
        (Holder(), Holder()),
    ):
        assert of(a) != of(b), (a, b)
        assert of(a) == of(a)
    x = jnp.ones(3)
    assert of(x) == of(x)
    assert of(x) != of(jnp.ones(3))  # compared by identity: it cannot change
    before = of(Holder())
    assert all(before != of(Holder()) for _ in range(9))  # one at the same address is another


@pytest.mark.slow
def test_second_moment_is_the_theory_and_five_percent_more_is_not():
    size = lambda key, spec, x: statistic(key, spec, x)["size"]  # noqa: E731
    est = monte_carlo(size, jax.random.key(1), SPEC, jnp.ones(5), num_networks=16_000)
    theory = 2 * 5 * (1 / 5)  # K d omega^L / d with omega = 1, exact at every width
    assert abs(est.mean - theory) < 4 * est.standard_error
    assert abs(est.mean - 1.05 * theory) > 4 * est.standard_error


@dataclasses.dataclass(frozen=True)
class HoldsArray:
    weights: jax.Array

    def __call__(self, key, spec):
        return self.weights


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_networks": 0}, "num_networks: expected a positive integer, got 0"),
        ({"num_networks": 2.0}, "num_networks: expected a positive integer, got 2.0"),
        ({"first": -1}, "first: expected an integer >= 0, got -1"),
        (
            {"first": 2**32 - 1, "num_networks": 2},
            r"first \+ num_networks: expected at most 2\^32, got 4294967295 \+ 2",
        ),
        ({"mesh": 4}, "mesh: expected .* got int"),
        ({"batch_size": -1}, "batch_size: expected a positive integer"),
        ({"key": 0}, "key: expected a key such as jax.random.key"),
        ({"key": jax.random.PRNGKey(0)}, "key: expected a key such as jax.random.key"),
        ({"statistic": SPEC}, "statistic: expected a function, got NetworkSpec"),
        (
            {"statistic": HoldsArray(jnp.ones(2))},
            "statistic: expected a hashable function, got a HoldsArray; .* operands",
        ),
        ({"statistic": lambda key, spec: key}, "statistic: expected a pytree of real arrays"),
        ({"statistic": lambda key, spec: jnp.complex64(1j)}, "statistic: expected a pytree of real arrays"),
        ({"statistic": lambda key, spec: None}, "statistic: expected a pytree of real arrays"),
    ],
)
def test_bad_arguments(arguments, message):
    valid = {"statistic": lambda key, spec: jax.random.normal(key), "key": jax.random.key(0), "spec": SPEC}
    with pytest.raises(ValueError, match=message):
        monte_carlo(**{**valid, **arguments})
