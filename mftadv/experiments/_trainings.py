"""What experiments on networks in training share: options, data, the statistic, and means over networks."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from mftadv import statistics, theory, training
from mftadv.data import Inputs
from mftadv.experiments._experiment import Experiment
from mftadv.experiments._networks import chosen_inputs
from mftadv.spec import NetworkSpec, check_positive, fold_in_loop
from mftadv.statistics import Estimate
from mftadv.sweep import Cell, Segmented, sample_of
from mftadv.training import TrainingConfig

_LAYERED = ("weight_variance", "propagation_factor", "gradient_norm", "gates_flipped", "norm_change")
_LAYERED += ("norm_change_predicted",)
FRACTION = 0.1  # by which the closed form is off at its validity horizon
AXES: Mapping[str, tuple[str, ...]] = {
    name: ("evaluation", "layer") if name in _LAYERED else ("evaluation",)
    for name in training.TrainingRecord._fields
    if name != "network"
} | {"output": ("evaluation", "input", "component")}


@dataclasses.dataclass(frozen=True)
class Trained(Segmented):
    """The record of one network in training, segment by segment; the operands are inputs, labels, configuration.

    It is a value, so that runs are told apart by it and not by its code.
    """

    count: int
    evaluated: int

    @property
    def segments(self) -> int:
        return self.count

    def begin(self, key, spec, *operands):
        x, y, config = operands
        return training.begin(_own(key, spec), spec, (x, y), config, self._evaluation(x, y))

    def segment(self, key, spec, number, state, *operands):
        x, y, config = operands
        return training.segment(_own(key, spec), state, number, (x, y), config, self._evaluation(x, y))

    def _evaluation(self, x: Any, y: Any) -> tuple[Any, Any]:
        return x[: self.evaluated], None if y is None else y[: self.evaluated]


@dataclasses.dataclass(frozen=True)
class TrainedAtOnce:
    """The same record of a matrix-free network on its training inputs, in one go: its state takes gigabytes."""

    def __call__(self, key: jax.Array, spec: NetworkSpec, x: Any, y: Any, config: TrainingConfig) -> dict[str, Any]:
        record = training.train(_own(key, spec), spec, (x, y), config, engine="matrix_free")
        return {name: each for name, each in record._asdict().items() if name != "network"}


def _own(key: jax.Array, spec: NetworkSpec) -> jax.Array:
    """The key of a network of this size: cells that shared keys would share some of their noise, and err together."""
    return fold_in_loop(key, [[spec.width, spec.depth]])[0]


@dataclasses.dataclass(frozen=True)
class OfTrainings(Experiment):
    """An experiment on networks in training, of one kind, on labelled data."""

    axes: ClassVar[Mapping[str, tuple[str, ...]]] = AXES

    data: str = "digits"
    """Inputs and labels: digits, or a file such as an .npz with arrays x and y; gaussian inputs have no labels."""
    inputs: int = 512
    """Number of training inputs, chosen at random from the data."""
    evaluated: int = 128
    """On how many of them networks are evaluated."""
    input_dim: int = 64
    """Dimension d of gaussian inputs."""
    scale: bool = True
    """Whether to rescale the data to mean |x|^2/d = 1 (--no-scale: as they are)."""
    output_dim: int | None = None
    """Number of outputs K (default: the number of classes; 1 without labels)."""
    bias_variance: float = 0.0
    """b2 = sigma_b^2: biases are N(0, b2)."""
    slopes: tuple[float, float] = (1.0, 0.0)
    """Slopes u v of the activation on z >= 0 and z < 0; 1 0 is ReLU."""
    standard_loss: Literal["cross_entropy", "squared", "none"] = "cross_entropy"
    """The standard loss L_std beside the adversarial one."""
    eps: float = 0.8
    """Radius of the attack."""
    p: float = 2
    """Exponent of the norm of perturbations."""
    q: float = 2
    """Exponent of the norm of the outputs' difference."""
    adversarial_weight: float = 1.0
    """lambda, the weight of the adversarial loss."""
    learning_rate: float = 0.01
    """Learning rate r of gradient descent; the training time t is r times the steps."""
    steps: int = 200
    """Number of steps."""
    batch: int | None = 128
    """Inputs of a step (default with more than there are: all)."""
    evaluations: int = 20
    """How often networks are evaluated after the start."""
    attack: Literal["fast", "default", "thorough"] = "fast"
    """Attack of every step and evaluation: 6, 400 or 5,000 evaluations of the network at each input."""

    @functools.cached_property
    def points(self) -> Inputs:
        """The inputs, read once.

        Raises:
            ValueError: as for `chosen_inputs`, or labels are missing.
        """
        points = chosen_inputs(self)
        if self.standard_loss != "none" and points.labels is None:
            raise ValueError(
                f"data: expected whole numbers as labels, one an input, which --standard-loss {self.standard_loss} "
                f"needs, got none in {self.data}"
            )
        return points

    @property
    def outputs(self) -> int:
        """K."""
        if self.output_dim is not None:
            return self.output_dim
        if self.points.labels is None or self.standard_loss == "none":
            return 1
        return max(2, int(self.points.labels.max()) + 1)

    def law(self, width: int, depth: int, block: str, weight_variance: float | None = None) -> NetworkSpec:
        """The law of networks; by default s = 2 for "vanilla", omega = 1 for ReLU, and 1/L for shortcuts.

        Raises:
            ValueError: an option is outside its range.
        """
        if weight_variance is None:
            weight_variance = 2.0 if block == "vanilla" else 1 / check_positive("depth", depth)
        if weight_variance == 0:
            raise ValueError("weight_variance: expected a number > 0, since dead networks do not train, got 0")
        d = self.points.values.shape[1]
        return NetworkSpec(
            d, self.outputs, width, depth, weight_variance, self.bias_variance, *self.slopes, block=block
        )

    def config(self, adversarial: str | None = "paper", **changes: Any) -> TrainingConfig:
        """The configuration, with or without the adversarial loss.

        Raises:
            ValueError: an option is outside its range.
        """
        interval = -(-check_positive("steps", self.steps) // check_positive("evaluations", self.evaluations))
        if self.batch is not None:
            check_positive("batch", self.batch)
        if self.standard_loss == "none" and adversarial != "paper":
            raise ValueError("standard_loss: expected one where networks train without the paper's L_adv, got none")
        options = {
            "steps": self.steps, "learning_rate": self.learning_rate, "eps": self.eps, "p": self.p, "q": self.q,
            "standard_loss": None if self.standard_loss == "none" else self.standard_loss, "adversarial": adversarial,
            "adversarial_weight": self.adversarial_weight, "batch_size": self.batch, "evaluate_every": interval,
            "attack": self.attack,
        }  # fmt: skip
        return TrainingConfig(**{**options, **changes})

    def cell(self, coords: Mapping[str, float | int | str], spec: NetworkSpec, config: TrainingConfig) -> Cell:
        """The cell of networks of one law, trained in one way.

        Raises:
            ValueError: the data are not what the configuration needs.
        """
        check_positive("evaluated", self.evaluated)
        labels = self.points.labels if config.needs_labels else None
        x = self.points.values.astype(self.dtype)
        training.check_data("data", spec, (x, labels), config)
        y = None if labels is None else labels.astype(np.int32)
        return Cell(coords, spec, (x, y, config), Trained(config.num_segments, min(self.evaluated, len(x))))

    def describe(self, cells: Sequence[Cell]) -> Sequence[str]:
        config = cells[0].operands[2]
        losses = ([] if config.standard_loss is None else [config.standard_loss]) + ["L_adv"]
        radii = " ".join(f"{eps:g}" for eps in sorted({cell.operands[2].eps for cell in cells}))
        return (
            f"inputs    {self.points.preprocessing}",
            f"training  {' + '.join(losses)}, eps={radii} p={self.p:g} q={self.q:g} "
            f"lambda={self.adversarial_weight:g}, {self.steps} steps of {self.learning_rate:g} on "
            f"{min(self.batch or self.inputs, self.inputs)} of {self.inputs} inputs, attack {self.attack}",
        )

    @property
    def times(self) -> np.ndarray:
        """The training time, learning rate times steps, at each evaluation."""
        config = self.config()
        steps = np.minimum(np.arange(config.num_segments) * config.evaluate_every, self.steps)
        return steps * self.learning_rate

    @property
    def coefficient(self) -> Literal["sharp", "chevet"]:
        """The sharpest coefficient that theory has."""
        d = self.points.values.shape[1]
        return "sharp" if theory.has_sharp_coefficient(self.p, self.q, d, self.outputs) else "chevet"


def running(data: Any, cell: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """The records of the networks of a cell that ran to the end, in float64, and what is to be said of the others."""
    sample = {name: np.asarray(values, np.float64) for name, values in sample_of(data, cell).items()}
    stopped = sample["stopped"][:, -1]
    told = [f"network {i} diverged at step {step:.0f}" for i, step in enumerate(stopped) if step >= 0]
    return {name: values[stopped < 0] for name, values in sample.items()}, told


def relative_fisher_rao(record: Mapping[str, np.ndarray]) -> np.ndarray:
    """The Fisher-Rao norm over |dL/df|^2, [n, S]; nan where the loss is fitted to the last digit."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return record["fisher_rao"] / record["cotangent"]


def mean_and_error(values: np.ndarray) -> tuple[Any, Any]:
    """The mean over networks, the first axis, and its standard error; nan where there are too few."""
    if len(values) == 0:
        return np.full(values.shape[1:], math.nan), np.full(values.shape[1:], math.nan)
    spread = np.std(values, axis=0, ddof=1) if len(values) > 1 else np.full(values.shape[1:], math.nan)
    return np.mean(values, axis=0), spread / math.sqrt(len(values))


def estimate(values: np.ndarray) -> Estimate:
    """The mean over networks as an estimate by plain Student's t: a few networks tell nothing of its skewness."""
    mean, error = mean_and_error(np.asarray(values, np.float64))
    return Estimate(float(mean), float(error), max(1, len(values) - 1))


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> Estimate:
    """The ratio of two means over the same networks as an estimate, as `estimate` has a mean."""
    return dataclasses.replace(statistics.ratio_estimate(numerators, denominators), skewness=0.0, skewness_error=0.0)


def shortfall(times: np.ndarray, change: np.ndarray, loss: np.ndarray, width: int, time: float) -> Estimate:
    """By what part the change of s up to a time falls short of its rate at the start, -(2/N) L_adv, times that time.

    Args:
        times: [S], from 0 on.
        change: s(t) - s(0), [n, S].
        loss: L_adv(0), [n].
        width: N.
        time: between the second time and the last.
    """
    start = -2 / width * loss
    missing = start[:, None] - change[:, 1:] / times[1:]
    return ratio(np.array([np.interp(time, times[1:], row) for row in missing]), start)


def less_scale(values: np.ndarray, record: Mapping[str, np.ndarray]) -> np.ndarray:
    """Values [n] in proportion to |J| of their networks at the start, less what chance in |J|^2 adds to each.

    The mean stays: E |J|_F^2 is K omega_0^L exactly, at every width, in vanilla and signed networks.
    """
    return values - np.mean(values) * (record["jacobian"][:, 0] - 1) / 2


def predict_from(
    x: np.ndarray, f0: np.ndarray, loss: float, *, spec: NetworkSpec, eps: float, horizon: float, **options: Any
) -> theory.TrainingPrediction:
    """`theory.predict_training` of networks with these outputs and this L_adv at the start.

    The theory needs some of it: more than what outputs change by along x, and as much beside that as lets the curve,
    which ends after 8 t*, last to the horizon. A network with less is taken to begin with that.
    """
    norms = np.linalg.norm(x, axis=1)
    with jax.enable_x64(True):
        rate = float(np.max(theory.adversarial_rate(spec, norms, eps).rate))
    along, across = eps * np.max(np.abs(f0) / norms), 1.01 * horizon * rate / (8 * len(x))
    options |= {"adversarial_loss": max(loss, math.hypot(along, across))}
    return theory.predict_training(x, f0, spec=spec, eps=eps, horizon=horizon, **options)


def closed_form(spec: NetworkSpec, times: np.ndarray, eps: float, p: float, q: float, kind: Any) -> np.ndarray:
    """The published weight variance s(t), in float64."""
    with jax.enable_x64(True):
        return np.asarray(theory.weight_variance(spec, jnp.asarray(times), eps, p, q, kind=kind))
