"""The exact adversarial loss of a tiny network, by mixed-integer linear programming.

Everything is a difference in units of eps: t = eta/eps in the unit ball, dz/eps, (f(x + eta) - f(x))/eps. So no scale
of x or eps meets the absolute tolerances of a solver, nothing is lost where eps is far below |x|, and only gates that
the ball can move need a binary.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy
from jaxtyping import ArrayLike, Float

from mftadv.matrices import DenseMatrix, Matrix
from mftadv.network import Network

__all__ = ["ExactLoss", "exact_adversarial_loss"]

MAX_NEURONS, MAX_INPUTS = 30, 6
TOLERANCE = 1e-9  # the solver's, for problems whose variables and objectives have size 1
MARGIN = 1e-6  # what the bound adds, relatively, for all that was done within this tolerance
GAP = 1e-5  # the relative gap of value and bound from which on nothing is returned


class ExactLoss(NamedTuple):
    """value <= max <= bound, with `value` attained by `perturbation` [d]."""

    value: float
    perturbation: Float[np.ndarray, " d"]
    bound: float


def exact_adversarial_loss(net: Network, x: Float[ArrayLike, " d"], eps: float, p: float, q: float) -> ExactLoss:
    """The adversarial loss of a tiny dense network, proven to be the global maximum.

    L_adv(x) = max |f(x + eta) - f(x)|_q over |eta|_p <= eps, on the host in float64. A gate that the ball can move is a
    binary: phi(z) = v z + (u - v) a with a = max(z, 0), that is a >= 0, a >= z, a <= h b, a <= z - l (1 - b), b in
    {0, 1}, for l <= z <= h, the range of z over the ball with the binaries of the layers below relaxed. q = inf solves
    a program for each sign of each output; for q = 1, |f_k(x + eta) - f_k(x)| is one more gate, with u = 1, v = -1.

    Args:
        net: one dense network of at most 30 neurons (width times depth) and 6 inputs; any block, slopes and biases.
        x: the input [d].
        eps: the radius of the ball, >= 0.
        p: exponent of the norm of eta, 1 or inf.
        q: exponent of the norm of the difference of outputs [K], 1 or inf.

    Returns:
        An `ExactLoss`. `value` = |f(x + eta) - f(x)|_q at eta = `perturbation` [d], |eta|_p <= eps (1 + 1e-12), and
        `bound` is the solver's proof that no eta does better, 1e-6 added for its tolerances.

    Raises:
        ValueError: another kind of network, a larger one, another p or q, or x or eps of a wrong shape or range.
        RuntimeError: the solver did not prove the maximum to 1e-5 (of it, or 1e-7 of that of the relaxed program).

    Source: definition; big-M encoding of Tjeng, Xiao and Tedrake 2019, for two slopes and differences by us.
    """
    x = _check(net, x, eps, p, q)
    if eps == 0:
        return ExactLoss(0.0, np.zeros_like(x), 0.0)
    layers = _layers(net, x, eps)
    program = _Program(len(x), p, net.spec.width * net.spec.depth + net.spec.output_dim)
    outputs = _difference(layers, program.perturbation, lambda z, dz: program.gates(z, dz, layers.u, layers.v))
    if q == 1:
        objectives = [program.gates(np.zeros(len(outputs)), outputs, 1.0, -1.0).sum(0)]
    else:
        objectives = [*outputs, *-outputs]

    # With the highest first, most others cannot beat the value found and need no integers.
    relaxed = sorted(((program.maximum(row)[0], row) for row in objectives), key=lambda pair: -pair[0])
    largest = relaxed[0][0]
    value, bound, perturbation = 0.0, 0.0, np.zeros_like(x)
    for upper, row in relaxed:
        if upper > value:
            upper, t = program.maximum(row, scale=upper, integral=True)
            t = np.clip(t, -1, 1) if p == math.inf else t / max(1.0, np.abs(t).sum())
            attained = float(np.linalg.norm(_difference(layers, t[:, None], layers.jump), q))
            if attained > value:
                value, perturbation = attained, t
        bound = max(bound, upper)
    bound = max(bound, value) * (1 + MARGIN)
    if not bound <= value * (1 + GAP) + 1e-2 * GAP * largest:
        raise RuntimeError(f"bound: expected within {GAP} of the value {eps * value}, got {eps * bound}")
    return ExactLoss(eps * value, eps * perturbation, eps * bound)


def _check(net: Network, x: ArrayLike, eps: float, p: float, q: float) -> np.ndarray:
    """The input [d] in float64, once all arguments are what they should be."""
    if not isinstance(net, Network):
        raise ValueError(f"net: expected a Network, got {type(net).__name__}")
    d, N, L = net.spec.input_dim, net.spec.width, net.spec.depth
    ndims = _entries(net.frozen.embedding).ndim, np.ndim(net.spec.positive_slope), np.ndim(net.spec.negative_slope)
    if ndims != (2, 0, 0):
        raise ValueError(f"net: expected one network, got an embedding and slopes of {ndims} dimensions")
    if N * L > MAX_NEURONS or d > MAX_INPUTS:
        raise ValueError(f"net: expected width * depth <= {MAX_NEURONS} and d <= {MAX_INPUTS}, got {N} * {L} and {d}")
    if not all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(net)):
        raise ValueError("net: expected finite entries, got inf or nan")
    for name, exponent in (("p", p), ("q", q)):
        if exponent not in (1, math.inf):
            raise ValueError(f"{name}: expected 1 or inf, got {exponent!r}")
    if np.ndim(eps) or not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"eps: expected a finite number >= 0, got {eps!r}")
    x = np.asarray(x, np.float64)
    if x.shape != (d,) or not np.all(np.isfinite(x)):
        raise ValueError(f"x: expected finite numbers [{d}], got {x.tolist() if x.ndim == 1 else list(x.shape)}")
    return x


class _Layers(NamedTuple):
    """A network around x, in units of eps."""

    embedding: np.ndarray  # [N, d]
    weights: list[np.ndarray]  # L of [N, N]
    signs: list[np.ndarray]  # L of [N]
    readout: np.ndarray  # [K, N]
    u: float
    v: float
    shortcut: float
    preactivations: list[np.ndarray]  # z_l(x)/eps, L of [N]

    def phi(self, z: np.ndarray) -> np.ndarray:
        return np.where(z >= 0, self.u, self.v) * z

    def jump(self, z: np.ndarray, dz: np.ndarray) -> np.ndarray:
        """phi(z + dz) - phi(z) of numbers dz [N, 1], with no subtraction where no gate moves."""
        before, after = z[:, None], z[:, None] + dz
        moved = (after >= 0) != (before >= 0)
        return np.where(moved, self.phi(after) - self.phi(before), np.where(after >= 0, self.u, self.v) * dz)


def _entries(matrix: Matrix) -> np.ndarray:
    if not isinstance(matrix, DenseMatrix):
        raise ValueError(f"net: expected dense matrices, got {type(matrix).__name__}")
    return np.asarray(matrix.entries, np.float64)


def _layers(net: Network, x: np.ndarray, eps: float) -> _Layers:
    spec, params, frozen = net.spec, net.params, net.frozen
    layers = _Layers(
        embedding=_entries(frozen.embedding),
        weights=[_entries(weight) for weight in params.weights],
        signs=[np.asarray(sign, np.float64) for sign in frozen.signs] or [np.ones(spec.width)] * spec.depth,
        readout=_entries(frozen.readout),
        u=float(spec.positive_slope),
        v=float(spec.negative_slope),
        shortcut=float(spec.has_shortcut),
        preactivations=[],
    )
    h = layers.embedding @ x
    for weight, bias, sign in zip(layers.weights, params.biases, layers.signs, strict=True):
        z = weight @ h + np.asarray(bias, np.float64)
        layers.preactivations.append(z / eps)
        h = layers.shortcut * h + sign * layers.phi(z)
    return layers


def _difference(layers: _Layers, t: np.ndarray, gates: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """(f(x + eps t) - f(x))/eps [K, C] for t [d, C]: numbers (C = 1), or affine functions of a program's variables."""
    dh = _product(layers.embedding, t)
    for weight, sign, z in zip(layers.weights, layers.signs, layers.preactivations, strict=True):
        dh = layers.shortcut * dh + sign[:, None] * gates(z, _product(weight, dh))
    return _product(layers.readout, dh)


