"""Where numbers come from, in a form that JSON can hold."""

import dataclasses
import importlib.metadata
import math
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mftadv
from mftadv.matrices import matmul_precision


def provenance(*, mesh: jax.sharding.Mesh | None = None, **facts: Any) -> dict[str, Any]:
    """What computes here and now: versions, device, precision of matrix products and commit, as JSON can hold it.

    Args:
        mesh: the device mesh, if any.
        facts: what else is to be recorded (the engine, how many networks are drawn at once); see `jsonable`.
    """
    device = mesh.devices.flat[0] if mesh else jax.devices()[0]
    return {
        **{name: jsonable(value) for name, value in facts.items()},
        "matmul_precision": jsonable(matmul_precision()),
        "versions": {
            "python": platform.python_version(),
            "mftadv": mftadv.__version__,
            **{name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy", "scipy")},
        },
        "device": f"{device.platform}: {device.device_kind}",
        "mesh": None if mesh is None else dict(mesh.shape),
        "commit": _commit(),
    }


def jsonable(value: Any) -> Any:
    """A value as JSON can hold it: infinities in words ("inf", "-inf"), nan as null.

    Dataclasses and mappings become objects; tuples, ranges and arrays become lists; paths and data types become
    their names; a key of jax.random becomes {"impl": ..., "data": ...}, from which
    `jax.random.wrap_key_data` makes it again.

    Raises:
        ValueError: there is no such form, of a function say.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None if math.isnan(value) else str(float(value))
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return {"impl": str(jax.random.key_impl(value)), "data": np.asarray(jax.random.key_data(value)).tolist()}
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        if jnp.issubdtype(value.dtype, np.floating):
            return jsonable(np.asarray(value, np.float64).tolist())
        if value.dtype.kind in "biu":
            return np.asarray(value).tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): jsonable(each) for name, each in value.items()}
    if isinstance(value, list | tuple | range):
        return [jsonable(each) for each in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.dtype):
        return value.name
    raise ValueError(f"value: expected numbers, words, and lists, mappings and dataclasses of them, got {type(value)}")


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
