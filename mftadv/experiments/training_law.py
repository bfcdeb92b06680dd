"""How adversarial training lowers L_adv and the variance: a ladder of widths beside the closed form and the theory."""

import dataclasses
import functools
import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import numpy as np
import scipy

from mftadv import report, theory, training
from mftadv.attack import Attack, RandomStarts, SteepestAscent
from mftadv.compare import Claim, Judgement
from mftadv.data import Inputs, load_inputs
from mftadv.experiments import _training_law_figures
from mftadv.experiments._experiment import Experiment, check_seed
from mftadv.experiments._networks import Engine
from mftadv.experiments._training_law import Curves, at_cell, between, bounds, exponent, failing, within
from mftadv.experiments._trainings import (
    AXES,
    FRACTION,
    Trained,
    TrainedAtOnce,
    closed_form,
    estimate,
    mean_and_error,
    predict_from,
    ratio,
    running,
    shortfall,
)
from mftadv.experiments.capacity import fit
from mftadv.network import engine_for
from mftadv.spec import LARGEST, NetworkSpec, check_positive
from mftadv.statistics import Estimate
from mftadv.sweep import DEEPEST, Cell
from mftadv.training import TrainingConfig, queries_of_training

_QUICK = {"widths": (125, 250, 500, 1000), "depths": (2,), "angles": (0.3,)}
_ATTACK = Attack((RandomStarts(8),), (SteepestAscent(4),))
_FRUGAL = Attack((RandomStarts(1),), (SteepestAscent(4),))  # a network without matrices remembers every query
_TAUS = (0.5, 1.0, 1.5)  # at which the curve of L_adv is claimed
_ALIGNED = 1.1  # from this factor on, not to know the weights is claimed to be wrong
_WORK = 16000  # networks of a cell times their width, about


