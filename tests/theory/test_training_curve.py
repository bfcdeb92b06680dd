"""The universal curve of L_adv against an equation of its own, simulated flows in d dimensions, and tables."""

import math

import jax
import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import ndtri

from mftadv.spec import NetworkSpec
from mftadv.theory import _training_curve as module
from mftadv.theory import adversarial_rate, gate_correlation, kappa, training_curve
from mftadv.theory._laws import branch_share


def cusp(r, s, o):
    """The kernel of small angles, of points of lengths r and s and inner product o."""
    return (np.sqrt(r**2 + s**2 + 2 * o) - np.sqrt(np.maximum(r**2 + s**2 - 2 * o, 0))) / 4


def in_units_of_the_cusp(depth, theta, roughness):
    """l of tau measured in the t* of small angles, L_adv(0) over the leading term of the rate."""
    spec = NetworkSpec(100, 1, 100, depth)
    unit = float(adversarial_rate(spec, 1.0, theta, aligned=False).rate) / (depth * (depth + 1) * theta / (2 * math.pi))
    curve = training_curve(depth, theta, roughness=roughness)
    return lambda tau: curve(unit * tau)


@pytest.mark.slow
def test_small_angles():
    """A solution with a step error of .002, and the first orders."""
    curve = training_curve(1, 0)
    tau = np.array([0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.25, 2.5, 3, 4, 5, 6, 7])
    table = [0.8775, 0.7604, 0.649, 0.5449, 0.448, 0.3586, 0.278, 0.2073, 0.146, 0.0964]
    table += [0.076, 0.063, 0.053, 0.044, 0.038]
    np.testing.assert_allclose(curve(tau), table, atol=1e-3)
    early = np.linspace(0, 0.1, 11)
    series = 1 - early / 2 + 2**0.5 * math.asinh(1) / 32 * early**2
    np.testing.assert_allclose(curve(early), series, atol=3e-5)
    assert np.ptp(curve(early) - (1 - early / 2)) > 3e-4  # which sees the second order
    values = curve(np.linspace(0, 8, 801))
    assert np.all(np.diff(values) < 0)
    assert np.all(np.diff(values, 2) > -2e-5)


@pytest.mark.slow
def test_the_limit_of_small_angles():
    """No table of the kernel, no grid, one latitude: before smaller perturbations take part the same curve."""
    step, pushes, values = 0.02, np.array([]), []
    for _ in range(126):
        # the push of the midpoint counts half of itself there: the fixed point of its latitude
        angle = 0.0 if not len(pushes) else math.acos(pushes[-1])
        for _ in range(60):
            here = math.cos(angle)

            def value(a, here=here, pushes=pushes):
                c = math.cos(a)
                return -(c - step * cusp(1, 1, c * pushes).sum() - step / 2 * cusp(1, 1, c * here))

            found = minimize_scalar(value, bounds=(0, math.pi / 2), method="bounded", options={"xatol": 1e-9})
            if abs(found.x - angle) < 1e-6:
                break
            angle = (angle + found.x) / 2
        values.append(-found.fun)
        pushes = np.append(pushes, math.cos(angle))
    times = step * (np.arange(len(values)) + 0.5)
    for theta, tolerance in ((0, 1e-4), (1e-6, 1e-4)):
        curve = training_curve(2, theta, 1.0, 0.3, roughness=False)
        np.testing.assert_allclose(curve(times), values, atol=tolerance)


@pytest.mark.parametrize(
    "law", [(1, 1e-12, 1.0, 0.0, False, 1.0), (2, 0.3, 1.0, 0.0, True, 1.0), (5, 0.1, 1.0, -0.5, False, 0.4)]
)
@pytest.mark.slow
def test_half_the_step_and_finer_grids(law, monkeypatch):
    """They move it by less than 1e-4, but within a step of where the slope breaks off."""
    tau = np.linspace(0, 8, 1601)
    coarse = np.interp(tau, *module._ball_curve(*law))
    for name, finer in (("_STEP", 0.01), ("_SPHERE", 1200), ("_RADII", 40), ("_INSIDE", 120), ("_NODES", 16001)):
        monkeypatch.setattr(module, name, finer)
    moved = np.abs(np.interp(tau, *module._ball_curve.__wrapped__(*law)) - coarse)
    assert np.all(moved < 1e-3)
    assert np.sum(moved >= 1e-4) * 0.005 < 0.04


ALPHA = 0.52  # of the negative slope .2


def through(spec, cosine, layers):
    """The cosines of all hidden layers, and g / alpha at each."""
    share, cosines = float(branch_share(spec)), [min(cosine, 1.0)]
    for _ in range(layers - 1):
        cosines.append((1 - share) * cosines[-1] + share * float(kappa(spec, cosines[-1])) / ALPHA)
    return cosines, [float(gate_correlation(spec, c)) / ALPHA for c in cosines]


