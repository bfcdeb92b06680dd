"""The tasks that are timed, at full and at toy size."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

import mftadv as mf
from benchmarks.harness import (
    FAST_KEY,
    HAS_TORCH,
    Benchmark,
    Contender,
    Goal,
    divided,
    entries_of,
    hardware_probes,
    normal_probe,
    shapes_of,
)
from benchmarks.plain import draw, mlp, pgd
from benchmarks.training import matrix_free_training, training_steps
from mftadv.attack import Ascent, RandomStarts

DEFAULT_KEY = "threefry2x32"
NORMALS = {FAST_KEY: "4x32 normals", DEFAULT_KEY: "2x32 normals"}


def dense_draw(quick: bool) -> Benchmark:
    """One wide network drawn."""
    spec = mf.NetworkSpec(8, 1, 16, 2, 2.0, 0.1) if quick else mf.NetworkSpec(1000, 1, 5000, 10, 2.0, 0.1)
    count = entries_of(spec)
    init, keys = jax.jit(mf.init), {impl: jax.random.key(0, impl=impl) for impl in (FAST_KEY, DEFAULT_KEY)}
    contenders = [
        Contender(f"ours, {impl}", lambda key=key: init(key, spec), {NORMALS[impl]: count})
        for impl, key in keys.items()
    ]
    if HAS_TORCH:
        from benchmarks import peers

        contenders += [
            Contender("torch empty().normal_()", lambda: peers.draw(spec)),
            Contender("torch randn() * scale", lambda: peers.draw(spec, peers.scaled_randn)),
        ]
    torch_names = tuple(c.name for c in contenders[2:])
    goals = [Goal(f"ours, {FAST_KEY}", torch_names, 1.1), Goal(f"ours, {DEFAULT_KEY}", torch_names)]
    probes = {NORMALS[impl]: normal_probe(impl, (spec.width, spec.width)) for impl in keys}
    return Benchmark(shapes_of(spec), contenders, goals, probes, rounds=5)


def one_network(quick: bool) -> Benchmark:
    """J and a of one input, and of a block of inputs, on one wide network."""
    spec, B = (mf.NetworkSpec(8, 1, 16, 2, 2.0, 0.1), 4) if quick else (mf.NetworkSpec(1000, 1, 5000, 10, 2.0, 0.1), 32)
    network = jax.block_until_ready(jax.jit(mf.init)(jax.random.key(0, impl=FAST_KEY), spec))
    x = jax.random.normal(jax.random.key(1), (B, spec.input_dim))
    x0 = x[0]
    ours, one, block = jax.jit(mf.linear_representation), "ours, 1 input", f"ours, {B} inputs"
    # forward and backward read every entry once, and multiply and add with it once for each input
    work = {"bytes": 2 * 4 * entries_of(spec), "flops": 2 * 2 * entries_of(spec)}
    block_work = {**work, "flops": B * work["flops"]}
    contenders = [
        Contender(one, lambda: ours(network, x0), work),
        Contender(block, lambda: ours(network, x), block_work),
    ]
    names: dict[str, Callable] = {}
    if HAS_TORCH:
        from benchmarks import peers

        theirs, tx, tx0 = peers.share(network), peers.tensor(x), peers.tensor(x0)
        names = {"autograd": peers.autograd, "by hand": peers.hand, "func.vjp": peers.vjp, "func.jacrev": peers.jacrev}
        contenders += [
            Contender(f"torch {name}, 1 input", lambda function=function: function(theirs, tx0), work, one)
            for name, function in names.items()
        ]
        by_hand = lambda: peers.hand_block(theirs, tx)  # noqa: E731
        contenders.append(Contender(f"torch by hand, {B} inputs", by_hand, block_work, block))
    goals = [
        Goal(one, tuple(f"torch {name}, 1 input" for name in names), 1.3),
        Goal(block, (one,), 4.0),
        Goal(block, (f"torch by hand, {B} inputs",)),
    ]
    return Benchmark({**shapes_of(spec), "B": B}, contenders, goals, hardware_probes(quick))


def many_networks(quick: bool) -> Benchmark:
    """J and a of one input on many networks in one batch, and their draw apart."""
    spec, num_networks = (mf.NetworkSpec(8, 3, 16, 2, 2.0, 0.1), 4) if quick else (_MANY, 256)
    keys = jax.random.split(jax.random.key(0, impl=FAST_KEY), num_networks)
    init = jax.jit(jax.vmap(mf.init, (0, None)))
    networks = jax.block_until_ready(init(keys, spec))
    x = jax.random.normal(jax.random.key(1), (spec.input_dim,))
    ours = jax.jit(jax.vmap(mf.linear_representation, (0, None)))
    one_by_one = lambda many, x: jax.lax.map(lambda one: mf.linear_representation(one, x), many)  # noqa: E731
    count = num_networks * entries_of(spec)
    work = {"bytes": 2 * 4 * count, "flops": 2 * (1 + spec.output_dim) * count}
    normals = NORMALS[FAST_KEY]
    contenders = [
        Contender("ours, vmap", lambda: ours(networks, x), work),
        Contender("ours, map, a device a core", divided(one_by_one, networks, x), work, "ours, vmap"),
        Contender("ours, draw of the batch", lambda: init(keys, spec), {normals: count}),
    ]
    if HAS_TORCH:
        from benchmarks import peers

        theirs, tx = peers.share(networks), peers.tensor(x)
        ways = {
            "autograd, loop over networks and outputs": lambda: peers.each(peers.autograd, theirs, tx),
            "by hand, loop over networks": lambda: peers.each(peers.hand, theirs, tx),
            "by hand, bmm": lambda: peers.hand_bmm(theirs, tx),
            "func.vmap(jacrev)": lambda: peers.vmap_jacrev(theirs, tx),
        }
        contenders += [Contender(f"torch {name}", run, work, "ours, vmap") for name, run in ways.items()]
        contenders.append(Contender("torch, draw of the batch", lambda: peers.draw(spec, peers.normal, num_networks)))
    goals = [
        Goal("ours, vmap", ("torch autograd, loop over networks and outputs",), 0.25),
        Goal("ours, vmap", ("torch by hand, loop over networks",), 1.0),
        Goal("ours, vmap", ("torch by hand, bmm",), 1.0),
        Goal("ours, vmap", ("torch func.vmap(jacrev)",), 1.0),
        Goal("ours, map, a device a core", ("torch by hand, bmm",), 0.85),
        Goal("ours, draw of the batch", ("torch, draw of the batch",)),
    ]
    probes = {**hardware_probes(quick), normals: normal_probe(FAST_KEY, (num_networks, spec.width, spec.width))}
    return Benchmark({**shapes_of(spec), "networks": num_networks}, contenders, goals, probes)


def monte_carlo(quick: bool) -> Benchmark:
    """The second moment of J over networks, from keys to error bars."""
    spec, num_networks = (mf.NetworkSpec(8, 3, 16, 2, 2.0, 0.1), 8) if quick else (_MANY, 256)
    x, key = jnp.ones(spec.input_dim), jax.random.key(0, impl=FAST_KEY)
    count = num_networks * entries_of(spec)
    normals = NORMALS[FAST_KEY]
    work = {"flops": 2 * (1 + spec.output_dim) * count, normals: count}

    def ours():
        estimate = mf.monte_carlo(_second_moment, key, spec, x, num_networks=num_networks)
        return estimate.mean, estimate.variance

    contenders = [Contender("ours", ours, work)]
    if HAS_TORCH:
        from benchmarks import peers

        tx = peers.tensor(x)
        theirs = lambda: peers.second_moment(spec, tx, num_networks)  # noqa: E731
        contenders.append(Contender("torch loop, draw and by hand", theirs, work))
    goals = [Goal("ours", ("torch loop, draw and by hand",))]
    probes = {
        "flops": hardware_probes(quick)["flops"],
        normals: normal_probe(FAST_KEY, (num_networks, spec.width, spec.width)),
    }
    return Benchmark({**shapes_of(spec), "networks": num_networks}, contenders, goals, probes, rounds=7)


def sweep_of_small_cells(quick: bool) -> Benchmark:
    """The second moment of J at many weight variances: `mf.sweep` against one jitted function in a loop."""
    spec, num_cells, num_networks = (
        (mf.NetworkSpec(8, 3, 16, 2), 4, 4) if quick else (mf.NetworkSpec(16, 2, 32, 3), 1000, 16)
    )
    x, key = jnp.ones(spec.input_dim), jax.random.key(0, impl=FAST_KEY)
    variances = [1 + i / num_cells for i in range(num_cells)]

    @jax.jit
    def one(key, spec, x):
        keys = jax.lax.map(lambda i: jax.random.fold_in(key, i), jnp.arange(num_networks))
        return jnp.mean(jax.vmap(lambda key: _second_moment(key, spec, x))(keys))

    def by_hand():
        return jnp.stack([one(key, spec.replace(weight_variance=s), x) for s in variances])

    def ours():
        found = mf.sweep(_second_moment, key, spec, {"weight_variance": variances}, x, num_networks=num_networks)
        return found["value"].values

    count = num_cells * num_networks * entries_of(spec)
    contenders = [
        Contender("ours", ours, {NORMALS[FAST_KEY]: count}),
        Contender("jitted, in a loop", by_hand, {}, "ours"),
    ]
    goals = [Goal("ours", ("jitted, in a loop",), 1 / 0.9)]
    probes = {NORMALS[FAST_KEY]: normal_probe(FAST_KEY, (num_networks, spec.width, spec.width))}
    return Benchmark(
        {**shapes_of(spec), "cells": num_cells, "networks": num_networks}, contenders, goals, probes, rounds=5
    )


def sweep_of_networks(quick: bool) -> Benchmark:
    """J and a of many networks with their draw: `mf.sweep` with its defaults, of an engine that picks itself."""
    spec, num_networks = (mf.NetworkSpec(8, 3, 16, 2, 2.0, 0.1), 4) if quick else (_MANY, 256)
    x, key = jnp.ones(spec.input_dim), jax.random.key(0, impl=FAST_KEY)

    def ours():
        found = mf.sweep(_auto_representation, key, spec, {"weight_variance": [2.0]}, x, num_networks=num_networks)
        return found["0"].values, found["1"].values

    contenders = [Contender("ours", ours)]
    if HAS_TORCH:
        from benchmarks import peers

        tx = peers.tensor(x)
        theirs = lambda: peers.second_moment(spec, tx, num_networks)  # noqa: E731
        contenders.append(Contender("torch loop, draw and by hand", theirs))
    goals = [Goal("ours", ("torch loop, draw and by hand",), 0.2)]
    return Benchmark({**shapes_of(spec), "networks": num_networks}, contenders, goals, rounds=5)


def matrix_free(quick: bool) -> Benchmark:
    """J and a of many wide networks, each drawn as it is multiplied: against torch's draw and backward pass of one."""
    specs = {K: mf.NetworkSpec(8, K, 16, 1) if quick else mf.NetworkSpec(1000, K, 5000, 10) for K in (1, 10)}
    num_networks = 8 if quick else 256
    keys = jax.random.split(jax.random.key(0, impl=FAST_KEY), num_networks)
    x = jax.random.normal(jax.random.key(1), (specs[1].input_dim,))
    # a few networks at a time stay in a processor's caches
    ours = jax.jit(lambda keys, spec, x: jax.lax.map(lambda key: _representation(key, spec, x), keys, batch_size=8))
    names = {K: f"ours, {num_networks} networks, K={K}" for K in specs}
    counts = {K: num_networks * _matrix_free_normals(spec) for K, spec in specs.items()}
    contenders = [
        Contender(names[K], lambda spec=spec: ours(keys, spec, x), {NORMALS[FAST_KEY]: counts[K]})
        for K, spec in specs.items()
    ]
    draws = {impl: f"only their normals, {impl}, K=1" for impl in (FAST_KEY, DEFAULT_KEY, "philox4x32")}
    contenders += [Contender(name, normal_probe(impl, (counts[1],)).run) for impl, name in draws.items()]
    goals = [Goal(names[1], tuple(draws.values()), 2.0), Goal(names[10], (names[1],), 10.0)]
    if HAS_TORCH:
        from benchmarks import peers

        tx = peers.tensor(x)
        theirs = "torch, draw and autograd, 1 network, K=1"
        contenders.append(Contender(theirs, lambda: peers.autograd(peers.draw(specs[1]), tx)))
        goals.append(Goal(names[1], (theirs,), num_networks / 1000))
    probes = {NORMALS[FAST_KEY]: normal_probe(FAST_KEY, (counts[1],))}
    return Benchmark({**shapes_of(specs[1]), "networks": num_networks}, contenders, goals, probes, rounds=7)