def _product(matrix: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The product, with sums that are nothing but rounding as the zeros they stand for."""
    product = matrix @ rows
    return np.where(np.abs(product) > 1e-14 * (np.abs(matrix) @ np.abs(rows)), product, 0.0)


class _Program:
    """A mixed-integer program; a row [C] is an affine function of its variables, the last of which is the constant 1.

    The variables: those of t in the unit ball (t itself for p = inf, its positive and negative parts for p = 1), the a
    of every gate in units of its range, and their binaries b. All constraints read row <= 0.
    """

    def __init__(self, d: int, p: float, max_gates: int):
        inputs = d if p == math.inf else 2 * d
        self.first_a, self.first_b, self.num_gates = inputs, inputs + max_gates, 0
        self.unit = np.eye(inputs + 2 * max_gates + 1)
        self.low, self.high = np.zeros(len(self.unit)), np.zeros(len(self.unit))
        self.low[-1] = self.high[-1] = self.high[:inputs] = 1
        if p == math.inf:
            self.low[:inputs] = -1
            self.perturbation, self.rows = self.unit[:d], []
        else:
            self.perturbation = self.unit[:d] - self.unit[d:inputs]
            self.rows = [self.unit[:inputs].sum(0) - self.unit[-1]]

    def gates(self, z: np.ndarray, dz: np.ndarray, u: float, v: float) -> np.ndarray:
        """phi(z + dz) - phi(z) for z [N] and rows dz [N, C]."""
        return np.stack([self._gate(*pair, u, v) for pair in zip(z, dz, strict=True)])

    def _gate(self, z: float, dz: np.ndarray, u: float, v: float) -> np.ndarray:
        if u == v:
            return u * dz
        below, above = self._interval(-dz), self._interval(dz)
        low, high, slack = z - below, z + above, TOLERANCE * (below + above)
        # Each is worth a linear program only while the sign is open.
        if low < -slack and high > slack:
            high = min(high, z + self.maximum(dz)[0])
        if low < -slack and high > slack:
            low = max(low, z - self.maximum(-dz)[0])
        if low >= -slack or high <= slack:
            return (u if low >= -slack else v) * dz
        one, a, b = self.unit[-1], self.unit[self.first_a + self.num_gates], self.unit[self.first_b + self.num_gates]
        size = max(-low, high)
        low, high, inside = (low - slack) / size, (high + slack) / size, (dz + z * one) / size
        self.rows += [inside - a, a - high * b, a - inside + low * (one - b)]
        self.high[self.first_a + self.num_gates], self.high[self.first_b + self.num_gates] = high, 1
        self.num_gates += 1
        return v * dz + (u - v) * (size * a - max(z, 0.0) * one)

    def _interval(self, row: np.ndarray) -> float:
        """An upper bound of the row from the ranges of the variables alone."""
        return float(np.maximum(row * self.low, row * self.high).sum())

    def maximum(self, row: np.ndarray, scale: float = 0.0, integral: bool = False) -> tuple[float, np.ndarray]:
        """An upper bound of a row, and its t [d]; `scale` is about what to expect, if that is known."""
        scale = scale or self._interval(row) + self._interval(-row) or 1.0
        cost = -row / scale
        solution = self._solve(cost, self.low, self.high, integral)
        if solution.status != 0:
            raise RuntimeError(f"HiGHS: expected an optimum, got {solution.message}")
        bound = solution.fun if solution.mip_dual_bound is None else solution.mip_dual_bound
        if integral:  # the same gates again, with no tolerance for binaries between 0 and 1
            low, high, binaries = self.low.copy(), self.high.copy(), slice(self.first_b, -1)
            low[binaries] = high[binaries] = np.round(solution.x[binaries])
            polished = self._solve(cost, low, high, False)
            solution = polished if polished.status == 0 else solution
        return -bound * scale, self.perturbation @ solution.x

    def _solve(self, cost: np.ndarray, low: np.ndarray, high: np.ndarray, integral: bool) -> Any:
        integrality = np.zeros(len(cost))
        integrality[self.first_b : -1] = integral
        # At this size presolve saves no time, and undoing it costs accuracy.
        options = {"presolve": False, "mip_rel_gap": 10 * TOLERANCE, "mip_abs_gap": 0.0}
        options |= {"primal_feasibility_tolerance": TOLERANCE, "dual_feasibility_tolerance": TOLERANCE}
        options |= {"mip_feasibility_tolerance": 100 * TOLERANCE}  # any tighter, and HiGHS prints that it repairs
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Unrecognized options detected", RuntimeWarning)  # HiGHS knows them
            constraints = [scipy.optimize.LinearConstraint(np.stack(self.rows), ub=0)] if self.rows else []
            return scipy.optimize.milp(
                cost, integrality=integrality, bounds=(low, high), constraints=constraints, options=options
            )