@pytest.mark.parametrize("block", ["vanilla", "signed"])
@pytest.mark.slow
def test_the_kernel(block):
    """From the definition, with the package's kappa and g, at an angle where differences do no harm."""
    spec = NetworkSpec(1, 1, 1, 3, 1.5, negative_slope=0.2, block=block)
    theta, x, share = 0.4, np.array([1.0, 0, 0]), float(branch_share(spec))

    def tangent(a, b):
        size = float(np.linalg.norm(a) * np.linalg.norm(b))
        cosines, gates = through(spec, float(a @ b) / size, 3)
        above = [np.prod([1 - share + share * g for g in gates[k + 1 :]]) for k in range(3)]
        return size * sum(c * g * rest for c, g, rest in zip(cosines, gates, above, strict=True))

    def kernel(a, b):
        return tangent(x + a, x + b) - tangent(x + a, x) - tangent(x, x + b) + tangent(x, x)

    unit, odd = theta * np.array([0, 1.0, 0]), module._OddKernel(spec, theta)
    for r, s, angle in ((1, 1, 0.0), (1, 1, 0.5), (1, 0.6, 1.2), (0.3, 0.7, 0.1)):
        a, b = r * unit, s * theta * np.array([0, math.cos(angle), math.sin(angle)])
        expected = (kernel(a, b) - kernel(a, -b)) / (2 * kernel(unit, unit))
        np.testing.assert_allclose(odd(r, s, r * s * math.cos(angle)), expected, rtol=2e-5)
    small = module._OddKernel(spec, 1e-6)
    np.testing.assert_allclose(small(0.7, 1, 0.4), cusp(0.7, 1, 0.4), rtol=1e-5)


@pytest.mark.slow
def test_the_rough_start():
    """E(c) by quadrature of the square root of p', with the derivative of p by differences."""
    spec, theta = NetworkSpec(1, 1, 1, 3, 1.5, negative_slope=0.2, block="signed"), 0.4
    share = float(branch_share(spec))

    def correlation(u):
        gates = through(spec, (1 + theta**2 * u) / (1 + theta**2), 3)[1]
        return np.prod([1 - share + share * g for g in gates])

    def root_slope(z):  # u = 1 - z^2, since p' has a root singularity at 1
        u, move = 1 - z**2, 1e-3 * z**2
        return 2 * z * math.sqrt((correlation(u + move) - correlation(u - move)) / (2 * move))

    angle = np.linspace(0, np.pi / 2, 601)
    found = module._rough_start(spec, theta, np.sin(angle), np.cos(angle))
    with jax.enable_x64(True):
        for c in (0.9, 0.5, 0.0):
            nodes = math.sqrt(1 - c**2) * (np.arange(40) + 0.5) / 40
            expected = c * math.sqrt(correlation(c**2)) + math.sqrt(1 - c**2) * np.mean([root_slope(z) for z in nodes])
            np.testing.assert_allclose(np.interp(-c, -np.cos(angle), found), expected, rtol=2e-3)


@pytest.mark.slow
def test_larger_angles():
    """Curves that were found beside trained networks, for both starts, in units of the t* of small angles."""
    for depth, theta, value in ((2, 0.05, 0.506), (2, 0.1, 0.472), (2, 0.3, 0.369), (5, 0.1, 0.565)):
        assert abs(in_units_of_the_cusp(depth, theta, False)(1) - value) < 2e-3
    tau = np.array([0.5, 1, 1.5, 2, 2.5])
    for depth, theta, linear, rough in (
        (1, 0.03, [0.737, 0.501, 0.300, 0.144, 0.073], [0.746, 0.528, 0.353, 0.228, 0.154]),
        (1, 0.1, [0.686, 0.405, 0.178, 0.062, 0.053], [0.707, 0.474, 0.319, 0.239, 0.210]),
        (2, 0.3, [0.665, 0.369, 0.140, 0.062, 0.053], [0.745, 0.596, 0.520, 0.485, 0.469]),
        (4, 0.3, [0.764, 0.553, 0.372, 0.224, 0.114], [0.842, 0.750, 0.690, 0.652, 0.627]),
    ):
        for roughness, values in ((False, linear), (True, rough)):
            np.testing.assert_allclose(in_units_of_the_cusp(depth, theta, roughness)(tau), values, atol=5e-3)
    # where a rough start stalls
    delta = 0.02 / math.pi
    assert abs(training_curve(2, 0.01)(8) / (1.12 * delta**0.5) - 1) < 0.2


def ascend(gradient, project, starts, steps, rate):
    """Projected normalised ascent with shrinking steps, for all starts [M, d] at once."""
    eta = starts
    for step in rate * 0.8 ** np.arange(steps):
        slope = gradient(eta)
        eta = project(eta + step * slope / np.linalg.norm(slope, axis=1, keepdims=True))
    return eta


