"""Every benchmark at toy size: contenders compute the same thing, and every goal names contenders."""

import collections
import dataclasses
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mftadv as mf
from benchmarks import harness, plain, tasks, trained
from mftadv import training
from mftadv.attack import Ascent, LinearStarts, RandomStarts, Vertices
from mftadv.spec import fold_in_loop, key_for

POWERS = (1.0, 2.0, math.inf)


@pytest.fixture(autouse=True, scope="module")
def one_thread_of_torch():
    """The threads of torch wait for each other in busy loops, which takes the cores of the other test processes."""
    if harness.HAS_TORCH:
        import torch

        torch.set_num_threads(1)


@pytest.mark.parametrize("name", tasks.TASKS)
@pytest.mark.slow
def test_task(name, unchecked):
    benchmark = dataclasses.replace(tasks.TASKS[name](quick=True), rounds=2)
    record = json.loads(json.dumps(harness.measure(benchmark, judged=False)))
    names = {contender.name for contender in benchmark.contenders}
    assert set(record["times"]) == names
    # one rounding is 1e-7; a wrong gate, a missing bias or another network is off by far more
    assert all(difference < 1e-5 for difference in record["agreement"].values())
    assert len(record["agreement"]) == sum(contender.like is not None for contender in benchmark.contenders)
    if harness.HAS_TORCH:
        assert {goal.ours for goal in benchmark.goals} | {n for g in benchmark.goals for n in g.others} <= names
        assert len(record["ratios"]) == len(benchmark.goals)
    lines = harness.table(name, record)
    assert all(contender in lines for contender in names)


def test_agreement_sees_another_answer():
    answer = lambda shift: lambda: (np.ones((2, 3)), np.ones(2) + shift)  # noqa: E731
    contenders = [harness.Contender(name, answer(shift), like="a") for name, shift in (("a", 0), ("b", 1e-3))]
    assert harness.agreement(harness.Benchmark({}, contenders, [])) == {"a": 0, "b": pytest.approx(1e-3)}


@pytest.mark.parametrize(("limit", "met"), [(0.6, True), (0.4, False), (None, None)])
def test_ratio_is_against_the_fastest(limit, met):
    seconds = {"ours": [1.0, 2.0, 3.0], "slow": [9.0, 9.0, 9.0], "fast": [4.0, 4.0, 4.0]}
    goal = harness.Goal("ours", ("slow", "fast", "absent"), limit)
    busy = {"ours": [6.0, 6.0, 6.0], "slow": [1.0, 1.0, 1.0], "fast": [4.0, 4.0, 4.0]}
    ratio = harness._ratio(goal, seconds, busy, judged=True)
    assert (ratio["other"], ratio["median"], ratio["processor"], ratio["met"]) == ("fast", 0.5, 1.5, met)
    assert ratio["quartiles"] == [0.375, 0.625]
    assert harness._ratio(goal, seconds, busy, judged=False)["met"] is None


@pytest.mark.parametrize("batch", [(), (5,)])
def test_torch_draws_the_same_law(batch):
    pytest.importorskip("torch")
    from benchmarks import peers

    spec = mf.NetworkSpec(40, 30, 50, 3, 1.5, 0.4)
    for gaussian in (peers.normal, peers.scaled_randn):
        network = peers.draw(spec, gaussian, *batch)
        tensors = [network.embedding, network.readout, *network.weights, *network.biases]
        variances = [1 / 40, 1 / 50] + [1.5 / 50] * 3 + [0.4] * 3
        shapes = [(50, 40), (30, 50)] + [(50, 50)] * 3 + [(50,)] * 3
        assert [tuple(values.shape) for values in tensors] == [(*batch, *shape) for shape in shapes]
        for values, variance in zip(tensors, variances, strict=True):
            # the mean square of n Gaussians has relative standard error sqrt(2/n); torch is not seeded, hence 6
            assert abs(float((values**2).mean()) / variance - 1) < 6 * np.sqrt(2 / values.numel())


