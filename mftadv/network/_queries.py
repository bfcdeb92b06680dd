"""How many queries a function makes of a matrix-free network: counted in its program, of which nothing is computed."""

import collections
import dataclasses
import functools
import math
import operator
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr
from jaxtyping import Array, Float

from mftadv.matrices import Matrix, Update
from mftadv.network._init import Frozen, Network, Params, shapes_of
from mftadv.spec import NetworkSpec

_NAME = "mftadv_query_"  # of what stands for a query in a program, before its matrix, its side and its rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Counted(Matrix):
    """A matrix of zeros whose products are seen in the program that asks for them.

    Attributes:
        zero: 0, made anew by every query, so that a program without a query has none of what follows it.
        shape: (m, n).
        number: of the matrix in its network.
    """

    zero: Any
    shape: tuple[int, int] = dataclasses.field(metadata={"static": True})
    number: int = dataclasses.field(metadata={"static": True})
    lazy: ClassVar[bool] = True

    @property
    def dtype(self) -> jnp.dtype:
        return self.zero.dtype

    def matvec(self, v: Float[Array, "*rows n"]) -> tuple["Counted", Float[Array, "*rows m"]]:
        return self._query(v, 0)

    def rmatvec(self, v: Float[Array, "*rows m"]) -> tuple["Counted", Float[Array, "*rows n"]]:
        return self._query(v, 1)

    def _query(self, v: Array, side: int) -> tuple["Counted", Array]:
        *points, _ = v.shape

        def query(zero, v):
            zero = zero * jnp.sum(v)
            return zero, jnp.broadcast_to(zero, (*points, self.shape[side]))

        query.__name__ = f"{_NAME}{self.number}_{side}_{math.prod(points)}"  # which transformations keep
        zero, product = jax.jit(query)(self.zero, v)
        return dataclasses.replace(self, zero=zero), product

    def rank_one_update(self, left: Float[Array, "R m"], right: Float[Array, "R n"]) -> Update:
        return Update(self, self.zero, self.zero)


def count_queries(function: Callable[[Network], Any], spec: NetworkSpec) -> tuple[int, int]:
    """With how many vectors a function of a network multiplies a matrix of it, and a transposed one, at most.

    Those of a scan count as often as it has steps, of a condition those of the branch with the most.

    Args:
        function: of a matrix-free network, to arrays; it is traced, with a network of zeros.
        spec: the law of the network; it may be traced, and so may all that the function closes over.

    Returns:
        (inputs, cotangents).

    Raises:
        ValueError: a while loop queries the network, for no program tells how often.
    """

    def of_zeros(zero):
        embedding, readout, *weights = (Counted(zero, shape, i) for i, shape in enumerate(shapes_of(spec)))
        layers = tuple(jnp.broadcast_to(zero, (spec.depth, spec.width)))
        signs = layers if spec.block == "signed" else ()
        return function(Network(Params(tuple(weights), layers), Frozen(embedding, readout, signs), spec))

    program = jax.make_jaxpr(of_zeros)(jax.ShapeDtypeStruct((), jnp.result_type(float)))
    counts = _count(program.jaxpr)
    inputs, cotangents = (max((n for (_, side), n in counts.items() if side == of), default=0) for of in (0, 1))
    return inputs, cotangents


def _count(program: Jaxpr) -> collections.Counter[tuple[int, int]]:
    """The rows of the queries of each matrix on each side."""
    total = collections.Counter()
    for equation in program.eqns:
        name, kind = str(equation.params.get("name")), equation.primitive.name
        if name.startswith(_NAME):
            number, side, rows = map(int, name.removeprefix(_NAME).split("_"))
            total[number, side] += rows
            continue
        inside = [_count(each) for each in inner_programs(equation)]
        if kind == "while" and any(inside):
            raise ValueError(
                "function: expected loops of a length that the program knows around queries of the network, got a "
                "while loop; give a capacity of your own, or take dense matrices"
            )
        times = equation.params["length"] if kind == "scan" else 1
        together = operator.or_ if kind == "cond" else operator.add
        for side, rows in functools.reduce(together, inside, collections.Counter()).items():
            total[side] += times * rows
    return total


def inner_programs(equation: Any) -> list[Jaxpr]:
    """The programs of the functions, branches and loop bodies that an equation runs."""
    values = [v for value in equation.params.values() for v in (value if isinstance(value, tuple) else (value,))]
    return [v.jaxpr if isinstance(v, ClosedJaxpr) else v for v in values if isinstance(v, (ClosedJaxpr, Jaxpr))]