def width_without_matrices(quick: bool) -> Benchmark:
    """J and a of one network as width and depth grow."""
    sizes = (
        [(32, 1), (64, 1), (32, 2)] if quick else [(10**6, 10), (3 * 10**5, 10), (10**5, 10), (10**5, 20), (10**5, 40)]
    )
    specs = {size: mf.NetworkSpec(1000, 1, *size) for size in sizes}
    key, x = jax.random.key(0, impl=FAST_KEY), jax.random.normal(jax.random.key(1), (1000,))
    programs = {size: jax.jit(_representation).lower(key, spec, x).compile() for size, spec in specs.items()}
    names = {(N, L): f"ours, N={N} L={L}" for N, L in specs}
    normals = NORMALS[FAST_KEY]
    contenders = [
        Contender(
            names[size],
            lambda size=size: programs[size](key, specs[size], x),
            {normals: _matrix_free_normals(specs[size])},
        )
        for size in sizes
    ]
    largest = specs[sizes[0]]
    draw = f"only its normals, N={largest.width} L={largest.depth}"
    probe = normal_probe(FAST_KEY, (_matrix_free_normals(largest),))
    contenders.append(Contender(draw, probe.run))
    memory = programs[sizes[0]].memory_analysis()
    mebibytes = (memory.temp_size_in_bytes + memory.output_size_in_bytes) // 2**20 if memory else 0
    width, depth = sizes[-1][0], sizes[0][1]
    growth = {
        "N": {names[size]: size[0] for size in sizes if size[1] == depth},
        "L": {names[size]: size[1] for size in sizes if size[0] == width},
    }
    shapes = {"d": 1000, "K": 1, "MiB of the widest": mebibytes}
    return Benchmark(shapes, contenders, [Goal(names[sizes[0]], (draw,), 2.0)], {normals: probe}, 7, growth)


