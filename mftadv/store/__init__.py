"""Run folders: parts that are checked before they are believed, results made from them, and where all of it is from."""

from mftadv.store._checkpoints import PROGRESS
from mftadv.store._files import Busy, read_regular, write_atomically
from mftadv.store._folder import RunFolder
from mftadv.store._merge import (
    Status,
    add_result,
    candidates,
    drawn_between,
    merge,
    read_record,
    read_results,
    status,
)
from mftadv.store._parts import Part, gaps
from mftadv.store._provenance import jsonable, provenance

__all__ = [
    "PROGRESS",
    "Busy",
    "Part",
    "RunFolder",
    "Status",
    "add_result",
    "candidates",
    "drawn_between",
    "gaps",
    "jsonable",
    "merge",
    "provenance",
    "read_record",
    "read_regular",
    "read_results",
    "status",
    "write_atomically",
]
