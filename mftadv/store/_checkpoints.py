"""Checkpoints: networks on their way, stored so that a run goes on from there; removed once their parts are written."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mftadv.store._files import make_folder, write_atomically
from mftadv.store._parts import Part, Parts, entries
from mftadv.store._record import Record, reason

FOLDER = "checkpoints"
PROGRESS = "progress"  # the array that says how far the networks of a checkpoint are


class Checkpoints:
    """The checkpoints of a run: files like its parts, of other arrays, that are believed after the same checks.

    Args:
        record: of the run.
        layouts: for each cell the arrays of a network on its way, see `RunFolder.open`; an integer named "progress" is
            one of them. Empty: whatever there is is left alone.
        folder: of the run.
    """

    def __init__(self, record: Record, layouts: Sequence[Mapping[str, Any]], folder: Path):
        self.folder = folder / FOLDER
        self.damaged: dict[Path, str] = {}
        plain = Record.new({}, layouts, False).layouts
        self._files = Parts(dataclasses.replace(record, layouts=plain, reduced=False))
        self._progress: dict[Part, int] = {}
        for path in entries(self.folder) if layouts else ():
            if path.suffix == ".npz":
                try:
                    part = self._files.identify(path)
                    self._progress[part] = int(self._files.read(part)[1][PROGRESS].min())
                except (OSError, ValueError) as error:
                    self.damaged[path] = reason(error)

    def write(self, cell: int, networks: range, arrays: Mapping[str, np.ndarray]) -> None:
        """Store networks on their way, [R, ...] each; what the same networks had stored before is removed."""
        name, content = self._files.pack(
            range(cell, cell + 1), networks, {key: each[None] for key, each in arrays.items()}
        )
        part = Part(range(cell, cell + 1), networks, self.folder / name)
        make_folder(self.folder)
        write_atomically(part.path, lambda path: path.write_bytes(content))
        covered = [old for old in self._of(cell) if _holds(networks, old.networks) and old != part]
        self._progress[part] = int(arrays[PROGRESS].min())
        self._remove(covered)

    def find(self, cell: int, networks: range) -> tuple[range, dict[str, np.ndarray] | None]:
        """The leading ones of some networks that can go on together, and their arrays; None where they begin anew."""
        reach = [each for each in self._of(cell) if each.networks.stop > networks.start]
        here = [each for each in reach if each.networks.start <= networks.start]
        if not here:
            return range(networks.start, min([networks.stop, *(each.networks.start for each in reach)])), None
        best = max(here, key=lambda each: self._progress[each])
        some = range(networks.start, min(networks.stop, best.networks.stop))
        try:
            content = self._files.read(best)[1]
        except ValueError as error:
            raise OSError(f"{best.path} has changed: {error}") from None
        rows = slice(some.start - best.networks.start, some.stop - best.networks.start)
        return some, {name: array[0, rows] for name, array in content.items()}

    def finish(self, parts: Parts) -> None:
        """Remove those whose networks all have parts."""
        self._remove([
            each
            for each in self._progress
            if not any(parts.missing(cell, each.networks.stop, each.networks.start) for cell in each.cells)
        ])  # fmt: skip

    def _of(self, cell: int) -> list[Part]:
        return [part for part in self._progress if cell in part.cells]

    def _remove(self, some: Sequence[Part]) -> None:
        """Only files that passed all checks are here: this run wrote them."""
        for part in some:
            del self._progress[part]
            with contextlib.suppress(OSError):
                part.path.unlink()


def _holds(outer: range, inner: range) -> bool:
    return outer.start <= inner.start and inner.stop <= outer.stop
