"""The folder of a run: its record, its parts, and the results that are made from them."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mftadv.store._checkpoints import Checkpoints
from mftadv.store._files import (
    is_scratch,
    lock_folder,
    make_folder,
    move,
    resolve,
    set_aside,
    write_atomically,
    written,
)
from mftadv.store._parts import FOLDER, Part, Parts, entries
from mftadv.store._provenance import jsonable
from mftadv.store._record import RUN, Record, checksum_or_none, differences, in_words, reason


def silent(sentence: str) -> None:
    """Say nothing."""


class RunFolder:
    """The folder of a run, in which no other process works meanwhile: `with RunFolder.open(...) as folder`.

    Attributes:
        path: of the folder.
        damaged: the files, as parts/NAME or checkpoints/NAME, that were found not to be of this run when it was opened.
        checkpoints: the networks on their way.
    """

    checkpoints: Checkpoints

    def __init__(
        self,
        path: Path,
        record: Record,
        session: Mapping[str, Any],
        say: Callable[[str], None],
        on_their_way: Sequence[Mapping[str, Any]] = (),
    ):
        """See `open`."""
        self.path = path
        self._on_their_way = on_their_way
        self.damaged: list[str] = []
        self._record, self._parts = record, Parts(record)
        self._session, self._say = jsonable(session), say
        self._lock: int | None = None
        try:
            self._lock = lock_folder(path)
            self._enter()
        except OSError as error:
            self.close()
            raise ValueError(
                f"folder: expected one that can be made, read and written to, got {path} ({reason(error)})"
            ) from None
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(
        cls,
        path: Path | str,
        identity: Mapping[str, Any],
        layouts: Sequence[Mapping[str, tuple[tuple[int, ...], str]]],
        provenance: Mapping[str, Any],
        say: Callable[[str], None] = silent,
        *,
        reduced: bool = False,
        on_their_way: Sequence[Mapping[str, tuple[tuple[int, ...], str]]] = (),
    ) -> "RunFolder":
        """Begin a run in a new or empty folder, or go on with the run that is in it.

        A file of the folder of parts or of checkpoints that ends in .npz and is none of this run, whole and unchanged,
        is renamed to NAME.damaged, and its networks are missing, or begin anew. Nothing is deleted but the scratch
        files of a process that was killed, and checkpoints of this run that parts or later checkpoints make needless.
        A folder that one may only read can be opened as long as nothing has to be written.

        Args:
            path: of the folder; its parents are made as well.
            identity: all that the numbers depend on; see `jsonable`.
            layouts: for each cell, for each name, the shape of one network's value and the name of its data type.
            provenance: of this process, recorded with the first thing that it writes; see `mftadv.store.provenance`.
            say: is told each event in one sentence.
            reduced: values are over all networks of a part; arrays have an axis of cells and none of networks.
            on_their_way: for each cell the layout of a network that is not finished, see `Checkpoints`; empty where
                none is ever stored.

        Raises:
            ValueError: the folder holds anything else or another run (each field that differs is named), another
                process is at work in it, or it cannot be made, read or written to.
        """
        return cls(resolve(path), Record.new(identity, layouts, reduced), provenance, say, on_their_way)

    def _enter(self) -> None:
        found = [path for path in entries(self.path) if not is_scratch(path)]
        if self.path / RUN in found:
            record = Record.read(self.path)
            if different := record.differences(self._record):
                raise ValueError(f"folder: expected the run in {self.path}, got another: {different}")
            self._record, self._parts = record, Parts(record)
            if record.sessions and (different := in_words(differences(record.sessions[-1], self._session))):
                self._say(f"{RUN}: the run goes on under other conditions than before: {different}.")
        elif found:
            raise ValueError(
                f"folder: expected a new or empty folder, or that of a run, got {self.path} with {found[0].name} in it"
            )
        else:
            self._update()
        self._parts, damaged = Parts.find(self._record, self.path / FOLDER)
        self.checkpoints = Checkpoints(self._record, self._on_their_way, self.path, self._update)
        damaged |= self.checkpoints.damaged
        for folder in (self.path, *found):
            with contextlib.suppress(OSError, ValueError):  # no folder, or one that cannot be written to
                for scratch in filter(is_scratch, entries(folder)):
                    scratch.unlink()
        for path, why in damaged.items():
            name = f"{path.parent.name}/{path.name}"
            self.damaged.append(name)
            try:
                outcome = f"set aside as {set_aside(path).name}"
            except OSError as error:
                outcome = f"not used, nor set aside ({reason(error)})"
            kind = "part" if path.parent.name == FOLDER else "checkpoint"
            self._say(f"{name} is not a {kind} of this run ({why}): {outcome}.")
        self.checkpoints.finish(self._parts)

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes work in the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def parts(self) -> list[Part]:
        """The parts of the run, in the order of their cells and networks; where two overlap, the first counts."""
        return list(self._parts.list)

    @property
    def networks(self) -> list[int]:
        """How many networks each cell is to have; 0 until `aim` says so."""
        return list(self._record.networks)

    def aim(self, networks: Sequence[int]) -> None:
        """Set how many networks each cell is to have.

        Raises:
            ValueError: these are not one number, at least 0, for each cell.
            OSError: the record cannot be written.
        """
        cells = len(self._record.layouts)
        if len(networks) != cells or min(networks, default=0) < 0:
            raise ValueError(f"networks: expected a number, at least 0, for each of {cells} cells, got {networks}")
        if list(networks) != self._record.networks:  # a finished run that one may only read is not written to
            self._update(networks=[int(number) for number in networks])

    def missing(self, cell: int, stop: int, start: int = 0) -> list[range]:
        """The networks of start ... stop - 1 that no part has for a cell."""
        return self._parts.missing(cell, stop, start)

    def write_part(self, cells: range, networks: range, arrays: Mapping[str, np.ndarray]) -> None:
        """Write networks of cells to the disk.

        Args:
            cells: that have one layout.
            networks: of each of them; some are missing, or all where values are reduced.
            arrays: for each name of the layout an array [cells, networks, *shape], or [cells, *shape] where reduced.

        Raises:
            ValueError: the arrays are not of the layout, or no networks of these are missing.
            OSError: the part cannot be written, for want of space say. What was there is as it was.
        """
        name, content = self._parts.pack(cells, networks, arrays)
        self.add_part(Part(cells, networks, self.path / FOLDER / name), content)

    def adds(self, part: Part) -> bool:
        """Whether a part would have networks that are missing, and, where they are reduced, no others."""
        return self._parts.adds(part)

    def add_part(self, part: Part, content: bytes) -> None:
        """Write a part whose file is to have this content; see `write_part`."""
        if not self.adds(part):
            raise ValueError(f"networks: expected some that are missing, got {part.networks} of {part.cells}")
        self._update()
        make_folder(part.path.parent)
        write_atomically(part.path, lambda path: path.write_bytes(content))
        self._parts.add(part)
        self.checkpoints.finish(self._parts)

    def load(self, part: Part) -> dict[str, np.ndarray]:
        """The arrays of a part, after all checks once more.

        Raises:
            OSError: the part can no longer be read, or has changed since the folder was opened.
        """
        try:
            return self._parts.read(part)[1]
        except ValueError as error:
            raise OSError(f"{part.path} has changed: {error}") from None

    @property
    def digest(self) -> str:
        """A checksum of what results are made from: the run's identity, its parts, how many networks it is to have."""
        return self._parts.digest(self._record.networks)

    @property
    def is_published(self) -> bool:
        """Whether the results are there, as they were written, and made from the parts that there are now."""
        return self._record.results_of == self.digest and self._record.has_results(self.path)

    def publish(self, writers: Mapping[str, Callable[[Path], Any]], *, beside: bool = False) -> None:
        """Write the results. What is in their place and not from this run is renamed to NAME.yours.

        Args:
            writers: for the name of each result, in the folder or in a folder of it, a function that writes it at the
                path it is given. That path ends in .tmp: a format is not to be guessed from it.
            beside: these are beside the results that are there, and made from them; else they replace them.

        Raises:
            OSError: a result cannot be written, for want of space say. All parts are as they were.
        """
        self._update()  # what is written may tell who writes
        made_of = self._record.results_of if beside else None
        with contextlib.ExitStack() as stack:
            fresh = {}
            for name, write in writers.items():
                folder = (self.path / name).parent
                if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir()):
                    self._set_aside_yours(folder)
                make_folder(folder)
                fresh[name] = stack.enter_context(written(folder, write))
            # Their checksums are recorded before they get their names: after a kill it is known that they are ours.
            outputs = dict(self._record.outputs)
            outputs.update({name: [*outputs.get(name, []), new] for name, (_, new) in fresh.items()})
            self._update(outputs=outputs, results_of=made_of)
            for name, (scratch, new) in fresh.items():
                path = self.path / name
                old = checksum_or_none(path)
                if os.path.lexists(path) and old not in outputs[name]:
                    self._set_aside_yours(path)
                if old != new:
                    move(scratch, path)
        outputs = {**(self._record.outputs if beside else {}), **{name: [new] for name, (_, new) in fresh.items()}}
        self._update(outputs=outputs, results_of=made_of if beside else self.digest)

    def _set_aside_yours(self, path: Path) -> None:
        new = set_aside(path, "yours").name
        self._say(f"{path.relative_to(self.path)} is not from this run: renamed to {new}.")

    def adopt(self, networks: Sequence[int], sessions: Sequence[dict[str, Any]]) -> None:
        """Aim at what other folders of the run aim at, where it is more, and record who computed their parts."""
        every = [*self._record.sessions, *sessions]
        self._update(
            networks=[max(pair) for pair in zip(self._record.networks, networks, strict=True)],
            sessions=[session for i, session in enumerate(every) if session not in every[:i]],
        )

    def _update(self, **changes: Any) -> None:
        """Change the record, on the disk first; whoever changes it is recorded in it."""
        sessions = [*self._record.sessions, *([] if self._session in self._record.sessions else [self._session])]
        record = dataclasses.replace(self._record, **{"sessions": sessions, **changes})
        if record != self._record:
            record.write(self.path)
            self._record = record
