"""Inputs to networks, as float64 NumPy arrays [n, d]."""

import gzip
import io
import itertools
import math
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from mftadv.spec import check_positive

__all__ = ["Inputs", "load_inputs"]

# A file, what it unpacks to and its numbers in float64 may each take this many bytes: CIFAR-10 takes 1.2e9, and the
# few copies that exist at a time fit a machine of 8 GiB.
_LIMIT = 2**31
_HEAD = 2**14  # bytes that hold any .npy header: NumPy itself refuses one of more than 10000
_INPUTS = ("x", "X", "x_train", "X_train", "data", "images")
_LABELS = ("labels", "label", "target", "class")
# type codes of the idx format (of the MNIST files), big-endian
_IDX_TYPES = {b"\x08": ">u1", b"\x09": ">i1", b"\x0b": ">i2", b"\x0c": ">i4", b"\x0d": ">f4", b"\x0e": ">f8"}
_ONE_AXIS = (
    "expected an array [n, d] of n inputs, got one axis of length {}: save a single input with shape [1, d], "
    'labels as the array "y" of an .npz whose array "x" holds their inputs'
)
_COUNTS = (
    "expected rows of inputs, got a {} that counts {}, as pandas numbers rows and columns: write the file with "
    "to_csv(index=False, header=False), or the array as .npy if these numbers are inputs"
)
_Data = tuple[np.ndarray, np.ndarray | None]  # inputs [n, ...] and their labels [n], if the file has any


class Inputs(NamedTuple):
    """Inputs [n, d], what was done to them, their row numbers in the data set [n], and their labels [n] or None."""

    values: Float[np.ndarray, "n d"]
    preprocessing: str
    rows: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"] | None

    def __repr__(self) -> str:
        labels = "no labels" if self.labels is None else "labels"
        return f"Inputs({list(self.values.shape)}, {labels}, {self.preprocessing!r})"


def load_inputs(source: str, num_inputs: int, seed: int, *, input_dim: int = 1000, scale: bool = True) -> Inputs:
    """Choose inputs at random from a data set.

    A file's first axis counts inputs, all others are flattened into d. Its format is found from its first bytes (text:
    from its name), and any may be gzipped:

    - .npy or idx (as MNIST comes): an array of two or more axes.
    - .npz: the first such array named x, X, x_train, X_train, data or images (its labels are y_train for a name in
      _train, otherwise y, labels, label, target or class); else the only one (its labels are the only other array).
    - .csv, .tsv, .txt: rows of two or more numbers, separated by the first of tab, semicolon and comma that the second
      row contains, else by white space. Lines that start with # are left out, and so is a first line of names; a column
      named labels, label, target or class is no input but the labels.

    Args:
        source: "digits" (8 x 8 handwritten digits that scikit-learn ships, d = 64, labels 0 ... 9), "gaussian"
            (independent N(0, 1) entries), or the path of a file.
        num_inputs: how many to choose, without replacement.
        seed: of the choice.
        input_dim: d of "gaussian"; nothing else reads it.
        scale: divide by the root of the data set's mean |x|^2 / d, so that this mean becomes 1.

    Returns:
        `Inputs` of shape [num_inputs, d], in the order of their rows in the data set. `labels` is None where the data
        have none that are whole numbers, one an input.

    Raises:
        ValueError: the file is missing, unreadable, empty, not numeric, not finite or all zero; has one axis, numbers
            of rows or columns among its inputs, or not one label an input; takes over 2 GiB, unpacked or in float64; or
            num_inputs is not in 1 ... n, or a chosen input is zero. Arguments have their names on the command line.

    Source: ours.
    """
    check_positive("inputs", num_inputs)
    rng = np.random.default_rng(seed)
    if source == "gaussian":
        if 8 * num_inputs * check_positive("input_dim", input_dim) > _LIMIT:
            raise ValueError(f"inputs, input_dim: expected at most 2 GiB of numbers, got {num_inputs} x {input_dim}")
        values, labels = rng.standard_normal((num_inputs, input_dim)), None
    elif source == "digits":
        from sklearn.datasets import load_digits  # here alone, where it is used

        values, labels = map(np.asarray, load_digits(return_X_y=True))
    else:
        values, labels = _read(Path(source))
    with np.errstate(over="ignore"):
        mean_square = float(np.mean(values**2))
    if mean_square == 0 or not math.isfinite(mean_square):
        raise ValueError(f"data: expected numbers of finite, nonzero mean square, got {mean_square} in {source}")
    if num_inputs > len(values):
        raise ValueError(f"inputs: expected at most {len(values)}, as many as {source} holds, got {num_inputs}")
    rows = np.sort(rng.choice(len(values), num_inputs, replace=False))
    if zero := [int(i) for i in rows if not np.any(values[i])]:
        raise ValueError(f"data: expected nonzero inputs, got zeros in row {zero[0]} of {source}")
    divisor = math.sqrt(mean_square) if scale else 1.0
    done = f"divided by {divisor:.6g}" if scale else f"not rescaled (mean |x|^2/d = {mean_square:.6g})"
    named = ", ".join(map(str, rows[:3])) + ", ..." * (num_inputs > 3)
    done = f"rows {named} of {source} ({num_inputs} of {len(values)}, seed {seed}), {values.shape[1]} columns, {done}"
    return Inputs(values[rows] / divisor, done, rows, None if labels is None else labels[rows].astype(np.int64))