def linear_problem():
    """A function x -> <a, x>, an input and eps; the loss is eps |a|_{p*} by Hoelder."""
    a, x = jax.random.normal(jax.random.key(0), (2, 64))
    eps = 0.3
    return (
        a,
        x,
        eps,
        {p: eps * float(np.linalg.norm(np.asarray(a), ord=1 / (1 - 1 / p) if p > 1 else np.inf)) for p in POWERS},
    )


@pytest.mark.parametrize("p", POWERS)
@pytest.mark.slow
def test_pgd_by_hand_solves_a_linear_problem(p):
    a, x, eps, loss = linear_problem()
    eta = jax.jit(lambda key: plain.pgd(lambda x: (a @ x)[None], x, eps, p, 2, key, steps=40, restarts=2))(
        jax.random.key(1)
    )
    assert np.linalg.norm(np.asarray(eta, np.float64), ord=p) <= eps * (1 + 1e-6)
    assert 0.999 * loss[p] <= abs(float(a @ eta)) <= loss[p] * (1 + 1e-5)


@pytest.mark.parametrize("p", POWERS)
@pytest.mark.slow
def test_starts_of_pgd_are_uniform_in_the_ball(p):
    d, keys = 5, jax.random.split(jax.random.key(0), 4000)
    points = np.asarray(jax.jit(jax.vmap(lambda key: plain.DESCENT[p][0](key, (d,))))(keys))
    # a share t^d of the ball lies within t times its radius: the d-th power of the norm is uniform
    volume = np.linalg.norm(points, ord=p, axis=1) ** d
    error = 1 / np.sqrt(12 * len(keys))
    assert abs(volume.mean() - 0.5) < 4 * error
    # in the unit ball of p = 1, 2, inf the mean square of a coordinate is 2/((d+1)(d+2)), 1/(d+2), 1/3
    expected = {1.0: 2 / ((d + 1) * (d + 2)), 2.0: 1 / (d + 2), math.inf: 1 / 3}[p]
    squares = (points**2).mean(axis=1)
    assert abs(squares.mean() - expected) < 4 * squares.std() / np.sqrt(len(keys)) < 0.05 * expected


@pytest.mark.parametrize("p", POWERS)
@pytest.mark.slow
def test_libraries_solve_a_linear_problem(p):
    peers = pytest.importorskip("benchmarks.peers")
    a, x, eps, loss = linear_problem()
    ta, tx, sizes = peers.tensor(a), peers.tensor(x)[None], peers.tensor(jnp.full(1, eps))
    for name, (attack, norms) in peers.PGD.items():
        pytest.importorskip(name)
        if p in norms:
            eta = peers.best_of(4, attack, lambda xs: (xs @ ta)[:, None], tx, sizes, p, 2, 200)[0].double()
            assert float(eta.norm(p=p)) <= eps * (1 + 1e-5)
            # the steps of foolbox in the l1 ball go along the gradient, which is no vertex
            assert (0.3 if p == 1 else 0.99) * loss[p] <= abs(float(eta @ ta.double())) <= loss[p] * (1 + 1e-5)


@pytest.mark.parametrize("model", [plain.mlp, plain.conv])
@pytest.mark.slow
def test_torch_computes_the_same_logits(model):
    peers = pytest.importorskip("benchmarks.peers")
    params = plain.draw(trained.MODELS[model], jax.random.key(0))
    params = [(weight, jax.random.normal(jax.random.key(1), bias.shape)) for weight, bias in params]
    xs = trained.digits()[0][:7]
    ours = np.asarray(jax.vmap(model, (None, 0))(params, xs))
    theirs = getattr(peers, model.__name__)(jax.tree.map(peers.tensor, params), peers.tensor(xs))
    np.testing.assert_allclose(harness.to_numpy(theirs), ours, atol=1e-5 * np.abs(ours).max())


