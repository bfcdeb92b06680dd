"""Folders of runs seen from outside: what is in one, and several joined into one."""

import contextlib
import dataclasses
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mftadv.store._checkpoints import on_their_way
from mftadv.store._files import read_regular, resolve
from mftadv.store._folder import RunFolder, silent
from mftadv.store._parts import FOLDER, Parts
from mftadv.store._provenance import jsonable
from mftadv.store._record import Record, differences, reason


@dataclasses.dataclass(frozen=True)
class Status:
    """What is in the folder of a run.

    Attributes:
        name: the field of the identity, if it has one.
        networks: how many networks of each cell there are.
        aimed: how many each cell is to have.
        missing: how many networks there are still to compute, in all cells together.
        on_their_way: how many of these are computed in segments and have so many behind them, by that number.
        damaged: the files, as parts/NAME, that are not parts of the run.
        has_results: the results are there.
        is_current: they were made from the parts that there are now.
    """

    name: str | None
    networks: list[int]
    aimed: list[int]
    missing: int
    on_their_way: dict[int, int]
    damaged: list[str]
    has_results: bool
    is_current: bool

    def __str__(self) -> str:
        results = "not there" if not self.has_results else f"of {'these' if self.is_current else 'fewer'} networks"
        cells = f"{len(self.aimed)} cell{'s' * (len(self.aimed) > 1)}"
        done = f"{self.name}: {sum(self.networks)} of {sum(self.aimed)} networks in {cells}"
        begun = (f"begun     {count} more, stored after segment {n}" for n, count in self.on_their_way.items())
        return "\n".join([done, *begun, *(f"damaged   {name}" for name in self.damaged), f"results   {results}"])


def status(path: Path | str, check: bool = False) -> Status:
    """What is in the folder of a run, which is neither locked nor changed.

    Args:
        path: of the folder.
        check: read every file; without it only names and sizes are compared.

    Raises:
        ValueError: it is not the folder of a run, or cannot be read.
    """
    folder, record, parts, damaged = _inspect(path, check)
    name = record.identity.get("name")
    missing = [gap for cell, stop in enumerate(record.networks) for gap in parts.missing(cell, stop)]
    return Status(
        name=None if name is None else str(name),
        networks=[parts.count(cell) for cell in range(len(record.layouts))],
        aimed=record.networks,
        missing=sum(map(len, missing)),
        on_their_way=on_their_way(folder, parts),
        damaged=[f"{FOLDER}/{path.name}" for path in damaged],
        has_results=record.has_results(folder, check),
        is_current=record.results_of == parts.digest(record.networks),
    )


def merge(target: Path | str, sources: Iterable[Path | str], say: Callable[[str], None] = silent) -> int:
    """Copy the parts of several folders of one run, its shards for instance, into one. The sources are not changed.

    Args:
        target: a new or empty folder, or one of the same run. Each cell is to have as many networks there as in the
            folder that aims at most.
        sources: folders of the run.
        say: is told each event in one sentence.

    Returns:
        How many parts were copied.

    Raises:
        ValueError: a source is not the folder of a run, or the runs differ; or the target cannot be opened, see
            `RunFolder.open`.
        OSError: a part cannot be written.
    """
    inspected = [_inspect(source) for source in sources]
    if not inspected:
        raise ValueError("sources: expected at least one folder, got none")
    first, record, *_ = inspected[0]
    for other, its, *_ in inspected:
        if different := record.differences(its):
            raise ValueError(f"sources: expected folders of one run, got {first} and {other}: {different}")
    new = dataclasses.replace(
        record, networks=[0] * len(record.layouts), sessions=record.sessions[:-1], outputs={}, results_of=None
    )
    copied = 0
    with RunFolder(resolve(target), new, record.sessions[-1], say) as folder:
        for source, its, parts, damaged in inspected:
            folder.adopt(its.networks, its.sessions)
            for path, why in damaged.items():
                say(f"{path.relative_to(source.parent)} is not a part of this run ({why}): not copied.")
            for part in parts.list:
                here = part._replace(path=folder.path / FOLDER / part.path.name)
                if folder.adds(here):
                    try:
                        content, _ = parts.read(part)
                    except (OSError, ValueError) as error:
                        say(f"{part.path.relative_to(source.parent)} has changed ({reason(error)}): not copied.")
                        continue
                    folder.add_part(here, content)
                    copied += 1
    return copied


