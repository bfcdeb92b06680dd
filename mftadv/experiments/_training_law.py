"""What is measured and claimed of L_adv and the variance in training: curves, and claims of limits."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mftadv import statistics
from mftadv.compare import Claim
from mftadv.experiments._trainings import ratio
from mftadv.statistics import Estimate
from mftadv.sweep import Cell

_GATE_SHIFT, _GATES = 0.5, 30  # where the kernel regime is taken to hold
# allowances
SHARES = {"slope": 0.1, "alignment": 0.1, "curve": 0.05, "variance": 0.15, "variance_given": 0.15, "horizon": 0.2}


class Curves(NamedTuple):
    """What the networks of a cell did, and what theory says, at the S evaluations."""

    tau: np.ndarray  # [S], training time in units of B t*
    loss: np.ndarray  # [n, S], L_adv
    change: np.ndarray  # [n, S], s(t) - s(0), mean over layers
    identity: np.ndarray  # [n, S], the same by the exact identity
    # [n], -dL_adv/dt of the worst perturbation at t = 0, over the rate of one not aligned; nan beside L_std
    rates: np.ndarray
    loss_band: np.ndarray  # [2, n or 1, S], L_adv of the linear and of the rough start
    change_band: np.ndarray  # [2, n or 1, S], s(t) - s(0)
    change_given: np.ndarray  # [n, S], the same by theory where L_adv is the measured one; nan without L_std
    closed_loss: np.ndarray  # [S], eps beta omega(t)^{L/2} of the closed form
    closed_change: np.ndarray  # [S]
    told: list[str]

    @property
    def relative_band(self) -> np.ndarray:
        """The mean of L_adv(t) over that of L_adv(0) by theory, [2, S]."""
        mean = self.loss_band.mean(1)
        return mean / mean[:, :1]

    @property
    def relative(self) -> tuple[np.ndarray, np.ndarray]:
        """The mean of L_adv(t) over that of L_adv(0), and its standard error."""
        pairs = [statistics.ratio_estimate(each, self.loss[:, 0]) for each in self.loss.T]
        return np.array([pair.value for pair in pairs]), np.array([pair.standard_error for pair in pairs])


def failing(start: Mapping[str, float]) -> str:
    """Which condition of the kernel regime fails; nothing inside of it."""
    shift, gates = start["gate_shift"] < _GATE_SHIFT, start["gates_per_dimension"] > _GATES
    return " ".join(name for name, holds in (("lambda", shift), ("n/d", gates)) if not holds)


def at_cell(cell: Cell) -> str:
    return f"L={cell.coords['depth']} {cell.coords['angle']:g} N={cell.coords['width']}"


def within(
    text: str, low: float, high: float, estimate: Estimate, cell: Cell, *, id: str, note: str, **coords: Any
) -> list[Claim]:
    """The two claims that a number of a cell lies between two others, to the allowance of its kind."""
    of = {"coords": {**cell.coords, **coords}, "note": note}
    return bounds(text, low, high, estimate, at_cell(cell), SHARES[id], id=id, **of)


def between(
    text: str, edges: np.ndarray, measured: np.ndarray, cell: Cell, *, id: str, note: str, **coords: Any
) -> list[Claim]:
    """The two claims that a number lies between two of theory, [2, n], that each network has for itself.

    Most of what networks differ by, they differ by at the start, which theory knows: the ratio of the means of a number
    and of an edge is seen with fewer networks than the number.
    """
    low, high = sorted(edges, key=np.mean)
    of = {"kind": "at_most", "allowance": SHARES[id], "reason": "the theory is a limit", "id": id, "note": note}
    return [
        Claim.of(
            f"{text} {sign} {at_cell(cell)}", 1.0, ratio(*pair),
            coords={**cell.coords, **coords, "side": side}, **of,
        )
        for sign, side, pair in (("<", "above", (measured, high)), (">", "below", (low, measured)))
    ]  # fmt: skip


def bounds(
    text: str, low: float, high: float, estimate: Estimate, at: str, allowance: float, *, coords: Any, **options: Any
) -> list[Claim]:
    minus = dataclasses.replace(estimate, value=-estimate.value)
    options |= {"kind": "at_most", "allowance": allowance, "reason": "the theory is a limit"}
    return [
        Claim.of(f"{text} {sign} {at}", edge, each, coords={**coords, "side": side}, **options)
        for sign, side, edge, each in (("<", "above", high, estimate), (">", "below", -low, minus))
    ]


def exponent(widths: np.ndarray, falls: Any, weight: np.ndarray) -> float:
    """The power of the width in exact numbers, fitted with given weights."""
    x = np.log(widths)
    centre = x - np.sum(weight * x) / np.sum(weight)
    return float(np.sum(weight * centre * np.log(np.abs(falls))) / np.sum(weight * centre**2))
