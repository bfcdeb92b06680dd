"""One point of a grid: a statistic, the law of the networks, and what the statistic is given beside them."""

import abc
import dataclasses
import functools
import hashlib
import types
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from mftadv.matrices import matmul_precision
from mftadv.spec import NetworkSpec

if TYPE_CHECKING:
    from xarray import Dataset
else:  # imported where one is made: it takes half a second
    Dataset = Any

Coordinate = float | int | str


def import_xarray() -> Any:
    """The package xarray, which makes datasets.

    Raises:
        ModuleNotFoundError: it is not installed; the message says how to.
    """
    try:
        import xarray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'a dataset needs `pip install "mftadv[cli]"` ({error})') from None
    return xarray


class Segmented(abc.ABC):
    """A statistic that takes long and is computed in segments, between which it can be stored and gone on with.

    Derive a frozen dataclass from it. Its value is that of a plain statistic: what the segments return, stacked.
    """

    @property
    @abc.abstractmethod
    def segments(self) -> int:
        """How many there are."""

    @abc.abstractmethod
    def begin(self, key: jax.Array, spec: NetworkSpec, *operands: Any) -> Any:
        """The state before segment 0: a pytree of real arrays."""

    @abc.abstractmethod
    def segment(
        self, key: jax.Array, spec: NetworkSpec, number: jax.Array, state: Any, *operands: Any
    ) -> tuple[Any, Mapping[str, Any]]:
        """The state after a segment, given that before it, and what the segment found."""

    def __call__(self, key: jax.Array, spec: NetworkSpec, *operands: Any) -> Mapping[str, Any]:
        """All segments, one after the other."""
        state = self.begin(key, spec, *operands)
        numbers = jnp.arange(self.segments, dtype=jnp.int32)
        return jax.lax.scan(lambda state, i: self.segment(key, spec, i, state, *operands), state, numbers)[1]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One point of a grid.

    Attributes:
        coords: where it is: the names and values of its coordinates in the dataset.
        spec: the law of its networks.
        operands: what the statistic is given beside the key and the spec, traced: inputs, sizes of perturbations.
        statistic: statistic(key, spec, *operands) -> dict of arrays by name, of one network; a `Segmented` one is
            stored on its way. Cells with equal statistics, and specs and operands of equal shapes, share a program.
    """

    coords: Mapping[str, Coordinate]
    spec: NetworkSpec
    operands: tuple[Any, ...]
    statistic: Callable[..., Mapping[str, Any]]

    def fingerprint(self) -> str:
        """A checksum of all that the results of a network depend on, but for the key: the same in every process."""
        leaves, structure = jax.tree.flatten((self.spec, self.operands))
        content = hashlib.sha256(repr((sorted(self.coords.items()), structure, _text(self.statistic))).encode())
        for leaf in map(np.asarray, leaves):
            content.update(f"{leaf.dtype.str}{leaf.shape}".encode() + leaf.tobytes())
        return content.hexdigest()


def identity_of_draws(cells: Sequence[Cell], key: jax.Array) -> dict[str, Any]:
    """All that what is drawn depends on: cells with their operands, key, float type, precision of matrix products."""
    return {
        "key": key,
        "dtype": jnp.result_type(float).name,
        "matmul_precision": str(matmul_precision()),
        "cells": [{**cell.coords, "fingerprint": cell.fingerprint()} for cell in cells],
    }


def _text(of: Any) -> str:
    """A text that changes when a statistic does: from the fields of a dataclass, the compiled code of a function."""
    match of:
        case types.FunctionType():
            bound = of.__defaults__, of.__kwdefaults__, [cell.cell_contents for cell in of.__closure__ or ()]
            return f"{of.__qualname__}{_code(of.__code__, of.__doc__)}{_text(bound)}"
        case functools.partial():
            return _text((of.func, of.args, of.keywords))
        case type() | types.ModuleType():
            return of.__name__
        case tuple() | list():
            return f"({', '.join(map(_text, of))})"
        case dict():
            return _text([*of.items()])
        case np.ndarray() | jax.Array():
            return f"{of.dtype}{of.shape}{hashlib.sha256(np.asarray(of).tobytes()).hexdigest()}"
        case _ if dataclasses.is_dataclass(of):
            return type(of).__qualname__ + _text([getattr(of, field.name) for field in dataclasses.fields(of)])
        case _ if type(of).__repr__ is object.__repr__:  # which names an address
            return type(of).__qualname__ + _text(vars(of) if hasattr(of, "__dict__") else ())
        case _:
            return repr(of)


def _code(code: types.CodeType, documentation: str | None = None) -> str:
    every = [each for each in code.co_consts if documentation is None or each != documentation]
    constants = [_code(each) if isinstance(each, types.CodeType) else repr(each) for each in every]
    return f"{hashlib.sha256(code.co_code).hexdigest()}{code.co_names}{constants}"


class Observer:
    """What is told while a run goes on. This one says nothing; derive from it to show what you want shown."""

    def say(self, line: str) -> None:
        """One line that a reader should see."""

    def progress(self, share: float, doing: str) -> None:
        """The share of the work that is done, between 0 and 1, and what is being done."""