@pytest.mark.law
def test_simulated_flow():
    """The flow of a function in 30 dimensions, one push a step at +-eta of the best of many starts."""
    rng, d, step, unit = np.random.default_rng(0), 30, 0.01, np.eye(30)[0]
    pushes = np.empty((0, d))

    def distances(eta):
        towards, away = eta[:, None] + pushes, eta[:, None] - pushes
        return [(z, np.sqrt(np.sum(z**2, axis=2) + 1e-18)) for z in (towards, away)]

    def value(eta):
        (_, towards), (_, away) = distances(eta)
        return eta @ unit - step / 4 * np.sum(towards - away, axis=1)

    def gradient(eta):
        (plus, towards), (minus, away) = distances(eta)
        turned = np.sum(plus / towards[..., None] - minus / away[..., None], axis=1)
        sign = np.sign(value(eta))[:, None]
        return sign * (unit - step / 4 * turned)

    def project(eta):
        return eta / np.maximum(1, np.linalg.norm(eta, axis=1, keepdims=True))

    best, found = unit[None], []
    for _ in range(201):
        spread = np.linspace(0.1, 1.5, 12)[:, None] / d**0.5
        starts = project(best + spread * rng.standard_normal((12, d)))
        ends = np.concatenate([best, ascend(gradient, project, starts, 25, 0.2)])
        sizes = np.abs(value(ends))
        found.append(sizes.max())
        best = ends[np.argmax(sizes)][None]
        pushes = np.append(pushes, best * np.sign(value(best)), axis=0)
    tau = np.array([0.25, 0.5, 1, 1.5, 2])
    measured = np.array(found)[np.round(tau / step).astype(int)]
    np.testing.assert_allclose(measured, training_curve(1, 0)(tau), atol=5e-3)
    # a flow that pushed eta alone would be at .241 at tau = 1
    assert abs(measured[2] - 0.241) > 0.2


@pytest.mark.slow
def test_the_cube():
    """Against the table, whose networks on the cube of 100 dimensions had .903, .807, .653, .526, .415, .330."""
    curve = training_curve(1, 0, p=math.inf)
    tau = np.array([0.25, 0.5, 1, 1.5, 2, 2.5])
    np.testing.assert_allclose(curve(tau), [0.898, 0.811, 0.661, 0.536, 0.431, 0.343], atol=7e-4)
    assert curve(0) == 1
    slope = (1 - float(curve(0.05))) / 0.05
    assert 0.4 < slope < 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 0}, "depth: expected a positive integer, got 0"),
        ({"theta": -0.1}, r"theta: expected a number in \[0, 1\], got -0.1"),
        ({"theta": math.nan}, "theta: expected a number"),
        ({"negative_slope": 1.0}, "positive_slope, negative_slope: expected two finite slopes that differ"),
        ({"branch_share": 0.0}, r"branch_share: expected a number in \(0, 1\], got 0.0"),
        ({"p": 3}, "p: expected 2 or inf"),
        ({"p": math.inf}, "theta: expected 0 for p = inf"),
    ],
)
def test_rejects(changes, message):
    with pytest.raises(ValueError, match=message):
        training_curve(**{"depth": 2, "theta": 0.1, **changes})


@pytest.mark.slow
def test_rejects_times_beyond_the_solution():
    curve = training_curve(2, 0.1)
    for tau in (-0.1, np.array([1.0, 8.5]), math.nan):
        with pytest.raises(ValueError, match="tau: expected times in"):
            curve(tau)


@pytest.mark.law
def test_simulated_flow_on_the_cube():
    """In 60 dimensions, signs flipped one by one from the last best and from draws; |J_i| at the nodes of its law."""
    rng, d, step = np.random.default_rng(0), 60, 0.02
    size = ndtri(0.5 + (np.arange(d) + 0.5) / (2 * d))
    size /= size.sum()
    pushes, best, found = np.empty((0, d)), np.ones(d), []

    def value(eta):  # [..., d]
        return eta @ size - step * cusp(1, 1, eta @ pushes.T / d).sum(-1)

    def ascend_by_flips(eta):
        while True:
            flips = np.where(np.eye(d, dtype=bool), -eta, eta)
            gains = value(flips)
            if gains.max() <= value(eta) + 1e-12:
                return eta
            eta = flips[np.argmax(gains)]

    for _ in range(101):
        draws = [np.where(rng.random(d) < rate * (1 - size / size.max()), -1.0, 1.0) for rate in (0.2, 0.4, 0.6)]
        ends = [ascend_by_flips(eta) for eta in (best, *draws)]
        best = max(ends, key=value)
        found.append(value(best))
        pushes = np.append(pushes, [best], axis=0)
    tau = np.array([0.5, 1, 1.5, 2])
    measured = np.array(found)[np.round(tau / step).astype(int)]
    np.testing.assert_allclose(measured, training_curve(1, 0, p=math.inf)(tau), atol=3e-3)
    # the ball's curve falls faster
    assert np.all(measured[1:] - training_curve(1, 0)(tau[1:]) > 0.08)
