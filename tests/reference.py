"""Random networks in float64 NumPy, written from their definition alone, in batches of M networks.

Shapes: M networks, d input, K output, N width, L depth. A gate is positive where z >= 0.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Networks(NamedTuple):
    """M networks drawn from the law `spec`, a NetworkSpec with concrete leaves."""

    spec: Any
    p_in: np.ndarray  # [M, N, d]
    weights: list  # L of [M, N, N]
    biases: list  # L of [M, N]
    signs: list  # L of [M, N], all ones but for "signed"
    p_out: np.ndarray  # [M, K, N]


def draw(rng: np.random.Generator, spec: Any, num_networks: int) -> Networks:
    """M independent networks."""
    m, d, k, n, depth = num_networks, spec.input_dim, spec.output_dim, spec.width, spec.depth
    weight_scale, bias_scale = np.sqrt(float(spec.weight_variance) / n), np.sqrt(float(spec.bias_variance))
    return Networks(
        spec,
        rng.standard_normal((m, n, d)) / np.sqrt(d),
        [rng.standard_normal((m, n, n)) * weight_scale for _ in range(depth)],
        [rng.standard_normal((m, n)) * bias_scale for _ in range(depth)],
        [rng.choice([-1.0, 1.0], (m, n)) if spec.block == "signed" else np.ones((m, n)) for _ in range(depth)],
        rng.standard_normal((m, k, n)) / np.sqrt(n),
    )


def of_network(network: Any, copies: int = 1) -> Networks:
    """A dense network of the package, `copies` times: one for each of so many inputs, say."""
    take = lambda values: np.broadcast_to(np.asarray(values, np.float64), (copies, *np.shape(values)))  # noqa: E731
    return Networks(
        network.spec,
        take(network.frozen.embedding.entries),
        [take(weight.entries) for weight in network.params.weights],
        [take(bias) for bias in network.params.biases],
        [take(sign) for sign in network.frozen.signs or [np.ones(network.spec.width)] * network.spec.depth],
        take(network.frozen.readout.entries),
    )


def forward(nets: Networks, x: np.ndarray) -> tuple[np.ndarray, list, list]:
    """Outputs [M, K], slopes phi'(z_l) (L of [M, N]) and hidden h_0 ... h_L ([M, N]) at x, [d] or [M, d]."""
    u, v = float(nets.spec.positive_slope), float(nets.spec.negative_slope)
    shortcut = float(nets.spec.block != "vanilla")
    batch = np.broadcast_to(x, (len(nets.p_in), nets.spec.input_dim))
    hidden, slopes = [np.einsum("mnd,md->mn", nets.p_in, batch)], []
    for weight, bias, sign in zip(nets.weights, nets.biases, nets.signs, strict=True):
        z = np.einsum("mij,mj->mi", weight, hidden[-1]) + bias
        slopes.append(np.where(z >= 0, u, v))
        hidden.append(shortcut * hidden[-1] + sign * slopes[-1] * z)
    return np.einsum("mkn,mn->mk", nets.p_out, hidden[-1]), slopes, hidden


def cotangents(nets: Networks, slopes: list) -> tuple[list, np.ndarray]:
    """df_k/dz_l for l = 1..L (L of [M, K, N]) and df_k/dh_0 [M, K, N], by products of masked matrices."""
    shortcut = float(nets.spec.block != "vanilla")
    row, at_preactivation = nets.p_out, []
    for weight, sign, slope in zip(nets.weights[::-1], nets.signs[::-1], slopes[::-1], strict=True):
        at_preactivation.append(row * (sign * slope)[:, None])
        row = shortcut * row + at_preactivation[-1] @ weight
    return at_preactivation[::-1], row


def linear_representation(nets: Networks, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Jacobians [M, K, d] and shifts [M, K] at x, [d] or [M, d]."""
    at_preactivation, row = cotangents(nets, forward(nets, x)[1])
    shift = np.sum([np.einsum("mkn,mn->mk", c, b) for c, b in zip(at_preactivation, nets.biases, strict=True)], axis=0)
    return row @ nets.p_in, shift


def parameter_gradients(nets: Networks, x: np.ndarray, cotangent: np.ndarray) -> tuple[list, list]:
    """Gradients of <cotangent [K], f(x)> in the weights (L of [M, N, N]) and the biases (L of [M, N])."""
    _, slopes, hidden = forward(nets, x)
    rows = [np.einsum("k,mkn->mn", cotangent, c) for c in cotangents(nets, slopes)[0]]
    return [np.einsum("mi,mj->mij", r, h) for r, h in zip(rows, hidden, strict=False)], rows


def fisher_rao_product(nets: Networks, x: np.ndarray, cotangent: np.ndarray, biases: bool = True) -> np.ndarray:
    """<theta, grad_theta <cotangent, f(x)>> per network, [M]; theta holds the weights, and the biases if asked."""
    gradients = parameter_gradients(nets, x, cotangent)
    parts = [np.einsum("mij,mij->m", w, g) for w, g in zip(nets.weights, gradients[0], strict=True)]
    if biases:
        parts += [np.einsum("mi,mi->m", b, g) for b, g in zip(nets.biases, gradients[1], strict=True)]
    return np.sum(parts, axis=0)


def simulate(
    statistic: Callable[[Networks], np.ndarray], seed: int, spec: Any, num_networks: int, batch: int = 1000
) -> np.ndarray:
    """`statistic` (networks -> [M, ...]) over `num_networks` networks, drawn `batch` at a time."""
    rng = np.random.default_rng(seed)
    sizes = [min(batch, num_networks - start) for start in range(0, num_networks, batch)]
    return np.concatenate([statistic(draw(rng, spec, size)) for size in sizes])


def relu_scales(rng: np.random.Generator, n: int, width: int, depth: int) -> np.ndarray:
    """R^2 of n ReLU networks: |M_0|^2 = chi^2_N / N, then per layer 2 chi^2_B / N with B ~ Bin(N, 1/2) open gates."""
    scale = rng.chisquare(width, n) / width
    for _ in range(depth):
        scale *= 2 / width * rng.chisquare(np.maximum(rng.binomial(width, 0.5, n), 1e-9))
    return scale


def agrees(samples: np.ndarray, expected: float, allowance: float = 0.0, sigmas: float = 4.0) -> bool:
    """Whether the mean over networks ([M]) is `expected`, to `sigmas` standard errors and a relative allowance."""
    error = samples.std(ddof=1) / np.sqrt(len(samples))
    return bool(abs(samples.mean() - expected) <= sigmas * error + allowance * abs(expected))
