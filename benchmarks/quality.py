"""How good the attacks are: against exact values on tiny networks, and against other attacks on wide and trained ones.

python -m benchmarks.quality
"""

import argparse
import dataclasses
import functools
import importlib.util
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import mftadv as mf
from benchmarks.harness import environment, to_numpy
from benchmarks.plain import gradients_taken
from mftadv import oracle

PRESETS = ("default", "thorough")
PAIRS = tuple(itertools.product((1.0, math.inf), repeat=2))
SIZES = (0.1, 1.0)  # eps / |x|_p
TINY = ((4, 3, 6, 2), (6, 2, 6, 2), (5, 1, 12, 1), (6, 3, 4, 3))  # d, K, N, L
WIDE = mf.NetworkSpec(100, 4, 800, 5)
HAS_PEERS = all(importlib.util.find_spec(name) for name in ("torchattacks", "foolbox"))


@dataclasses.dataclass(frozen=True)
class Reached:
    """What part of the exact loss an attack reaches on each network, and in how many regions of the ball it had to."""

    attack: str | mf.Attack
    shape: tuple[int, int, int, int]
    p: float
    q: float
    size: float
    ratios: np.ndarray
    regions: np.ndarray


def against_exact(
    shape: tuple[int, int, int, int], num_networks: int, attacks: Sequence[Any] = PRESETS
) -> Iterator[Reached]:
    """Attack networks with biases at one input each, in balls of |x|_p/10 and |x|_p; 0 of 0 counts as 1."""
    spec = mf.NetworkSpec(*shape, 2.0, 0.5)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(num_networks))
    networks = jax.jit(jax.vmap(mf.init, (0, None)))(keys, spec)
    axes = jax.tree.map(lambda leaf: 0 if leaf.ndim else None, networks)
    apart = [jax.tree.map(lambda leaf, i=i: leaf[i] if leaf.ndim else leaf, networks) for i in range(num_networks)]
    xs = jax.random.normal(jax.random.key(1), (num_networks, spec.input_dim))
    for p, q in PAIRS:
        radii = {size: size * mf.vector_norm(xs, p) for size in SIZES}
        arguments = {
            size: [(network, x, float(r), p, q) for network, x, r in zip(apart, xs, eps, strict=True)]
            for size, eps in radii.items()
        }
        exact = {size: np.array([mf.exact_adversarial_loss(*one).value for one in arguments[size]]) for size in SIZES}
        regions = {size: np.array([_regions(*one[:4]) for one in arguments[size]]) for size in SIZES}
        for attack in attacks:

            def one(network, x, eps, key, p=p, q=q, attack=attack):
                return mf.adversarial_loss(network, x, eps=eps, p=p, q=q, key=key, attack=attack).value

            attacked = jax.jit(jax.vmap(one, (axes, 0, 0, 0)))
            for size, eps in radii.items():
                value, true = np.asarray(attacked(networks, xs, eps, keys)), exact[size]
                ratios = np.where(true > 0, value / np.where(true > 0, true, 1), 1 + value)
                yield Reached(attack, shape, p, q, size, ratios, regions[size])


def _regions(network: mf.Network, x: Array, eps: float, p: float) -> int:
    """Linear regions that 4096 random points of the ball see: a lower value of their number."""
    rng = np.random.default_rng(0)
    points = rng.dirichlet(np.ones(len(x)), 4096) if p == 1 else rng.uniform(size=(4096, len(x)))
    points = np.asarray(x) + np.float32(eps * points * rng.choice((-1, 1), points.shape))
    preactivations = np.concatenate(oracle.value(network, points).at, axis=1)
    return len(np.unique(preactivations >= 0, axis=0))


