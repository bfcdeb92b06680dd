"""The tasks that are timed, at full and at toy size."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

import mftadv as mf
from benchmarks.harness import HAS_TORCH, Benchmark, Contender, Goal, hardware_probes, normal_probe

FAST_KEY, DEFAULT_KEY = "threefry4x32", "threefry2x32"
NORMALS = {FAST_KEY: "4x32 normals", DEFAULT_KEY: "2x32 normals"}


def dense_draw(quick: bool) -> Benchmark:
    """One wide network drawn."""
    spec = mf.NetworkSpec(8, 1, 16, 2, 2.0, 0.1) if quick else mf.NetworkSpec(1000, 1, 5000, 10, 2.0, 0.1)
    count = _entries(spec)
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
    return Benchmark(_shapes(spec), contenders, goals, probes, rounds=5)


def one_network(quick: bool) -> Benchmark:
    """J and a of one input, and of a block of inputs, on one wide network."""
    spec, B = (mf.NetworkSpec(8, 1, 16, 2, 2.0, 0.1), 4) if quick else (mf.NetworkSpec(1000, 1, 5000, 10, 2.0, 0.1), 32)
    network = jax.block_until_ready(jax.jit(mf.init)(jax.random.key(0, impl=FAST_KEY), spec))
    x = jax.random.normal(jax.random.key(1), (B, spec.input_dim))
    x0 = x[0]
    ours, one, block = jax.jit(mf.linear_representation), "ours, 1 input", f"ours, {B} inputs"
    # forward and backward read every entry once, and multiply and add with it once for each input
    work = {"bytes": 2 * 4 * _entries(spec), "flops": 2 * 2 * _entries(spec)}
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
    return Benchmark({**_shapes(spec), "B": B}, contenders, goals, hardware_probes(quick))


def many_networks(quick: bool) -> Benchmark:
    """J and a of one input on many networks in one batch, and their draw apart."""
    spec, num_networks = (mf.NetworkSpec(8, 3, 16, 2, 2.0, 0.1), 4) if quick else (_MANY, 256)
    keys = jax.random.split(jax.random.key(0, impl=FAST_KEY), num_networks)
    init = jax.jit(jax.vmap(mf.init, (0, None)))
    networks = jax.block_until_ready(init(keys, spec))
    x = jax.random.normal(jax.random.key(1), (spec.input_dim,))
    ours = jax.jit(jax.vmap(mf.linear_representation, (0, None)))
    # a few networks at a time stay in a processor's caches
    mapped = jax.jit(lambda many, x: jax.lax.map(lambda one: mf.linear_representation(one, x), many, batch_size=4))
    count = num_networks * _entries(spec)
    work = {"bytes": 2 * 4 * count, "flops": 2 * (1 + spec.output_dim) * count}
    normals = NORMALS[FAST_KEY]
    contenders = [
        Contender("ours, vmap", lambda: ours(networks, x), work),
        Contender("ours, map of vmap by 4", lambda: mapped(networks, x), work, "ours, vmap"),
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
        Goal("ours, map of vmap by 4", ("torch by hand, bmm",)),
        Goal("ours, draw of the batch", ("torch, draw of the batch",)),
    ]
    probes = {**hardware_probes(quick), normals: normal_probe(FAST_KEY, (num_networks, spec.width, spec.width))}
    return Benchmark({**_shapes(spec), "networks": num_networks}, contenders, goals, probes)


def monte_carlo(quick: bool) -> Benchmark:
    """The second moment of J over networks, from keys to error bars."""
    spec, num_networks = (mf.NetworkSpec(8, 3, 16, 2, 2.0, 0.1), 8) if quick else (_MANY, 256)
    x, key = jnp.ones(spec.input_dim), jax.random.key(0, impl=FAST_KEY)
    count = num_networks * _entries(spec)
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
    return Benchmark({**_shapes(spec), "networks": num_networks}, contenders, goals, probes, rounds=7)


TASKS = {task.__name__: task for task in (dense_draw, one_network, many_networks, monte_carlo)}

_MANY = mf.NetworkSpec(64, 10, 256, 10, 2.0, 0.1)


def _second_moment(key: Key[Array, ""], spec: mf.NetworkSpec, x: Array) -> Array:
    return jnp.mean(mf.linear_representation(mf.init(key, spec), x).jacobian ** 2)


def _shapes(spec: mf.NetworkSpec) -> dict[str, int]:
    return {"d": spec.input_dim, "K": spec.output_dim, "N": spec.width, "L": spec.depth}


def _entries(spec: mf.NetworkSpec) -> int:
    """The number of entries of all matrices of a network."""
    return spec.width * (spec.input_dim + spec.output_dim + spec.width * spec.depth)
