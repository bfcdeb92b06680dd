"""How far adversarial training in the kernel regime has lowered L_adv after a time: a universal curve."""

import functools
import math
from collections.abc import Callable

import jax
import numpy as np
import scipy
from jaxtyping import ArrayLike

from mftadv.spec import NetworkSpec, check_positive
from mftadv.theory._kernel import gate_overlap, kernel_defect

Curve = tuple[np.ndarray, np.ndarray]

# the ball: steps of tau, the angles of the sphere, the radii and the angles inside of it, the nodes of a kernel's table
_STEP, _LAST = 0.02, 8.0
_SPHERE, _RADII, _INSIDE = 600, 20, 60
_NODES = 4001
_TOLERANCE, _ATTEMPTS = 1e-7, 100
# the cube
_CUBE_STEP, _CUBE_LAST, _CUBE_NODES, _CUBE_END = 0.1, 2.5, 64, 5.0
# an angle that stands for the limit of small ones
_SMALLEST = 1e-12


def training_curve(
    depth: int,
    theta: float,
    positive_slope: float = 1.0,
    negative_slope: float = 0.0,
    p: float = 2,
    roughness: bool = True,
    branch_share: float = 1.0,
) -> Callable[[ArrayLike], np.ndarray]:
    """The adversarial loss under training on it alone, in units of its start: l(tau) = L_adv(tau t*) / L_adv(0).

    t* = `adversarial_rate`(...).time. In the kernel regime the function g(eta) = f(x + eta) - f(x) follows the flow of
    its largest absolute value in the ball, pushed at the worst eta and -eta at half the rate each. As the input
    dimension grows, the worst perturbations share one cosine c = J eta / (|J| eps) and are else independent:

        l(tau) = max_c [ E(c) - int_0^tau k(c c_s) ds ],     c_s the maximiser at s,
        k(o) = (K(o) - K(-o)) / (2 K(1)),    K(o) = Theta(x', x'') - Theta(x', x) - Theta(x, x'') + Theta(x, x)

    for x' = x + eta, x'' = x + eta'' of overlap o = eta eta'' / eps^2, with Theta as in `adversarial_loss_decay_rate`
    (its K(1)). For small theta k(o) = (sqrt(2 + 2 o) - sqrt(2 - 2 o)) / 4 and l = 1 - tau/2 + (sqrt(2) asinh(1) / 32)
    tau^2 + ... Smaller |eta| take part too, from tau = 2.58 on, together with the sphere.

    E(c) = c for a linear start, f = J eta. With roughness, for the gates that flip in the ball,

        E(c) = c sqrt(p(c^2)) + int_{c^2}^1 sqrt(p'(u)) du,    p(u) = prod_{l=0}^{L-1} (1 - r + r g(c_l) / alpha),
        c_0 = (1 + theta^2 u) / (1 + theta^2),

    the largest value of a Gaussian field of such a gradient at overlap c with the best direction: l then stalls near
    E(0), about 1.12 sqrt(delta) (`kernel_regime`). The measured curve lies between the two starts in most cases.

    p = inf, on the cube of 2-norm radius eps sqrt(d), in the limit theta = 0: independent random signs with a mean
    m(|J_i|) in [-1, 1] in place of c, E[|J_i| m] / E|J_i| in place of E(c) and E[m m_s] in place of c c_s.

    Args:
        depth: L >= 1.
        theta: the largest |eta|_2 / |x|_2, in [0, 1]; 0 stands for the limit of small ones. 0 for p = inf.
        positive_slope: u, the slope of phi on z >= 0.
        negative_slope: v != u, the slope of phi on z < 0.
        p: the norm of the attack, 2 or inf.
        roughness: whether the start is rough; of no effect at theta = 0.
        branch_share: r = A / omega, in (0, 1]: 1 for "vanilla", less for "signed"; of no effect at theta = 0.

    Returns:
        A function of tau, of any shape, in [0, 8], in [0, 2.5] for p = inf, that interpolates l in float64 on the host.
        The flow is solved at the first call of a process, in about a second.

    Raises:
        ValueError: an argument is outside its range; the function's tau is.

    Source: ours, in the limit of infinite width and then of infinite d, without bias and for K = 1, eta orthogonal to
    x; exact there for the linear start, heuristic for the rough one. By halving the steps and the
    grids, to 1e-4 for p = 2 and delta < 1, but for 1e-3 within .02 of the tau where the slope of l breaks off, as other
    perturbations begin to take part; else to 1e-3.
    """
    depth = check_positive("depth", depth)
    theta, u, v = float(theta), float(positive_slope), float(negative_slope)
    if not 0 <= theta <= 1:
        raise ValueError(f"theta: expected a number in [0, 1], got {theta!r}")
    if u == v or not math.isfinite(u - v):
        raise ValueError(f"positive_slope, negative_slope: expected two finite slopes that differ, got {u!r} and {v!r}")
    r = float(branch_share)
    if not 0 < r <= 1:
        raise ValueError(f"branch_share: expected a number in (0, 1], got {branch_share!r}")
    if p == 2:
        # the limit is one curve for all laws
        law = (depth, theta, u, v, bool(roughness), r) if theta else (1, _SMALLEST, 1.0, 0.0, False, 1.0)
        times, values = _ball_curve(*law)
    elif p == math.inf:
        if theta:
            raise ValueError(f"theta: expected 0 for p = inf (a larger angle is not derived), got {theta!r}")
        times, values = _cube_curve()
    else:
        raise ValueError(f"p: expected 2 or inf (no other is derived), got {p!r}")

    def curve(tau: ArrayLike) -> np.ndarray:
        tau = np.asarray(tau, np.float64)
        if not np.all((tau >= 0) & (tau <= times[-1])):
            raise ValueError(f"tau: expected times in [0, {times[-1]:g}], got {tau!r}")
        return np.asarray(np.interp(tau, times, values))

    return curve


