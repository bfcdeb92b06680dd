"""Parts: files that each hold some networks of some cells, and are believed only after all checks."""

import bisect
import hashlib
import io
import math
import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mftadv.store._files import read_regular
from mftadv.store._record import Record, digest, reason

FOLDER = "parts"
_NUMBER = r"(0|[1-9][0-9]{0,17})"
_NAME = re.compile(rf"cells-{_NUMBER}-{_NUMBER}-networks-{_NUMBER}-{_NUMBER}-[0-9a-f]{{64}}\.npz")
_OURS = {"run", "cells", "networks"}  # arrays that say which part it is
# Bytes that a file of numpy.savez may have beyond its numbers, for each array: its headers take about 400.
_HEADERS = 4096


class Part(NamedTuple):
    """A file that holds the networks F ... S - 1 of each of the cells A ... B - 1."""

    cells: range
    networks: range
    path: Path


class Parts:
    """Those parts of a run that are there, in the order of their cells and networks.

    Where two overlap, the first counts, and one that adds nothing is left out. So is one of reduced values that
    overlaps another at all: it cannot be taken apart.
    """

    def __init__(self, record: Record):
        self.list: list[Part] = []
        self._record, self._run = record, record.run
        self._done: dict[int, list[range]] = defaultdict(list)  # of each cell, disjoint and in order

    @classmethod
    def find(cls, record: Record, folder: Path, check: bool = True) -> tuple["Parts", dict[Path, str]]:
        """The parts in a folder, and what is wrong with each other file that ends in .npz.

        Args:
            record: of the run.
            folder: of its parts.
            check: read every file; without it only names and sizes are compared.

        Raises:
            ValueError: the folder of parts is something else, a link for instance.
            OSError: it cannot be read.
        """
        parts, found, damaged = cls(record), [], {}
        for path in entries(folder):
            if path.suffix != ".npz":
                continue
            try:
                found.append(parts.identify(path))
                if check:
                    parts.read(found[-1])
            except (OSError, ValueError) as error:
                damaged[path] = reason(error)
        for part in sorted(found, key=_order):
            if part.path not in damaged and parts.adds(part):
                parts.add(part)
        return parts, damaged

    def adds(self, part: Part) -> bool:
        """Whether a part has networks that are missing, and, if they are reduced, no others."""
        missing = [self.missing(cell, part.networks.stop, part.networks.start) for cell in part.cells]
        return all(each == [part.networks] for each in missing) if self._record.reduced else any(missing)

    def add(self, part: Part) -> None:
        bisect.insort(self.list, part, key=_order)
        for cell in part.cells:
            union: list[range] = []
            for each in sorted([*self._done[cell], part.networks], key=lambda each: each.start):
                if union and each.start <= union[-1].stop:
                    last = union.pop()
                    each = range(last.start, max(last.stop, each.stop))
                union.append(each)
            self._done[cell] = union

    def missing(self, cell: int, stop: int, start: int = 0) -> list[range]:
        """The networks of start ... stop - 1 that no part has for a cell."""
        return gaps(self._done[cell], stop, start)

    def count(self, cell: int) -> int:
        """How many networks of a cell there are."""
        return sum(map(len, self._done[cell]))

    def digest(self, networks: Sequence[int]) -> str:
        """A checksum of the run's identity, of the content of its parts, and of how many networks are wanted of it."""
        return digest([self._run, networks, sorted(part.path.name for part in self.list)])

    def identify(self, path: Path) -> Part:
        """The part that a file is by its name and its size.

        Raises:
            ValueError: it is none of this run.
            OSError: there is no such file, or its size cannot be read.
        """
        cells, networks, _ = part = named(path)
        size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in self._expected(cells, networks).values())
        facts = path.lstat()
        if not stat.S_ISREG(facts.st_mode):
            raise ValueError("it is no regular file")
        if not size < facts.st_size <= size + _HEADERS * (len(_OURS) + len(self._record.layouts[cells.start])):
            raise ValueError(f"it has {facts.st_size} bytes, for {size} bytes of numbers and their headers")
        return part

    def pack(self, cells: range, networks: range, arrays: Mapping[str, np.ndarray]) -> tuple[str, bytes]:
        """The name and the content of a part's file.

        Raises:
            ValueError: see `_check`.
        """
        self._check(cells, networks, arrays)
        which = {"cells": np.array([cells.start, cells.stop]), "networks": np.array([networks.start, networks.stop])}
        values = {f"value.{name}": array for name, array in arrays.items()}
        file = io.BytesIO()
        np.savez(file, **{"run": np.array(self._run), **which, **values})  # pyright: ignore[reportArgumentType]
        content = file.getvalue()
        return _name(cells, networks, hashlib.sha256(content).hexdigest()), content

    def read(self, part: Part) -> tuple[bytes, dict[str, np.ndarray]]:
        """The content of a part's file and the arrays in it, after all checks.

        Raises:
            ValueError: it is no part of this run, or no longer what was written.
            OSError: it cannot be read.
        """
        content = read_regular(part.path)
        if part.path.name != _name(part.cells, part.networks, hashlib.sha256(content).hexdigest()):
            raise ValueError("its checksum is not the one in its name")
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                arrays = dict(archive)
        except Exception as error:  # whatever a file that this run did not write makes NumPy raise
            raise ValueError(f"it holds no arrays of numbers: {error}") from None
        which = {name: arrays.pop(name).tolist() for name in _OURS & arrays.keys()}
        cells, networks = ([each.start, each.stop] for each in (part.cells, part.networks))
        if which != {"run": self._run, "cells": cells, "networks": networks}:
            raise ValueError("it is of another run, or of other cells and networks than its name says")
        arrays = {name.removeprefix("value."): array for name, array in arrays.items()}
        self._check(part.cells, part.networks, arrays)
        return content, arrays

    def _expected(self, cells: range, networks: range) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """The shape and the data type of each array of a part."""
        layouts = self._record.layouts
        if not (cells.step == networks.step == 1 and 0 <= cells.start < cells.stop <= len(layouts)):
            raise ValueError(f"expected cells from 0 to {len(layouts)}, got {cells}")
        if not 0 <= networks.start < networks.stop:
            raise ValueError(f"expected networks, got {networks}")
        layout = layouts[cells.start]
        if any(layouts[cell] != layout for cell in cells):
            raise ValueError(f"expected cells of one layout, got {cells}")
        leading = (len(cells),) if self._record.reduced else (len(cells), len(networks))
        return {name: ((*leading, *shape), np.dtype(dtype)) for name, (shape, dtype) in layout.items()}

    def _check(self, cells: range, networks: range, arrays: Mapping[str, np.ndarray]) -> None:
        """Refuse arrays that are not those of a part.

        Raises:
            ValueError: names, shapes or data types differ.
        """
        expected = self._expected(cells, networks)
        got = {name: (array.shape, array.dtype) for name, array in arrays.items()}
        for name in sorted({*got, *expected}):
            if got.get(name) != expected.get(name):
                words = [f"{of[name][1]} {list(of[name][0])}" if name in of else "none" for of in (expected, got)]
                raise ValueError(f"array {name}: expected {words[0]}, got {words[1]}")


