"""How good the attacks are: against exact values on tiny networks, and against other libraries' attacks.

python -m benchmarks.quality
"""

import argparse
import dataclasses
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
from benchmarks.harness import environment
from mftadv import oracle
from mftadv.attack import named_attack

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
                return mf.adversarial_loss(network, x, eps, p, q, key, attack).value

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
    """The loss that ours and the PGD of other libraries reach on the same networks, one input each.

    Theirs restart four times and get a gradient for each gradient or value that ours asks for.
    """
    from benchmarks import peers

    attack, restarts = named_attack("default", 2), 4
    screened = sum(start.count * start.among for start in attack.starts if getattr(start, "among", 1) > 1)
    steps = -(-(sum(attack.queries(spec.input_dim, spec.output_dim)) + screened) // (2 * restarts))
    for p, size in itertools.product((2.0, math.inf), SIZES):
        ours = jax.jit(lambda network, x, eps, key, p=p: mf.adversarial_loss(network, x, eps, p, 2, key).value)
        reached: dict[str, list[float]] = {"ours": [], **{name: [] for name in peers.PGD}}
        for i in range(num_networks):
            key = jax.random.fold_in(jax.random.key(0), i)
            network, x = jax.jit(mf.init)(key, spec), jax.random.normal(jax.random.fold_in(key, 1), (spec.input_dim,))
            eps = float(size * mf.vector_norm(x, 2)) / (1 if p == 2 else math.sqrt(spec.input_dim))
            reached["ours"].append(float(ours(network, x, eps, key)))
            for name, pgd in peers.PGD.items():
                peers.torch.manual_seed(i)
                eta = pgd(peers.share(network), peers.tensor(x), eps, p, steps, restarts)
                base = oracle.value(network, x)
                moved = oracle.difference(network, base, jnp.asarray(eta.numpy())).output
                reached[name].append(float(jnp.max(mf.vector_norm(moved, 2))))
        for name in peers.PGD:
            ratios = np.array(reached[name]) / np.array(reached["ours"])
            yield {"peer": name, "p": p, "size": size, "steps": steps, "restarts": restarts, "ratios": ratios.tolist()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--networks", type=int, default=50, help="networks of each of the four shapes")
    parser.add_argument("--out", type=Path, help="write the record to this JSON file")
    options = parser.parse_args(arguments)
    record: dict[str, Any] = {"environment": environment(), "exact": [], "peers": []}
    print("Part of the exact loss that is reached; eps in units of |x|_p; regions: of the ball, a lower value")
    for found in (one for shape in TINY for one in against_exact(shape, options.networks)):
        d, K, N, L = found.shape
        print(
            f"{found.attack:9} d={d} K={K} N={N:<2} L={L} {found.p:3g} -> {found.q:<3g} eps={found.size:<3g}  "
            f"mean {found.ratios.mean():.4f}  least {found.ratios.min():.4f}  regions {found.regions.mean():.1f}",
            flush=True,
        )
        record["exact"].append(
            dataclasses.asdict(found) | {"ratios": found.ratios.tolist(), "regions": found.regions.tolist()}
        )
    for preset in PRESETS:
        ratios = np.concatenate([one["ratios"] for one in record["exact"] if one["attack"] == preset])
        print(f"{preset}: mean {ratios.mean():.4f}, least {ratios.min():.4f} of {len(ratios)}")
    if HAS_PEERS:
        print("\nWhat others reach, as a part of ours (default); d=100 K=4 N=800 L=5, q=2")
        for found in against_peers(max(2, options.networks // 6)):
            ratios = np.array(found["ratios"])
            print(
                f"{found['peer']:12} p={found['p']:<3g} eps={found['size']:<3g} {found['restarts']} x {found['steps']} "
                f"steps:  mean {ratios.mean():.4f}  most {ratios.max():.4f}",
                flush=True,
            )
            record["peers"].append(found)
    if options.out:
        options.out.write_text(json.dumps(record, indent=1).replace("Infinity", '"inf"') + "\n")


if __name__ == "__main__":
    main()