def against_peers(num_networks: int, spec: mf.NetworkSpec = WIDE) -> Iterator[dict[str, Any]]:
    """The loss that ours and the PGD of other libraries reach on the same wide networks, one input each.

    Theirs restart four times and share as many gradients as ours takes.
    """
    from benchmarks import peers

    for p, size in itertools.product((2.0, math.inf), SIZES):
        steps = -(-gradients_taken("default", p, spec.input_dim, spec.output_dim) // 4)
        ours = jax.jit(
            lambda network, x, eps, key, p=p: mf.adversarial_loss(network, x, eps=eps, p=p, q=2, key=key).value
        )
        reached: dict[str, list[float]] = {"ours": [], **{name: [] for name in peers.PGD}}
        for i in range(num_networks):
            key = jax.random.fold_in(jax.random.key(0), i)
            network, x = jax.jit(mf.init)(key, spec), jax.random.normal(jax.random.fold_in(key, 1), (spec.input_dim,))
            eps = size * mf.vector_norm(x, 2) / (1 if p == 2 else math.sqrt(spec.input_dim))
            reached["ours"].append(float(ours(network, x, eps, key)))
            f = functools.partial(peers.rows, peers.share(network))
            for name, (attack, _) in peers.PGD.items():
                peers.torch.manual_seed(i)
                eta = peers.best_of(4, attack, f, peers.tensor(x[None]), peers.tensor(eps[None]), p, 2, steps)
                moved = oracle.difference(network, oracle.value(network, x), jnp.asarray(to_numpy(eta)[0])).output
                reached[name].append(float(mf.vector_norm(moved, 2)))
        for name in peers.PGD:
            ratios = np.array(reached[name]) / np.array(reached["ours"])
            yield {"peer": name, "p": p, "size": size, "steps": steps, "restarts": 4, "ratios": ratios.tolist()}


def exact_part(num_networks: int) -> list[dict[str, Any]]:
    """Print what part of the exact loss the presets reach on tiny networks; the record."""
    print("Part of the exact loss that is reached; eps in units of |x|_p; regions: of the ball, a lower value")
    record = []
    for found in (one for shape in TINY for one in against_exact(shape, num_networks)):
        d, K, N, L = found.shape
        print(
            f"{found.attack:9} d={d} K={K} N={N:<2} L={L} {found.p:3g} -> {found.q:<3g} eps={found.size:<3g}  "
            f"mean {found.ratios.mean():.4f}  least {found.ratios.min():.4f}  regions {found.regions.mean():.1f}",
            flush=True,
        )
        record.append(dataclasses.asdict(found))
    for preset in PRESETS:
        ratios = np.concatenate([one["ratios"] for one in record if one["attack"] == preset])
        print(f"{preset}: mean {ratios.mean():.4f}, least {ratios.min():.4f} of {len(ratios)}")
    return record


def peers_part(num_networks: int) -> list[dict[str, Any]]:
    """Print what others reach on wide random networks; the record."""
    print("What others reach, as a part of ours (default); d=100 K=4 N=800 L=5, q=2")
    record = []
    for found in against_peers(num_networks):
        ratios = np.array(found["ratios"])
        print(
            f"{found['peer']:12} p={found['p']:<3g} eps={found['size']:<3g} {found['restarts']} x {found['steps']} "
            f"steps:  mean {ratios.mean():.4f}  most {ratios.max():.4f}",
            flush=True,
        )
        record.append(found)
    return record


def trained_part(seeds: int) -> list[dict[str, Any]]:
    """Print the loss of the default attack over that of each contender on trained networks; the record."""
    from benchmarks.trained import CONTENDERS, against_trained

    print(
        "The loss of the default attack over that of others on trained networks, mean and least over seeds and inputs"
    )
    print("PGD: 8 restarts that share as many gradients as ours takes; the libraries', 4; thorough over default last")
    print(" " * 35 + "".join(f"{name:>15}" for name in CONTENDERS))
    record, rows = [], []
    for found in against_trained(seeds, libraries=HAS_PEERS):
        ratios = {name: found.ratio(name) for name in CONTENDERS if name in found.losses}
        cells = (f"{r.mean():8.3f}{r.min():7.3f}" if (r := ratios.get(name)) is not None else "" for name in CONTENDERS)
        print(f"{found!s:35}" + "".join(f"{cell:15}" for cell in cells), flush=True)
        record.append(dataclasses.asdict(found))
        rows.append((str(found), ratios))
    for name in CONTENDERS:
        own = [(float(ratios[name].mean()), float(ratios[name].min()), row) for row, ratios in rows if name in ratios]
        if own:
            (low, _, low_row), (_, least, least_row) = min(own), min(own, key=lambda one: one[1])
            print(
                f"{name}: mean {np.mean([mean for mean, *_ in own]):.4f}, least mean {low:.4f} ({low_row}), "
                f"least case {least:.4f} ({least_row})"
            )
    return record


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--networks", type=int, default=50, help="networks of each of the four tiny shapes")
    parser.add_argument("--seeds", type=int, default=2, help="trained networks of each kind")
    parser.add_argument("--only", choices=("exact", "peers", "trained"), help="one part instead of all")
    parser.add_argument("--out", type=Path, help="write the record to this JSON file")
    options = parser.parse_args(arguments)
    parts = {
        "exact": lambda: exact_part(options.networks),
        "peers": lambda: peers_part(max(2, options.networks // 6)),
        "trained": lambda: trained_part(options.seeds),
    }
    record: dict[str, Any] = {"environment": environment()}
    for name in [options.only] if options.only else parts:
        if name != "peers" or HAS_PEERS:
            record[name] = parts[name]()
            print()
    if options.out:
        text = json.dumps(record, indent=1, default=lambda array: array.tolist())
        options.out.write_text(text.replace("Infinity", '"inf"') + "\n")


if __name__ == "__main__":
    main()
