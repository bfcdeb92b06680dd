"""The parts of an attack: the problem, the candidates, and the interfaces of what starts and what improves them.

Written over the functions of `mftadv.oracle`, for one input [d] or a block [B, d] with R candidates each. Starts and
rules are frozen dataclasses, so that equal ones share a compiled program.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mftadv import oracle
from mftadv.network import Evaluation, Network
from mftadv.norms import dual_vector, maximise_linear, project, vector_norm
from mftadv.oracle import Function
from mftadv.spec import check_positive, dual_exponent

Loss = Callable[[Float[Array, "*points K"], Float[Array, "*points T"]], Float[Array, "*points"]]


class Objective(NamedTuple):
    """What an attack maximises: |f(x + eta) - f(x)|_q, or the increase of a loss(f(x + eta), target).

    `targets` [*B, T] are those of the inputs, None where there is no loss.
    """

    q: float
    loss: Loss | None = None
    targets: Any = None

    def value(self, output: Float[Array, "... K"], change: Float[Array, "*points K"]) -> Float[Array, "*points"]:
        """The objective at outputs f(x) and their changes f(x + eta) - f(x); axes of outputs may have size 1."""
        if self.loss is None:
            return vector_norm(change, self.q)
        return self.loss(output + change, self.targets) - self.loss(output, self.targets)


class Problem(NamedTuple):
    """max |f(x + eta) - f(x)|_q over |eta|_p <= eps, with x + eta in the box; the box is one of eta.

    The increase of a loss may take the place of the q-norm, see `Objective`; the starts then still use the q-norm.
    `jacobian` is J(x) [*B, K, d], None where no start uses it.
    """

    source: Network | Function
    base: Evaluation
    jacobian: Any
    input_dim: int
    eps: Float[Array, "*B 1"]
    p: float
    objective: Objective
    box: tuple[Array | None, Array | None]

    @property
    def q(self) -> float:
        return self.objective.q

    def value(self, change: Float[Array, "*B R K"]) -> Float[Array, "*B R"]:
        """What is maximised, at the changes of the output by the candidates."""
        return self._of_candidates.value(self.base.output[..., None, :], change)

    def cotangent(self, change: Float[Array, "*B R K"]) -> Float[Array, "*B R K"]:
        """A vector whose product with J(x + eta) points where `value` rises fastest: its gradient; a dual vector."""
        if self.objective.loss is None:
            return dual_vector(change, dual_exponent(self.q))
        return jax.grad(lambda change: jnp.sum(self.value(change)))(change)

    @property
    def _of_candidates(self) -> Objective:
        """The objective with an axis of candidates: all candidates of an input have its target."""
        targets = self.objective.targets
        return self.objective if targets is None else self.objective._replace(targets=targets[..., None, :])

    def project(self, eta: Float[Array, "*B R d"]) -> Float[Array, "*B R d"]:
        """The points of the ball and the box that are nearest to these, in the 2-norm."""
        return project(eta, self.eps, self.p, *self.box)

    def best_response(self, gradient: Float[Array, "*B R d"]) -> Float[Array, "*B R d"]:
        """The points of the ball and the box where linear functions with these gradients are largest."""
        return maximise_linear(gradient, self.eps, self.p, *self.box)


class Candidates(NamedTuple):
    """R perturbations of each input, and the best that each has been.

    `network` is the one to use next, None where queries do not change the source. `nonfinite` counts the evaluations
    whose value was not finite, which are otherwise ignored. `zero_gradients` counts the gradients that were 0 at finite
    ones.
    """

    network: Any
    eta: Float[Array, "*B R d"]
    value: Float[Array, "*B R"]
    best: Float[Array, "*B R d"]
    nonfinite: Int[Array, "*B"]
    zero_gradients: Int[Array, "*B"]


@dataclasses.dataclass(frozen=True)
class Start(abc.ABC):
    """Where candidates begin: the interface of the starts of an attack.

    A start of your own is a frozen dataclass that derives from this class and defines `__call__`:

        @dataclasses.dataclass(frozen=True)
        class FirstAxis(Start):
            def __call__(self, problem, network, normals):
                axis = jnp.zeros((*problem.base.output.shape[:-1], self.count, problem.input_dim)).at[..., 0].set(1)
                return network, problem.best_response(axis)

    Its fields are hashable and determine what it does: attacks with equal pieces share a compiled program.

    Attributes:
        count: how many candidates it returns for each input, at most.
        uses_jacobian: whether it reads `problem.jacobian`, which all starts of an attack share.
    """

    count: int
    uses_jacobian: ClassVar[bool] = False

    def __post_init__(self):
        check_positive("count", self.count)

    def queries(self, input_dim: int) -> tuple[int, int]:
        """How many differences and cotangents it takes of a matrix-free network at one input; none unless overridden.

        `capacity_for` relies on this number; the evaluations of the candidates and J(x) are not part of it.
        """
        return 0, 0

    def normals(self, points: tuple[int, ...], input_dim: int) -> int:
        """How many standard normals it needs for inputs of shape [*points, d]; none unless overridden."""
        return 0

    @abc.abstractmethod
    def __call__(
        self, problem: Problem, network: Any, normals: Float[Array, " T"]
    ) -> tuple[Any, Float[Array, "*B R d"]]:
        """The candidates of each input.

        Args:
            problem: the problem at one input or a block of them, *B.
            network: None, or a matrix-free network: query it and not `problem.source`, and return the one that the
                last query returned.
            normals: independent standard normals, of the number promised.

        Returns:
            The network to use next, and the candidates eta, of the precision of the input: each finite, in the ball
            |eta|_p <= eps and in the box, as `problem.project` and `problem.best_response` return them.
        """


@dataclasses.dataclass(frozen=True)
class Rule(abc.ABC):
    """How candidates change after each evaluation: the interface of the rules of an attack.

    A rule of your own is a frozen dataclass that derives from this class and defines `__call__`:

        @dataclasses.dataclass(frozen=True)
        class Halfway(Rule):
            def __call__(self, problem, candidates, values, gradient, memory, number):
                return (candidates.eta + problem.best_response(gradient)) / 2, memory

    Its fields are hashable and determine what it does: attacks with equal pieces share a compiled program.

    Attributes:
        steps: how often it is applied, each time after one evaluation of every candidate (a difference and a
            cotangent). It evaluates nothing itself, so that `capacity_for` can count.
    """

    steps: int

    def __post_init__(self):
        check_positive("steps", self.steps)

    def memory(self, problem: Problem, candidates: Candidates) -> Any:
        """What it remembers before its first step: a pytree of arrays; nothing unless overridden."""
        return ()

    @abc.abstractmethod
    def __call__(
        self,
        problem: Problem,
        candidates: Candidates,
        values: Float[Array, "*B R"],
        gradient: Float[Array, "*B R d"],
        memory: Any,
        number: Int[Array, ""],
    ) -> tuple[Float[Array, "*B R d"], Any]:
        """The next candidates.

        Args:
            problem: the problem.
            candidates: the candidates after their evaluation, without the network.
            values: the value of each, which may be nan or infinite.
            gradient: the gradient of each value in eta, 0 where it is not finite.
            memory: what `memory` or the last step returned.
            number: the number of this step among those of the rule, from 0.

        Returns:
            The next candidates, of the shape and precision of `candidates.eta`, each finite, in the ball and in the
            box; and the memory, of the structure, shapes and precisions that it came with. The best of each candidate
            is stored apart, so that a step may go down.
        """


def start(network: Any, eta: Array) -> Candidates:
    """Candidates before their first evaluation: the best so far is no perturbation."""
    zero, none = jnp.zeros_like(eta), jnp.zeros(eta.shape[:-2], jnp.int32)
    return Candidates(network, eta, zero[..., 0], zero, none, none)


def evaluate(problem: Problem, candidates: Candidates) -> tuple[Candidates, Array, Evaluation]:
    """Evaluate every candidate and store the best of each; the values, and the evaluations, for `gradients`."""
    network, eta, value, best, nonfinite, zero_gradients = candidates
    network, at, values = differences(problem, network, eta)
    finite = jnp.isfinite(values)
    better = finite & (values > value)
    value, best = jnp.where(better, values, value), jnp.where(better[..., None], eta, best)
    nonfinite += jnp.sum(~finite, axis=-1, dtype=jnp.int32)
    return Candidates(network, eta, value, best, nonfinite, zero_gradients), values, at


def gradients(problem: Problem, candidates: Candidates, values: Array, at: Evaluation) -> tuple[Candidates, Array]:
    """The gradients of the values in eta where `evaluate` has been, 0 where they are not finite."""
    rows, _, used = oracle.pullback(candidates.network or problem.source, at, problem.cotangent(at.output))
    largest = jnp.max(jnp.abs(rows), axis=-1)  # one pass detects zero and not finite
    zero = jnp.sum(jnp.isfinite(values) & (largest == 0), axis=-1, dtype=jnp.int32)
    network = _if_needed(candidates.network, used)
    candidates = candidates._replace(network=network, zero_gradients=candidates.zero_gradients + zero)
    return candidates, jnp.where(jnp.isfinite(largest)[..., None], rows, 0)


def differences(problem: Problem, network: Any, eta: Array) -> tuple[Any, Evaluation, Array]:
    """The difference of f at each candidate, and its value: 0 for a ball of radius 0, where f - f is rounding."""
    at = oracle.difference(network or problem.source, problem.base, eta)
    return _if_needed(network, at.network), at, jnp.where(problem.eps == 0, 0, problem.value(at.output))


def _if_needed(network: Any, used: Any) -> Any:
    return None if network is None else used
