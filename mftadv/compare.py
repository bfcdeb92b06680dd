"""A measurement beside the closed form it should obey: ratio, z, allowance, verdict."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import scipy

from mftadv.statistics import Estimate, LawTest

__all__ = ["FAMILY_ERROR", "POWER", "RESOLUTION", "Claim", "Judgement", "find", "judge"]

FAMILY_ERROR = 1e-3  # of a table: the probability that any true claim in it is called false
RESOLUTION = 0.05  # a table that cannot see a deviation this large says "underpowered"
POWER = 0.9  # the probability with which it must see it

KINDS = ("equal", "at_most", "distance")
EXPECTATIONS = ("holds", "fails")


@dataclasses.dataclass(frozen=True)
class Claim:
    """A closed form and the measurement it is held against.

    Args:
        quantity: what is measured.
        theory: its value by the closed form, or the bound; 0 for a distance.
        measured: the estimate over networks.
        standard_error: its standard error, by network; 0 where it cannot vary; unused for a distance.
        degrees_of_freedom: see `Estimate`; for a distance the number of draws less one.
        skewness: of the estimate, see `Estimate`; 0 is plain Student's t.
        skewness_error: of the skewness, see `Estimate`; unused where the predicted error is given.
        predicted_error: the standard error that theory itself predicts for so many networks, see
            `theory.relative_spread`; 0 where it does not. Of the two errors the larger is used.
        allowance: how far theory may honestly be off, as a fraction of `scale`.
        reason: why there is an allowance.
        kind: "equal" is two-sided, "at_most" one-sided, "distance" is Kolmogorov's distance of one draw per network.
        scale: what `allowance` and the 5% of "underpowered" are fractions of; |theory|, or 1 for a distance.
        expected: "fails" for a published claim that is known not to hold.
        nonfinite: number of draws that were nan or infinite; a claim with any never holds.
        note: anything a reader should know.
        id: what kind of claim it is, for programs to find it by; the quantity is for readers.
        coords: at which coordinates, by name (an input, p, q, eps, ...).

    Raises:
        ValueError: kind or expected is unknown, or an error, the allowance or the scale is negative.

    Source: ours.
    """

    quantity: str
    theory: float
    measured: float
    standard_error: float
    degrees_of_freedom: float
    skewness: float = 0.0
    skewness_error: float = 0.0
    predicted_error: float = 0.0
    allowance: float = 0.0
    reason: str = ""
    kind: Literal["equal", "at_most", "distance"] = "equal"
    scale: float | None = None
    expected: Literal["holds", "fails"] = "holds"
    nonfinite: int = 0
    note: str = ""
    id: str = ""
    coords: Mapping[str, float | int | str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name, values in (("kind", KINDS), ("expected", EXPECTATIONS)):
            if getattr(self, name) not in values:
                raise ValueError(f"{name}: expected one of {', '.join(values)}, got {getattr(self, name)!r}")
        if self.scale is None:
            object.__setattr__(self, "scale", 1.0 if self.kind == "distance" else abs(self.theory))
        for field in dataclasses.fields(self):
            if field.type in (float, float | None):  # device scalars are welcome, records hold Python's
                object.__setattr__(self, field.name, float(getattr(self, field.name)))
        for name in ("standard_error", "skewness_error", "predicted_error", "allowance", "scale"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected a number >= 0, got {getattr(self, name)!r}")

    @classmethod
    def of(cls, quantity: str, theory: float, estimate: Estimate | LawTest, **options: Any) -> "Claim":
        """The claim that an estimate equals `theory`, or that a law test's distance is 0.

        Args:
            quantity: what is measured.
            theory: its value by the closed form; 0 for a law test.
            estimate: an `Estimate`, or a `LawTest`, which makes the kind "distance".
            options: the remaining fields of `Claim`.

        Returns:
            Claim.

        Raises:
            ValueError: see `Claim`.

        Source: ours.
        """
        if isinstance(estimate, LawTest):
            options = {"kind": "distance", "nonfinite": estimate.nonfinite, **options}
            return cls(quantity, theory, estimate.distance, math.nan, estimate.count - 1, **options)
        shared = ("skewness", "skewness_error", "nonfinite")
        options = {**{name: getattr(estimate, name) for name in shared}, **options}
        return cls(quantity, theory, estimate.value, estimate.standard_error, estimate.degrees_of_freedom, **options)


@dataclasses.dataclass(frozen=True)
class Judgement:
    """A claim and what the table says of it.

    Args:
        claim: as it was given.
        ratio: measured / theory, nan where theory is 0.
        z: (|measured - theory| - allowance)+ in standard errors, with the sign of the difference and corrected for
            skewness; for a bound the excess over it, negative below it; nan for a distance.
        p_value: of this claim alone.
        adjusted_p_value: Holm's, over the table; a claim is rejected where it is at most the family error.
        smallest_visible: the smallest deviation the claim could see at the table's strictest level and a power of 0.9,
            allowance included, as a fraction of its scale.
        verdict: "holds", "fails", "fails, as predicted" or "underpowered".

    Source: ours.
    """

    claim: Claim
    ratio: float
    z: float
    p_value: float
    adjusted_p_value: float
    smallest_visible: float
    verdict: str

    def as_dict(self) -> dict[str, Any]:
        """One record for JSON: the claim's fields, then these; None for numbers that are not finite, "inf" in coords.

        Returns:
            A dict of strings, numbers and None, but for `coords`, a dict of them.

        Source: ours.
        """
        record = dataclasses.asdict(self)
        record = {"id": self.claim.id, **record.pop("claim"), **record}
        endless = {k for k, v in record.items() if isinstance(v, float) and not math.isfinite(v)}
        words = {k: str(v) if v in (math.inf, -math.inf) else v for k, v in self.claim.coords.items()}
        return {**record, **dict.fromkeys(endless), "coords": words}


def find(judgements: Iterable[Judgement], id: str, **coords: Any) -> list[Judgement]:
    """The judgements of the claims of one id that are at these coordinates, in order.

    Args:
        judgements: of a table.
        id: of the claims.
        coords: the coordinates that they share; others are free.

    Returns:
        The judgements, possibly none.

    Source: ours.
    """
    return [
        judgement
        for judgement in judgements
        if judgement.claim.id == id and coords.items() <= dict(judgement.claim.coords).items()
    ]


def _discount(size: np.ndarray, gamma: np.ndarray) -> np.ndarray:
    """Hall's cubic for the size of a studentised t whose law has its longer tail on this side, gamma > 0.

    It is followed to its flat point, 1/gamma - gamma/6: no sample of so skewed a law shows more than that.
    """
    safe = np.where(gamma > 0, gamma, 1)
    hall = (1 - np.maximum(1 - safe * size / 3, 0) ** 3) / safe - safe / 6
    return np.where(gamma > 0, np.clip(hall, 0, size), size)


def _undiscount(quantile: np.ndarray, gamma: np.ndarray) -> np.ndarray:
    """The size that `_discount` takes to `quantile`; inf where there is none."""
    safe = np.where(gamma > 0, gamma, 1)
    left = 1 - safe * quantile - safe**2 / 6
    size = np.where(left >= 0, 3 / safe * (1 - np.cbrt(left)), math.inf)
    return np.where(gamma > 0, size, quantile)


def judge(claims: Sequence[Claim], family_error: float = FAMILY_ERROR) -> tuple[Judgement, ...]:
    """Judge a table of claims so that any true claim in it is called false with probability at most `family_error`.

    Measured: of 400 tables of each of 2, 3, 5, 8, 10, 20, 50, 100, 200 and 1000 true networks of width 10 to 30 and
    kurtosis up to 12, at most 1.5% hold a failure where .05 is declared, and one in 18,000 where .001 is. Without
    predicted errors, true claims of means, variances, norms, kurtosis, pair squares and correlations at a level of .001
    or .0001 fail at most half as often as declared, at 2 to 2000 networks of kurtosis 3.3 to 12.

    t = excess / error with the allowance already taken off the excess, and for the error the measured or the predicted
    one, whichever is larger. Draws of squares are skewed, and there Student's t is wrong by an order of magnitude at
    such levels; Hall's cubic
        t + gamma t^2 / 3 + gamma^2 t^3 / 27 + gamma / 6,    t gamma < 0,
    replaces t where it is the smaller of the two. gamma is the skewness less its error where t > 0, plus its error
    where t < 0. p-values by Student's t (Kolmogorov's law for a distance), then Holm's step-down over the table.

    A claim is underpowered where it is not rejected and a deviation of 5% of its scale would not be seen with
    probability 0.9 at the strictest level, family_error / m; a bound is not, where its upper confidence limit at that
    level is at most 5% above it. So are few networks of a skewed law without a predicted error, whatever they show. A
    claim expected to fail that is not rejected is judged like any other. Non-finite draws fail, as does an infinite
    value. What was not measured is underpowered unless it fails: nan (such as the kurtosis of nothing), draws that do
    not vary where theory says that they do, or an exact 0 on all networks where the scale is not 0.

    Args:
        claims: m claims; all of them count in the family, also those expected to fail.
        family_error: in (0, 1).

    Returns:
        m judgements, in order.

    Raises:
        ValueError: `family_error` is not in (0, 1).

    Source: Holm 1979; Hall 1992, "On the removal of skewness by transformation"; the predicted error and the error of
    the skewness are ours, measured rather than proven.
    """
    if not 0 < family_error < 1:
        raise ValueError(f"family_error: expected a probability in (0, 1), got {family_error!r}")
    if not claims:
        return ()

    def column(name):
        return np.array([getattr(claim, name) for claim in claims], dtype=np.float64)

    theory, measured, scale = (column(name) for name in ("theory", "measured", "scale"))
    seen, predicted, skewness = (column(name) for name in ("standard_error", "predicted_error", "skewness"))
    error = np.maximum(seen, predicted)
    doubt = np.where(predicted > 0, 0, column("skewness_error"))
    # what cannot vary shows any difference, even on a single network
    freedom = np.where(error == 0, math.inf, column("degrees_of_freedom"))
    kind = np.array([claim.kind for claim in claims])
    bound, distance = kind == "at_most", kind == "distance"
    broken = (column("nonfinite") > 0) | ~np.isfinite(theory) | np.isinf(measured)
    silent = (seen == 0) & ((predicted > 0) | ((measured == 0) & (scale > 0)))
    level = family_error / len(claims)

    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        slack = column("allowance") * scale
        difference = measured - theory
        excess = np.where(bound, difference - slack, np.sign(difference) * np.maximum(np.abs(difference) - slack, 0))
        t = np.where(excess == 0, 0.0, excess / error)
        z = np.sign(t) * _discount(np.abs(t), doubt - np.sign(t) * skewness)
        p = np.where(bound, scipy.stats.t.sf(z, freedom), 2 * scipy.stats.t.sf(np.abs(z), freedom))
        quantile = scipy.stats.t.isf(np.where(bound, level, level / 2), freedom)
        hidden = doubt + np.where(bound, -skewness, np.abs(skewness))
        visible = (_undiscount(quantile, hidden) + scipy.stats.t.isf(1 - POWER, freedom)) * error
        upper_limit = excess + _undiscount(quantile, skewness) * error
        draws = column("degrees_of_freedom")[distance] + 1
        p[distance] = scipy.stats.kstwo.sf(excess[distance], draws)
        # where the laws are furthest apart, the share of draws below is off by at most 1 / (2 sqrt(n))
        visible[distance] = scipy.stats.kstwo.isf(level, draws) + scipy.stats.norm.isf(1 - POWER) / (2 * np.sqrt(draws))
        visible = np.where(silent, math.inf, visible + slack)
        ratio = np.where(theory == 0, math.nan, measured / theory)
        relative = np.where(visible == 0, 0.0, visible / scale)
    z = np.where(distance, math.nan, z)
    p = np.where(broken, math.nan, p)

    # Holm: the k-th smallest p-value times the number not yet rejected; what has no p-value still counts
    order = np.argsort(np.where(np.isnan(p), 2.0, p), kind="stable")
    adjusted = np.empty_like(p)
    remaining = len(claims) - np.arange(len(claims))
    adjusted[order] = np.minimum(np.maximum.accumulate(remaining * np.nan_to_num(p[order], nan=1.0)), 1.0)
    rejected = adjusted <= family_error
    # a comparison with nan is False: what could not be measured is underpowered
    powered = (visible <= RESOLUTION * scale) | (bound & (upper_limit <= RESOLUTION * scale))
    powered &= np.isfinite(measured) & ~silent

    def verdict(i):
        if broken[i]:
            return "fails"
        if rejected[i]:
            return "fails, as predicted" if claims[i].expected == "fails" else "fails"
        return "holds" if powered[i] else "underpowered"

    table = np.stack([ratio, z, p, np.where(np.isnan(p), math.nan, adjusted), relative], axis=1).tolist()
    return tuple(
        Judgement(claim, *row, verdict=verdict(i)) for i, (claim, row) in enumerate(zip(claims, table, strict=True))
    )
