"""The checker of annotations that all tests run under."""

import jax.numpy as jnp
import jaxtyping
import pytest
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Array, Float

import mftadv as mf
from tests.typecheck import check, jaxtyped

REFUSED = (BeartypeCallHintViolation, jaxtyping.TypeCheckError)


def product(matrix: Float[Array, "m n"], vector: Float[Array, " n"]) -> Float[Array, " m"]:
    return matrix @ vector


def column(matrix: Float[Array, "m n"]) -> Float[Array, " n"]:
    return matrix[:, 0]


def of_another(matrix: Float[Array, "m n"]) -> Float[Array, " m"]:
    return CHECKED[product](matrix.T @ matrix, matrix[0])[: len(matrix)]


def quoted(matrix: "Float[Array, 'm n']") -> "Float[Array, ' n']":
    return matrix[:, 0]


CHECKED = {function: jaxtyped(typechecker=check)(function) for function in (product, column, of_another, quoted)}


def test_the_sizes_of_a_call_agree():
    matrix = jnp.ones((2, 3))
    assert CHECKED[product](matrix, jnp.ones(3)).shape == (2,)
    assert CHECKED[of_another](matrix).shape == (2,)  # the sizes of one call are not those of another
    for function, *arguments in ((product, matrix, jnp.ones(2)), (column, matrix), (quoted, matrix)):
        with pytest.raises(REFUSED):
            CHECKED[function](*arguments)


def test_what_is_unchecked_is_called_as_it_is(unchecked):
    assert CHECKED[column](jnp.ones((2, 3))).shape == (2,)


def test_the_package_is_checked():
    with pytest.raises(REFUSED):
        mf.theory.finite_width_factor(2)
    with pytest.raises(REFUSED):
        mf.vector_norm(jnp.ones(3), p="2")
