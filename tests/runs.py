"""What tests of runs share: a small experiment, an observer that remembers, a process killed when it is told to be."""

import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import ClassVar

import jax
import numpy as np

from mftadv import statistics
from mftadv.compare import Claim
from mftadv.experiments import Experiment
from mftadv.spec import NetworkSpec
from mftadv.sweep import Cell, Observer


def scaled(key, spec, shift):
    """Of one network normal numbers of the variance of its weights, and their mean square."""
    x = jax.random.normal(key, (64,)) * jax.numpy.sqrt(spec.weight_variance)
    x = x + shift.astype(x.dtype)
    return {"x": x, "square": jax.numpy.mean(x**2)}


@dataclasses.dataclass(frozen=True)
class Toy(Experiment):
    """Variances of normal numbers."""

    name: ClassVar[str] = "toy"
    source: ClassVar[str] = "ours"
    axes: ClassVar[Mapping[str, tuple[str, ...]]] = {"x": ("entry",), "square": ()}

    variances: tuple[float, ...] = (1.0, 4.0)
    """Variances."""
    shift: float = 0.0
    """What is added, which no claim knows of."""

    def cells(self):
        specs = [NetworkSpec(2, 1, 3, 1, weight_variance=variance) for variance in self.variances]
        return [Cell({"s": spec.weight_variance}, spec, (np.float32(self.shift),), scaled) for spec in specs]

    def networks(self, cells):
        return [600] * len(cells)

    def predict(self, cell):
        return {"square": cell.spec.weight_variance}

    def claims(self, data):
        return [
            Claim.of(
                f"square, s={s:g}",
                float(data["theory_square"][i]),
                statistics.mean_estimate(data["square"].values[i].astype(float)),
                id="square",
                coords={"s": float(s)},
            )
            for i, s in enumerate(data["s"].values)
        ]


class Told(Observer):
    """Remembers what it is told."""

    def __init__(self):
        self.lines, self.shares = [], []

    def say(self, line):
        self.lines.append(line)

    def progress(self, share, doing):
        self.shares.append(share)


def run_killed(path: str, work: Callable[[], int], last: int | None = None) -> int:
    """The exit status of a fork that does some work, killed before the change number `last` of a folder.

    Args:
        path: of the folder; where nothing is killed, the number of its changes is written to PATH.changes.
        work: returns the exit status.
        last: None for no kill.
    """
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    done = 0

    def change(event, arguments):
        nonlocal done
        writes = event in ("os.rename", "os.mkdir", "os.remove") or (event == "open" and arguments[2] & os.O_CREAT)
        if writes and str(arguments[0]).startswith(path):
            if done == last:
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1

    sys.addaudithook(change)
    status = work()
    if last is None:
        with open(path + ".changes", "w") as file:
            file.write(str(done))
    os._exit(status)