def _read(path: Path) -> _Data:
    """A file as finite float64 inputs [n, d], and their labels [n] or None."""
    if not os.path.isfile(path):  # False for any path the system refuses; Path.is_file raises for some
        raise ValueError(f"data: expected digits, gaussian or the path of a file, got {str(path)!r}")
    try:
        values, labels = _parse(_contents(path), path.name.lower().removesuffix(".gz"))
        values = values.reshape(len(values), -1).astype(np.float64)
        if not np.all(np.isfinite(values)):
            row = int(np.argmin(np.isfinite(values).all(axis=1)))
            raise ValueError(f"expected finite numbers, got nan or infinity in row {row}")
        if labels is not None and len(labels) != len(values):
            raise ValueError(f"expected one label an input, got {len(labels)} labels and {len(values)} inputs")
    except Exception as error:  # what the parsers raise on foreign bytes has no common class
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"data: {reason}, in {path}") from error
    return values, labels


def _contents(path: Path) -> bytes:
    with path.open("rb") as file:
        return _bounded((gzip.GzipFile(fileobj=file) if file.peek(2).startswith(b"\x1f\x8b") else file).read)


def _bounded(read: Callable[[int], bytes]) -> bytes:
    """All that a stream holds; a small file may unpack to more than the memory."""
    content = read(_LIMIT + 1)
    if len(content) > _LIMIT:
        raise ValueError(f"expected at most {_LIMIT} bytes, unpacked, got more")
    return content


