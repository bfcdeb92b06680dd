"""The interface of an experiment: a grid of cells, what theory says of each, the claims that hold one to the other."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from mftadv.compare import Claim, Judgement
from mftadv.sweep import Cell, Dataset


def check_seed(seed: int) -> int:
    """The seed.

    Raises:
        ValueError: it is not between 0 and 2^32 - 1.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed: expected an integer from 0 to 2^32 - 1, got {seed}")
    return seed


def fastest_key(seed: int) -> jax.Array:
    """The fastest kind of key this JAX has that is safe under vmap and sharding.

    Raises:
        ValueError: the seed is not between 0 and 2^32 - 1.
    """
    check_seed(seed)
    try:
        return jax.random.key(seed, impl="threefry4x32")
    except ValueError:  # JAX before 0.10.2
        return jax.random.key(seed, impl="threefry2x32")


@dataclasses.dataclass(frozen=True)
class Experiment(abc.ABC):
    """An experiment: a frozen dataclass whose fields are its options, on the command line too.

    Derive from it, set the class attributes, and define the abstract methods; `mftadv.run` does the rest: it draws the
    networks of every cell, stores them as they are drawn, goes on after an interruption, judges the claims, and draws
    the figures. All methods are functions of the options and of the data alone.

    Attributes:
        name: of the command.
        version: raised whenever the numbers that a configuration gives change, so that results of the older version
            are not gone on with.
        source: the claim of the paper that is tested, or "ours".
        axes: the names of the axes of each variable that the statistic returns.
        seed: of the networks, and of whatever else is chosen at random.
        x64: whether networks are drawn and computed in float64.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    source: ClassVar[str]
    axes: ClassVar[Mapping[str, tuple[str, ...]]]

    seed: int = 0
    """Of the networks and of the choice of inputs."""
    x64: bool = False
    """Draw and compute in float64."""

    @property
    def dtype(self) -> np.dtype:
        """In which networks are drawn and computed."""
        return np.dtype(np.float64 if self.x64 else np.float32)

    @abc.abstractmethod
    def cells(self) -> Sequence[Cell]:
        """The points of the grid.

        Raises:
            ValueError: an option is outside its range.
        """

    @abc.abstractmethod
    def networks(self, cells: Sequence[Cell]) -> Sequence[int]:
        """How many networks each cell is to have where the budget names no number."""

    @abc.abstractmethod
    def claims(self, data: Dataset) -> Sequence[Claim]:
        """What theory says beside what was measured."""

    def describe(self, cells: Sequence[Cell]) -> Sequence[str]:
        """What a reader should know before the run starts, a line each."""
        return ()

    def resolution(self, cell: Cell) -> Mapping[str, float]:
        """For each kind of claim at a cell, how many networks see a deviation of 5%."""
        return {}

    def predict(self, cell: Cell) -> Mapping[str, float]:
        """What theory alone says of a cell, by name."""
        return {}

    def figures(self, data: Dataset, judged: Sequence[Judgement]) -> Mapping[str, Any]:
        """The pictures by name, matplotlib figures; `Figure.set_label` says in a sentence what one shows."""
        return {}

    def tables(self, data: Dataset, judged: Sequence[Judgement], wide: bool = False) -> Sequence[Any]:
        """The tables, as `rich` prints them; those that are not wide fit 80 columns."""
        from mftadv import report

        return [report.verdict_table(self.name, judged, wide)]
