"""Networks that are computed in segments, on their way."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mftadv.store import PROGRESS
from mftadv.sweep._plan import Plan, names


@dataclasses.dataclass
class OnTheWay:
    """Some networks of a cell after some of their segments.

    Attributes:
        plan: the run.
        cell: the number of the cell.
        networks: which.
        done: how many segments they have behind them.
        state: their state [R, ...], with padding; None before segment 0.
        found: what the segments found, [R, segments, ...] by name.
    """

    plan: Plan
    cell: int
    networks: range
    done: int
    state: Any
    found: dict[str, np.ndarray]

    @classmethod
    def of(cls, plan: Plan, cell: int, networks: range, batch_size: int, checkpoints: Any) -> "OnTheWay":
        """The leading ones of some networks that can go on together, from their checkpoint or from the beginning."""
        networks, before = checkpoints.find(cell, networks) if checkpoints else (networks, None)
        if before is None:
            layout = plan.layout(cell)
            found = {name: np.zeros((len(networks), *shape), dtype) for name, (shape, dtype) in layout.items()}
            return cls(plan, cell, networks, 0, None, found)
        shapes = plan.groups[plan.group_of[cell]].state
        padding, saved = batch_size - len(networks), _named("state.", before)
        leaves = [  # padding that is computed like the last network can be no worse than it
            np.pad(saved[name], [(0, padding)] + [(0, 0)] * leaf.ndim, "edge") for name, leaf in names(shapes).items()
        ]
        state = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
        return cls(plan, cell, networks, int(before[PROGRESS][0]), state, _named("found.", before))

    @property
    def segments(self) -> int:
        return self.plan.segments(self.cell) or 0

    def go_on(self, call: Callable[..., Any], arguments: Any) -> None:
        """Compute the next segment; interrupted, nothing has changed."""
        rows = len(self.networks)
        state, values = call(self.networks.start, rows, *arguments, (self.done, self.state))
        for name, leaf in names(values).items():
            self.found[name][:, self.done] = leaf[:rows]
        self.state, self.done = state, self.done + 1

    def store(self, checkpoints: Any) -> None:
        """Write a checkpoint."""
        rows = len(self.networks)
        arrays = {PROGRESS: np.full(rows, self.done)}
        arrays |= {f"state.{name}": np.asarray(leaf)[:rows] for name, leaf in names(self.state).items()}
        arrays |= {f"found.{name}": each for name, each in self.found.items()}
        checkpoints.write(self.cell, self.networks, arrays)


def _named(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): each for name, each in arrays.items() if name.startswith(prefix)}
