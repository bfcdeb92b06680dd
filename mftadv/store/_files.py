"""Files: written whole or not at all, read without ever waiting, renamed rather than deleted."""

import contextlib
import errno
import hashlib
import io
import itertools
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_SCRATCH = re.compile(r"\.mftadv-[0-9a-f]{16}\.tmp")


def write_atomically(path: Path, write: Callable[[Path], Any]) -> str:
    """Write a file that appears whole or not at all, also where the power fails.

    Args:
        path: of the file; one that is there is replaced.
        write: writes the file at the path it is given, which is in the same folder and ends in .tmp.

    Returns:
        The SHA-256 of the file.

    Raises:
        OSError: the file cannot be written, for want of space say. What was there is as it was.
    """
    with written(path.parent, write) as (scratch, digest):
        move(scratch, path)
    return digest


@contextlib.contextmanager
def written(folder: Path, write: Callable[[Path], Any]) -> Iterator[tuple[Path, str]]:
    """A scratch file that is on the disk, and its SHA-256; it is gone afterwards unless `move` gave it a name."""
    scratch = folder / f".mftadv-{secrets.token_hex(8)}.tmp"
    try:
        write(scratch)
        with open_regular(scratch) as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        yield scratch, digest
    finally:
        with contextlib.suppress(FileNotFoundError):
            scratch.unlink()


def move(scratch: Path, path: Path) -> None:
    """Give a scratch file its name in the same folder."""
    os.replace(scratch, path)
    _sync_folder(path.parent)


def is_scratch(path: Path) -> bool:
    """Whether this is a scratch file of `written`, left behind by a process that was killed."""
    return _SCRATCH.fullmatch(path.name) is not None and stat.S_ISREG(path.lstat().st_mode)


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file for reading.

    Raises:
        OSError: there is none, or it is something else: a named pipe, which would make a reader wait for ever, a
            folder, a device, a symbolic link.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(error.errno, "a symbolic link", str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "no regular file", str(path))
    return open(descriptor, "rb")


def read_regular(path: Path) -> bytes:
    """The content of a regular file; see `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def checksum(path: Path) -> str:
    """The SHA-256 of a regular file; see `open_regular`."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def set_aside(path: Path, suffix: str = "damaged") -> Path:
    """Rename a file, or whatever it is, to the first of NAME.damaged, NAME.damaged-2, ... that is free."""
    names = (f"{path.name}.{suffix}" + (f"-{i}" if i > 1 else "") for i in itertools.count(1))
    free = next(new for name in names if not os.path.lexists(new := path.with_name(name)))
    path.rename(free)
    return free


class Busy(ValueError):
    """Another process is at work in a folder."""


def resolve(path: Path | str) -> Path:
    """A path without links in it.

    Raises:
        ValueError: it holds a zero byte, as no path does.
    """
    try:
        return Path(os.path.realpath(path))
    except ValueError:
        raise ValueError(f"folder: expected a path, got {str(path)!r}") from None


def make_folder(path: Path) -> None:
    """Make a folder and its parents, as far as they do not exist."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)  # another process may have made it meanwhile
        _sync_folder(path.parent)


def lock_folder(path: Path) -> int:
    """Make a folder and lock it against other processes, until the descriptor returned is closed or this process ends.

    Raises:
        ValueError: another process holds the lock, or there are no locks here.
    """
    try:
        import fcntl
    except ImportError:
        raise ValueError("folder: expected a system that can lock folders, Linux or macOS") from None
    make_folder(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise Busy(f"folder: another process is at work in {path}") from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _sync_folder(path: Path) -> None:
    """Have a folder's list of names on the disk, where the file system can do that and one may read the folder."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EACCES):
            raise
