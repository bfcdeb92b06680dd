"""The paper's first claim: the law of the linear representation f(x) = J(x) x + a(x) of a random network."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from mftadv import norms, report, statistics, theory
from mftadv.attack import capacity_for
from mftadv.compare import FAMILY_ERROR, Claim, Judgement
from mftadv.experiments import _law_figures
from mftadv.experiments._networks import (
    AtInputs,
    OfNetworks,
    exponent,
    growth_along_input,
    least_cost,
    width_effect,
)
from mftadv.linear import linear_representation
from mftadv.spec import NetworkSpec
from mftadv.sweep import Cell, sample_of

_PAPER = {"data": "gaussian", "width": 5000, "depth": 10, "bias_variance": 0.0}
_AFFORDABLE = 4 * 10**9  # the cost, in random numbers drawn, of a run that names no number of networks
_LEAST_COST = 2000  # what any network costs, however small it is, in the same unit: measured at N = 2

# Entries of J stored of all networks and inputs; columns of J are exchangeable, so some stand for all.
_MAX_ENTRIES = 2**24

_PLANNED = 0.045  # what is planned for, so that 5% is seen in spite of skewness, an uncertain spread, an allowance

_EXPONENTS = (1.0, 2.0, math.inf)
_RESIDUAL_NOTE = "along x skip and branch correlate, since the mean of phi is not 0: the published law misses it"

Sample = Mapping[str, np.ndarray]
Coords = Mapping[str, float | int | str]


def norm_pairs(spec: NetworkSpec) -> tuple[tuple[float, float], ...]:
    """The (p, q) whose operator norm and whose mean norm both have a formula; q = 2 alone where K = 1."""
    pairs = [(p, q) for p in _EXPONENTS for q in _EXPONENTS if q == 2 or spec.output_dim > 1]
    shape = (spec.output_dim, spec.input_dim)
    return tuple(
        (p, q)
        for p, q in pairs
        if norms.has_exact_operator_norm(p, q, shape) and theory.has_sharp_coefficient(p, q, *shape[::-1])
    )


def norm_name(p: float, q: float) -> str:
    """The name of the variable |J|_{p->q}."""
    return f"norm_{exponent(p)}_{exponent(q)}"


@dataclasses.dataclass(frozen=True)
class Statistic(AtInputs):
    """What is stored of one network at B inputs.

    `entries`, the first m columns of J [B, K, m]; `along`, J x / |x|, which has the law of an entry [B, K]; `shift`
    [B, K]; and for each pair `norm_p_q`, |J|_{p->q} [B].
    """

    columns: int
    pairs: tuple[tuple[float, float], ...]

    def capacity(self, spec: NetworkSpec, num_inputs: int) -> tuple[int, int]:
        return capacity_for(spec, linear_representation=num_inputs)

    def __call__(self, key: Key[Array, ""], spec: NetworkSpec, xs: Float[Array, "B d"]) -> dict[str, Array]:
        rep = linear_representation(self.network(key, spec, xs), xs)
        directions = jnp.asarray(xs, rep.jacobian.dtype)
        directions = directions / norms.vector_norm(directions, 2)[:, None]
        return {
            "entries": rep.jacobian[..., : self.columns],
            "along": jnp.sum(rep.jacobian * directions[:, None], axis=-1),
            "shift": rep.shift,
            **{norm_name(*pair): norms.exact_operator_norm(rep.jacobian, *pair) for pair in self.pairs},
        }


@dataclasses.dataclass(frozen=True)
class JacobianLaw(OfNetworks):
    """Check the law of J and a of random networks: draw many, measure, and hold every claim against its closed form.

    Entries of J are claimed to be independent N(0, omega^L / d), independent of x and of a, whose entries are
    N(0, alpha b2 sum_k omega^k).
    """

    name: ClassVar[str] = "validate"
    source: ClassVar[str] = "the paper, law of the linear representation"
    axes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "entries": ("input", "output", "column"),
        "along": ("input", "output"),
        "shift": ("input", "output"),
        **{norm_name(p, q): ("input",) for p in _EXPONENTS for q in _EXPONENTS},
    }

    paper: dataclasses.InitVar[bool] = False
    """The paper's configuration for options left at their defaults: gaussian inputs, d=1000, N=5000, L=10, no bias."""

    def __post_init__(self, paper: bool):
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name, value in _PAPER.items():
            if paper and getattr(self, name) == defaults[name]:
                object.__setattr__(self, name, value)

    def cells(self) -> Sequence[Cell]:
        spec, xs = self.law, self.points.values
        # a run can be extended, so what is stored of a network does not depend on how many there are
        planned = self._cell(spec, xs, 2)
        columns = _MAX_ENTRIES // (self.networks([planned])[0] * len(xs) * spec.output_dim)
        return [self._cell(spec, xs, min(spec.input_dim, max(columns, 2)))]

    def _cell(self, spec: NetworkSpec, xs: np.ndarray, columns: int) -> Cell:
        return Cell({}, spec, (xs,), Statistic(self.engine, columns, norm_pairs(spec)))

    def networks(self, cells: Sequence[Cell]) -> Sequence[int]:
        return [
            int(min(max(self.resolution(cell).values()), max(8, _AFFORDABLE // max(_LEAST_COST, least_cost(cell)))))
            for cell in cells
        ]

    def resolution(self, cell: Cell) -> Mapping[str, float]:
        spec, num_inputs = cell.spec, len(cell.operands[0])
        # the share of one claim in the family error, for about as many claims as there will be
        level = FAMILY_ERROR / (num_inputs * (12 + 3 * len(norm_pairs(spec))))
        planned = _PLANNED - (0.01 if spec.block == "residual" else 0)
        needed = {}
        for quantity in theory.QUANTITIES:
            if (quantity.startswith("pair") and spec.input_dim == 1) or (
                "shift" in quantity and not spec.bias_variance
            ):
                continue
            needed[quantity] = theory.relative_spread(spec, quantity)
        needed["jacobian_variance_along_input"] = theory.relative_spread(spec, "jacobian_variance", 1)
        return {
            name: statistics.networks_needed(spread, deviation=planned, false_alarm=level)
            for name, spread in needed.items()
        }

    def predict(self, cell: Cell) -> Mapping[str, float]:
        return predictions(cell.spec)

    def claims(self, data: Any) -> Sequence[Claim]:
        (cell,) = self.cells()
        predicted, sample = self.predict(cell), sample_of(data, 0)
        return [
            claim
            for i, x in enumerate(self.points.values)
            for claim in claims_at(
                cell.spec, predicted, x, {name: values[:, i] for name, values in sample.items()}, {"input": i}
            )
        ]

    def figures(self, data: Any, judged: Sequence[Judgement]) -> Mapping[str, Any]:
        names = [f"input {i}, $|x|^2/d$ = {np.mean(x**2):.3g}" for i, x in enumerate(self.points.values)]
        return {"jacobian_law": _law_figures.figure(self.law, names, sample_of(data, 0), judged)}

    def tables(self, data: Any, judged: Sequence[Judgement], wide: bool = False) -> Sequence[Any]:
        return [
            report.verdict_table(
                f"input {i}, |x|^2/d = {np.mean(x**2):.4g}",
                [judgement for judgement in judged if judgement.claim.coords["input"] == i],
                wide,
            )
            for i, x in enumerate(self.points.values)
        ]


def predictions(spec: NetworkSpec) -> dict[str, float]:
    """What theory says of the law, the input left aside: moments of J and a, and the coefficients of each p->q norm."""
    d, K = spec.input_dim, spec.output_dim
    forms = {"jacobian_variance": theory.jacobian_variance, "shift_variance": theory.shift_variance}
    if spec.block != "residual":
        forms |= {
            "finite_width_factor": theory.finite_width_factor,
            "jacobian_shift_square_correlation": theory.jacobian_shift_square_correlation,
            "entry_law_error": theory.entry_law_error,
        }
    with jax.enable_x64(True):
        found = {name: float(form(spec)) for name, form in forms.items()}
        for p, q in norm_pairs(spec):
            found[f"chevet_excess_{exponent(p)}_{exponent(q)}"] = float(theory.chevet_excess(spec, p, q))
            for kind in ("sharp", "chevet", "published"):
                with contextlib.suppress(ValueError):  # four pairs have a published coefficient
                    coefficient = theory.operator_norm_coefficient(p, q, d, K, kind=kind)
                    found[f"coefficient_{kind}_{exponent(p)}_{exponent(q)}"] = float(coefficient)
    return found


def claims_at(
    spec: NetworkSpec, predicted: Mapping[str, float], x: Float[np.ndarray, " d"], sample: Sample, coords: Coords
) -> list[Claim]:
    """The claims at one input.

    Args:
        spec: the law, with concrete leaves.
        predicted: see `predictions`.
        x: the input.
        sample: of n networks at this input, see `Statistic`: `entries` [n, K, m], `along` and `shift` [n, K],
            `norm_p_q` [n].
        coords: of the claims.
    """
    sample = {name: np.asarray(values, np.float64) for name, values in sample.items()}
    # what cannot be measured (a variance of nothing) comes out as nan, and is judged so
    with jax.enable_x64(True), np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if spec.block == "residual":
            law = jax.tree.map(float, theory.residual_law(spec, float(x @ x), finite_width=True))
            found = [*_residual_claims(spec, predicted, law, x, sample)]
            growth = growth_along_input(spec, x, norm_pairs(spec))
            found += _norm_claims(spec, predicted, sample, law.orthogonal, growth)
        else:
            found = [*_exact_claims(spec, predicted, sample), *_norm_claims(spec, predicted, sample)]
    return [dataclasses.replace(claim, coords={**coords, **claim.coords}) for claim in found]


def _exact_claims(spec: NetworkSpec, predicted: Mapping[str, float], sample: Sample) -> Iterator[Claim]:
    """Vanilla and signed networks, whose second and fourth moments are known at every width."""
    variance, factor = predicted["jacobian_variance"], predicted["finite_width_factor"]
    entries, along, shift = sample["entries"], sample["along"], sample["shift"]
    n, _, columns = entries.shape

    def claim(id, quantity, expected, estimate, scale=None, columns=columns, note=""):
        """A claim with the error that theory predicts, from one network's relative spread."""
        scale = abs(expected) if scale is None else scale
        error = theory.relative_spread(spec, id.removesuffix("_along_input"), columns) * scale / math.sqrt(n)
        return Claim.of(quantity, expected, estimate, scale=scale, predicted_error=error, note=note, id=id)

    yield claim("jacobian_mean", "mean of J", 0.0, statistics.mean_estimate(entries), math.sqrt(variance))
    yield claim("jacobian_variance", "var J", variance, statistics.mean_estimate(entries**2))
    kurtosis = statistics.kurtosis_estimate(entries)
    yield claim("jacobian_kurtosis", "kurtosis of J", 3 * factor, kurtosis, note="3 at infinite width")
    if 0 < variance < math.inf and factor < math.inf:
        law = statistics.law_test(entries[:, 0, 0], variance, 3 * factor, theory.log_scale_skewness(spec))
    else:
        law = statistics.LawTest(math.nan, math.nan, math.nan, n, 0)
    note = f"Kolmogorov's distance to the law at width N; to the normal law {law.normal_distance:.3g}"
    options = {"allowance": predicted["entry_law_error"], "reason": "the law is approximate", "id": "jacobian_law"}
    yield Claim.of("law of one entry of J", 0.0, law, note=note, **options)
    if columns > 1:
        pairs = statistics.pair_correlation_estimate(entries)
        yield claim("pair_correlation", "corr J_j, J_k", 0.0, pairs, scale=1.0)
        note = "1 at infinite width: the entries of one network share its scale"
        squares = statistics.pair_square_estimate(entries)
        yield claim("pair_square", "E J_j^2 J_k^2 / (E J^2)^2", factor, squares, note=note)
    note = "the same along x as elsewhere: J does not depend on x"
    square = statistics.mean_estimate(along**2)
    yield claim("jacobian_variance_along_input", "var J along x", variance, square, columns=1, note=note)
    shift_variance = predicted["shift_variance"]
    if not shift_variance:
        yield _no_shift(shift)
        return
    yield claim("shift_mean", "mean of a", 0.0, statistics.mean_estimate(shift), math.sqrt(shift_variance))
    yield claim("shift_variance", "var a", shift_variance, statistics.mean_estimate(shift**2))
    each = np.broadcast_to(shift[..., None], entries.shape)
    both = statistics.correlation_estimate(entries, each)
    yield claim("jacobian_shift_correlation", "corr J, a", 0.0, both, scale=1.0)
    name, expected = "jacobian_shift_square_correlation", predicted["jacobian_shift_square_correlation"]
    squares = statistics.correlation_estimate(entries**2, each**2)
    note = "0 at infinite width: J and a share the network's scale"
    yield claim(name, "corr J^2, a^2", expected, squares, scale=1.0, note=note)


def _residual_claims(
    spec: NetworkSpec, predicted: Mapping[str, float], law: theory.ResidualLaw, x: np.ndarray, sample: Sample
) -> Iterator[Claim]:
    """Residual networks: what the paper says beside what holds."""
    square = x @ x
    error = float(theory.residual_law_error(spec, float(square)))
    entries, along, shift = sample["entries"], sample["along"], sample["shift"]
    across, along_input = law.orthogonal, law.along_input / square
    columns = entries.shape[-1]
    direction = x[:columns] / math.sqrt(square)
    mean = across + (along_input - across) * float(direction @ direction) / columns
    yield _centred("jacobian_mean", "mean of J", entries, mean)

    def both(id, quantity, theirs, ours, estimate, scale=None):
        known = abs(ours - theirs) > 1e-3 * (abs(theirs) if scale is None else scale)
        options = {"expected": "fails" if known else "holds", "note": _RESIDUAL_NOTE, "id": f"{id}_published"}
        yield Claim.of(f"{quantity}, published", theirs, estimate, scale=scale, **options)
        options = {"allowance": error, "reason": "corrected to first order in 1/N", "id": f"{id}_corrected"}
        yield Claim.of(f"{quantity}, corrected", ours, estimate, scale=scale, **options)

    published = predicted["jacobian_variance"]
    yield from both("jacobian_variance", "var J", published, mean, statistics.mean_estimate(entries**2))
    name, estimate = "jacobian_variance_along_input", statistics.mean_estimate(along**2)
    yield from both(name, "var J along x", published, along_input, estimate)
    if columns > 1:
        squares = direction.sum() ** 2 - direction @ direction
        common = (along_input - across) / mean * squares / (columns * (columns - 1))
        estimate = statistics.pair_correlation_estimate(entries)
        yield from both("pair_correlation", "corr J_j, J_k", 0.0, float(common), estimate, scale=1.0)
    published = predicted["shift_variance"]
    if not published:
        yield _no_shift(shift)
        return
    yield _centred("shift_mean", "mean of a", shift, float(law.shift))
    yield from both("shift_variance", "var a", published, law.shift, statistics.mean_estimate(shift**2))
    cross = float(np.divide(law.cross, math.sqrt(law.along_input) * math.sqrt(law.shift)))
    estimate = statistics.correlation_estimate(along, shift)
    yield from both("along_shift_correlation", "corr J x, a", 0.0, cross, estimate, scale=1.0)


def _no_shift(shift: np.ndarray) -> Claim:
    estimate = statistics.mean_estimate(shift**2)
    return Claim.of("var a", 0.0, estimate, note="no bias: exactly 0", id="shift_variance")


def _centred(id: str, quantity: str, values: np.ndarray, variance: float) -> Claim:
    return Claim.of(quantity, 0.0, statistics.mean_estimate(values), scale=math.sqrt(variance), id=id)


def _norm_claims(
    spec: NetworkSpec,
    predicted: Mapping[str, float],
    sample: Sample,
    across: float | None = None,
    growth: Mapping[tuple[float, float], float] | None = None,
) -> Iterator[Claim]:
    """Measured norms against the coefficients: the mean where it is known, the bound, the published value.

    `across`, the variance of J across the input, and `growth` along it are given for residual networks.
    """
    published_gain = math.sqrt(predicted["jacobian_variance"] * spec.input_dim)
    gain = published_gain if across is None else math.sqrt(across * spec.input_dim)
    effect = width_effect(spec)
    reason = effect.reason if effect.excess else ""
    for p, q in norm_pairs(spec):
        pair = f"{exponent(p)}_{exponent(q)}"
        measured = statistics.mean_estimate(sample[norm_name(p, q)])
        name, coords = f"mean |J| {exponent(p)}->{exponent(q)}", {"p": p, "q": q}
        sharp, bound = predicted[f"coefficient_sharp_{pair}"], predicted[f"coefficient_chevet_{pair}"]
        grown = growth[p, q] if growth else 0.0
        if across is None:
            options = {"allowance": effect.error, "reason": effect.reason, "id": "norm_sharp", "coords": coords}
            yield Claim.of(f"{name}, sharp", gain * sharp * effect.factor, measured, **options)
        options = {"kind": "at_most", "reason": reason, "coords": coords}
        options |= {"allowance": predicted[f"chevet_excess_{pair}"], "id": "norm_chevet"}
        note = "with the growth along x" if grown else ""
        yield Claim.of(f"{name}, Chevet", gain * bound + grown, measured, note=note, **options)
        if (published := predicted.get(f"coefficient_published_{pair}")) is not None:
            holds = published_gain * published >= 0.99 * gain * sharp and not grown
            note = "" if holds else "the published coefficient is no upper bound here"
            options |= {"expected": "holds" if holds else "fails", "scale": gain * sharp, "id": "norm_published"}
            options |= {"allowance": effect.excess} if holds else {"allowance": 0.0, "reason": ""}
            yield Claim.of(f"{name}, published", published_gain * published, measured, note=note, **options)