@dataclasses.dataclass(frozen=True)
class TrainingLaw(Experiment):
    """Train wide networks on L_adv, and hold how it and the variance fall against the closed form and the theory.

    The published closed form of the weight variance lets L_adv fall with omega^{L/2} alone. Training on it lowers L_adv
    itself, within t* = L_adv(0) / rate, about 1/N (B t* for B inputs), along a curve of t/t* that
    `theory.predict_training` has for two starts, the linear and the rough one. Claimed:

    slope: L_adv falls by about 1/2 per t* at first, not by 1 as for one fixed perturbation, nor by nothing.
    curve: up to 1.5 t* L_adv lies between the two curves, to 5%; where lambda < .5 and n/d > 30, and nowhere else.
    alignment: the worst perturbation falls faster than one that does not know the weights.
    horizon: the closed form overstates the fall of the variance by a tenth after the time that theory gives, to 20%.
    exponent: the variance falls by O(1/N^2) in 4 t*; after one time for all widths not as 1/N.
    variance: it falls as the theory says, to 15%, and not by as much as the closed form says.
    variance_given: beside a standard loss, as theory says where L_adv is the measured one, to 15%; what else is off is
    off in the curve of L_adv.

    Networks are vanilla, without biases, with one output; p = q = 2. Wide ones are trained without matrices, in half as
    many steps by an attack of 5 evaluations in place of 40, since every query costs memory.
    """

    name: ClassVar[str] = "training-law"
    source: ClassVar[str] = "the paper, weight variance under adversarial training; what happens instead is ours"
    axes: ClassVar[Mapping[str, tuple[str, ...]]] = AXES

    quick: bool = False
    """A small grid, within five minutes on two quiet cores."""
    widths: tuple[int, ...] = (125, 250, 500, 1000, 2000, 12000)
    """Widths N (--quick: 125 250 500 1000)."""
    depths: tuple[int, ...] = (1, 2)
    """Numbers of hidden layers L (--quick: 2)."""
    angles: tuple[float, ...] = (0.1, 0.3)
    """theta, radii of the attack over the norm of an input (--quick: .3)."""
    input_dim: int = 30
    """Dimension d of the inputs, which are gaussian, of norm sqrt(d)."""
    inputs: int | None = None
    """Number of inputs B (default: 1; beside a standard loss 3)."""
    standard_loss: Literal["none", "squared", "logistic"] = "none"
    """A standard loss beside L_adv, with labels that alternate."""
    steps: int = 32
    """Steps in a time B t*, a multiple of 16; beside a standard loss twice as many."""
    engine: Engine = "auto"
    """How matrices are held: entry by entry, drawn as they are touched (the same law), or as costs less."""

    def __post_init__(self):
        for name, value in _QUICK.items() if self.quick else ():
            if getattr(self, name) == getattr(TrainingLaw, name):
                object.__setattr__(self, name, value)

    @property
    def span(self) -> int:
        """The training time, in units of B t*."""
        return 4 if self.standard_loss == "none" else 2

    @functools.cached_property
    def points(self) -> Inputs:
        """The inputs, all of norm sqrt(d)."""
        count = (1 if self.standard_loss == "none" else 3) if self.inputs is None else self.inputs
        found = load_inputs("gaussian", count, check_seed(self.seed), input_dim=self.input_dim)
        norms = np.linalg.norm(found.values, axis=1, keepdims=True)
        values = found.values * (math.sqrt(self.input_dim) / norms)
        return found._replace(values=values)

    @property
    def _labels(self) -> np.ndarray:
        """0 1 0 ..."""
        return np.arange(len(self.points.values), dtype=np.int32) % 2

    def cells(self) -> Sequence[Cell]:
        for name in ("widths", "depths", "angles"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected at least one, got none")
        if check_positive("steps", self.steps) % 16:
            raise ValueError(f"steps: expected a multiple of 16, got {self.steps}")
        for angle in self.angles:
            if not 1e-6 <= angle <= 1:
                raise ValueError(f"angles: expected numbers in [1e-6, 1], got {angle!r}")
        depths = sorted({check_positive("depths", depth, DEEPEST) for depth in self.depths})
        widths = sorted({check_positive("widths", width, LARGEST) for width in self.widths})
        grid = itertools.product(depths, sorted(set(self.angles)), widths)
        return [self._cell(depth, angle, width) for depth, angle, width in grid]

    def _cell(self, depth: int, angle: float, width: int) -> Cell:
        spec = NetworkSpec(self.input_dim, 1, width, depth, 2.0)
        x, inputs = self.points.values.astype(self.dtype), len(self.points.values)
        labels = None if self.standard_loss == "none" else self._labels

        def config(interval: int, attack: Attack) -> TrainingConfig:
            return TrainingConfig(
                self.span * 4 * interval,
                inputs * self._start(spec, angle)["time"] / (4 * interval),
                angle * math.sqrt(self.input_dim),
                standard_loss={"none": None, "logistic": "cross_entropy"}.get(self.standard_loss, self.standard_loss),
                evaluate_every=interval,
                attack=attack,
                trained=("weights",),
            )

        interval = self.steps // 4 * (1 if self.standard_loss == "none" else 2)
        used, statistic = config(interval // 2, _FRUGAL), TrainedAtOnce()
        if engine_for(spec, queries_of_training(spec, used, inputs, inputs), self.engine) == "dense":
            used, statistic = config(interval, _ATTACK), Trained(4 * self.span + 1, inputs)
        training.check_data("inputs", spec, (x, labels), used)
        return Cell({"depth": depth, "angle": angle, "width": width}, spec, (x, labels, used), statistic)

    def networks(self, cells: Sequence[Cell]) -> Sequence[int]:
        return [min(64, max(4, _WORK // cell.spec.width)) for cell in cells]

    def describe(self, cells: Sequence[Cell]) -> Sequence[str]:
        free = sum(isinstance(cell.statistic, TrainedAtOnce) for cell in cells)
        steps, count = cells[0].operands[2].steps, len(self.points.values)
        losses = ("" if self.standard_loss == "none" else f"{self.standard_loss} + ") + "L_adv"
        return (
            f"inputs    {count} gaussian, d={self.input_dim}, |x|^2 = d",
            f"training  {losses}, {steps} steps in {self.span} {'B ' * (count > 1)}t*",
            f"engine    {len(cells) - free} cells dense, {free} matrix-free",
        )

    def predict(self, cell: Cell) -> Mapping[str, float]:
        return self._start(cell.spec, float(cell.coords["angle"]))

    def _start(self, spec: NetworkSpec, angle: float) -> dict[str, float]:
        """t*, L_adv and its rate at t = 0, the same rate without alignment, and the numbers of the kernel regime."""
        norm = math.sqrt(self.input_dim)
        with warnings.catch_warnings(action="ignore"):  # what fails is told in the table
            regime = theory.kernel_regime(spec, angle)
        with jax.enable_x64(True):
            rate, time = map(float, theory.adversarial_rate(spec, norm, angle * norm))
        unaligned = rate / regime.alignment
        return {"time": time, "rate": rate, "unaligned_rate": unaligned, "adversarial_loss": rate * time} | {
            name: float(value) for name, value in regime._asdict().items()
        }

    def curves(self, data: Any, number: int, cell: Cell) -> Curves:
        """The curves of one cell; where theory is claimed, from the start of each network, else from their mean start.

        Raises:
            ValueError: all of its networks diverged.
        """
        record, told = running(data, number)
        spec, start, inputs = cell.spec, self.predict(cell), len(self.points.values)
        time, eps = inputs * start["time"], cell.operands[2].eps
        tau = np.arange(4 * self.span + 1) / 4
        loss, outputs = record["adversarial_loss"], record["output"][:, 0, :inputs, 0]
        options = {"spec": spec, "eps": eps, "horizon": self.span * time, "num_times": len(tau), "dloss": self._slope}
        starts = list(zip(outputs, loss[:, 0], strict=True))
        if self.standard_loss == "none" and failing(start):
            starts = [(np.sqrt(np.mean(outputs**2, axis=0)), loss[:, 0].mean())]
        found = [predict_from(self.points.values, *each, **options) for each in starts]
        given = np.full_like(loss, math.nan)
        if self.standard_loss != "none":
            measured = [scipy.interpolate.PchipInterpolator(tau * time, each) for each in loss]
            pairs = zip(outputs, measured, strict=True)
            of = [
                theory.predict_training(self.points.values, f0, adversarial_loss=each, **options) for f0, each in pairs
            ]
            given = np.array([each.weight_variance[0] for each in of]) - float(spec.weight_variance)
        closed = closed_form(spec, tau * time, eps, 2, 2, "sharp")
        with jax.enable_x64(True):
            omega = np.asarray(theory.propagation_factor(spec.replace(weight_variance=closed)))
        rates = np.sum(record["gradient_norm"][:, 0] ** 2, axis=1) * inputs / start["unaligned_rate"]
        return Curves(
            tau,
            loss,
            record["norm_change"].mean(2) / spec.width,
            record["norm_change_predicted"].mean(2) / spec.width,
            rates if self.standard_loss == "none" else np.full_like(rates, math.nan),
            np.stack([each.adversarial_loss.mean(2) for each in found], axis=1),
            np.stack([each.weight_variance - float(spec.weight_variance) for each in found], axis=1),
            given,
            start["adversarial_loss"] * omega ** (spec.depth / 2),
            closed - float(spec.weight_variance),
            told,
        )

    def _slope(self, f: np.ndarray) -> np.ndarray:
        """The derivative of the standard loss by the outputs."""
        target = 2.0 * self._labels - 1
        if self.standard_loss == "none":
            return np.zeros_like(f)
        return f - target if self.standard_loss == "squared" else -target / (1 + np.exp(target * f))

    def _all(self, data: Any) -> list[tuple[Cell, Mapping[str, float], Curves]]:
        """Cells with networks that ran to the end, with what is known of the start."""
        return [
            (cell, self.predict(cell), self.curves(data, i, cell))
            for i, cell in enumerate(self.cells())
            if len(running(data, i)[0]["step"])
        ]

    def claims(self, data: Any) -> Sequence[Claim]:
        claims, alone = [], self.standard_loss == "none"
        every = self._all(data)
        for cell, start, curves in every:
            if alone:
                claims += [*self._of_loss(cell, start, curves), *self._of_rate(cell, curves)]
                claims += self._of_horizon(cell, start, curves)
            claims += self._of_variance(cell, curves)
        groups = itertools.groupby(every, key=lambda each: (each[0].coords["depth"], each[0].coords["angle"]))
        return claims + [claim for _, group in groups if alone for claim in self._of_powers(list(group))]

    def _of_loss(self, cell: Cell, start: Mapping[str, float], curves: Curves) -> list[Claim]:
        """The slope, and inside the kernel regime the curve."""
        told = {"note": "; ".join(curves.told)}
        seen = estimate((curves.loss[:, 0] - curves.loss[:, 1]) * 4 / start["adversarial_loss"])
        flat = float(1 - curves.closed_loss[1] / curves.closed_loss[0]) * 4
        mean = curves.loss_band.mean(1)
        band = np.sort(mean[:, 0] - mean[:, 1]) * 4 / start["adversarial_loss"]
        claims = within("slope", band[0], band[1], seen, cell, id="slope", **told)
        for name, theory_of, text in (
            ("slope_published", flat, "the closed form does not know that training lowers L_adv"),
            ("slope_fixed", 1.0, "both signs of the perturbation are pushed in turn, each half of the time"),
        ):
            note = "; ".join([text, *curves.told])
            text = f"{name.removeprefix('slope_')} slope, {at_cell(cell)}"
            claims.append(
                Claim.of(text, theory_of, seen, id=name, scale=1.0, expected="fails", coords=cell.coords, note=note)
            )
        if failing(start):
            return claims
        for tau in _TAUS:
            k = int(4 * tau)
            found = ratio(curves.loss[:, k], curves.loss[:, 0])
            each = curves.loss_band[:, :, k], curves.loss[:, k]
            claims += between(f"L({tau:g})", *each, cell, id="curve", tau=tau, **told)
            closed = float(curves.closed_loss[k] / curves.closed_loss[0])
            claims.append(
                Claim.of(
                    f"published L({tau:g}), {at_cell(cell)}", closed, found, id="curve_published",
                    coords={**cell.coords, "tau": tau}, expected="fails", note="; ".join(curves.told),
                )
            )  # fmt: skip
        return claims

    def _of_rate(self, cell: Cell, curves: Curves) -> list[Claim]:
        """The factor by which the worst perturbation, aligned with the weights, falls faster."""
        seen, factor = estimate(curves.rates), self.predict(cell)["alignment"]
        claims = within("aligned", factor, factor, seen, cell, id="alignment", note="; ".join(curves.told))
        if factor > _ALIGNED:
            claims.append(
                Claim.of(
                    f"unaligned, {at_cell(cell)}", 1.0, seen, id="alignment_none", coords=cell.coords, expected="fails",
                    note="the worst perturbation is aligned with the weights",
                )
            )  # fmt: skip
        return claims

    def _of_horizon(self, cell: Cell, start: Mapping[str, float], curves: Curves) -> list[Claim]:
        """At its horizon the closed form overstates the fall of the variance by a tenth."""
        inputs, norm = len(self.points.values), math.sqrt(self.input_dim)
        with jax.enable_x64(True):
            horizon = float(theory.validity_horizon(cell.spec, cell.operands[2].eps, norm, inputs, FRACTION))
        times = curves.tau * inputs * start["time"]
        seen = shortfall(times, curves.change, curves.loss[:, 0], cell.spec.width, horizon)
        return within("shortfall", FRACTION, FRACTION, seen, cell, id="horizon", note="; ".join(curves.told))

    def _of_variance(self, cell: Cell, curves: Curves) -> list[Claim]:
        """The fall of the variance, beside a standard loss at each quarter of the time, else at its end."""
        claims = []
        for k in (4 * self.span,) if self.standard_loss == "none" else self.span * np.arange(1, 5):
            tau, told = float(curves.tau[k]), {"note": "; ".join(curves.told)}
            if self.standard_loss != "none" or not failing(self.predict(cell)):
                each = -curves.change_band[:, :, k], -curves.change[:, k]
                claims += between(f"ds({tau:g})", *each, cell, id="variance", tau=tau, **told)
            if self.standard_loss != "none":
                each = -np.stack([curves.change_given[:, k]] * 2), -curves.change[:, k]
                claims += between(f"ds({tau:g}) by L_adv", *each, cell, id="variance_given", tau=tau, **told)
            published = float(curves.closed_change[k])
            claims.append(
                Claim.of(
                    f"published ds({tau:g}), {at_cell(cell)}", published, estimate(curves.change[:, k]),
                    id="variance_published", coords={**cell.coords, "tau": tau}, expected="fails",
                    note="; ".join(["L_adv does not last", *curves.told]),
                )
            )  # fmt: skip
        return claims

    def _of_powers(self, group: list[tuple[Cell, Mapping[str, float], Curves]]) -> list[Claim]:
        """The powers of the width in the fall of the variance: each width in its own 4 t*, all after one time."""
        coords = {name: group[0][0].coords[name] for name in ("depth", "angle")}
        widths = np.array([float(cell.spec.width) for cell, _, _ in group])
        if len(widths) < 3:
            return []
        text, claims = f"L={coords['depth']} th={coords['angle']:g}", []
        # Of networks of the mean L_adv: the fall is about proportional to its square. t* has the factor of alignment.
        own = [
            curves.change[:, -1] * start["alignment"] * (start["adversarial_loss"] / curves.loss[:, 0]) ** 2
            for _, start, curves in group
        ]
        found = fit(widths, own)
        power = Estimate(found.exponent, found.error, found.degrees_of_freedom)
        claims += bounds("own power", -2.0, -2.0, power, text, 0.05, id="exponent", coords=coords)
        until = self.span * min(start["time"] for _, start, _ in group)
        falls, bands, closed = [], [], []
        for _, start, curves in group:
            each = functools.partial(np.interp, until / start["time"], curves.tau)
            scale = start["adversarial_loss"] / curves.loss[:, 0]
            falls.append(np.array([each(row) for row in curves.change]) * scale)
            bands.append([each(row) for row in curves.change_band.mean(1)])
            closed.append(each(curves.closed_change))
        found = fit(widths, falls)
        power = Estimate(found.exponent, found.error, found.degrees_of_freedom)
        weight = (found.falls / found.errors) ** 2
        low, high = sorted(exponent(widths, band, weight) for band in np.transpose(bands))
        published = exponent(widths, np.array(closed), weight)
        claims += bounds("power", low, high, power, text, 0.05, id="exponent_fixed", coords=coords)
        note = "while the closed form falls at a constant rate, L_adv falls, and sooner in wide networks"
        of = {"id": "exponent_published", "coords": coords, "expected": "fails", "note": note}
        return [*claims, Claim.of(f"published power, {text}", published, power, **of)]

    def figures(self, data: Any, judged: Sequence[Judgement]) -> Mapping[str, Any]:
        every = self._all(data)
        if not every:
            return {}
        shown = [(cell, curves, not failing(start)) for cell, start, curves in every]
        title = "\n".join(line.split(maxsplit=1)[1] for line in self.describe(self.cells()))
        return {"training_law": _training_law_figures.training_law(title, shown)}

    def tables(self, data: Any, judged: Sequence[Judgement], wide: bool = False) -> Sequence[Any]:
        told = [f"{at_cell(cell)}: {line}" for i, cell in enumerate(self.cells()) for line in running(data, i)[1]]
        legend = "rate: of the worst perturbation over that of one not aligned, and by theory. slope: of L_adv, theory "
        legend += ".5 at small theta. L(1.5): over L(0), linear to rough start. ds: fall of s at the end over that of "
        legend += "the closed form. "
        legend += "outside: what fails of lambda < .5, n/d > 30. " + "; ".join(told)
        table = report.table("training in units of t*", legend)
        for name in ("L", "theta", "N", "lambda", "n/d", "rate", "theory", "slope", "L(1.5)", "band", "ds", "outside"):
            table.add_column(name, justify="left" if name in ("band", "outside") else "right")
        for cell, start, curves in self._all(data):
            slope = (curves.loss[:, 0] - curves.loss[:, 1]).mean() * 4 / start["adversarial_loss"]
            band = np.sort(curves.relative_band[:, 6])
            numbers = (start["alignment"], slope, curves.relative[0][6])
            table.add_row(
                f"{cell.coords['depth']}", f"{cell.coords['angle']:g}", f"{cell.spec.width}",
                f"{start['gate_shift']:.2g}", f"{start['gates_per_dimension']:.2g}",
                report.number(float(mean_and_error(curves.rates)[0]), ".2f"), *(f"{each:.2f}" for each in numbers),
                "-".join(f"{each:.2f}".lstrip("0") for each in band),
                f"{curves.change[:, -1].mean() / curves.closed_change[-1]:.2f}", failing(start),
            )  # fmt: skip
        return [table, *super().tables(data, judged, wide)]