@pytest.mark.slow
def test_gradients_are_counted(unchecked):
    valued, pulled = collections.Counter(), collections.Counter()

    def note(counter):
        return lambda x, _: counter.update([x.tobytes()])

    @jax.custom_vjp
    def f(x):
        jax.debug.callback(note(valued), x, x)
        return jnp.tanh(x[:2])

    def backward(x, cotangent):
        jax.debug.callback(note(pulled), x, cotangent)  # a row of many cotangents at one point is called for each
        return (jnp.pad(cotangent, (0, 1)),)

    f.defvjp(lambda x: (jnp.tanh(x[:2]), x), backward)
    attack = mf.Attack((Vertices(1), LinearStarts(1), RandomStarts(2, among=3)), (Ascent(2),))
    x = jnp.array([0.3, -0.2, 0.1])
    attacked = jax.jit(lambda x, key: mf.adversarial_loss(f, x, eps=0.1, p=2, q=2, key=key, attack=attack))
    jax.block_until_ready(attacked(x, jax.random.key(0)))
    jax.effects_barrier()
    counted = pulled.total() + sum(max(0, number - pulled[point]) for point, number in valued.items())
    assert plain.gradients_taken(attack, 2, 3, 2) == counted


@pytest.mark.slow
def test_attacks_on_trained_networks(unchecked):
    with jax.numpy_dtype_promotion("standard"):  # optax promotes
        found = list(trained.against_trained(1, 2, 20, [plain.mlp], [math.inf], libraries=harness.HAS_TORCH))
    assert [(one.training, one.eps) for one in found] == list(itertools.product(trained.TRAININGS, (0.05, 0.2)))
    for one in found:
        assert set(one.losses) >= {"default", "thorough", "PGD 2 x 40", "PGD"}
        assert all(np.all(losses > 0) and losses.shape == (1, 2) for losses in one.losses.values())
        assert np.all(one.ratio("PGD") > 0.9)


@pytest.mark.slow
def test_torch_takes_the_same_training_step(unchecked):
    torch = pytest.importorskip("torch")
    from benchmarks import peers

    spec, key, eps, rate, M, B = mf.NetworkSpec(7, 3, 24, 2, 2.0, 0.1), jax.random.key(3), 0.5, 0.1, 2, 20
    x, y = jax.random.normal(jax.random.key(1), (B, 7)), jnp.arange(B, dtype=jnp.int32) % 3
    config = mf.TrainingConfig(1, rate, eps, attack="fast")
    networks = jax.jit(jax.vmap(mf.init, (0, None)))(jax.random.split(key, M), spec)
    step = jax.jit(jax.vmap(lambda net: training.step(key, training.init(net, config), (x, y), config).network.params))
    ours = jax.tree.leaves(step(networks))
    # the draws of the attack of step 0
    draws = fold_in_loop(key_for("step", key), [[1, 0]])[0]
    normals = jax.random.normal(key_for("adversarial_loss", draws), (B, 7))
    start = peers.tensor(eps * normals / jnp.linalg.norm(normals, axis=-1, keepdims=True))
    theirs, tx, ty = peers.share(networks), peers.tensor(x), peers.tensor(y).long()
    loop = [peers.training_step(one, tx, ty, start, eps, rate) for one in peers.one_by_one(theirs)]
    many = (torch.stack([each] * M) for each in (tx, ty, start))
    bmm = peers.training_step(theirs, *many, eps, rate)
    for i, before in enumerate(jax.tree.leaves(networks.params)):
        update = np.asarray(ours[i] - before)
        assert np.abs(update).max() > 1e-3
        of = lambda net, i=i: (*net.weights, *net.biases)[i]  # noqa: E731
        for after in (torch.stack([of(net) for net in loop]), of(bmm)):
            theirs_too = harness.to_numpy(after) - np.asarray(before)
            np.testing.assert_allclose(theirs_too, update, atol=1e-4 * np.abs(update).max())
