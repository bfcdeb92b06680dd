"""Adversarial training of many networks, timed."""

import jax
import jax.numpy as jnp
import numpy as np

import mftadv as mf
from benchmarks.harness import (
    FAST_KEY,
    HAS_TORCH,
    Benchmark,
    Contender,
    Goal,
    divided,
    entries_of,
    flop_probe,
    normal_probe,
    shapes_of,
    to_numpy,
)
from mftadv import training
from mftadv.attack import LinearStarts, PowerMethod
from mftadv.training import State, TrainingConfig

_STEPS = 20  # of the training whose accuracy is compared


def training_steps(quick: bool) -> Benchmark:
    """Steps of adversarial training, each with a batch, an attack of five steps, and a step of gradient descent."""
    spec = mf.NetworkSpec(64, 10, 16, 1) if quick else mf.NetworkSpec(64, 10, 256, 10)
    num_networks, steps = (3, 2) if quick else (16, 2)
    inputs = mf.load_inputs("digits", 60 if quick else 512, seed=0)
    batch, x, y = 20 if quick else 128, jnp.asarray(inputs.values, jnp.float32), jnp.asarray(inputs.labels, jnp.int32)
    config = TrainingConfig(_STEPS, 0.02, 0.8, batch_size=batch, attack="fast")
    keys = jax.random.split(jax.random.key(0, impl=FAST_KEY), num_networks)
    networks = jax.jit(jax.vmap(mf.init, (0, None)))(keys, spec)
    states = jax.block_until_ready(jax.jit(jax.vmap(lambda network: training.init(network, config)))(networks))

    def trained(key, state, count):
        return jax.lax.fori_loop(0, count, lambda _, state: training.step(key, state, (x, y), config), state)

    def first_and_last(states: State):
        weights = jax.tree.leaves(states.network.params.weights)
        return weights[0], weights[-1], states

    @jax.jit
    def accuracy(networks):
        return jax.vmap(lambda network: jnp.mean(jnp.argmax(mf.apply(network, x), -1) == y))(networks)

    def of_all(states, count):
        return first_and_last(jax.vmap(trained, (0, 0, None))(keys, states, count))

    together = jax.jit(of_all).lower(states, steps).compile()
    # a network that stays in a processor's caches is read from memory once
    one_by_one = lambda pairs, count: first_and_last(jax.lax.map(lambda pair: trained(pair[0], pair[1], count), pairs))  # noqa: E731
    mapped = jax.jit(one_by_one)
    # f(x), 6 differences, 5 gradients in eta, and the loss at the best; then two gradients in the weights and in h
    inside = 2 * (2 * spec.depth - 1) * spec.width**2 + 2 * spec.width * spec.output_dim
    work = {"flops": 2 * num_networks * steps * batch * (13 * entries_of(spec) + inside)}
    contenders = [
        Contender("ours, vmap", lambda: together(states, steps), work),
        Contender("ours, map", lambda: mapped((keys, states), steps), work, "ours, vmap"),
        Contender("ours, map, a device a core", divided(one_by_one, (keys, states), steps), work, "ours, vmap"),
    ]
    outcomes = {f"accuracy after {_STEPS} steps, ours": lambda: accuracy(together(states, _STEPS)[-1].network)}
    memory = together.memory_analysis()
    shapes = {**shapes_of(spec), "networks": num_networks, "B": batch, "attack steps": 5, "steps": steps}
    if memory:
        shapes["MiB of ours"] = (memory.temp_size_in_bytes + memory.output_size_in_bytes) // 2**20
    if HAS_TORCH:
        from benchmarks import peers

        theirs, tx, ty = peers.share(networks), peers.tensor(x), peers.tensor(y).long()
        options = {"eps": config.eps, "rate": config.learning_rate, "batch": batch}
        each = peers.one_by_one(theirs)
        by_loop = lambda count: [peers.train(one, tx, ty, steps=count, **options) for one in each]  # noqa: E731
        together_there = lambda: peers.train(theirs, tx, ty, steps=steps, **options)  # noqa: E731
        contenders += [
            Contender("torch, loop over networks", lambda: by_loop(steps), work),
            Contender("torch, bmm", together_there, work),
        ]

        def their_accuracy():
            right = [peers.apply_block(one, tx).argmax(-1) == ty for one in by_loop(_STEPS)]
            return np.stack([to_numpy(each).mean() for each in right])

        outcomes[f"accuracy after {_STEPS} steps, torch"] = their_accuracy
    goals = [Goal("ours, vmap", ("torch, loop over networks",), 0.8), Goal("ours, vmap", ("torch, bmm",))]
    goals.append(Goal("ours, map", ("torch, loop over networks",)))
    goals.append(Goal("ours, map, a device a core", ("torch, loop over networks",), 0.8))
    goals.append(Goal("ours, map, a device a core", ("torch, bmm",)))
    probes = {"flops": flop_probe(64 if quick else 1024)}
    return Benchmark(shapes, contenders, goals, probes, rounds=5, outcomes=outcomes)


def matrix_free_training(quick: bool) -> Benchmark:
    """A step of adversarial training without matrices, at the end of fifty: each query costs the memory of all."""
    spec = mf.NetworkSpec(4, 1, 64, 1) if quick else mf.NetworkSpec(100, 1, 100_000, 5)
    steps = 2 if quick else 50
    attack = mf.Attack((LinearStarts(2),), (PowerMethod(1),))
    x = jax.random.normal(jax.random.key(1), (1, spec.input_dim))
    config = TrainingConfig(steps, 1e-6, 1.0, standard_loss=None, attack=attack, warm_start=True, evaluate_every=steps)
    capacity = training.queries_of_training(spec, config, 1, 1)
    key = jax.random.key(0, impl=FAST_KEY)
    begin = jax.jit(lambda key: training.begin(key, spec, (x, None), config, (x, None), "matrix_free").state)
    # The state is given away to the step, which changes it in its place.
    step = jax.jit(lambda state: training.step(key, state, (x, None), config), donate_argnums=0)
    program = step.lower(jax.eval_shape(begin, key)).compile()
    holder = [begin(key)]

    def ours():
        holder[0] = program(holder[0])
        return holder[0].norm_change, holder[0].perturbations

    # an input and two differences, as many cotangents; each draws a vector for every layer
    normals = 6 * spec.depth * spec.width
    contenders = [
        Contender("ours, one step", ours, {f"normals, {FAST_KEY}": normals}),
        Contender("only its normals", normal_probe(FAST_KEY, (normals,)).run),
    ]
    shapes = {**shapes_of(spec), "inputs": capacity[0], "cotangents": capacity[1]}
    if memory := program.memory_analysis():
        shapes["MiB"] = (memory.argument_size_in_bytes + memory.temp_size_in_bytes) // 2**20
    goals = [Goal("ours, one step", ("only its normals",), 10.0)]
    return Benchmark(shapes, contenders, goals, {f"normals, {FAST_KEY}": normal_probe(FAST_KEY, (normals,))}, rounds=5)