def attack_one(quick: bool) -> Benchmark:
    """Twenty steps of attack on one wide network: matrix-free with its draw, and dense on given weights."""
    spec = mf.NetworkSpec(8, 1, 16, 1) if quick else mf.NetworkSpec(1000, 1, 5000, 10)
    key, x, eps = jax.random.key(0, impl=FAST_KEY), jax.random.normal(jax.random.key(1), (spec.input_dim,)), 1.0
    capacity = mf.capacity_for(spec, adversarial_loss=1, attack=_TWENTY)

    def drawn(key, spec, x, eps):
        return _attacked(mf.init(key, spec, engine="matrix_free", capacity=capacity), x, eps, key)

    network = jax.block_until_ready(jax.jit(mf.init)(key, spec))
    matrix_free, dense = jax.jit(drawn), jax.jit(_attacked)
    # each of 21 evaluations of value and gradient is a pass up and a pass down over every entry
    work = {"bytes": 2 * 21 * 4 * entries_of(spec), "flops": 2 * 2 * 21 * entries_of(spec)}
    contenders = [
        Contender("ours, matrix-free, draw and attack", lambda: matrix_free(key, spec, x, eps)),
        Contender("ours, dense, attack", lambda: dense(network, x, eps, key), work),
    ]
    if HAS_TORCH:
        from benchmarks import peers

        theirs, tx = peers.share(network), peers.tensor(x)
        contenders += [
            Contender("torch, draw and attack", lambda: peers.attack(peers.draw(spec), tx, eps, 20)),
            Contender("torch, attack", lambda: peers.attack(theirs, tx, eps, 20), work),
        ]
    goals = [
        Goal("ours, matrix-free, draw and attack", ("torch, draw and attack",), 1 / 25),
        Goal("ours, dense, attack", ("torch, attack",), 1.2),
    ]
    return Benchmark({**shapes_of(spec), "steps": 20}, contenders, goals, hardware_probes(quick), rounds=5)


