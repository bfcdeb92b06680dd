"""Checkpoints: networks on their way, stored so that a run goes on from there; removed once their parts are written."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mftadv.store._files import make_folder, open_regular, write_atomically
from mftadv.store._parts import Part, Parts, entries, named
from mftadv.store._record import Record, reason

FOLDER = "checkpoints"
PROGRESS = "progress"  # the array that says how far the networks of a checkpoint are


def on_their_way(folder: Path, parts: Parts) -> dict[int, int]:
    """How many networks that have no part have so many segments behind them, by what the files say, not yet checked."""
    furthest: dict[tuple[int, int], int] = {}
    for path in entries(folder / FOLDER):
        with contextlib.suppress(Exception):  # whatever a file that is no checkpoint makes NumPy raise
            cells, networks, _ = named(path)
            with open_regular(path) as file, np.load(file, allow_pickle=False) as archive:
                ((*progress,),) = archive[f"value.{PROGRESS}"].tolist()
            for i, done in zip(networks, progress, strict=True):
                if parts.missing(cells.start, i + 1, i):
                    furthest[cells.start, i] = max(done, furthest.get((cells.start, i), 0))
    return dict(sorted(Counter(furthest.values()).items(), reverse=True))


class Checkpoints:
    """The checkpoints of a run: files like its parts, of other arrays, that are believed after the same checks.

    Args:
        record: of the run.
        layouts: for each cell the arrays of a network on its way, see `RunFolder.open`; an integer named "progress" is
            one of them. Where all are empty, whatever there is is left alone.
        folder: of the run.
        sign: is called before anything is written, to record who writes.
    """

    def __init__(self, record: Record, layouts: Sequence[Mapping[str, Any]], folder: Path, sign: Callable[[], None]):
        self.folder, self._sign = folder / FOLDER, sign
        self.damaged: dict[Path, str] = {}
        plain = Record.new({}, layouts, False).layouts
        self._files = Parts(dataclasses.replace(record, layouts=plain, reduced=False))
        self._progress: dict[Part, int] = {}
        for path in entries(self.folder) if any(layouts) else ():
            if path.suffix == ".npz":
                try:
                    part = self._files.identify(path)
                    self._progress[part] = int(self._files.read(part)[1][PROGRESS].min())
                except (OSError, ValueError) as error:
                    self.damaged[path] = reason(error)

    def write(self, cell: int, networks: range, arrays: Mapping[str, np.ndarray]) -> None:
        """Store networks on their way, [R, ...] each; what these had stored before, no further on, is removed."""
        name, content = self._files.pack(
            range(cell, cell + 1), networks, {key: each[None] for key, each in arrays.items()}
        )
        part = Part(range(cell, cell + 1), networks, self.folder / name)
        self._sign()
        make_folder(self.folder)
        write_atomically(part.path, lambda path: path.write_bytes(content))
        self._progress[part] = progress = int(arrays[PROGRESS].min())
        self._remove([
            old
            for old in self._of(cell)
            if old != part
            and self._progress[old] <= progress
            and networks.start <= old.networks.start
            and old.networks.stop <= networks.stop
        ])  # fmt: skip

    def find(self, cell: int, networks: range) -> tuple[range, dict[str, np.ndarray] | None]:
        """The leading ones of some networks that can go on together, and their arrays; None where they begin anew."""
        own, start = self._of(cell), networks.start
        here = [part for part in own if start in part.networks]
        best = max(here, key=lambda part: (self._progress[part], part.networks.stop), default=None)
        stop, progress = (networks.stop, 0) if best is None else (best.networks.stop, self._progress[best])
        further = [part.networks.start for part in own if self._progress[part] > progress]
        some = range(start, min([networks.stop, stop, *(each for each in further if each > start)]))
        if best is None:
            return some, None
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
