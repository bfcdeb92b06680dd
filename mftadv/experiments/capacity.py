"""What capacity is left: the Fisher-Rao norm in time, standard against adversarial, for several widths."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from mftadv import report
from mftadv.compare import Claim, Judgement
from mftadv.experiments import _training_figures
from mftadv.experiments._trainings import (
    OfTrainings,
    estimate,
    less_scale,
    mean_and_error,
    relative_fisher_rao,
    running,
)
from mftadv.spec import LARGEST, check_positive
from mftadv.statistics import Estimate
from mftadv.sweep import Cell


class Fit(NamedTuple):
    """A power of the width through the sizes of some falls, weighted by their errors, and its values."""

    falls: np.ndarray
    errors: np.ndarray
    exponent: float
    error: float
    curve: np.ndarray
    degrees_of_freedom: int


@dataclasses.dataclass(frozen=True)
class Capacity(OfTrainings):
    """Follow the Fisher-Rao norm of networks in training, for several widths.

    The paper: adversarial training lowers omega(t)^L, and with it the Fisher-Rao norm E <theta, dL/dtheta>^2, which
    measures capacity, at a rate of 1/N. The norm is proportional to |dL/df|^2, which falls as the loss is fitted; its
    quotient with that is what the weights contribute. The fall of omega^L and of this quotient up to the first
    evaluation is fitted by a power of N.
    """

    name: ClassVar[str] = "capacity"
    source: ClassVar[str] = "the paper, network capacity under adversarial training"

    widths: tuple[int, ...] = (64, 128, 256, 512)
    """Widths N."""
    depth: int = 4
    """Number of hidden layers L."""
    block: Literal["vanilla", "residual", "signed"] = "vanilla"
    """Kind of block."""
    inputs: int = 128
    """Number of training inputs, chosen at random from the data."""
    batch: int | None = None
    """Inputs of a step (default: all)."""
    steps: int = 100
    """Number of steps."""

    @property
    def ways(self) -> tuple[str, ...]:
        """How networks are trained: without L_std there is nothing to do but the adversarial loss."""
        return ("adversarial",) if self.standard_loss == "none" else ("standard", "adversarial")

    def cells(self) -> Sequence[Cell]:
        widths = sorted({check_positive("widths", width, LARGEST) for width in self.widths})
        if len(widths) < 2:
            raise ValueError(f"widths: expected at least two, for a fit, got {self.widths}")
        return [
            self.cell(
                {"training": way, "width": width},
                self.law(width, self.depth, self.block),
                self.config("paper" if way == "adversarial" else None),
            )
            for way in self.ways
            for width in widths
        ]

    def networks(self, cells: Sequence[Cell]) -> Sequence[int]:
        return [16] * len(cells)

    def falls(self, data: Any) -> dict[str, dict[str, Fit]]:
        """For each way of training the relative fall of omega^L and of the quotient, up to the first evaluation."""
        found: dict[str, dict[str, Fit]] = {}
        for way in self.ways:
            own = [i for i, cell in enumerate(self.cells()) if cell.coords["training"] == way]
            widths = np.array([float(self.cells()[i].coords["width"]) for i in own])
            records = [running(data, i)[0] for i in own]
            omega = [1 - record["propagation"][:, 1] / record["propagation"][:, 0] for record in records]
            if self.standard_loss == "none" and self.block != "residual":  # the fall is then in proportion to L_adv
                omega = [less_scale(fall, record) for fall, record in zip(omega, records, strict=True)]
            found[way] = {"propagation": fit(widths, omega), "capacity": fit(widths, [fall(r) for r in records])}
        return found

    def claims(self, data: Any) -> Sequence[Claim]:
        words = {"propagation": "omega^L", "capacity": "Fisher-Rao"}
        alone = self.standard_loss == "none"
        notes = {
            "propagation": "L_std moves the weights too, and falls within a time of its own that goes as 1/N",
            "capacity": "without bias it is L^2 <f, dL_std/df>^2, which training changes at any width",
        }
        claims = []
        for way, fits in self.falls(data).items():
            for name, found in fits.items():
                estimate = Estimate(found.exponent, found.error, found.degrees_of_freedom)
                claims.append(
                    Claim.of(
                        f"power, {words[name]}, {way}",
                        -1.0,
                        estimate,
                        id=f"exponent_{name}",
                        coords={"training": way},
                        allowance=0.02,
                        reason="finite width, to first order in 1/N",
                        expected="holds" if name == "propagation" and alone else "fails",
                        note=notes[name],
                    )
                )
        return [*claims, *self._ends(data)] if alone else claims

    def _ends(self, data: Any) -> list[Claim]:
        """Where the adversarial loss is all that is trained on, omega^L and the quotient are lower at the end."""
        claims = []
        for i, cell in enumerate(self.cells()):
            record, _ = running(data, i)
            for name, text, values in (
                ("propagation", "omega^L", record["propagation"]),
                ("capacity", "Fisher-Rao", relative_fisher_rao(record)),
            ):
                claims.append(
                    Claim.of(
                        f"{text} at the end over the start, N={cell.spec.width}",
                        1.0,
                        estimate(values[:, -1] / values[:, 0]),
                        kind="at_most",
                        id=f"end_{name}",
                        coords=cell.coords,
                    )
                )
        return claims

    def figures(self, data: Any, judged: Sequence[Judgement]) -> Mapping[str, Any]:
        curves = []
        for i, cell in enumerate(self.cells()):
            record, _ = running(data, i)
            quotient = relative_fisher_rao(record)
            curves.append((str(cell.coords["training"]), cell.spec.width, quotient / quotient[:, :1]))
        widths = sorted(set(self.widths))
        fits = [
            (f"{name}, {way}", widths, found)
            for way, each in self.falls(data).items()
            for name, found in (("$\\omega^L$", each["propagation"]), ("Fisher-Rao", each["capacity"]))
        ]
        title = f"{self.block}, L={self.depth}: {self.describe(self.cells())[1].split(maxsplit=1)[1]}"
        return {"capacity": _training_figures.capacity(title, self.times, curves, fits)}

    def tables(self, data: Any, judged: Sequence[Judgement], wide: bool = False) -> Sequence[Any]:
        legend = "Up to the first evaluation, relative. Fisher-Rao: over |dL/df|^2. "
        told = [
            f"{cell.coords['training']} N={cell.spec.width} {line}"
            for i, cell in enumerate(self.cells())
            for line in running(data, i)[1]
        ]
        table = report.table("falls against width", legend + "; ".join(told))
        for name in ("training", "N", "omega^L", "+- s.e.", "Fisher-Rao", "+- s.e. "):
            table.add_column(name, justify="left" if name == "training" else "right")
        for way, fits in self.falls(data).items():
            for i, width in enumerate(sorted(set(self.widths))):
                numbers = [(each.falls[i], each.errors[i]) for each in fits.values()]
                table.add_row(way, f"{width}", *(report.number(float(x), ".3g") for pair in numbers for x in pair))
        return [table, *super().tables(data, judged, wide)]


def fall(record: Mapping[str, np.ndarray]) -> np.ndarray:
    """The relative fall of the Fisher-Rao norm over |dL/df|^2, [n]."""
    quotient = relative_fisher_rao(record)
    return 1 - quotient[:, 1] / quotient[:, 0]


def fit(widths: np.ndarray, samples: Sequence[np.ndarray]) -> Fit:
    """The exponent of N in the means of some samples, one a width, with the standard error that theirs imply."""
    means, errors = np.transpose([mean_and_error(values) for values in samples])
    with np.errstate(invalid="ignore", divide="ignore"):
        weight = (means / errors) ** 2  # of ln |mean|
        x, y = np.log(widths), np.log(np.abs(means))
        centre = np.sum(weight * x) / np.sum(weight)
        spread = np.sum(weight * (x - centre) ** 2)
        exponent = float(np.sum(weight * (x - centre) * y) / spread)
        curve = np.exp(np.sum(weight * y) / np.sum(weight) + exponent * (x - centre))
        error = float(1 / np.sqrt(spread))
    freedom = sum(len(values) - 1 for values in samples)
    return Fit(means, errors, exponent, error, curve, max(1, freedom))