def attack_many(quick: bool) -> Benchmark:
    """Twenty steps of attack on many networks in one batch."""
    spec, num_networks = (mf.NetworkSpec(8, 1, 16, 1), 4) if quick else (mf.NetworkSpec(64, 1, 256, 10), 256)
    keys = jax.random.split(jax.random.key(0, impl=FAST_KEY), num_networks)
    networks = jax.block_until_ready(jax.jit(jax.vmap(mf.init, (0, None)))(keys, spec))
    x, eps = jax.random.normal(jax.random.key(1), (spec.input_dim,)), 1.0
    one = lambda pair: _attacked(pair[0], x, eps, pair[1])  # noqa: E731
    # a network that stays in a processor's caches is read from memory once, not 42 times
    ours = jax.jit(lambda networks, keys: jax.lax.map(one, (networks, keys)))
    together = jax.jit(lambda networks, keys: jax.vmap(one)((networks, keys)))
    work = {"flops": 2 * 2 * 21 * num_networks * entries_of(spec)}
    contenders = [
        Contender("ours, map", lambda: ours(networks, keys), work),
        Contender("ours, vmap", lambda: together(networks, keys), work),
    ]
    if HAS_TORCH:
        from benchmarks import peers

        theirs, tx = peers.share(networks), peers.tensor(x)
        txs = tx.expand(num_networks, -1)
        loop = lambda: peers.each(lambda net, x: peers.attack(net, x, eps, 20), theirs, tx)  # noqa: E731
        batched = lambda: peers.attack(theirs, txs, eps, 20, peers.apply_bmm)  # noqa: E731
        contenders += [
            Contender("torch, loop over networks", loop, work),
            Contender("torch, bmm", batched, work),
        ]
    goals = [
        Goal("ours, map", ("torch, loop over networks",), 1 / 3),
        Goal("ours, map", ("torch, bmm",), 1.0),
        Goal("ours, vmap", ("torch, bmm",)),
    ]
    shapes = {**shapes_of(spec), "networks": num_networks, "steps": 20}
    return Benchmark(shapes, contenders, goals, hardware_probes(quick), rounds=7)


