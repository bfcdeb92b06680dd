"""run.json: what a run is, who computed it, and which results were made from it."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mftadv.store._files import checksum, read_regular, write_atomically
from mftadv.store._provenance import jsonable

RUN = "run.json"
_FORMAT = 1
_ABSENT = object()


@dataclasses.dataclass(frozen=True)
class Record:
    """The content of run.json, in the form in which JSON holds it."""

    identity: dict[str, Any]
    layouts: list[dict[str, Any]]  # of each cell: for each name the shape of one network's value, and its data type
    reduced: bool
    networks: list[int]  # how many each cell is to have
    sessions: list[dict[str, Any]]  # the provenances of those who wrote
    outputs: dict[str, list[str]]  # for each result the checksums of what this run may have written under its name
    results_of: str | None  # the checksum of what the results were made from

    @classmethod
    def new(cls, identity: Mapping[str, Any], layouts: Sequence[Mapping[str, Any]], reduced: bool) -> "Record":
        """The record of a run that has not begun.

        Raises:
            ValueError: a data type is not one of numbers.
        """
        plain = [
            {name: [list(shape), np.dtype(dtype).name] for name, (shape, dtype) in layout.items()} for layout in layouts
        ]
        record = cls(json.loads(json.dumps(jsonable(identity))), plain, reduced, [0] * len(plain), [], {}, None)
        record._check()
        return record

    @classmethod
    def read(cls, folder: Path) -> "Record":
        """The record in a folder.

        Raises:
            ValueError: it cannot be read, or is not one.
        """
        try:
            content = json.loads(read_regular(folder / RUN))
            if not isinstance(content, dict) or content.pop("format", None) != _FORMAT:
                raise ValueError(f"it is not of format {_FORMAT}")
            record = cls(**content)
            record._check()
            if not record.sessions:
                raise ValueError("it does not say where it is from")
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"folder: expected the record of a run, got {folder / RUN} ({reason(error)})") from None
        return record

    def _check(self) -> None:
        kinds = (dict, list, bool, list, list, dict, str | None)
        if not all(isinstance(value, kind) for value, kind in zip(vars(self).values(), kinds, strict=True)):
            raise ValueError("its fields are of other types")
        arrays = [array for layout in self.layouts for array in layout.values()]
        if not all(np.dtype(dtype).kind in "biufc" for _, dtype in arrays):
            raise ValueError(f"layouts: expected data types of numbers, got {sorted({dtype for _, dtype in arrays})}")
        sizes = [size for shape, _ in arrays for size in shape] + self.networks
        if (
            len(self.networks) != len(self.layouts)
            or not all(type(size) is int and size >= 0 for size in sizes)
            or not all(isinstance(session, dict) for session in self.sessions)
            or not all(isinstance(digests, list) for digests in self.outputs.values())
        ):
            raise ValueError("its fields do not fit one another")

    def write(self, folder: Path) -> None:
        content = json.dumps({"format": _FORMAT, **vars(self)}, indent=1, allow_nan=False) + "\n"
        write_atomically(folder / RUN, lambda path: path.write_text(content))

    @property
    def run(self) -> str:
        """A checksum of the identity, which every part holds."""
        return digest(self.identity)

    def differences(self, other: "Record") -> str:
        """Each field in which another run differs, in words; nothing where it is the same run."""
        there, here = ({**each.identity, "layouts": each.layouts, "reduced": each.reduced} for each in (self, other))
        return in_words(differences(there, here))

    def has_results(self, folder: Path, check: bool = True) -> bool:
        """Whether the results are there, and, if checked, as they were written."""
        return bool(self.outputs) and all(
            checksum_or_none(folder / name) in digests if check else os.path.lexists(folder / name)
            for name, digests in self.outputs.items()
        )


_TOLD = 4  # differences that are said in full


def digest(value: Any) -> str:
    """A checksum of a JSON value; equal values have the same."""
    return hashlib.sha256(_canonical(value).encode()).hexdigest()


def differences(there: Any, here: Any, at: str = "") -> Iterator[str]:
    """Where two JSON values differ, each field by its dotted path."""
    if isinstance(there, dict) and isinstance(here, dict):
        for name in dict.fromkeys([*there, *here]):
            yield from differences(there.get(name, _ABSENT), here.get(name, _ABSENT), f"{at}.{name}".lstrip("."))
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for i, (old, new) in enumerate(zip(there, here, strict=True)):
            yield from differences(old, new, f"{at}.{i}")
    elif there is _ABSENT or here is _ABSENT or _canonical(there) != _canonical(here):
        yield f"{at} is {_show(there)} there and {_show(here)} here"


def in_words(found: Iterator[str]) -> str:
    """Some differences, the first of them in full."""
    every = list(found)
    return "; ".join(every[:_TOLD]) + (f"; and {len(every) - _TOLD} more" if len(every) > _TOLD else "")


def reason(error: Exception) -> str:
    """What an error says, without its number and path."""
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


def checksum_or_none(path: Path) -> str | None:
    """The SHA-256 of a file, None where no regular file can be read."""
    try:
        return checksum(path)
    except OSError:
        return None


def _canonical(value: Any) -> str:
    """One text for values that are equal: 2.0 and 2 are, true and 1 are not."""
    return json.dumps(_whole(value), sort_keys=True, allow_nan=False)


def _whole(value: Any) -> Any:
    """A JSON value whose whole numbers are integers."""
    if isinstance(value, dict):
        return {name: _whole(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_whole(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _show(value: Any) -> str:
    text = "nothing" if value is _ABSENT else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
