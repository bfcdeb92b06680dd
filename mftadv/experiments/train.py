"""One configuration trained adversarially: what is measured in time, beside the closed forms of the start."""

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from mftadv import report, theory
from mftadv.compare import Claim, Judgement
from mftadv.experiments import _training_figures
from mftadv.experiments._networks import width_effect
from mftadv.experiments._trainings import (
    FRACTION,
    OfTrainings,
    closed_form,
    estimate,
    less_scale,
    mean_and_error,
    predict_from,
    ratio,
    running,
    shortfall,
)
from mftadv.spec import NetworkSpec
from mftadv.sweep import Cell

_ROUNDING = 2e-3  # what sums over steps may lose to rounding in single precision, relative
_FEW = 16  # inputs that theory takes one by one
_STEP = 0.02  # how far the loss that steps see may be off its mean by theory
_SHARE = 0.04  # how far the share of a branch may be off its mean in wide networks


@dataclasses.dataclass(frozen=True)
class Train(OfTrainings):
    """Train networks adversarially, and hold the record of each step against what theory says.

    Networks of one law minimise L_std + lambda L_adv by gradient descent on W and b, L_adv = max |f(x + eta) - f(x)|_q
    over |eta|_p <= eps. The published closed form of the weight variance, s(t), takes L_adv to fall with omega^{L/2}
    alone. An exact identity says how the variance moves with the losses of the moment,

        |W_l'|^2 - |W_l|^2 = -2 r (<f, dL_std/df> + lambda L_adv
            - sum_{k >= l} <b_k, dL/db_k>) + r^2 |dL/dW_l|^2.

    Both are claimed of every run. The identity holds. The closed form is claimed of the first evaluation and of the
    last one, and expected to fail: it knows neither L_std nor how fast L_adv falls. What happens instead is drawn as a
    band, see `theory.predict_training`, where that is derived: for vanilla networks of one output without bias, p = 2,
    lambda = 1, and at most 16 inputs, all of them in each step and evaluated; elsewhere nothing is. There and without
    L_std two claims hold: s of each layer falls at first at the rate of the closed form at this width, and up to the
    validity horizon the closed form overstates the fall by at most a tenth.
    """

    name: ClassVar[str] = "train"
    source: ClassVar[str] = "the paper, weight variance under adversarial training; the identity is ours"

    width: int = 256
    """Width N."""
    depth: int = 5
    """Number of hidden layers L."""
    block: Literal["vanilla", "residual", "signed"] = "vanilla"
    """Kind of block."""
    weight_variance: float | None = None
    """s = sigma_w^2: weights are N(0, s/N) (default: 2 for vanilla, 1/L for shortcuts)."""
    adversarial: Literal["paper", "madry", "none"] = "paper"
    """The paper's loss L_std + lambda L_adv; the maximum of L_std over the ball (lambda: its weight); or none."""

    @property
    def spec(self) -> NetworkSpec:
        """The law of the networks."""
        return self.law(self.width, self.depth, self.block, self.weight_variance)

    def cells(self) -> Sequence[Cell]:
        config = self.config(None if self.adversarial == "none" else self.adversarial)
        return [self.cell({"block": self.block, "adversarial": self.adversarial}, self.spec, config)]

    def networks(self, cells: Sequence[Cell]) -> Sequence[int]:
        return [8]

    def describe(self, cells: Sequence[Cell]) -> Sequence[str]:
        spec = self.spec
        return (
            *super().describe(cells),
            f"networks  {spec.block}, N={spec.width} L={spec.depth} d={spec.input_dim} K={spec.output_dim}, "
            f"s={spec.weight_variance:g} b2={spec.bias_variance:g}, omega={float(theory.propagation_factor(spec)):g}",
        )

    def predict(self, cell: Cell) -> Mapping[str, float]:
        """Of one output, without bias, the rate at which L_adv falls at t = 0, and for "vanilla" the validity horizon.

        Both worst perturbations +-eta are pushed in turn, and B inputs: L_adv falls at rate / (2 B).
        """
        norm = math.sqrt(float(np.mean(np.sum(self.points.values**2, axis=1))))
        radius = self.eps * cell.spec.input_dim ** max(0.0, 0.5 - 1 / self.p)  # in the 2-norm
        law = cell.spec.replace(output_dim=1)
        found = {"adversarial_loss": self._coefficient(cell.spec) * self.eps, "input_norm": norm}
        with jax.enable_x64(True), contextlib.suppress(ValueError):
            omega = float(theory.propagation_factor(cell.spec))
            found["adversarial_loss"] *= omega ** (cell.spec.depth / 2)
            rate = float(theory.adversarial_rate(law, norm, radius).rate)
            found["decay_rate"] = rate * self.adversarial_weight / (2 * self.inputs)
            horizon = float(theory.validity_horizon(law, radius, norm, self.inputs))
            found["validity_horizon"] = horizon / self.adversarial_weight if self.adversarial_weight else math.inf
        return found

    def _coefficient(self, spec: NetworkSpec) -> float:
        return theory.operator_norm_coefficient(self.p, self.q, spec.input_dim, spec.output_dim, self.coefficient)

    def published(self) -> np.ndarray:
        """s(t) of the closed form at the evaluations."""
        eps = self.eps * self.adversarial_weight if self.adversarial == "paper" else 0.0
        return closed_form(self.spec, self.times, eps, self.p, self.q, self.coefficient)

    @property
    def _derived(self) -> bool:
        """Whether the theory of the time after the start covers these networks."""
        spec, (x, _, config) = self.spec, self.cells()[0].operands
        derived = spec.block == "vanilla" and spec.output_dim == 1 and spec.bias_variance == 0 and self.p == 2
        derived = derived and config.adversarial == "paper" and config.adversarial_weight == 1
        all_at_once = len(x) <= min(_FEW, self.evaluated, self.batch or len(x))
        return derived and all_at_once and 0 < self.eps <= float(np.min(np.linalg.norm(x, axis=1)))

    def band(self, record: Mapping[str, np.ndarray]) -> theory.TrainingPrediction | None:
        """What theory says of these networks from their start on, in the mean over networks; None where nothing."""
        if not self._derived:
            return None
        spec, (x, y, _) = self.spec, self.cells()[0].operands
        target = np.zeros(len(x)) if y is None else 2.0 * y - 1
        slopes = {"squared": lambda f: f - target, "cross_entropy": lambda f: -target / (1 + np.exp(target * f))}
        with jax.enable_x64(True):
            longest = float(theory.adversarial_rate(spec, np.linalg.norm(x, axis=1), self.eps).time.min()) * 4 * len(x)
        options = {"spec": spec, "eps": self.eps, "horizon": min(self.times[-1], longest)}
        found = [
            predict_from(x, f0, loss, dloss=slopes.get(self.standard_loss), **options)
            for f0, loss in zip(record["output"][:, 0, :, 0], record["adversarial_loss"][:, 0], strict=True)
        ]
        return theory.TrainingPrediction(*(np.mean(each, axis=0) for each in zip(*found, strict=True)))

    def claims(self, data: Any) -> Sequence[Claim]:
        record, told = running(data, 0)
        note = "; ".join(told)
        spec = self.spec
        if not len(record["step"]):
            return []
        measured, predicted = (record[name][:, -1] for name in ("norm_change", "norm_change_predicted"))
        if spec.has_shortcut:  # the share of a branch is a mean over networks, and best seen over all layers
            seen = ratio(measured.sum(1), predicted.sum(1))
            text, reason = "d|W|^2 / identity, all layers", "the share of a branch is a mean over wide networks"
            claims = [Claim.of(text, 1.0, seen, id="identity", allowance=_SHARE, reason=reason, note=note)]
        else:  # it holds for every network, so that nothing is left to chance
            errors = np.max(np.abs(measured - predicted) / self._change_seen(record), axis=0)
            claims = [
                Claim(
                    f"identity, error, layer {layer}", _ROUNDING, error, 0.0, math.inf, kind="at_most", scale=1.0,
                    id="identity", coords={"layer": layer}, note=note,
                )
                for layer, error in enumerate(errors.tolist(), 1)
            ]  # fmt: skip
        if self.adversarial != "paper" or not self.eps or not self.adversarial_weight:
            return claims
        change = record["norm_change"].mean(2) / spec.width
        for number, when in ((1, "first"), (-1, "last")):
            expected = self.published()[number] - float(spec.weight_variance)
            claims.append(
                Claim.of(
                    f"ds by closed form, t={self.times[number]:.3g}",
                    expected,
                    estimate(change[:, number]),
                    id="closed_form",
                    coords={"evaluation": when},
                    allowance=0.04,
                    reason="finite width",
                    expected="fails",
                    note="the closed form knows neither L_std nor how fast L_adv falls",
                )
            )
        return claims + (self._of_start(record, note) if self._derived and self.standard_loss == "none" else [])

    def _of_start(self, record: Mapping[str, np.ndarray], note: str) -> list[Claim]:
        """The fall of the variance up to the first evaluation, layer by layer, and what it falls short of later."""
        spec, times = self.spec, self.times
        horizon = self.predict(self.cells()[0])["validity_horizon"]
        change = record["norm_change"] / spec.width
        slope = (self.published()[1] - float(spec.weight_variance)) * width_effect(spec).factor
        slope *= 1 - FRACTION * times[1] / horizon
        of = {"id": "slope", "allowance": _STEP, "reason": "the attack of a step finds less than the maximum"}
        claims = [
            Claim.of(
                f"ds of the first steps, layer {layer}", slope, estimate(less_scale(change[:, 1, layer - 1], record)),
                coords={"layer": layer}, note=note, **of,
            )
            for layer in range(1, spec.depth + 1)
        ]  # fmt: skip
        if not times[1] <= horizon <= times[-1]:
            return claims
        seen = shortfall(times, change.mean(2), record["adversarial_loss"][:, 0], spec.width, horizon)
        text = f"shortfall at the horizon, t={horizon:.3g}"
        return [*claims, Claim.of(text, FRACTION, seen, kind="at_most", id="horizon", note=note)]

    def _change_seen(self, record: Mapping[str, np.ndarray]) -> np.ndarray:
        """What errors of the identity are relative to: the largest change of |W_l|^2, or what rounding makes of it.

        A step that is lost in rounding changes |W_l|^2 by at most half the precision of the float type times it.
        """
        precision = np.finfo(self.dtype).eps
        rounded = self.steps * precision / 2 * self.spec.width * record["weight_variance"][:, 0]
        return np.max(np.abs(record["norm_change_predicted"]), axis=1) + rounded / _ROUNDING

    def figures(self, data: Any, judged: Sequence[Judgement]) -> Mapping[str, Any]:
        record, told = running(data, 0)
        if not len(record["step"]):
            return {}
        spec = self.spec
        title = f"{spec.block}, N={spec.width}, L={spec.depth}, {len(record['step'])} networks: "
        title += self.describe(self.cells())[1].split(maxsplit=1)[1]
        return {
            "training": _training_figures.training(
                title + "".join(f"\n{line}" for line in told), self.times, record, self.published(), spec,
                self.predict(self.cells()[0]), self.band(record),
            )
        }  # fmt: skip

    def tables(self, data: Any, judged: Sequence[Judgement], wide: bool = False) -> Sequence[Any]:
        record, told = running(data, 0)
        legend = "Means over networks. s: weight variance, over layers. |J|2: |J|_F^2 / (K omega_0^L). acc: accuracy; "
        legend += "free, label: under attacks without and with labels. " + "; ".join(told)
        table = report.table(f"{len(record['step'])} networks in training", legend)
        columns = {
            "s": "weight_variance", "omega^L": "propagation", "|J|2": "jacobian", "L_std": "standard_loss",
            "L_adv": "adversarial_loss", "acc": "accuracy", "free": "robust_accuracy", "label": "attacked_accuracy",
        }  # fmt: skip
        if wide:
            columns |= {"|dL/dW|": "gradient_norm", "Fisher-Rao": "fisher_rao", "kernel": "kernel_similarity"}
            columns |= {"gates": "gates_flipped"}
        for name in ("t", *columns):
            table.add_column(name, justify="right")
        for i, t in enumerate(self.times):
            means = [float(np.mean(mean_and_error(record[name][:, i])[0])) for name in columns.values()]
            table.add_row(f"{t:.3g}", *(report.number(mean, ".4g") for mean in means))
        return [table, *super().tables(data, judged, wide)]