def _inspect(path: Path | str, check: bool = True) -> tuple[Path, Record, Parts, dict[Path, str]]:
    """A run's folder, its record, its parts, and what is wrong with other files."""
    folder = resolve(path)
    try:
        record = Record.read(folder)
        return folder, record, *Parts.find(record, folder / FOLDER, check)
    except OSError as error:
        raise ValueError(f"folder: expected that of a run, got {folder} ({reason(error)})") from None


def read_record(path: Path | str) -> Record:
    """What is run in a folder: `.identity` and `.networks` among its fields.

    Raises:
        ValueError: it is not the folder of a run, or cannot be read.
    """
    return _inspect(path, check=False)[1]


def read_results(path: Path | str, suffixes: tuple[str, ...]) -> dict[str, bytes]:
    """The results of a run whose names end in one of these suffixes, by name, as they were written.

    Raises:
        ValueError: it is not the folder of a run, the run is not finished, or a result is not as it was written.
    """
    folder, record, parts, _ = _inspect(path)
    missing = sum(len(gap) for cell, stop in enumerate(record.networks) for gap in parts.missing(cell, stop))
    if missing or record.results_of != parts.digest(record.networks):
        raise ValueError(f"folder: expected a finished run, got {folder} with {missing} networks missing")
    found = {}
    for name, checksums in record.outputs.items():
        if name.endswith(suffixes):
            try:
                found[name] = read_regular(folder / name)
            except OSError as error:
                raise ValueError(f"folder: expected {folder / name} to be readable ({reason(error)})") from None
            if hashlib.sha256(found[name]).hexdigest() not in checksums:
                raise ValueError(f"folder: expected {folder / name} as it was written, got a file that has changed")
    return found


def add_result(path: Path | str, name: str, content: bytes, say: Callable[[str], None] = silent) -> None:
    """Write a result beside those of a finished run, see `RunFolder.publish`; nothing where it is there already.

    Raises:
        ValueError: it is not the folder of a run, or another process is at work there.
        OSError: it cannot be written.
    """
    folder, record, *_ = _inspect(path, check=False)
    with contextlib.suppress(OSError):
        if read_regular(folder / name) == content and hashlib.sha256(content).hexdigest() in record.outputs[name]:
            return
    with RunFolder(folder, record, record.sessions[-1], say) as opened:
        opened.publish({name: lambda scratch: scratch.write_bytes(content)}, beside=True)


def drawn_between(path: Path | str) -> tuple[str, str]:
    """When the first and the last part of a run, which has some, were written, in UTC.

    Raises:
        ValueError: it is not the folder of a run.
    """
    times = sorted(part.path.stat().st_mtime for part in _inspect(path, check=False)[2].list)
    first, last = (f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M}" for time in (times[0], times[-1]))
    return first, last


def candidates(pattern: Path, identity: Mapping[str, Any]) -> Iterator[Path]:
    """Where a run may be stored, for a path with {} for a number in its name, best first.

    First the folders of this very run that are not finished, from the latest on, then the names that are free.
    """
    numbered = lambda first: (  # noqa: E731
        pattern.with_name(pattern.name.replace("{}", str(number))) for number in itertools.count(first)
    )
    taken = list(itertools.takewhile(os.path.lexists, numbered(1)))
    for path in reversed(taken):
        with contextlib.suppress(ValueError):
            found = status(path)
            same = not any(differences(read_record(path).identity, jsonable(identity)))
            if same and (found.missing or not (found.has_results and found.is_current)):
                yield path
    yield from (path for path in numbered(len(taken) + 1) if not os.path.lexists(path))
