"""Which networks can be trained adversarially: accuracy over a grid of depths and widths, and the mechanism."""

import dataclasses
import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from mftadv import report, theory
from mftadv.compare import Claim, Judgement
from mftadv.experiments import _training_figures
from mftadv.experiments._trainings import OfTrainings, closed_form, estimate, mean_and_error, running
from mftadv.spec import LARGEST, check_positive
from mftadv.statistics import Estimate
from mftadv.sweep import DEEPEST, Cell, sample_of

_QUICK = {"depths": (4, 16), "values": (64.0, 128.0), "steps": 150}
_TRAINED = 0.8  # the share of the best accuracy of a cell's block and width below which networks count as not trained
_TREND = 0.05  # of accuracy: what is less is no trend
_GRIDS = {"width": (100.0, 200.0, 400.0), "eps": (0.2, 0.8, 2.0), "weight_variance": (1.5, 2.0, 2.5)}


@dataclasses.dataclass(frozen=True)
class Trainability(OfTrainings):
    """Train networks of many depths, with and without shortcuts, with and without the adversarial loss.

    The paper: a network is trainable as long as m <= omega(t)^L <= M; adversarial training lowers omega, so that deep
    vanilla networks are lost, shortcuts (omega >= 1) are not, and width slows the loss. Two claims about the
    accuracy after a fixed number of steps, apart:

    trend: does depth hurt vanilla networks in adversarial training, and do shortcuts and width mend it?
    mechanism: is omega(T)^L of the weights below m where networks do not train?
    """

    name: ClassVar[str] = "trainability"
    source: ClassVar[str] = "the paper, trainability under adversarial training"

    quick: bool = False
    """A small grid, within five minutes on two cores."""
    depths: tuple[int, ...] = (4, 10, 20, 30)
    """Depths L (--quick: 4 16)."""
    against: Literal["width", "eps", "weight_variance"] = "width"
    """The other axis of the grid; weight variances are multiples of 1/alpha times the default."""
    values: tuple[float, ...] = ()
    """Its values (default: widths 100 200 400, eps .2 .8 2, s 1.5 2 2.5; --quick: 64 128)."""
    width: int = 200
    """Width N where it is no axis."""
    blocks: tuple[Literal["vanilla", "residual", "signed"], ...] = ("vanilla", "residual", "signed")
    """Kinds of blocks."""
    seeds: int = 5
    """Networks of each point."""
    steps: int = 300
    """Number of steps (--quick: 150)."""
    lower: float = 0.5
    """m: the least omega^L that theory takes to train."""
    evaluations: int = 1
    """How often networks are evaluated after the start."""

    def __post_init__(self):
        if self.quick:
            small = {**_QUICK, "values": _QUICK["values"] if self.against == "width" else _GRIDS[self.against][::2]}
            for field in dataclasses.fields(self):
                if field.name in small and getattr(self, field.name) == field.default:
                    object.__setattr__(self, field.name, small[field.name])
        elif not self.values:
            object.__setattr__(self, "values", _GRIDS[self.against])

    def cells(self) -> Sequence[Cell]:
        for name in ("depths", "values", "blocks"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected at least one, got none")
        if self.standard_loss == "none":
            raise ValueError("standard_loss: expected one, since accuracy is what is compared, got none")
        if check_positive("seeds", self.seeds) < 2:
            raise ValueError(f"seeds: expected at least 2, for an error bar, got {self.seeds}")
        for depth in self.depths:
            check_positive("depths", depth, DEEPEST)
        if not all(0 <= value < math.inf and (value or self.against == "eps") for value in self.values):
            raise ValueError(f"values: expected finite numbers > 0, or 0 for eps, got {self.values}")
        if not 0 <= self.lower <= 1:
            raise ValueError(f"lower: expected a number in [0, 1], got {self.lower}")
        depths, values = sorted(set(self.depths)), sorted(set(self.values))
        grid = itertools.product(dict.fromkeys(self.blocks), ("standard", "adversarial"), depths, values)
        return [self._cell(*point) for point in grid]

    def _cell(self, block: str, way: str, depth: int, value: float) -> Cell:
        if self.against == "width" and not (value <= LARGEST and value == int(value)):
            raise ValueError(f"values: expected integers as widths, at most {LARGEST}, got {value!r}")
        width = int(value) if self.against == "width" else self.width
        spec = self.law(width, depth, block)
        if self.against == "weight_variance":  # of shortcuts, in proportion to their default
            spec = spec.replace(weight_variance=value * float(spec.weight_variance) / 2)
        changes = {"eps": value} if self.against == "eps" else {}
        if way == "standard" and self.quick:  # to compile a program without the attack takes longer than the attack
            config = self.config("paper", adversarial_weight=0.0, **changes)
        else:
            config = self.config("paper" if way == "adversarial" else None, **changes)
        return self.cell({"block": block, "training": way, "depth": depth, self.against: value}, spec, config)

    def networks(self, cells: Sequence[Cell]) -> Sequence[int]:
        return [self.seeds] * len(cells)

    def predict(self, cell: Cell) -> Mapping[str, float]:
        """omega(T)^L by the closed form, and the largest depth that it takes to train."""
        if cell.coords["training"] != "adversarial":
            return {}
        law = cell.spec, cell.operands[2].eps * self.adversarial_weight, self.p, self.q
        end = np.array(self.steps * self.learning_rate)
        final = closed_form(law[0], end, *law[1:], self.coefficient)
        omega = float(theory.propagation_factor(cell.spec.replace(weight_variance=float(final))))
        found = {"propagation": omega**cell.spec.depth}
        if cell.coords["block"] == "vanilla":
            with warnings.catch_warnings(action="ignore"):  # of its horizon, which is what is tested
                found["depth"] = theory.max_trainable_depth(
                    *law, self.steps * self.learning_rate, self.lower, math.inf, kind=self.coefficient
                )
        return found

    def rows(self, data: Any) -> list[dict[str, Any]]:
        """What every network of a cell reached, a record for each cell."""
        rows = []
        for i, cell in enumerate(self.cells()):
            record, told = running(data, i)
            last = {name: record[name][:, -1] for name in ("accuracy", "robust_accuracy", "propagation", "jacobian")}
            every = np.asarray(sample_of(data, i)["accuracy"], np.float64)[:, -1]
            last["accuracy"] = np.where(np.isnan(every), 0.0, every)  # what diverged was not trained
            rows.append({**cell.coords, **last, "stopped": told, "theory": self.predict(cell)})
        return rows

    def claims(self, data: Any) -> Sequence[Claim]:
        rows = {(row["block"], row["training"], row["depth"], row[self.against]): row for row in self.rows(data)}
        shallow, deep, first, last = min(self.depths), max(self.depths), min(self.values), max(self.values)

        def accuracy(*at):
            return rows[at]["accuracy"]

        found: list[tuple[str, str, np.ndarray, np.ndarray]] = []
        vanilla, way = "vanilla", "adversarial"
        if vanilla in self.blocks and shallow < deep:
            lost = accuracy(vanilla, way, deep, first)
            found.append(("depth", "depth hurts", accuracy(vanilla, way, shallow, first), lost))
            for block in (block for block in self.blocks if block != vanilla):
                found.append((block, f"{block} mends", accuracy(block, way, deep, first), lost))
            if self.against == "width" and first < last:
                found.append(("width", "width mends", accuracy(vanilla, way, deep, last), lost))
            found.append(("adversarial", "without L_adv better", accuracy(vanilla, "standard", deep, first), lost))
        claims = [
            # It fails where the gain is seen to be less than a trend, and holds where, beyond that, its lower limit is
            # positive: the allowance is as large as what a claim has to be able to see.
            Claim.of(
                f"trend: {text}",
                -2 * _TREND,
                _difference(worse, better),
                kind="at_most",
                scale=1.0,
                allowance=_TREND,
                reason="what counts as a trend",
                id="trend",
                coords={"of": name},
                note="no such trend is seen",
            )
            for name, text, better, worse in found
        ]
        return [*claims, *self._mechanism(rows.values())]

    def _mechanism(self, rows: Any) -> list[Claim]:
        """Where vanilla networks do not train adversarially, omega(T)^L is at most m."""
        own = [row for row in rows if (row["block"], row["training"]) == ("vanilla", "adversarial")]
        best = max((float(row["accuracy"].mean()) for row in own), default=0.0)
        return [
            Claim.of(
                f"omega^L, L={row['depth']}, {self.against} {row[self.against]:g}",
                self.lower,
                estimate(row["propagation"]),
                kind="at_most",
                id="mechanism",
                expected="fails",
                coords={"depth": row["depth"], self.against: row[self.against]},
                note="networks fail to train while omega^L of their weights has hardly moved",
            )
            for row in own
            if row["accuracy"].mean() < _TRAINED * best and len(row["propagation"]) > 1
        ]

    def figures(self, data: Any, judged: Sequence[Judgement]) -> Mapping[str, Any]:
        rows = self.rows(data)
        boundary = {row[self.against]: row["theory"]["depth"] for row in rows if "depth" in row["theory"]}
        title = f"{self.describe(self.cells())[1].split(maxsplit=1)[1]}, {len(rows[0]['accuracy'])} networks a point"
        return {"trainability": _training_figures.trainability(title, rows, self.against, self.lower, boundary)}

    def tables(self, data: Any, judged: Sequence[Judgement], wide: bool = False) -> Sequence[Any]:
        rows = self.rows(data)
        told = [f"{row['block']} L={row['depth']} {line}" for row in rows for line in row["stopped"]]
        legend = "After the last step, mean of networks. free: accuracy under attacks without labels. |J|2: |J|_F^2 / "
        legend += "(K omega_0^L). closed: omega^L by the closed form. " + "; ".join(told)
        table = report.table("trained networks", legend)
        for name in ("block", "training", "L", self.against, "acc", "+- s.e.", "free", "omega^L", "closed", "|J|2"):
            table.add_column(name, justify="left" if name in ("block", "training") else "right")
        for row in rows:
            mean, error = mean_and_error(row["accuracy"])
            others = (float(mean_and_error(row[name])[0]) for name in ("robust_accuracy", "propagation", "jacobian"))
            robust, propagation, jacobian = others
            table.add_row(
                row["block"],
                row["training"],
                f"{row['depth']}",
                f"{row[self.against]:g}",
                report.number(float(mean), ".3f"),
                report.number(float(error), ".1g"),
                report.number(robust, ".3f"),
                report.number(propagation, ".3f"),
                report.number(row["theory"].get("propagation"), ".3f"),
                report.number(jacobian, ".3g"),
            )
        return [table, *super().tables(data, judged, wide)]


def _difference(a: np.ndarray, b: np.ndarray) -> Estimate:
    """The difference of two means over independent networks, by Welch's t."""
    (mean_a, error_a), (mean_b, error_b) = mean_and_error(a), mean_and_error(b)
    squares = np.array([float(error_a) ** 2, float(error_b) ** 2])
    each = np.sum(squares**2 / np.array([len(a) - 1, len(b) - 1]))
    freedom = float(np.sum(squares) ** 2 / each) if each else float(len(a) + len(b) - 2)
    return Estimate(float(mean_a - mean_b), float(np.sqrt(np.sum(squares))), freedom)