def first_call(quick: bool) -> Benchmark:
    """Tracing, compiling and running for the first time: an attack and a Jacobian of a plain function."""
    d, width, K = (8, 16, 3) if quick else (64, 128, 10)
    params = draw(((width, d), (width, width), (K, width)), jax.random.key(0))
    x, key = jax.random.normal(jax.random.key(1), (d,)), jax.random.key(2)

    def first(function, *arguments):
        compiled = jax.jit(lambda params, *rest: function(functools.partial(mlp, params), *rest))

        def run():
            if not quick:  # a process of tests goes on with what it has compiled
                jax.clear_caches()
            return compiled(params, *arguments)

        return run

    contenders, goals = [], []
    for p in (1.0,) if quick else (1.0, 2.0, math.inf):
        ours, theirs = f"ours, default attack, p={p:g}", f"PGD by hand, 2 x 40, p={p:g}"
        attack = lambda f, x, eps, key, p=p: mf.adversarial_loss(f, x, eps=eps, p=p, q=2, key=key)  # noqa: E731
        by_hand = lambda f, x, eps, key, p=p: pgd(f, x, eps, p, 2, key, steps=40, restarts=2)  # noqa: E731
        contenders += [Contender(ours, first(attack, x, 0.1, key)), Contender(theirs, first(by_hand, x, 0.1, key))]
        goals.append(Goal(ours, (theirs,), 2.0))

    def by_jacrev(f, x):
        jacobian, output = jax.jacrev(f)(x), f(x)
        return jacobian, output - jacobian @ x, output

    contenders += [
        Contender("ours, J and a", first(mf.linear_representation, x)),
        Contender("jax.jacrev", first(lambda f, x: jax.jacrev(f)(x), x)),
        Contender("jax.jacrev, f and a", first(by_jacrev, x)),
    ]
    goals += [Goal("ours, J and a", ("jax.jacrev",), 1.5), Goal("ours, J and a", ("jax.jacrev, f and a",))]
    return Benchmark({"d": d, "width": width, "K": K}, contenders, goals, rounds=7)


TASKS = {
    task.__name__: task
    for task in (
        *(dense_draw, one_network, many_networks, monte_carlo, sweep_of_small_cells, sweep_of_networks),
        *(
            matrix_free,
            width_without_matrices,
            attack_one,
            attack_many,
            training_steps,
            matrix_free_training,
            first_call,
        ),
    )
}

_TWENTY = mf.Attack((RandomStarts(1),), (Ascent(20),))


def _attacked(network: mf.Network, x: Array, eps: float, key: Key[Array, ""]) -> tuple[Array, Array]:
    found = mf.adversarial_loss(network, x, eps=eps, p=2, q=2, key=key, attack=_TWENTY)
    return found.value, found.perturbation


_MANY = mf.NetworkSpec(64, 10, 256, 10, 2.0, 0.1)


def _second_moment(key: Key[Array, ""], spec: mf.NetworkSpec, x: Array) -> Array:
    return jnp.mean(mf.linear_representation(mf.init(key, spec), x).jacobian ** 2)


def _representation(key: Key[Array, ""], spec: mf.NetworkSpec, x: Array) -> tuple[Array, Array]:
    """J and a of a matrix-free network."""
    net = mf.init(key, spec, engine="matrix_free", capacity=mf.capacity_for(spec, linear_representation=1))
    rep = mf.linear_representation(net, x)
    return rep.jacobian, rep.shift


def _auto_representation(key: Key[Array, ""], spec: mf.NetworkSpec, x: Array) -> tuple[Array, Array]:
    """J and a by the engine that costs less."""
    net = mf.init(key, spec, engine="auto", capacity=mf.capacity_for(spec, linear_representation=1))
    rep = mf.linear_representation(net, x)
    return rep.jacobian, rep.shift


def _matrix_free_normals(spec: mf.NetworkSpec) -> int:
    """How many normals J and a take: L + 1 vectors up, K (L + 1) down, J and f themselves; a round number."""
    d, K, N, L = spec.input_dim, spec.output_dim, spec.width, spec.depth
    return -(-((1 + K) * N * (L + 1) + K * (d + 1)) // 1024) * 1024
