"""Inputs to networks, as float64 NumPy arrays [n, d]."""

import gzip
import math
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from mftadv.spec import check_positive

__all__ = ["Inputs", "load_inputs"]

# type codes of the idx format (of the MNIST files), big-endian
_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


class Inputs(NamedTuple):
    """Inputs [n, d] and what was done to them."""

    values: Float[np.ndarray, "n d"]
    preprocessing: str


def load_inputs(source: str, num_inputs: int, seed: int, *, input_dim: int = 1000, scale: bool = True) -> Inputs:
    """Choose inputs at random from a data set.

    Args:
        source: "digits" (8 x 8 handwritten digits that scikit-learn ships, d = 64), "gaussian" (independent N(0, 1)
            entries), or a file: .npy; .npz (its array "x", or its only one); .csv (numbers, one header line allowed);
            idx, as MNIST comes, gzipped or not. The first axis counts inputs, all others are flattened into d.
        num_inputs: how many to choose, without replacement.
        seed: of the choice.
        input_dim: d of "gaussian"; nothing else reads it.
        scale: divide by the root of the data set's mean |x|^2 / d, so that this mean becomes 1.

    Returns:
        `Inputs` of shape [num_inputs, d].

    Raises:
        ValueError: the file is missing, empty, unreadable, not numeric, not finite or all zero; or num_inputs is not
            in 1 ... n, or a chosen input is zero. It names the arguments as the command line does: data, inputs.

    Source: ours.
    """
    check_positive("inputs", num_inputs)
    rng = np.random.default_rng(seed)
    if source == "gaussian":
        check_positive("input_dim", input_dim)
        values = rng.standard_normal((num_inputs, input_dim))
    elif source == "digits":
        from sklearn.datasets import load_digits  # here alone, for whoever asks for it

        values = np.asarray(load_digits(return_X_y=True)[0])
    else:
        values = _read(Path(source))
    with np.errstate(over="ignore"):
        mean_square = float(np.mean(values**2))
    if mean_square == 0 or not math.isfinite(mean_square):
        raise ValueError(f"data: expected numbers of finite, nonzero mean square, got {mean_square} in {source}")
    if num_inputs > len(values):
        raise ValueError(f"inputs: expected at most {len(values)}, as many as {source} holds, got {num_inputs}")
    chosen = np.sort(rng.choice(len(values), num_inputs, replace=False))
    if zero := [int(i) for i in chosen if not np.any(values[i])]:
        raise ValueError(f"data: expected nonzero inputs, got zeros in row {zero[0]} of {source}")
    done = f"rows {', '.join(map(str, chosen))} of {source}, {values.shape[1]} columns"
    if not scale:
        return Inputs(values[chosen], f"{done}, not rescaled (mean |x|^2/d = {mean_square:.6g})")
    return Inputs(values[chosen] / math.sqrt(mean_square), f"{done}, divided by {math.sqrt(mean_square):.6g}")


def _read(path: Path) -> np.ndarray:
    """A file as a finite float64 array [n, d]."""
    if not path.is_file():
        raise ValueError(f"data: expected digits, gaussian or the path of a file, got {str(path)!r}")
    if path.stat().st_size == 0:
        raise ValueError(f"data: expected numbers, got the empty file {path}")
    try:
        match path.suffix.lower():
            case ".npy":
                values = np.load(path, allow_pickle=False)
            case ".npz":
                values = _only_array(path)
            case ".csv":
                values = _read_csv(path)
            case _:
                values = _read_idx(path)
        values = np.asarray(values)
        if values.dtype.kind not in "fiub":
            raise ValueError(f"expected real numbers, got {values.dtype}")
    except (OSError, EOFError, TypeError, ValueError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"data: {' '.join(str(error).split())}, in {path}") from None
    if values.ndim == 0 or values.size == 0:
        raise ValueError(f"data: expected an array [n, d], got shape {list(values.shape)} in {path}")
    values = values.reshape(len(values), -1).astype(np.float64)
    if not np.all(np.isfinite(values)):
        row = int(np.argmin(np.isfinite(values).all(axis=1)))
        raise ValueError(f"data: expected finite numbers, got nan or infinity in row {row} of {path}")
    return values


def _only_array(path: Path) -> np.ndarray:
    arrays = np.load(path, allow_pickle=False)
    if isinstance(arrays, np.ndarray):
        raise ValueError("expected an .npz archive, got one array; name it .npy")
    with arrays:
        names = list(arrays)
        if "x" not in names and len(names) != 1:
            raise ValueError(f'expected an array named "x" or a single one, got {", ".join(names) or "none"}')
        return arrays["x" if "x" in names else names[0]]


def _read_csv(path: Path) -> np.ndarray:
    lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if lines and not any(_is_number(cell) for cell in lines[0].split(",")):
        lines = lines[1:]
    if not lines:
        raise ValueError("expected rows of numbers, got none")
    return np.loadtxt(lines, delimiter=",", ndmin=2)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_idx(path: Path) -> np.ndarray:
    """The idx format: two zero bytes, a type code, the number of axes, their lengths, the numbers; all big-endian."""
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX_TYPES:
        raise ValueError("expected a .npy, .npz, .csv or idx file, got something else")
    axes = content[3]
    shape = np.frombuffer(content, ">u4", axes, offset=4).astype(int)
    return np.frombuffer(content, _IDX_TYPES[content[2]], offset=4 + 4 * axes).reshape(shape)
