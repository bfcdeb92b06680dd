"""Results on disk: written whole or not at all, never over older ones unless told so, with their birth certificate."""

import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import math
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mftadv.matrices import matmul_precision
from mftadv.spec import NetworkSpec

__all__ = ["Kept", "birth_certificate", "check_vacant", "next_vacant", "write_run"]


def birth_certificate(
    spec: NetworkSpec,
    key: jax.Array,
    num_networks: int,
    *,
    arguments: Mapping[str, Any],
    engine: str,
    preprocessing: str,
    batch_size: int,
    dtype: Any,
    mesh: Any = None,
) -> dict[str, Any]:
    """What is needed to draw the same numbers again, as a JSON-ready dictionary.

    Args:
        spec: the law of the networks, with concrete leaves.
        key: the root key; network i has fold_in(key, i).
        num_networks: networks 0 ... num_networks - 1 were drawn.
        arguments: of the command, its seed among them.
        engine: how the networks' matrices were held.
        preprocessing: what was done to the inputs.
        batch_size: networks drawn at once.
        dtype: of the networks.
        mesh: the device mesh, if any.
    """
    device = mesh.devices.flat[0] if mesh else jax.devices()[0]
    return {
        "arguments": {name: _plain(value) for name, value in arguments.items()},
        "spec": {name: getattr(value, "tolist", lambda value=value: value)() for name, value in vars(spec).items()},
        "root_key": {"impl": str(jax.random.key_impl(key)), "data": np.asarray(jax.random.key_data(key)).tolist()},
        "networks": [0, num_networks],
        "engine": engine,
        "batch_size": batch_size,
        "dtype": np.dtype(dtype).name,
        "matmul_precision": matmul_precision(),
        "inputs": preprocessing,
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("mftadv", "jax", "jaxlib", "numpy", "scipy")},
        },
        "device": f"{device.platform}: {device.device_kind}",
        "mesh": None if mesh is None else dict(mesh.shape),
        "commit": _commit(),
    }


def _plain(value: Any) -> Any:
    """An argument as JSON can hold it: infinities, like paths, in words."""
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) or value in (math.inf, -math.inf) else value


def _commit() -> str | None:
    """The commit of the checkout this package runs from, marked where files differ from it; None outside one."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("describe", "--always", "--abbrev=40", "--dirty", "--exclude", "*")
    except (OSError, subprocess.SubprocessError):
        return None


def check_vacant(directory: Path, overwrite: bool) -> None:
    """Refuse a result folder that exists, or a place where none can be made.

    Raises:
        ValueError: the folder exists and `overwrite` is false; it is a file; or its parent cannot be written to.
    """
    if directory.exists():
        if not directory.is_dir():
            raise ValueError(f"out: expected a folder, got the file {directory}")
        if not overwrite:
            raise ValueError(f"out: expected a folder that does not exist, or --overwrite, got {directory}")
        if any(directory.iterdir()) and not (directory / "results.json").exists():
            raise ValueError(f"out: expected a result folder to overwrite, got {directory} without results.json")
    parent = next(parent for parent in directory.resolve().parents if parent.exists())
    try:
        tempfile.TemporaryDirectory(prefix=".mftadv-", dir=parent).cleanup()
    except OSError as error:
        raise ValueError(f"out: expected a place one may write to, got {parent} ({error.strerror})") from None


def next_vacant(stem: Path) -> Path:
    """The first of stem-1, stem-2, ... that does not exist."""
    return next(path for i in itertools.count(1) if not (path := stem.with_name(f"{stem.name}-{i}")).exists())


def write_run(directory: Path, files: Mapping[str, Callable[[Path], Any]], *, overwrite: bool = False) -> None:
    """Write a result folder in one step: it appears complete, or, whatever interrupts, not at all.

    Args:
        directory: the folder to make.
        files: for each name a function that writes the file at the path it is given.
        overwrite: replace an earlier result folder.

    Raises:
        ValueError: see `check_vacant`.
    """
    directory = Path(directory).resolve()
    check_vacant(directory, overwrite)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _scratch(directory) as scratch:
        fresh, old = scratch / "fresh", scratch / "old"
        fresh.mkdir()
        for name, write in files.items():
            write(fresh / name)
        check_vacant(directory, overwrite)  # once more: another run may have finished meanwhile
        try:
            if directory.exists():
                directory.rename(old)
            fresh.rename(directory)
        except BaseException:
            if old.exists() and not directory.exists():
                old.rename(directory)
            raise


class Kept:
    """The parts of a run that are done, each on disk as soon as it is, for the same run to go on after an interruption.

    They lie in a hidden folder beside the results, named after all that the numbers depend on: the birth certificate,
    save where the results go, and the source of this package.

    Args:
        directory: where the results will go.
        certificate: see `birth_certificate`.
    """

    def __init__(self, directory: Path, certificate: Mapping[str, Any]):
        elsewhere = {"out", "overwrite", "dry_run"}
        arguments = {name: value for name, value in certificate["arguments"].items() if name not in elsewhere}
        identity = json.dumps({**certificate, "arguments": arguments}, sort_keys=True).encode()
        for path in sorted(Path(__file__).parent.rglob("*.py")):
            identity += path.read_bytes()
        self.folder = directory.resolve().parent / f".mftadv-{hashlib.sha256(identity).hexdigest()[:16]}"

    def load(self, part: str) -> list[np.ndarray] | None:
        """The arrays of a part, None where it is not done."""
        try:
            with np.load(self.folder / f"{part}.npz") as arrays:
                return list(arrays.values())
        except FileNotFoundError:
            return None

    def save(self, part: str, arrays: Sequence[np.ndarray]) -> None:
        """Keep a part, in one step."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as file:
            np.savez(file, *arrays)
        os.replace(file.name, self.folder / f"{part}.npz")

    def discard(self) -> None:
        """Forget all parts: the results are written."""
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    """A folder beside `directory`, on its file system, that is gone afterwards."""
    scratch = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
