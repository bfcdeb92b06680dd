"""Attacks that need no random number: for one output exact in a linear function, and one cheap to compile."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

import mftadv as mf
from mftadv.attack import PowerMethod, Start


@dataclasses.dataclass(frozen=True)
class AlongJacobian(Start):
    """The best response to the gradient of the first output."""

    count: int = 1
    uses_jacobian: ClassVar[bool] = True

    def __call__(self, problem, network, normals):
        return network, problem.best_response(problem.jacobian[..., :1, :])


@dataclasses.dataclass(frozen=True)
class Diagonal(Start):
    """The best response to (1, 2, ..., d)."""

    count: int = 1

    def __call__(self, problem, network, normals):
        row = jnp.arange(1, problem.input_dim + 1, dtype=problem.eps.dtype)
        return network, problem.best_response(jnp.broadcast_to(row, (*problem.base.output.shape[:-1], 1, len(row))))


EXACT = mf.Attack((AlongJacobian(),), (PowerMethod(1),))
CHEAP = mf.Attack((Diagonal(),), (PowerMethod(1),))
