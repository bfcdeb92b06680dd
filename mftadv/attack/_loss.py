"""The adversarial loss from below: attacks on any function, without labels."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from mftadv import oracle
from mftadv.attack._pieces import (
    Ascent,
    Candidates,
    LinearStarts,
    Problem,
    RandomStarts,
    Vertices,
    climb,
    start,
    with_jacobian,
)
from mftadv.network import Network
from mftadv.oracle import Source
from mftadv.spec import NetworkSpec, check_exponent, concrete, representable


@dataclasses.dataclass(frozen=True)
class Attack:
    """Starts, whose candidates all go through the same rules, one rule after the other.

    The pieces of `mftadv.attack`: `LinearStarts`, `RandomStarts` and `Vertices` start, `PowerMethod` and `Ascent` are
    rules. Any frozen dataclass with their methods is one.
    """

    starts: tuple[Any, ...]
    rules: tuple[Any, ...]

    def __post_init__(self):
        for name in ("starts", "rules"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected at least one piece, got none")

    def queries(self, input_dim: int, output_dim: int) -> tuple[int, int]:
        """How many differences and how many cotangents it asks for at one input."""
        looks = sum(piece.count for piece in self.starts) * (sum(rule.steps for rule in self.rules) + 1)
        started = [piece.queries(input_dim) for piece in self.starts]
        rows = output_dim * self.uses_jacobian
        return looks + sum(first for first, _ in started), looks + rows + sum(second for _, second in started)

    @property
    def uses_jacobian(self) -> bool:
        """Whether it asks for J(x), once for all starts."""
        return any(piece.uses_jacobian for piece in self.starts)


class AdversarialLoss(NamedTuple):
    """What an attack found at each input.

    `value` is |f(x + eta) - f(x)|_q for the `perturbation` eta, the best that was tried; `converged` says that the last
    quarter of the steps gained less than a part in a thousand and everything was finite; `history` holds the best value
    before each step; `nonfinite` counts the evaluations whose value was nan or infinite, which enter nothing else;
    `network` is the one to ask next, None where the old one serves; `jacobian` is J(x), where the attack's starts use
    it (those of the presets do), else None.
    """

    value: Float[Array, "*B"]
    perturbation: Float[Array, "*B d"]
    converged: Bool[Array, "*B"]
    history: Float[Array, "*B T"]
    nonfinite: Int[Array, "*B"]
    network: Network | None
    jacobian: Any  # [*B, K, d]

    @property
    def law_exact(self) -> Any:
        """Whether the answers have exactly the law of the network, see `Network.law_exact`."""
        return True if self.network is None else self.network.law_exact


def named_attack(attack: str | Attack, p: float) -> Attack:
    """The attack of that name for perturbations in the p-norm.

    Raises:
        ValueError: there is no such attack.
    """
    if isinstance(attack, Attack):
        return attack
    starts = (*((Vertices(4),) if p == 1 else ()), LinearStarts())
    if attack == "default":
        return Attack((*starts, RandomStarts(2, drawn=64)), (Ascent(24),))
    if attack == "thorough":
        return Attack((*starts, RandomStarts(31, drawn=1024), RandomStarts(31)), (Ascent(60),))
    raise ValueError(f'attack: expected "default", "thorough" or an Attack, got {attack!r}')


def adversarial_loss(
    net_or_f: Source,
    x: Float[ArrayLike, "*B d"],
    eps: ArrayLike,
    p: float,
    q: float,
    key: Key[Array, ""],
    attack: str | Attack = "default",
    box: tuple[ArrayLike, ArrayLike] | None = None,
) -> AdversarialLoss:
    """The adversarial loss from below, by attack: no label, no input box, no scale of the input is assumed.

    L_adv(x) = max |f(x + eta) - f(x)|_q over |eta|_p <= eps. The best of all candidates that were tried is returned, no
    perturbation among them, so the value is 0 at least and never above L_adv; nan where f(x) is not finite. A network's
    differences are propagated and not subtracted, so that eps may be 1e-7 of |x| in single precision; those of a plain
    function are subtracted, and the value is theirs, their rounding included.

    Args:
        net_or_f: a `Network` of either engine, or a JAX function of one input [d] to one output [K].
        x: one input [d] or a block [B, d].
        eps: the size of the perturbation, >= 0 (traced).
        p: exponent of the perturbation's norm, any number in [1, inf] (static).
        q: exponent of the output's norm, any number in [1, inf] (static).
        key: of random starts.
        attack: "default" (4 starts, 24 steps), "thorough" (64 starts, 60 steps), or an `Attack` (static); for p = 1
            both start at the 4 best vertices of the ball too.
        box: (lower, upper), numbers or arrays that broadcast to x, between which x + eta is to stay; None is no box.

    Returns:
        An `AdversarialLoss`. For a matrix-free network go on with its `.network`.

    Raises:
        ValueError: wrong shapes; eps is negative, or not finite or lost in the precision of x; an exponent is below 1;
            there is no such attack; x is outside the box; or a matrix-free network has too little room, see
            `capacity_for`.

    Source: Kumano et al. 2023, definition of the adversarial loss; the attack is ours, see its pieces.
    """
    p, q = check_exponent("p", p), check_exponent("q", q)
    attack = named_attack(attack, p)
    base = oracle.value(net_or_f, x)
    dtype, d = base.output.dtype, jnp.shape(x)[-1]
    _check_eps(eps, dtype)
    hidden = None if base.network is None or base.network.is_dense else base.network
    if hidden is not None:
        each = attack.queries(d, base.output.shape[-1])
        hidden.check_room(*(math.prod(base.output.shape[:-1]) * number for number in each))
    problem = Problem(net_or_f, base, None, d, jnp.asarray(eps, dtype), p, q, _box_of_eta(jnp.asarray(x, dtype), box))

    if attack.uses_jacobian:
        hidden, problem = with_jacobian(problem, hidden)
    starts = []
    for i, piece in enumerate(attack.starts):
        hidden, eta = piece(problem, hidden, jax.random.fold_in(key, i))
        starts.append(eta)
    candidates, history = _run(problem, start(hidden, jnp.concatenate(starts, axis=-2)), attack.rules)
    winner = jnp.argmax(candidates.value, axis=-1, keepdims=True)
    value = jnp.take_along_axis(candidates.value, winner, axis=-1)[..., 0]
    perturbation = jnp.take_along_axis(candidates.best, winner[..., None], axis=-2)[..., 0, :]
    history = jnp.moveaxis(history, 0, -1)
    settled = value - history[..., (3 * history.shape[-1]) // 4] <= 1e-3 * value
    finite = jnp.all(jnp.isfinite(base.output), axis=-1)
    return AdversarialLoss(
        jnp.where(finite, value, jnp.nan),
        perturbation,
        settled & finite & (candidates.nonfinite == 0),
        history,
        candidates.nonfinite,
        candidates.network,
        problem.jacobian,
    )


def _check_eps(eps: ArrayLike, dtype: Any) -> None:
    known = concrete(eps)
    if known is None:
        sound = jnp.ndim(eps) == 0
    else:
        number = any(jnp.issubdtype(known.dtype, kind) for kind in (np.floating, np.integer))
        sound = number and known.ndim == 0 and representable(known, dtype)
    if not sound:
        raise ValueError(f"eps: expected a finite number >= 0 in {jnp.dtype(dtype).name}, got {eps!r}")


def _box_of_eta(x: Array, box: tuple[ArrayLike, ArrayLike] | None) -> tuple[Array | None, Array | None]:
    """The box of the perturbation, with an axis for candidates."""
    if box is None:
        return None, None
    lower, upper = (jnp.broadcast_to(jnp.asarray(side, x.dtype), x.shape) - x for side in box)
    outside = concrete(~((lower <= 0) & (upper >= 0)))
    if outside is not None and np.any(outside):
        raise ValueError(f"x: expected an input in the box, got {int(np.sum(outside))} entries outside")
    return lower[..., None, :], upper[..., None, :]


def capacity_for(
    spec: NetworkSpec,
    *,
    evaluate: int = 0,
    linear_representation: int = 0,
    adversarial_loss: int = 0,
    p: float = 2,
    attack: str | Attack = "default",
) -> tuple[int, int]:
    """The capacity that a matrix-free network needs for a task: how many inputs and how many cotangents it answers.

    Each of the first three keywords names a function and says for how many inputs it is called in all; the sum is for
    all of them, one after the other, on the network that each returns.

    Args:
        spec: the law of the network.
        evaluate: number of inputs of `evaluate`.
        linear_representation: number of inputs of `linear_representation`.
        adversarial_loss: number of inputs of `adversarial_loss`.
        p: exponent of its perturbations.
        attack: what it is called with.

    Returns:
        (inputs, cotangents), for `init(..., engine="matrix_free", capacity=...)`.

    Raises:
        ValueError: a number is not an integer >= 0, p is below 1, or there is no such attack.

    Source: counting. J comes by rows where K <= d (K cotangents an input), else by columns (d + 1 more inputs).
    """
    numbers = {
        "evaluate": evaluate,
        "linear_representation": linear_representation,
        "adversarial_loss": adversarial_loss,
    }
    for name, number in numbers.items():
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise ValueError(f"{name}: expected an integer >= 0, got {number!r}")
    d, K = spec.input_dim, spec.output_dim
    rows = (1, K) if d >= K else (d + 2, 0)
    differences, cotangents = named_attack(attack, check_exponent("p", p)).queries(d, K)
    each = zip((1, 0), rows, (1 + differences, cotangents), strict=True)
    inputs, asked = (sum(n * count for n, count in zip(numbers.values(), side, strict=True)) for side in each)
    return inputs, asked


def _run(problem: Problem, candidates: Candidates, rules: tuple[Any, ...]) -> tuple[Candidates, Array]:
    """Look at the candidates, move them by the rule of the step, and so on; the best value after each look."""
    which = np.concatenate([np.full(rule.steps, i) for i, rule in enumerate(rules)])
    number = np.concatenate([np.arange(rule.steps) for rule in rules])
    # the last look is followed by a move that nobody looks at: one loop compiles to half the code of two
    which, number = (jnp.asarray(np.append(values, values[-1]), jnp.int32) for values in (which, number))

    def step(carry, now):
        (candidates, memories), (which, number) = carry, now
        candidates, seen, gradient = climb(problem, candidates)

        def move(i):
            def by_rule(candidates, seen, gradient, memories, number):
                eta, memory = rules[i](problem, candidates, seen, gradient, memories[i], number)
                return eta, (*memories[:i], memory, *memories[i + 1 :])

            return by_rule

        seen_part = candidates._replace(network=None)
        eta, memories = jax.lax.switch(
            which, [move(i) for i in range(len(rules))], seen_part, seen, gradient, memories, number
        )
        return (candidates._replace(eta=eta), memories), jnp.max(candidates.value, axis=-1)

    memories = tuple(rule.memory(problem, candidates) for rule in rules)
    (candidates, _), history = jax.lax.scan(step, (candidates, memories), (which, number))
    return candidates, history