def named(path: Path) -> Part:
    """The part that a file is by its name alone.

    Raises:
        ValueError: it is no name of a part.
    """
    match = _NAME.fullmatch(path.name)
    if not match:
        raise ValueError("its name is not one of a part")
    first, last, start, stop = map(int, match.groups())
    return Part(range(first, last), range(start, stop), path)


def gaps(done: Iterable[range], stop: int, start: int = 0) -> list[range]:
    """What ranges in the order of their starts leave of start ... stop - 1."""
    left = []
    for each in done:
        left.append(range(start, min(each.start, stop)))
        start = max(start, each.stop)
    return [gap for gap in (*left, range(start, stop)) if gap]


def entries(folder: Path) -> list[Path]:
    """What is in a folder, in order; nothing where there is no such folder.

    Raises:
        ValueError: it is something else, a link to another folder for instance.
        OSError: it cannot be read.
    """
    if not os.path.lexists(folder):
        return []
    if folder.is_symlink() or not folder.is_dir():
        raise ValueError(f"folder: expected a folder named {folder}, got something else")
    return [folder / name for name in sorted(os.listdir(folder))]


def _name(cells: range, networks: range, checksum: str) -> str:
    return f"cells-{cells.start}-{cells.stop}-networks-{networks.start}-{networks.stop}-{checksum}.npz"


def _order(part: Part) -> tuple[int, int, str]:
    return part.cells.start, part.networks.start, part.path.name
