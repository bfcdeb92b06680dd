"""One point of a grid: a statistic, the law of the networks, and what the statistic is given beside them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from mftadv.spec import NetworkSpec

Coordinate = float | int | str


@dataclasses.dataclass(frozen=True)
class Cell:
    """One point of a grid.

    Attributes:
        coords: where it is: the names and values of its coordinates in the dataset.
        spec: the law of its networks.
        operands: what the statistic is given beside the key and the spec, traced: inputs, sizes of perturbations.
        statistic: statistic(key, spec, *operands) -> dict of arrays by name, of one network. Cells with equal
            statistics, and specs and operands of equal shapes, share a compiled program.
    """

    coords: Mapping[str, Coordinate]
    spec: NetworkSpec
    operands: tuple[Any, ...]
    statistic: Callable[..., Mapping[str, Any]]