class _OddKernel:
    """(K(eta, eta'') - K(eta, -eta'')) / (2 K(eta_1, eta_1)), eta_1 on the sphere, for eta and eta'' of lengths r and
    s, in units of the sphere's radius, with a cosine between them that gives the product o.

    Theta(x', x'') falls short of its value for parallel inputs by a sum over layers, a function of their angle that
    is tabulated relative to it.
    """

    def __init__(self, spec: NetworkSpec, theta: float):
        self.theta, self.angles = theta, np.linspace(0, 2.001 * math.atan(theta), _NODES)
        with jax.enable_x64(True):
            defect = np.asarray(kernel_defect(spec, self.angles[1:], self.angles[1:]))
        self.ratio = np.append(2 * defect[0] - defect[1], defect)
        norm = math.hypot(1, theta)
        self.scale = 2 * (spec.depth * (theta**2 / (1 + norm)) ** 2 + 2 * norm * self.defect(math.atan(theta)))

    def defect(self, angle):
        return angle * np.interp(angle, self.angles, self.ratio)

    def __call__(self, r, s, o):
        square = self.theta**2

        def defect(o):  # from the sine and the cosine of the angle, the former as a sum of squares
            sine = np.sqrt(np.maximum(r**2 + s**2 - 2 * o + square * ((r * s) ** 2 - o**2), 0))
            return self.defect(np.arctan2(self.theta * sine, 1 + square * o))

        norms = np.sqrt((1 + square * r**2) * (1 + square * s**2))
        return norms * (defect(-o) - defect(o)) / self.scale


def _rough_start(spec: NetworkSpec, theta: float, sine: np.ndarray, cosine: np.ndarray) -> np.ndarray:
    """E(c) at the cosines c of the sphere, from 1 to 0."""
    with jax.enable_x64(True):
        angle = 2 * np.arcsin(theta * sine / math.sqrt(2 * (1 + theta**2)))
        lost = np.asarray(gate_overlap(spec, angle)[2])  # 1 - p
    # the integral of sqrt(p'(u)) du = sqrt(dp du)
    pieces = np.sqrt(np.maximum(np.diff(lost) * np.diff(sine**2), 0))
    return cosine * np.sqrt(1 - lost) + np.append(0, np.cumsum(pieces))