class _Header(NamedTuple):
    """What an array file declares of the numbers that begin at a byte offset."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    offset: int


def _checked(header: _Header) -> _Header:
    """The header of n inputs [n, d, ...], checked before memory is taken for them."""
    shape, dtype = header.shape, header.dtype
    if dtype.kind not in "fiub" or dtype.itemsize > 8:
        raise ValueError(f"expected real numbers of at most 64 bits, got {dtype}")
    if not shape or min(shape) < 1:
        raise ValueError(f"expected an array [n, d], got shape {list(shape)}")
    if len(shape) == 1:
        raise ValueError(_ONE_AXIS.format(shape[0]))
    if 8 * math.prod(shape) > _LIMIT:
        raise ValueError(f"expected at most {_LIMIT} bytes in float64, got shape {list(shape)}")
    return header


def _array(content: bytes, header: _Header) -> np.ndarray:
    numbers = np.frombuffer(content, header.dtype, offset=header.offset)
    return numbers.reshape(header.shape, order="F" if header.fortran else "C")


def _npy_header(head: bytes) -> _Header:
    file = io.BytesIO(head)
    one = np.lib.format.read_magic(file) == (1, 0)
    read = np.lib.format.read_array_header_1_0 if one else np.lib.format.read_array_header_2_0
    return _Header(*read(file), file.tell())


def _parse(content: bytes, name: str) -> _Data:
    if content.startswith(b"\x93NUMPY"):
        return _array(content, _checked(_npy_header(content[:_HEAD]))), None
    if content.startswith((b"PK\3\4", b"PK\5\6")):
        return _read_npz(content)
    if content.startswith(b"\0\0") and content[2:3] in _IDX_TYPES:  # then the number of axes and their lengths
        shape = np.frombuffer(content, ">u4", content[3], offset=4).tolist()
        header = _Header(tuple(shape), False, np.dtype(_IDX_TYPES[content[2:3]]), 4 + 4 * len(shape))
        return _array(content, _checked(header)), None
    if content and name.endswith((".csv", ".tsv", ".txt")):
        return _read_text(content)
    got = "something else" if content else "an empty one"
    raise ValueError(f"expected a .npy, .npz, .csv, .tsv, .txt or idx file, gzipped or not, got {got}")


def _read_npz(content: bytes) -> _Data:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        headers = {}
        for member in archive.infolist():
            if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"expected an .npz as NumPy packs it, got {member.filename} packed otherwise")
            if member.filename.endswith(".npy"):
                with archive.open(member) as file:
                    headers[member.filename.removesuffix(".npy")] = _npy_header(file.read(_HEAD))

        def read(name: str) -> np.ndarray:
            with archive.open(f"{name}.npy") as file:
                return _array(_bounded(file.read), headers[name])

        wide = [name for name, header in headers.items() if len(header.shape) > 1]
        known = [name for name in _INPUTS if name in wide]
        if not known and len(wide) != 1 and len(headers) != 1:
            got = ", ".join(f"{name} {list(header.shape)}" for name, header in headers.items()) or "none"
            raise ValueError(f"expected an array [n, d] named {', '.join(_INPUTS)}, or a single one, got {got}")
        name = (known or wide or list(headers))[0]
        _checked(headers[name])
        named = ("y_train",) if name.endswith("_train") else ("y", *_LABELS)
        others = [other for other in headers if other != name]
        labels = [other for other in named if other in others] or others * (not known and len(others) == 1)
        return read(name), _whole(read(labels[0])) if labels and headers[labels[0]].dtype.kind in "fiub" else None


def _whole(labels: np.ndarray) -> np.ndarray | None:
    """Labels [n] or [n, 1] as int64 [n]; None if they are something else, as one-hot rows or real targets are."""
    with np.errstate(invalid="ignore"):  # nan and infinity, which then differ from their int64
        whole = labels.ravel().astype(np.int64)
    return whole if labels.shape[:1] == whole.shape and np.array_equal(whole, labels.ravel()) else None


def _read_text(content: bytes) -> _Data:
    if b"\0" in content:
        raise ValueError("expected text in UTF-8, got zero bytes")
    text = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig")
    lines = (line for line in text if line.strip() and not line.lstrip().startswith("#"))
    head = list(itertools.islice(lines, 2)) or ["none"]  # a name and no row, which is refused below
    delimiter = next((mark for mark in "\t;," if mark in head[-1]), None)
    names, cells = ([cell.strip(' \t\r\n"') for cell in line.split(delimiter)] for line in (head[0], head[-1]))
    label_columns = [i for i, name in enumerate(names) if name.lower() in _LABELS]
    named = int(bool(label_columns) or not any(map(_is_number, names)))  # lines of names: 0 or 1
    if not names[0] or (named and len(names) == len(cells) - 1):
        raise ValueError(_COUNTS.format("column without a name", "rows"))
    if len(head) == named:
        raise ValueError("expected rows of numbers, got none")
    num_lines = max(content.count(b"\n"), content.count(b"\r")) + 1
    _checked(_Header((num_lines, len(cells)), False, np.dtype(float), 0))
    lines = itertools.chain(head[named:], lines)
    values = np.loadtxt(lines, delimiter=delimiter, comments=None, quotechar='"', ndmin=2)
    if values.shape[1] <= max(1, len(label_columns)):
        raise ValueError(_ONE_AXIS.format(len(values)))
    labels = _whole(values[:, label_columns])
    values = np.delete(values, label_columns, axis=1)
    for counted, line, what in (values[0], "first row", "columns"), (values[:, 0], "first column", "rows"):
        if len(counted) > 1 and np.array_equal(counted, np.arange(len(counted))):
            raise ValueError(_COUNTS.format(line, what))
    return values, labels


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
