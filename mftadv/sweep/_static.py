"""A statistic as a static argument: equal as long as nothing its numbers depend on can be seen to have changed."""

import dis
import functools
import hashlib
import types
import weakref
from collections.abc import Callable, Hashable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import jax
import numpy as np


class Static:
    """A statistic that is compared by value, and that no cache of compiled programs keeps alive.

    Two functions are equal when they have the same code and equal values in their closures, their defaults and the
    globals they name; two dataclasses when their fields are equal; `functools.partial` objects and bound methods when
    their parts are equal. NumPy arrays, lists and dictionaries are compared by what they hold now; any other object by
    identity and by its attributes. Modules, classes, and functions of another module named as globals are taken to be
    constant.

    Args:
        statistic: the function. It must be alive whenever it is traced.

    Raises:
        ValueError: `statistic` is not a function, or not hashable.
    """

    def __init__(self, statistic: Callable[..., Any]):
        kind = type(statistic).__name__
        if not callable(statistic):
            raise ValueError(f"statistic: expected a function, got {kind}")
        try:
            hash(statistic)
        except TypeError:
            raise ValueError(
                f"statistic: expected a hashable function, got a {kind}; the arrays it holds are to be operands"
            ) from None
        self.value = _value(statistic, {})
        self.function = _weakly(statistic)

    def __hash__(self) -> int:
        return hash(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self.value == other.value


class _Same:
    """An object compared by identity. It is not kept alive, and another one at its address later is not the same."""

    def __init__(self, of: Any):
        self.address, self.object = id(of), _weakly(of)

    def __hash__(self) -> int:
        return self.address

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and (mine := self.object()) is not None and mine is other.object()


def _weakly(of: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(of)
    except TypeError:  # not every type allows it
        return lambda: of


def _value(of: Any, seen: dict[int, tuple[int, Any]]) -> Hashable:
    """An object as a hashable value. `seen` numbers the objects met on the way, which may refer to one another."""
    kind = type(of)
    if isinstance(of, float | complex | np.generic):
        return kind, repr(of)  # tells 0 from -0 and finds nan equal to nan
    if isinstance(of, np.ndarray) and not of.dtype.hasobject:
        content = np.ascontiguousarray(of).reshape(-1).view(np.uint8)
        return kind, of.dtype.str, of.shape, hashlib.blake2b(content.data).digest()
    if isinstance(of, jax.Array | types.ModuleType | type):
        return _Same(of)
    if _is_value(of):
        return kind, of
    if id(of) in seen:
        return _Same, seen[id(of)][0]
    seen[id(of)] = len(seen), of  # alive until all is compared, so that no address is used twice
    return kind, *(_Same(of) if part is of else _value(part, seen) for part in _parts(of))


def _is_value(of: Any) -> bool:
    """Whether an object is compared by a value of its own, as numbers, strings and meshes are."""
    if of is None:
        return True
    own_hash = type(of).__hash__ not in (None, object.__hash__)
    if not own_hash or is_dataclass(of) or isinstance(of, tuple | frozenset | types.MethodType):
        return False
    try:
        hash(of)
    except TypeError:
        return False
    return True


def _parts(of: Any) -> Iterator[Any]:
    """What decides whether two objects of a type are equal; an object among its own parts stands for its identity."""
    match of:
        case types.FunctionType():
            yield from (of.__code__, of.__defaults__, of.__kwdefaults__, of.__dict__)
            yield from (_contents(cell) for cell in of.__closure__ or ())
            for name in _global_names(of.__code__):
                part = of.__globals__.get(name)
                foreign = isinstance(part, types.FunctionType) and part.__globals__ is not of.__globals__
                yield _Same(part) if foreign else part
        case types.MethodType():
            yield from (of.__func__, of.__self__)
        case functools.partial():
            yield from (of.func, of.args, of.keywords)
        case dict():
            yield from (part for item in of.items() for part in item)
        case list() | tuple() | set() | frozenset():
            yield from of
        case np.ndarray():
            yield from (of.shape, *of.flat)
        case _ if is_dataclass(of):
            yield from (getattr(of, field.name, None) for field in fields(of))
        case _:
            yield from (of, object.__getstate__(of))


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # the variable is not bound yet
        return None


@functools.lru_cache(maxsize=1024)
def _global_names(code: types.CodeType) -> tuple[str, ...]:
    """The globals that a function, or a function inside it, names."""
    own = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    inner = (_global_names(const) for const in code.co_consts if isinstance(const, types.CodeType))
    return tuple(sorted(own.union(*inner)))