def _push(value: np.ndarray, column: Callable[[int], np.ndarray]) -> tuple[float, np.ndarray]:
    """The proximal point of the largest absolute value, and that value: value - sum_i mu_i column(i), sum |mu_i| = 1.

    At the points i that are pushed, and at none else, the result has its largest absolute value, and there the sign
    of mu_i. Points are added and left until it is so: few are, two to five.
    """
    points, signs, level, result = [], [], math.inf, value
    for _ in range(_ATTEMPTS):
        worst = int(np.argmax(np.abs(result)))
        if worst in points or (abs(result[worst]) < level + _TOLERANCE and points):
            break
        points.append(worst)
        signs.append(np.sign(result[worst]))
        while True:
            columns = np.array(signs)[:, None] * [column(i) for i in points]
            system = np.ones((len(points) + 1,) * 2)
            system[:-1, :-1], system[-1, -1] = columns[:, points] * signs, 0
            *weights, level = np.linalg.solve(system, [*(value[points] * signs), 1.0])
            least = int(np.argmin(weights))
            if weights[least] >= 0:
                break
            del points[least], signs[least]
        result = value - weights @ columns
    return level, result


@functools.lru_cache(maxsize=64)
def _ball_curve(depth: int, theta: float, u: float, v: float, roughness: bool, share: float) -> Curve:
    """The flow of the largest absolute value, by the implicit midpoint rule, on points of the half ball J eta >= 0.

    g is odd in eta, so that this half has all of it.
    """
    block, gain = ("vanilla", 1.0) if share == 1 else ("signed", share / (1 - share))
    spec = NetworkSpec(1, 1, 1, depth, 2 * gain / (u**2 + v**2), positive_slope=u, negative_slope=v, block=block)
    kernel = _OddKernel(spec, theta)
    angle = np.linspace(0, np.pi / 2, _SPHERE + 1)
    radius, inside = np.meshgrid(np.arange(1, _RADII) / _RADII, np.linspace(0, np.pi / 2, _INSIDE + 1), indexing="ij")
    start = _rough_start(spec, theta, np.sin(angle), np.cos(angle)) if roughness else np.cos(angle)
    along = np.append(np.cos(angle), radius * np.cos(inside))
    length = np.append(np.ones_like(angle), radius)
    value = np.append(start, along[len(angle) :])

    @functools.cache
    def column(i: int) -> np.ndarray:
        return _STEP / 2 * kernel(length, length[i], along * along[i])

    times = _STEP * (np.arange(round(_LAST / _STEP) + 1) + 0.5)
    values = []
    for _ in times:
        level, middle = _push(value, column)
        values.append(level)
        value = 2 * middle - value
    return np.append(0, times), np.append(1, values)


@functools.lru_cache(maxsize=1)
def _cube_curve() -> Curve:
    """The same rule for profiles m of |J_i|, at nodes z of a half Gaussian; what is maximised is concave in m."""
    nodes, weights = np.polynomial.legendre.leggauss(_CUBE_NODES)
    z = _CUBE_END / 2 * (nodes + 1)
    weights = weights * np.exp(-(z**2) / 2)
    weights /= weights.sum()
    gain = weights * z / (weights @ z)

    def cusp(o):
        return (np.sqrt(2 + 2 * o) - np.sqrt(np.maximum(2 - 2 * o, 0))) / 4

    def slope(o):
        return (1 / np.sqrt(2 + 2 * o) + 1 / np.sqrt(np.maximum(2 - 2 * o, 1e-24))) / 4

    def cost(profile, past):
        """Minus the value to be maximised, with half of the midpoint's own push, and its derivative."""
        overlap, own = past @ (weights * profile), profile @ (weights * profile)
        pushed = _CUBE_STEP * cusp(overlap).sum() + _CUBE_STEP / 4 * cusp(own)
        turned = _CUBE_STEP * slope(overlap) @ past + _CUBE_STEP / 2 * slope(own) * profile
        return pushed - gain @ profile, weights * turned - gain

    profile, past, values = np.ones_like(z), np.empty((0, len(z))), []
    times = _CUBE_STEP * (np.arange(round(_CUBE_LAST / _CUBE_STEP) + 1) + 0.5)
    for _ in times:
        # a little inside of the cube, off the cusp
        found = scipy.optimize.minimize(
            cost, 0.999 * profile, (past,), "L-BFGS-B", True, bounds=[(0, 1)] * len(z),
            options={"ftol": 1e-13, "gtol": 1e-9, "maxiter": 500},
        )  # fmt: skip
        profile = found.x
        values.append(-found.fun - _CUBE_STEP / 4 * cusp(profile @ (weights * profile)))
        past = np.vstack([past, profile])
    return np.append(0, times), np.append(1, values)
