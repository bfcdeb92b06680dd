"""The paper's first claim: the law of the linear representation f(x) = J(x) x + a(x) of a random network.

Entries of J are claimed to be independent N(0, omega^L / d), independent of x and of a, whose entries are N(0, alpha
b2 sum_k omega^k). This draws many networks, measures J and a at given inputs, and makes the table of claims.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from mftadv import norms, statistics, theory
from mftadv.attack import capacity_for
from mftadv.compare import Claim
from mftadv.linear import linear_representation
from mftadv.network import init
from mftadv.spec import NetworkSpec, dual_exponent

__all__ = ["Sample", "Statistic", "claims", "exponent", "plan", "statistic"]

# Entries kept on the host, of all networks and inputs; columns of J are exchangeable, so some stand for all.
_MAX_ENTRIES = 2**24

_PLANNED = 0.045  # what is planned for, so that 5% is seen in spite of skewness, an uncertain spread, an allowance

SPREAD = "the layers spread the singular values of K outputs by about sqrt(L K / N)"  # why finite width adds to a norm

_RESIDUAL_NOTE = "along x skip and branch correlate, since the mean of phi is not 0: the published law misses it"


class Sample(NamedTuple):
    """What is kept of n networks at B inputs (without the leading n of a single network's)."""

    entries: Float[Any, "n B K m"]  # the first m columns of J
    along: Float[Any, "n B K"]  # J x / |x|, which has the law of an entry
    shift: Float[Any, "n B K"]
    norms: dict[tuple[float, float], Float[Any, "n B"]]  # |J|_{p->q}


@dataclasses.dataclass(frozen=True)
class Statistic:
    """The statistic `Sample` of one network; a value, so that equal ones share a compiled program."""

    columns: int
    pairs: tuple[tuple[float, float], ...]
    engine: str

    def __call__(self, key: Key[Array, ""], spec: NetworkSpec, xs: Float[Array, "B d"]) -> Sample:
        capacity = capacity_for(spec, linear_representation=len(xs)) if self.engine == "matrix_free" else None
        rep = linear_representation(init(key, spec, self.engine, capacity), xs)
        directions = jnp.asarray(xs, rep.jacobian.dtype)
        directions = directions / norms.vector_norm(directions, 2)[:, None]
        return Sample(
            rep.jacobian[..., : self.columns],
            jnp.sum(rep.jacobian * directions[:, None], axis=-1),
            rep.shift,
            {pair: norms.exact_operator_norm(rep.jacobian, *pair) for pair in self.pairs},
        )


def norm_pairs(spec: NetworkSpec) -> tuple[tuple[float, float], ...]:
    """The (p, q) whose operator norm and whose mean norm both have a formula; q = 2 alone where K = 1."""
    grid = (1.0, 2.0, math.inf)
    pairs = [(p, q) for p in grid for q in grid if q == 2 or spec.output_dim > 1]
    shape = (spec.output_dim, spec.input_dim)
    return tuple(
        (p, q)
        for p, q in pairs
        if norms.has_exact_operator_norm(p, q, shape) and theory.has_sharp_coefficient(p, q, *shape[::-1])
    )


def statistic(spec: NetworkSpec, num_inputs: int, num_networks: int, engine: str) -> Statistic:
    """The statistic to draw, with as many columns of J as the host should hold."""
    columns = _MAX_ENTRIES // (num_networks * num_inputs * spec.output_dim)
    return Statistic(min(spec.input_dim, max(columns, 2)), norm_pairs(spec), engine)


def plan(spec: NetworkSpec, num_inputs: int, family_error: float) -> dict[str, float]:
    """How many networks it takes to see 5%, quantity by quantity, in a table of claims at some inputs."""
    # the table is made of measurements; its size does not need to be known to the last row
    level = family_error / (num_inputs * (12 + 3 * len(norm_pairs(spec))))
    needed = {}
    for quantity, columns in [*((quantity, None) for quantity in theory.QUANTITIES), ("jacobian_variance", 1)]:
        if (quantity.startswith("pair") and spec.input_dim == 1) or ("shift" in quantity and not spec.bias_variance):
            continue
        spread = theory.relative_spread(spec, quantity, columns)
        name = quantity.replace("_", " ") + (" along x" if columns else "")
        planned = _PLANNED - (0.01 if spec.block == "residual" else 0)
        needed[name] = statistics.networks_needed(spread, deviation=planned, false_alarm=level)
    return needed


def claims(spec: NetworkSpec, x: Float[np.ndarray, " d"], sample: Sample) -> list[Claim]:
    """The claims at one input.

    Args:
        spec: the law, with concrete leaves.
        x: the input.
        sample: of the networks at this input: `entries` [n, K, m], `along` [n, K], `shift` [n, K], `norms` [n] each.
    """
    sample = jax.tree.map(lambda values: np.asarray(values, np.float64), sample)
    # what cannot be measured (a variance of nothing) comes out as nan, and is judged so
    with jax.enable_x64(True), np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if spec.block == "residual":
            return [*_residual_claims(spec, x, sample), *_norm_claims(spec, sample, x)]
        return [*_exact_claims(spec, sample), *_norm_claims(spec, sample)]


def _exact_claims(spec: NetworkSpec, sample: Sample) -> Iterator[Claim]:
    """Vanilla and signed networks, whose second and fourth moments are known at every width."""
    variance, factor = float(theory.jacobian_variance(spec)), float(theory.finite_width_factor(spec))
    entries, along, shift = sample.entries, sample.along, sample.shift
    n, _, columns = entries.shape

    def claim(quantity, expected, estimate, spread, scale=None, columns=columns, note=""):
        """A claim with the error that theory predicts, from one network's relative spread."""
        scale = abs(expected) if scale is None else scale
        error = theory.relative_spread(spec, spread, columns) * scale / math.sqrt(n)
        return Claim.of(quantity, expected, estimate, scale=scale, predicted_error=error, note=note)

    yield claim("mean of J", 0.0, statistics.mean_estimate(entries), "jacobian_mean", math.sqrt(variance))
    yield claim("variance of J", variance, statistics.mean_estimate(entries**2), "jacobian_variance")
    kurtosis = statistics.kurtosis_estimate(entries)
    yield claim("kurtosis of J", 3 * factor, kurtosis, "jacobian_kurtosis", note="3 at infinite width")
    if 0 < variance < math.inf and factor < math.inf:
        law = statistics.law_test(entries[:, 0, 0], variance, 3 * factor, theory.log_scale_skewness(spec))
    else:
        law = statistics.LawTest(math.nan, math.nan, math.nan, n, 0)
    note = f"Kolmogorov's distance to the law at width N; to the normal law {law.normal_distance:.3g}"
    options = {"allowance": float(theory.entry_law_error(spec)), "reason": "the law is approximate"}
    yield Claim.of("law of one entry of J", 0.0, law, note=note, **options)
    if columns > 1:
        pairs = statistics.pair_correlation_estimate(entries)
        yield claim("correlation of J_j, J_k", 0.0, pairs, "pair_correlation", scale=1.0)
        note = "1 at infinite width: the entries of one network share its scale"
        squares = statistics.pair_square_estimate(entries)
        yield claim("E J_j^2 J_k^2 / (E J^2)^2", factor, squares, "pair_square", note=note)
    note = "the same along x as elsewhere: J does not depend on x"
    square = statistics.mean_estimate(along**2)
    yield claim("variance of J along x", variance, square, "jacobian_variance", columns=1, note=note)
    shift_variance = float(theory.shift_variance(spec))
    if not shift_variance:
        yield _no_shift(shift)
        return
    yield claim("mean of a", 0.0, statistics.mean_estimate(shift), "shift_mean", math.sqrt(shift_variance))
    yield claim("variance of a", shift_variance, statistics.mean_estimate(shift**2), "shift_variance")
    each = np.broadcast_to(shift[..., None], entries.shape)
    both = statistics.correlation_estimate(entries, each)
    yield claim("correlation of J, a", 0.0, both, "jacobian_shift_correlation", scale=1.0)
    expected = float(theory.jacobian_shift_square_correlation(spec))
    squares = statistics.correlation_estimate(entries**2, each**2)
    note = "0 at infinite width: J and a share the network's scale"
    yield claim("correlation of J^2, a^2", expected, squares, "jacobian_shift_square_correlation", scale=1.0, note=note)


def _residual_claims(spec: NetworkSpec, x: np.ndarray, sample: Sample) -> Iterator[Claim]:
    """Residual networks: what the paper says beside what holds."""
    square = x @ x
    law = jax.tree.map(float, theory.residual_law(spec, float(square), finite_width=True))
    error = float(theory.residual_law_error(spec, float(square)))
    published = float(theory.jacobian_variance(spec))
    across, along = law.orthogonal, law.along_input / square
    columns = sample.entries.shape[-1]
    kept = x[:columns] / math.sqrt(x @ x)
    mean = across + (along - across) * float(kept @ kept) / columns
    yield _centred("mean of J", sample.entries, mean)

    def both(quantity, theirs, ours, estimate, scale=None):
        known = abs(ours - theirs) > 1e-3 * (abs(theirs) if scale is None else scale)
        options = {"expected": "fails" if known else "holds", "note": _RESIDUAL_NOTE}
        yield Claim.of(f"{quantity}, published", theirs, estimate, scale=scale, **options)
        options = {"allowance": error, "reason": "corrected to first order in 1/N"}
        yield Claim.of(f"{quantity}, corrected", ours, estimate, scale=scale, **options)

    yield from both("variance of J", published, mean, statistics.mean_estimate(sample.entries**2))
    yield from both("variance of J along x", published, along, statistics.mean_estimate(sample.along**2))
    if columns > 1:
        common = (along - across) / mean * (kept.sum() ** 2 - kept @ kept) / (columns * (columns - 1))
        estimate = statistics.pair_correlation_estimate(sample.entries)
        yield from both("correlation of J_j, J_k", 0.0, float(common), estimate, scale=1.0)
    published = float(theory.shift_variance(spec))
    if not published:
        yield _no_shift(sample.shift)
        return
    yield _centred("mean of a", sample.shift, law.shift)
    yield from both("variance of a", published, law.shift, statistics.mean_estimate(sample.shift**2))
    cross = float(np.divide(law.cross, math.sqrt(law.along_input) * math.sqrt(law.shift)))
    estimate = statistics.correlation_estimate(sample.along, sample.shift)
    yield from both("correlation of J x, a", 0.0, cross, estimate, scale=1.0)


def _no_shift(shift: np.ndarray) -> Claim:
    return Claim.of("variance of a", 0.0, statistics.mean_estimate(shift**2), note="no bias: exactly 0")


def _centred(quantity: str, values: np.ndarray, variance: float) -> Claim:
    return Claim.of(quantity, 0.0, statistics.mean_estimate(values), scale=math.sqrt(variance))


def _norm_claims(spec: NetworkSpec, sample: Sample, x: np.ndarray | None = None) -> Iterator[Claim]:
    """Measured norms against the coefficients: the mean where it is known, the bound, the published value.

    `x` is given for residual networks, whose law depends on it.
    """
    d, K = spec.input_dim, spec.output_dim
    published_gain = math.sqrt(float(theory.jacobian_variance(spec)) * d)
    gain = published_gain
    if x is not None:
        gain = math.sqrt(float(theory.residual_law(spec, float(x @ x), finite_width=True).orthogonal) * d)
    lowered, allowance = map(float, theory.norm_correction(spec))
    excess, reason = (0.0, "finite width to first order") if K == 1 else (allowance, SPREAD)
    for (p, q), values in sample.norms.items():
        measured = statistics.mean_estimate(values)
        name = f"mean |J| {exponent(p)}->{exponent(q)}"
        sharp, bound = (theory.operator_norm_coefficient(p, q, d, K, kind=kind) for kind in ("sharp", "chevet"))
        growth = 0.0 if x is None else growth_along_input(spec, x, p, q)
        if x is None:
            yield Claim.of(f"{name}, sharp", gain * sharp * lowered, measured, allowance=allowance, reason=reason)
        options = {"kind": "at_most", "reason": reason if excess else ""}
        options |= {"allowance": float(theory.chevet_excess(spec, p, q))}
        note = "with the growth along x" if growth else ""
        yield Claim.of(f"{name}, Chevet", gain * bound + growth, measured, note=note, **options)
        with contextlib.suppress(ValueError):  # four pairs have a published coefficient
            published = theory.operator_norm_coefficient(p, q, d, K, kind="published")
            holds = published_gain * published >= 0.99 * gain * sharp and not growth
            note = "" if holds else "the published coefficient is no upper bound here"
            options |= {"expected": "holds" if holds else "fails", "scale": gain * sharp, "allowance": excess}
            options |= {} if holds else {"allowance": 0.0, "reason": ""}
            yield Claim.of(f"{name}, published", published_gain * published, measured, note=note, **options)


def growth_along_input(spec: NetworkSpec, x: np.ndarray, p: float, q: float) -> float:
    """What growth along the input x adds at most to a mean norm of J, see `theory.growth_along_input`."""
    return float(theory.growth_along_input(spec, float(x @ x), float(np.linalg.norm(x, dual_exponent(p))), q))


def exponent(p: float) -> str:
    """An exponent as people write it."""
    return "inf" if p == math.inf else f"{p:g}"
