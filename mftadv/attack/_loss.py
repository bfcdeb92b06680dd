"""The adversarial loss from below: attacks on any function, without labels."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from mftadv import oracle
from mftadv.attack._attack import Attack, named_attack
from mftadv.attack._pieces import Candidates, Loss, Objective, Problem, evaluate, gradients, start
from mftadv.linear import jacobian_and_shift
from mftadv.network import Evaluation, Network
from mftadv.norms import vector_norm
from mftadv.oracle import Function, Source
from mftadv.spec import check_exponent, concrete, key_for, representable, traced_arrays

_CLOSE = 1e-2  # two values that differ by at most this share are counted as values of one maximum


class AdversarialLoss(NamedTuple):
    """What an attack found at each input, and how far to trust it. Only `value` and `jacobian` have derivatives.

    Attributes:
        value: |f(x + eta) - f(x)|_q for the perturbation eta, the best that was evaluated; nan where the problem is not
            defined (f(x) not finite, x outside the box, eps negative or not finite).
        perturbation: that eta, 0 where the value is nan.
        converged: whether every check is consistent with a local maximum: `stalled`, all evaluations finite, some
            gradient not 0, the value above `rounding`, and a second start within 1% of the best (or eps = 0, where the
            loss is 0). An attack cannot know the global maximum; False means that this value is certainly not to be
            trusted without another attack.
        history: the best value before each step, and after the last.
        nonfinite: the number of evaluations that were nan or infinite, which are otherwise ignored.
        network: the network to use next, None where the one passed is used again.
        jacobian: J(x), where the attack's starts use it (those of the presets do), else None.
        stalled: whether the last quarter of the steps gained less than 1%.
        restarts: the best value of each start.
        zero_gradients: the share of gradients that were exactly 0: 1 for a function that is constant around all points
            where they were taken, or that hides its gradient (a hard threshold, a saturated sigmoid).
        candidates: the best perturbation of each start, where a later call may begin; 0 where none was better.
        rounding: how much of the value may be rounding, in float32 at least: the q-norm of r (|f(x)| + |J| |x|) with r
            the precision of x (without J(x): of r |f(x)|), since a plain function is subtracted; 0 for a network, which
            propagates the difference itself.
    """

    value: Float[Array, "*B"]
    perturbation: Float[Array, "*B d"]
    converged: Bool[Array, "*B"]
    history: Float[Array, "*B T"]
    nonfinite: Int[Array, "*B"]
    network: Network | None
    jacobian: Any  # [*B, K, d]
    stalled: Bool[Array, "*B"]
    restarts: Float[Array, "*B R"]
    zero_gradients: Float[Array, "*B"]
    rounding: Float[Array, "*B"]
    candidates: Float[Array, "*B R d"]

    @property
    def law_exact(self) -> Any:
        """Whether the results have exactly the law of the network, see `Network.law_exact`."""
        return True if self.network is None else self.network.law_exact

    @property
    def spread(self) -> Float[Array, "*B"]:
        """How far the second best start is below the best, as a share of it: 1 for a single start, 0 where it is 0."""
        best, second, _ = _two_largest(self.restarts)
        return (best - second) / jnp.where(best > 0, best, 1)


def adversarial_loss(
    net_or_f: Source,
    x: Float[ArrayLike, "*B d"],
    eps: ArrayLike,
    p: float,
    q: float,
    key: Key[Array, ""],
    attack: str | Attack = "default",
    box: tuple[ArrayLike | None, ArrayLike | None] | None = None,
    *,
    chunk_size: int | None = None,
    loss: Loss | None = None,
    targets: Float[ArrayLike, "*B T"] | None = None,
    starts: Float[ArrayLike, "*B R d"] | None = None,
) -> AdversarialLoss:
    """The adversarial loss from below, by attack: no label, no input box, no scale of the input is assumed.

    **Jit it**: called eagerly it compiles its loop anew at every call, which takes seconds where the jitted call
    takes milliseconds. `attack = jax.jit(lambda net, x, eps, key: mf.adversarial_loss(net, x, eps, 2, 2, key).value)`.

    L_adv(x) = max |f(x + eta) - f(x)|_q over |eta|_p <= eps. The best of all candidates evaluated is returned, no
    perturbation among them, so the value is 0 at least and never above L_adv. A network's differences are propagated
    and not subtracted, so that eps may be 1e-7 of |x| in single precision; those of a plain function are subtracted,
    see `rounding` in the result.

    The derivative of `value` is that at a fixed perturbation (Danskin's theorem: at the maximum there is no other), in
    all that net_or_f depends on, in x, and in eps, with which the perturbation grows in proportion; where L_adv = 0 it
    is 0. `jax.grad(lambda net: mf.adversarial_loss(net, ...).value)` is one forward and one backward pass. Where the
    perturbation touches a box, which moves neither with x nor with eps, the derivatives in these two are not those of
    the maximum.

    Args:
        net_or_f: a `Network` of either engine, or a JAX function of one input [d] to one output [K].
        x: one input [d] or a block [B, d].
        eps: the size of the perturbation, >= 0 (traced): one for all or one for each input, [B]. Several for one input
            are a vmap: `jax.vmap(lambda eps: mf.adversarial_loss(net, x, eps, ...))(sizes)`.
        p: exponent of the perturbation's norm, any number in [1, inf] (static).
        q: exponent of the output's norm, any number in [1, inf] (static).
        key: of random starts; independent of the draws of other functions, also with the same key.
        attack: "default" (about 400 evaluations of f at each input), "thorough" (about 5,000), "frugal" (9, for
            matrix-free networks, whose cost is the square of this number), "fast" (6 and no Jacobian, for training), or
            an `Attack` (static); for p = 1 the first two start at the best vertices of the ball too.
        box: (lower, upper), numbers or arrays that broadcast to x, between which x + eta is to stay; None for a side
            that is open, or for no box.
        chunk_size: the most rows of J(x) carried through the function at once, see `linear_representation`.
        loss: what is maximised in place of the q-norm, as attacks with labels do: a JAX function of outputs [..., K]
            and targets [..., T] to numbers [...]. The value is then its increase, loss(f(x + eta), target) -
            loss(f(x), target), and 0 at least; q is used by the starts alone. `mftadv.training.LOSSES` has two.
        targets: of the inputs, one row of T numbers each (one-hot labels, say); none without a loss.
        starts: perturbations at which the attack begins in place of its own starts, projected on the ball and the box:
            the `candidates` of another call, say, at a similar network or size.

    Returns:
        An `AdversarialLoss`. For a matrix-free network go on with its `.network`.

    Raises:
        ValueError: wrong shapes; eps is negative, not finite, lost in the precision of x, or integers as labels are;
            an exponent is below 1; there is no such attack; x is outside the box (in traced code the value is nan);
            a function that is another one each time it is traced (dropout); a matrix-free network has too little
            capacity, see `capacity_for`, or is differentiated.

    Source: Kumano et al. 2023, definition of the adversarial loss; the attack is ours, see its pieces.
    """
    p = check_exponent("p", p)
    source, x = oracle.trace(net_or_f, x)
    return attacked_from(
        source, x, None, eps, p, q, key, named_attack(attack, p), box, chunk_size, loss, targets, starts
    )


def attacked_from(
    source: Network | Function,
    x: Array,
    base: Evaluation | None,
    eps: ArrayLike,
    p: float,
    q: float,
    key: Array,
    attack: Attack,
    box: Any = None,
    chunk_size: int | None = None,
    loss: Loss | None = None,
    targets: Any = None,
    starts: Any = None,
) -> AdversarialLoss:
    """`adversarial_loss` of a source as it was traced, with its value at x where that is known."""
    q, key = check_exponent("q", q), key_for("adversarial_loss", key)
    dtype, (*points, d) = x.dtype, x.shape
    eps = _check_eps(eps, dtype, points)
    objective = _objective(q, loss, targets, dtype, points)
    if starts is not None:
        starts = _check_starts(starts, dtype, points, d)
    base = oracle.value(source, x) if base is None else base
    network = None if base.network is None or base.network.is_dense else base.network
    if network is not None:
        each = attack.queries(d, base.output.shape[-1], None if starts is None else starts.shape[-2])
        network.check_capacity(*(math.prod(points) * number for number in each))
    lower, upper, inside = _box_of_eta(x, box)
    defined = inside & jnp.all(jnp.isfinite(base.output), axis=-1) & jnp.isfinite(eps) & (eps >= 0)

    jacobian = None
    if attack.uses_jacobian and starts is None:
        jacobian, _, used = jacobian_and_shift(source, base, d, chunk_size)
        network = None if network is None else used
    # The search itself is not differentiated: it would cost memory and a multiple of the time, for a gradient that is
    # not that of the maximum.
    fixed_source, fixed_base, fixed_jacobian = jax.tree.map(jax.lax.stop_gradient, (source, base, jacobian))
    radius = jax.lax.stop_gradient(jnp.where(defined, eps, 0))
    box = (None, None) if lower is None or upper is None else (lower[..., None, :], upper[..., None, :])
    problem = Problem(fixed_source, fixed_base, fixed_jacobian, d, radius[..., None], p, objective, box)
    if starts is None:
        network, eta = _own_starts(problem, network, key, attack, points)
    else:
        eta = problem.project(starts)
    candidates, history = _run(problem, network, eta, attack)
    best, second, winner = _two_largest(candidates.value)
    perturbation = jnp.sum(jnp.where(winner[..., None], candidates.best, 0), axis=-2)
    history = jnp.moveaxis(history, 0, -1)

    taken = candidates.value.shape[-1] * (history.shape[-1] - 1)
    zero_gradients = candidates.zero_gradients.astype(dtype) / taken
    rounding = jnp.zeros_like(best) if isinstance(source, Network) else _rounding(problem, x)
    stalled = best - history[..., (3 * history.shape[-1]) // 4] <= _CLOSE * best
    trusted = stalled & (candidates.nonfinite == 0) & (zero_gradients < 1) & (best.astype(rounding.dtype) > rounding)
    converged = defined & ((radius == 0) | (trusted & (best - second <= _CLOSE * best)))
    operands = traced_arrays((source, x, eps, objective.targets))
    value = _at_fixed_perturbation(q, loss, *operands, perturbation, best)
    return AdversarialLoss(
        jnp.where(defined, value, jnp.nan),
        perturbation,
        converged,
        history,
        candidates.nonfinite,
        candidates.network,
        jacobian,
        stalled,
        candidates.value,
        zero_gradients,
        rounding,
        candidates.best,
    )


def _own_starts(
    problem: Problem, network: Any, key: Array, attack: Attack, points: list[int]
) -> tuple[Any, Float[Array, "*B R d"]]:
    """The network to use next, and the candidates of the attack's own starts."""
    # One draw for all starts, since each draw takes long to compile. An attack with more starts begins with the same
    # numbers, one in half precision with the rounded ones.
    dtype, d = problem.base.output.dtype, problem.input_dim
    sizes = [piece.normals(tuple(points), d) for piece in attack.starts]
    normals = jax.random.normal(key, (sum(sizes),), _single(dtype)).astype(dtype)
    starts = []
    for piece, some in zip(attack.starts, jnp.split(normals, np.cumsum(sizes))[:-1], strict=True):
        network, eta = piece(problem, network, some)
        starts.append(eta)
    return network, jnp.concatenate(starts, axis=-2)


def _check_starts(starts: ArrayLike, dtype: Any, points: list[int], d: int) -> Float[Array, "*B R d"]:
    shape = jnp.shape(starts)
    if len(shape) != len(points) + 2 or shape[: len(points)] != tuple(points) or shape[-1] != d or not shape[-2]:
        raise ValueError(f"starts: expected some perturbations of each input, {[*points, 'R', d]}, got {list(shape)}")
    return jax.lax.stop_gradient(jnp.asarray(starts, dtype))


def _check_eps(eps: ArrayLike, dtype: Any, points: list[int]) -> Array:
    """The size for each input, [*B]."""
    known = concrete(eps)
    shape = jnp.shape(eps) if known is None else known.shape
    if shape not in ((), tuple(points)):
        raise ValueError(
            f"eps: expected one number, or one for each input, {points}, got shape {list(shape)}; "
            "jax.vmap takes several for one input, and the function scales coordinates of unlike size"
        )
    kind = getattr(eps, "dtype", None)  # a Python integer has none, and is a size
    if kind is not None and not jnp.issubdtype(kind, jnp.floating):
        raise ValueError(f"eps: expected a floating-point number, got {kind} (there are no labels)")
    real = known is None or jnp.issubdtype(known.dtype, jnp.floating) or jnp.issubdtype(known.dtype, jnp.integer)
    if not real or (known is not None and not all(representable(float(each), dtype) for each in known.ravel())):
        raise ValueError(f"eps: expected a finite number >= 0 in {jnp.dtype(dtype).name}, got {eps!r}")
    return jnp.broadcast_to(jnp.asarray(eps, dtype), points)


def _objective(q: float, loss: Loss | None, targets: Any, dtype: Any, points: list[int]) -> Objective:
    if loss is None:
        if targets is not None:
            raise ValueError("targets: expected None where there is no loss, got some")
        return Objective(q)
    shape = jnp.shape(targets) if targets is not None else None
    if shape is None or len(shape) != len(points) + 1 or shape[:-1] != tuple(points):
        raise ValueError(f"targets: expected one row of numbers for each input, {[*points, 'T']}, got shape {shape}")
    return Objective(q, loss, jax.lax.stop_gradient(jnp.asarray(targets, dtype)))


def _box_of_eta(x: Array, box: Any) -> tuple[Array | None, Array | None, Any]:
    """The box of the perturbation, and whether x is in it; where it is not, the box is widened to hold x."""
    if box is None:
        return None, None, True
    sides = (-math.inf if box[0] is None else box[0]), (math.inf if box[1] is None else box[1])
    lower, upper = (jnp.broadcast_to(jnp.asarray(side, x.dtype), x.shape) - x for side in sides)
    inside = (lower <= 0) & (upper >= 0)
    known = concrete(inside)
    if known is not None and not np.all(known):
        raise ValueError(f"x: expected an input in the box, got {int(np.sum(~known))} entries outside")
    return jnp.where(inside, lower, 0), jnp.where(inside, upper, 0), jnp.all(inside, axis=-1)


def _two_largest(values: Array) -> tuple[Array, Array, Array]:
    """The largest value along the last axis, the second largest (0 where there is one alone), where the first is."""
    largest = jnp.argmax(values, axis=-1, keepdims=True)
    winner = jax.lax.broadcasted_iota(largest.dtype, values.shape, values.ndim - 1) == largest
    return jnp.max(values, axis=-1), jnp.max(jnp.where(winner, 0, values), axis=-1), winner


def _single(dtype: Any) -> Any:
    """The dtype, or float32 in place of half precision, in which sums overflow."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def _rounding(problem: Problem, x: Array) -> Array:
    precision = _single(x.dtype)
    size = jnp.abs(problem.base.output.astype(precision))
    if problem.jacobian is not None:
        terms = problem.jacobian.astype(precision) * x.astype(precision)[..., None, :]
        size = size + jnp.sum(jnp.abs(terms), axis=-1)
    return jnp.finfo(x.dtype).eps * vector_norm(size, problem.q)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _at_fixed_perturbation(
    q: float,
    loss: Loss | None,
    source: Network | Function,
    x: Array,
    eps: Array,
    targets: Any,
    perturbation: Array,
    value: Array,
):
    """The value, whose derivative is that of the objective at a perturbation eta in proportion to eps."""
    return value


@_at_fixed_perturbation.defjvp
def _(q: float, loss: Loss | None, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    *operands, radius, targets, perturbation, value = primals
    if isinstance(operands[0], Network) and not operands[0].is_dense:
        raise ValueError("net_or_f: expected a dense network or a function where the loss is differentiated")

    def objective(source, x, eps):
        base = oracle.value(source, x)
        eta = perturbation * (eps / jnp.where(radius > 0, radius, 1))[..., None]
        return Objective(q, loss, targets).value(base.output, oracle.difference(source, base, eta).output)

    return value, jax.jvp(objective, (*operands, radius), tuple(tangents[:3]))[1]


def _run(problem: Problem, network: Any, starts: Array, attack: Attack) -> tuple[Candidates, Array]:
    """Evaluate the candidates and apply the rule of the step, in turn; the best value after each evaluation."""
    rules = attack.rules

    def step(carry, now):
        (candidates, memories), (which, number) = carry, now
        candidates, values, at = evaluate(problem, candidates)
        candidates, gradient = gradients(problem, candidates, values, at)

        def branch(i):
            def apply(candidates, values, gradient, memories, number):
                eta, memory = rules[i](problem, candidates, values, gradient, memories[i], number)
                return eta, (*memories[:i], memory, *memories[i + 1 :])

            return apply

        operands = candidates._replace(network=None), values, gradient, memories, number
        eta, memories = jax.lax.switch(which, [branch(i) for i in range(len(rules))], *operands)
        return (candidates._replace(eta=eta), memories), jnp.max(candidates.value, axis=-1)

    candidates = start(network, starts)
    memories = tuple(rule.memory(problem, candidates) for rule in rules)
    schedule = tuple(jnp.asarray(values, jnp.int32) for values in attack.schedule())
    (candidates, _), history = jax.lax.scan(step, (candidates, memories), schedule)
    candidates, *_ = evaluate(problem, candidates)
    return candidates, jnp.concatenate([history, jnp.max(candidates.value, axis=-1)[None]])
