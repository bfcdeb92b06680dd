"""How deep a network adversarial training can train."""

import math
import warnings
from collections.abc import Callable
from itertools import pairwise

import jax
import numpy as np
import scipy

from mftadv.spec import NetworkSpec
from mftadv.theory._evolution import decay_constant, vanilla_log_gain
from mftadv.theory._kernel import validity_horizon
from mftadv.theory._laws import check_size, log_propagation_factor

_SCANNED = 1024
_DEEPEST = 2**1000


def _first(fails: Callable[[int], bool], start: int, stop: int) -> int | None:
    """The first failing depth in [start, stop), given that from the first failure on all of them fail."""
    if fails(start):
        return start
    low, high = start, stop - 1
    if not fails(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fails(middle) else (middle, high)
    return high


def _falling_from(log_omega: float, elapsed: float) -> int:
    """The depth from which the linearised decline of omega^L stops growing for a while; 1 where it never stops.

    For ln omega_0 = -x the decline z + a z e^{-z/2}, z = L x, a = elapsed e^x / x, has a maximum where
    w = z/2 - 1 solves a w e^{-w} = e, w < 1, if it has any.
    """
    if log_omega >= 0:
        return 1
    a = elapsed * np.exp(-log_omega) / -log_omega
    return math.floor(2 * (1 - scipy.special.lambertw(-np.e / a).real) / -log_omega) + 1 if a > np.e**2 else 1


def max_trainable_depth(
    spec: NetworkSpec,
    eps: float,
    p: float,
    q: float,
    horizon: float,
    lower: float,
    upper: float,
    linearised: bool = False,
    kind: str = "chevet",
) -> int | float:
    """The largest depth up to which every depth stays trainable while it is trained adversarially.

    Depth L passes if lower <= omega(t)^L <= upper for all t in [0, horizon], where omega starts from the given
    weight variance, the same at every depth, and falls as `weight_variance` says. omega only falls, so the lower limit
    is tested at the horizon and the upper one at the start. With b = ln(1 / lower), kappa = 2 eps beta_{p,q} alpha / N
    and T the horizon:

        vanilla, omega_0 = 1    omega(T)^L = (1 + (L/2 - 1) kappa T)^{-L / (L/2 - 1)}, about (1 + L kappa T / 2)^{-2}:
                                a depth of about 2 (e^{b/2} - 1) / (kappa T), proportional to N
        linearised              ln omega(T) = ln omega_0 - kappa T omega_0^{L/2 - 1}, its tangent at t = 0:
                                from omega_0 = 1 the depth b / (kappa T)
        residual, signed        omega >= 1 >= lower always: ln(upper) / ln(1 + A), at every horizon

    Args:
        spec: the law; its own depth is ignored, its leaves are concrete scalars.
        eps: the radius of the attack, >= 0.
        p: the norm of the attack, in [1, inf].
        q: the norm of the output, in [1, inf].
        horizon: the training time T >= 0, the learning rate times the number of steps of gradient descent on the mean
            of the loss over the inputs: 1,000 steps at .01 are T = 10.
        lower: the smallest omega^L that trains, in [0, 1].
        upper: the largest omega^L that trains, in [1, inf].
        linearised: whether to follow the tangent in place of the closed form.
        kind: the coefficient beta, see `operator_norm_coefficient`.

    Returns:
        The depth L such that 1, ..., L pass and L + 1 does not, as an integer: 0 if depth 1 fails, `math.inf` if
        none does. It is a search in float64 on the host, not traceable: depths beyond 2^53 are rounded.

    Raises:
        ValueError: an argument is outside its range.

    Warns:
        UserWarning: for "vanilla", T is beyond `validity_horizon` at the first depth that fails, for one input of
            mean square 1, so that the closed form is used where it is known to overstate the decay. It names the
            limit that binds and by how much T exceeds the horizon.

    Source: the paper, trainability under adversarial training, for the definition and the linearised law of "vanilla"
    from omega_0 = 1; the exact law and the other initial values are ours. It inherits the limits of `weight_variance`,
    which overstates the decay in long training.
    """
    depth, falls = deepest(spec, eps, p, q, horizon, lower, upper, linearised, kind)
    if falls:
        _warn_beyond_validity(spec, int(depth) + 1, eps, p, horizon)
    return depth


def deepest(
    spec: NetworkSpec,
    eps: float,
    p: float,
    q: float,
    horizon: float,
    lower: float,
    upper: float,
    linearised: bool = False,
    kind: str = "chevet",
) -> tuple[int | float, bool]:
    """The depth that `max_trainable_depth` returns, and whether the next one fails by its decay."""
    check_size("horizon", horizon)
    if not 0 <= lower <= 1 <= upper:
        raise ValueError(f"lower, upper: expected 0 <= lower <= 1 <= upper, got {lower!r} and {upper!r}")
    with jax.enable_x64(True), np.errstate(divide="ignore", over="ignore"):
        log_omega = np.float64(log_propagation_factor(spec))
        elapsed = np.float64(decay_constant(spec, eps, p, q, kind)) * horizon
        log_lower, log_upper = np.log(np.float64(lower)), np.log(np.float64(upper))
        if log_omega == -math.inf:
            return math.inf if lower == 0 else 0, False

        def fails(depth: int) -> bool:
            if depth * log_omega > log_upper:
                return True
            if spec.has_shortcut:
                return False
            if linearised:
                final = log_omega - np.exp(np.log(elapsed) + (depth / 2 - 1) * log_omega)
            else:
                final = vanilla_log_gain(log_omega, elapsed, depth / 2 - 1, min(depth, 3), np)
            return bool(depth * final < log_lower)

        # ln omega(T)^L need not be monotone in L. With r = omega_0^{-m} + m kappa T, convex and 1 at m = 0, it is
        # -2 (1 + 1/m) ln r, which falls wherever 0 < ln r < m; where it is at ln(lower), ln r < b / 2, so that it
        # passes that level once at most beyond m = b / 2, and b < 745 for any double.
        starts = [*range(1, _SCANNED + 1), _DEEPEST]
        if linearised and not spec.has_shortcut:
            starts = sorted({*starts, _falling_from(log_omega, elapsed)})
        found = (_first(fails, start, stop) for start, stop in pairwise(starts))
        failing = next((depth for depth in found if depth is not None), None)
    if failing is None:
        return math.inf, False
    return failing - 1, bool(failing * log_omega <= log_upper)


def _warn_beyond_validity(spec: NetworkSpec, depth: int, eps: float, p: float, horizon: float) -> None:
    """Warn where the closed form of the decay is used for longer than it holds at a depth."""
    radius = eps * spec.input_dim ** max(0.0, 0.5 - 1 / p)  # the largest |eta|_2 of the attack
    if radius == 0:
        return
    # the deeper, the sooner it ends: up to the depths that are quickly computed
    seen = spec.replace(depth=min(depth, _SCANNED), output_dim=1, bias_variance=0.0)
    validity = float(validity_horizon(seen, radius, math.sqrt(spec.input_dim)))
    if horizon > validity:
        excess = horizon / validity if validity else math.inf  # it underflows where omega^L is huge
        warnings.warn(
            f"horizon: T = {horizon:.3g} is {excess:.3g} times the validity_horizon of the closed form, "
            f"{validity:.3g} at depth {seen.depth}. Depth {depth} fails, by this form, because omega(T)^L falls below "
            "lower; it overstates the decay by then",
            stacklevel=3,
        )
