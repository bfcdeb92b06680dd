"""What experiments on random networks at given inputs share: their options, the inputs, the law, the engine."""

import abc
import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from mftadv import theory
from mftadv.data import Inputs, load_inputs
from mftadv.experiments._experiment import Experiment, check_seed
from mftadv.network import Network, engine_costs, engine_for, init
from mftadv.spec import NetworkSpec, check_positive, dual_exponent, representable
from mftadv.sweep import DEEPEST, Cell

Engine = Literal["auto", "dense", "matrix_free"]


@dataclasses.dataclass(frozen=True)
class AtInputs(abc.ABC):
    """A statistic of one network at a block of inputs, its first operand, by an engine.

    It is a value: equal ones share a compiled program.
    """

    engine: Engine

    @abc.abstractmethod
    def capacity(self, spec: NetworkSpec, num_inputs: int) -> tuple[int, int]:
        """How many inputs and cotangents a network is queried with, see `mftadv.capacity_for`."""

    def network(self, key: Key[Array, ""], spec: NetworkSpec, xs: Float[Array, "B d"]) -> Network:
        """The network of a key, ready for these inputs."""
        return init(key, spec, self.engine, None if self.engine == "dense" else self.capacity(spec, len(xs)))


def capacity_of(cell: Cell) -> tuple[int, int]:
    """The capacity of a matrix-free network of a cell whose statistic is one at inputs."""
    return cast(AtInputs, cell.statistic).capacity(cell.spec, len(cell.operands[0]))


def least_cost(cell: Cell) -> float:
    """What one network of the cell costs by the cheaper engine, in random numbers drawn."""
    return min(engine_costs(cell.spec, capacity_of(cell)).values())


def chosen_inputs(of: Any) -> Inputs:
    """The inputs that an experiment's options `data`, `inputs`, `seed`, `input_dim` and `scale` choose.

    Raises:
        ValueError: an option is outside its range, see `mftadv.load_inputs`, or a number exceeds the float type.
    """
    for field in dataclasses.fields(of):
        value = getattr(of, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and math.isfinite(number) and not representable(abs(number), of.dtype):
                raise ValueError(f"{field.name}: expected a number that {of.dtype} can hold, got {number:g}")
    points = load_inputs(of.data, of.inputs, check_seed(of.seed), input_dim=of.input_dim, scale=of.scale)
    if not representable(largest := float(np.max(np.abs(points.values))), of.dtype):
        raise ValueError(f"data: expected numbers that {of.dtype} can hold, got {largest:g}")
    return points


@dataclasses.dataclass(frozen=True)
class OfNetworks(Experiment):
    """An experiment on random networks of one law, at inputs chosen from data."""

    data: str = "digits"
    """Inputs: digits, gaussian, or a .npy, .npz, .csv, .tsv, .txt or idx file (gzipped or not)."""
    inputs: int = 2
    """Number of inputs, chosen at random from the data."""
    input_dim: int = 1000
    """Dimension d of gaussian inputs."""
    scale: bool = True
    """Whether to rescale the data to mean |x|^2/d = 1 (--no-scale: as they are)."""
    width: int = 100
    """Width N."""
    depth: int = 5
    """Number of hidden layers L."""
    output_dim: int = 1
    """Number of outputs K."""
    block: str = "vanilla"
    """vanilla, residual or signed."""
    weight_variance: float = 2.0
    """s = sigma_w^2: weights are N(0, s/N)."""
    bias_variance: float = 0.1
    """b2 = sigma_b^2: biases are N(0, b2)."""
    slopes: tuple[float, float] = (1.0, 0.0)
    """Slopes u v of the activation on z >= 0 and z < 0; 1 0 is ReLU."""
    engine: Engine = "auto"
    """How matrices are held: entry by entry, drawn as they are touched (the same law), or as costs less."""

    @functools.cached_property
    def points(self) -> Inputs:
        """The inputs, read once.

        Raises:
            ValueError: an option is outside its range, see `mftadv.load_inputs`, or the inputs exceed the float type.
        """
        return chosen_inputs(self)

    @functools.cached_property
    def law(self) -> NetworkSpec:
        """The law of the networks at the inputs.

        Raises:
            ValueError: an option is outside its range, or omega^L is 0 or overflows.
        """
        spec = NetworkSpec(
            self.points.values.shape[1], self.output_dim, self.width, self.depth, self.weight_variance,
            self.bias_variance, *self.slopes, block=self.block,
        )  # fmt: skip
        check_positive("depth", spec.depth, DEEPEST)  # theory sums over layers
        with jax.enable_x64(self.x64):
            omega, variance = float(theory.propagation_factor(spec)), float(theory.jacobian_variance(spec))
        if not 0 < variance < math.inf:
            raise ValueError(
                "weight_variance: expected omega^L within the floating-point numbers, and not 0, got "
                f"omega={omega:g} with L={spec.depth}"
            )
        return spec

    def describe(self, cells: Sequence[Cell]) -> Sequence[str]:
        """The inputs, the law of the networks, and the engine with what a network costs by each."""
        spec = self.law
        engines = Counter(engine_for(cell.spec, capacity_of(cell), self.engine) for cell in cells)
        chosen = ", ".join(f"{engine} in {n} cells" for engine, n in engines.items())
        costs = [engine_costs(cell.spec, capacity_of(cell)) for cell in cells]
        means = ", ".join(f"{name} {sum(cost[name] for cost in costs) / len(costs):.3g}" for name in costs[0])
        return (
            f"inputs    {self.points.preprocessing}",
            f"networks  {spec.block}, N={spec.width} L={spec.depth} d={spec.input_dim} K={spec.output_dim}, "
            f"s={spec.weight_variance:g} b2={spec.bias_variance:g} "
            f"slopes {spec.positive_slope:g} {spec.negative_slope:g}, "
            f"omega={float(theory.propagation_factor(spec)):g}",
            f"engine    {next(iter(engines)) if len(engines) == 1 else chosen}{' (auto)' * (self.engine == 'auto')}; "
            f"cost of a network in random numbers: {means}",
        )


class WidthEffect(NamedTuple):
    """What finite width does to a mean p->q norm of J."""

    factor: float  # by which it lowers the mean
    error: float  # of the factor, as a part of the mean
    excess: float  # how far the mean may lie above its value at infinite width, as a part of it
    reason: str


def width_effect(spec: NetworkSpec) -> WidthEffect:
    """The effect by `theory.norm_correction`: one output's norm only falls, that of several may rise."""
    with jax.enable_x64(True):
        factor, error = (float(number) for number in theory.norm_correction(spec))
    if spec.output_dim == 1:
        return WidthEffect(factor, error, 0.0, "finite width to first order")
    return WidthEffect(
        factor, error, error, "the layers spread the singular values of K outputs by about sqrt(L K / N)"
    )


def growth_along_input(spec: NetworkSpec, x: np.ndarray, pairs: Any) -> dict[tuple[float, float], float]:
    """For each (p, q), what growth along the input x adds at most to the mean norm of J; the law is evaluated once a q.

    The amount is that of |x|_p* = 1 times |x|_p*, see `theory.growth_along_input`.
    """
    with jax.enable_x64(True):
        each = {q: float(theory.growth_along_input(spec, float(x @ x), 1.0, q)) for q in {q for _, q in pairs}}
    return {(p, q): each[q] and each[q] * float(np.linalg.norm(x, dual_exponent(p))) for p, q in pairs}


def exponent(p: float) -> str:
    """An exponent as people write it."""
    return "inf" if p == math.inf else f"{p:g}"
