"""Exact adversarial losses against enumeration of all linear regions, search of the ball, and norms by formula."""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize
from scipy.optimize import linprog

from mftadv.attack import exact_adversarial_loss
from mftadv.matrices import DenseMatrix
from mftadv.network import Frozen, Network, Params, init
from mftadv.spec import NetworkSpec
from tests import reference

BLOCKS = ("vanilla", "residual", "signed")
SLOPES = ((1.0, 0.0), (1.0, 0.3), (0.2, 1.0), (1.0, -0.5))
NORMS = tuple(itertools.product((1.0, math.inf), repeat=2))


def draw(seed, block="vanilla", d=2, K=2, N=3, L=2, s=2.0, b2=0.3, u=1.0, v=0.0):
    """A network in float64, and an input."""
    rng = np.random.default_rng(seed)
    spec = NetworkSpec(d, K, N, L, s, b2, u, v, block)
    nets = reference.draw(rng, spec, 1)
    params = Params(tuple(DenseMatrix(weight[0]) for weight in nets.weights), tuple(bias[0] for bias in nets.biases))
    signs = tuple(sign[0] for sign in nets.signs) if block == "signed" else ()
    frozen = Frozen(DenseMatrix(nets.p_in[0]), DenseMatrix(nets.p_out[0]), signs)
    return Network(params, frozen, spec), rng.standard_normal(d)


def losses(net, x, etas, q):
    """|f(x + eta) - f(x)|_q for each of etas [M, d], by subtraction."""
    outputs = reference.forward(reference.of_network(net, len(etas)), x + etas)[0]
    return np.linalg.norm(outputs - reference.forward(reference.of_network(net), x)[0], q, axis=-1)


def frozen_gates(net, x):
    """J(x) [K, d]."""
    return reference.linear_representation(reference.of_network(net), x)[0][0]


def linear_loss(jacobian, eps, p, q):
    """eps |J|_{p -> q} by formula, or from the corners of the cube."""
    corners = np.array(list(itertools.product((-1.0, 1.0), repeat=jacobian.shape[1])))
    etas = np.eye(jacobian.shape[1]) if p == 1 else corners
    return eps * np.linalg.norm(etas @ jacobian.T, q, axis=1).max()


class Region(NamedTuple):
    """All points with rows @ eta <= limits, on which f = matrix eta + shift."""

    matrix: np.ndarray
    shift: np.ndarray
    rows: np.ndarray
    limits: np.ndarray


def maximise(cost, region, eps, p):
    """The maximum of cost . eta over the ball within the region, None where that is empty; eta = plus - minus."""
    d = len(cost)
    rows, limits = np.hstack([region.rows, -region.rows]), region.limits
    if p == 1:
        rows, limits = np.vstack([rows, np.ones(2 * d)]), np.append(limits, eps)
    solution = linprog(-np.concatenate([cost, -cost]), rows, limits, bounds=(0, eps))
    return None if solution.status == 2 else -solution.fun


def regions(net, x, eps, p):
    """The linear regions that meet the ball: one pattern of gates at a time."""
    spec, (_, p_in, weights, biases, signs, p_out) = net.spec, reference.of_network(net)
    width, d, found = spec.width, spec.input_dim, []
    for pattern in itertools.product((1, -1), repeat=width * spec.depth):
        h, c = p_in[0], p_in[0] @ x  # h_l = h eta + c
        rows, limits = [], []
        for i, (weight, bias, sign) in enumerate(zip(weights, biases, signs, strict=True)):
            side = np.array(pattern[i * width : (i + 1) * width])
            z, r = weight[0] @ h, weight[0] @ c + bias[0]
            rows, limits = [*rows, -side[:, None] * z], [*limits, side * r]
            slope = sign[0] * np.where(side > 0, float(spec.positive_slope), float(spec.negative_slope))
            keep = float(spec.block != "vanilla")
            h, c = keep * h + slope[:, None] * z, keep * c + slope * r
        region = Region(p_out[0] @ h, p_out[0] @ c, np.vstack(rows), np.concatenate(limits))
        if maximise(np.zeros(d), region, eps, p) is not None:
            found.append(region)
    return found


def enumerated_loss(net, x, eps, p, q, regions):
    base, K = reference.forward(reference.of_network(net), x)[0][0], net.spec.output_dim
    cotangents = [*np.eye(K), *-np.eye(K)] if q == math.inf else itertools.product((1.0, -1.0), repeat=K)
    best = 0.0
    for cotangent, region in itertools.product(np.array(list(cotangents)), regions):
        found = maximise(cotangent @ region.matrix, region, eps, p)
        best = max(best, -math.inf if found is None else found + cotangent @ (region.shift - base))
    return best


def ball(rng, d, eps, p, size):
    """Points of the ball: its corners, its faces, its inside."""
    points = rng.uniform(-1, 1, (size, d)) if p == math.inf else rng.dirichlet(np.ones(d), size)
    corners = np.array(list(itertools.product((-1.0, 1.0), repeat=d)))
    if p == 1:
        points, corners = points * rng.choice([-1.0, 1.0], (size, d)), np.vstack([np.eye(d), -np.eye(d)])
    faces = points / np.linalg.norm(points, p, axis=1, keepdims=True)
    inside = rng.uniform(0, 1, (size, 1)) ** (1 / d) * faces
    return eps * np.vstack([corners, faces, inside])


def check(net, x, eps, p, q):
    """Solve, and see that the perturbation is in the ball and attains the value, to rounding, and that it is proven."""
    exact = exact_adversarial_loss(net, x, eps, p, q)
    assert exact.perturbation.shape == x.shape
    assert np.linalg.norm(exact.perturbation, p) <= eps * (1 + 1e-12)
    rounding = 1e-14 * reference.forward(reference.of_network(net), x)[0].max()
    np.testing.assert_allclose(
        losses(net, x, exact.perturbation[None], q)[0], exact.value, rtol=1e-11, atol=10 * abs(rounding)
    )
    assert exact.value <= exact.bound <= exact.value * (1 + 1e-5) + 1e-12 * eps
    return exact


@pytest.mark.parametrize("p", [1.0, math.inf])
@pytest.mark.parametrize("slopes", SLOPES)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.slow
def test_is_the_best_of_all_linear_regions(block, slopes, p):
    net, x = draw(1, block, u=slopes[0], v=slopes[1])
    eps = 1.5 * float(np.linalg.norm(x, p))
    found = regions(net, x, eps, p)
    assert len(found) > 3
    for q in (1.0, math.inf):
        exact = check(net, x, eps, p, q)
        np.testing.assert_allclose(exact.value, enumerated_loss(net, x, eps, p, q, found), rtol=2e-6)


@pytest.mark.parametrize("p", [1.0, math.inf])
@pytest.mark.parametrize(("N", "L", "K", "d"), [(4, 2, 3, 3), (2, 4, 2, 3), (8, 1, 1, 2), (1, 5, 4, 1)])
@pytest.mark.slow
def test_is_the_best_of_all_linear_regions_in_other_shapes(N, L, K, d, p):
    net, x = draw(2, "signed", d, K, N, L, u=0.7, v=-0.4)
    eps = float(np.linalg.norm(x, p))
    found = regions(net, x, eps, p)
    for q in (1.0, math.inf):
        exact = check(net, x, eps, p, q)
        np.testing.assert_allclose(exact.value, enumerated_loss(net, x, eps, p, q, found), rtol=2e-6)


@pytest.mark.parametrize(("p", "q"), NORMS)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.slow
def test_no_point_of_the_ball_does_better(block, p, q):
    net, x = draw(3, block, 3, 2, 4, 3)
    rng = np.random.default_rng(0)
    for eps in (0.1, 1.0, 10.0):
        exact = check(net, x, eps, p, q)
        searched = losses(net, x, ball(rng, 3, eps, p, 20_000), q).max()
        assert 0.9 * exact.value <= searched <= exact.value * (1 + 1e-9)


@pytest.mark.slow
def test_the_largest_networks_as_they_are_drawn():
    net, x = init(jax.random.key(0), NetworkSpec(6, 3, 10, 3, 2.0, 0.3, block="residual")), np.linspace(-1, 1, 6)
    eps = 0.5 * float(np.linalg.norm(x, 1))
    exact = check(net, x, eps, 1.0, math.inf)
    searched = losses(net, x, ball(np.random.default_rng(0), 6, eps, 1.0, 20_000), math.inf).max()
    assert 0.5 * exact.value <= searched <= exact.value * (1 + 1e-9)


@pytest.mark.parametrize(("p", "q"), NORMS)
@pytest.mark.parametrize("block", BLOCKS)
def test_a_linear_network_has_the_operator_norm(block, p, q):
    net, x = draw(4, block, 4, 3, 10, 3, u=0.8, v=0.8)
    exact = check(net, x, 0.7, p, q)
    np.testing.assert_allclose(exact.value, linear_loss(frozen_gates(net, x), 0.7, p, q), rtol=1e-9)


def test_the_formulas_of_operator_norms():
    jacobian = np.array([[1.0, -2.0], [3.0, 0.5]])
    norms = [linear_loss(jacobian, 2.0, p, q) for p, q in ((1, 1), (1, math.inf), (math.inf, math.inf), (math.inf, 1))]
    assert norms == [8.0, 6.0, 7.0, 11.0]


@pytest.mark.parametrize(("p", "q"), NORMS)
@pytest.mark.slow
def test_gates_frozen_at_x_are_not_the_loss(p, q):
    """The twin that must fail: a network that is taken to be linear."""
    wrong = []
    for seed in range(8):
        net, x = draw(seed, BLOCKS[seed % 3], 3, 2, 4, 2, v=-0.5)
        eps = float(np.linalg.norm(x, p))
        exact = check(net, x, eps, p, q).value
        wrong.append(abs(linear_loss(frozen_gates(net, x), eps, p, q) - exact) > 1e-2 * exact)
    assert sum(wrong) >= 6


@pytest.mark.parametrize(("p", "q"), NORMS)
@pytest.mark.slow
def test_grows_with_eps_and_scales_with_the_input_without_biases(p, q):
    net, x = draw(5, "residual", 3, 2, 4, 2, b2=0.0)
    values = [check(net, x, eps, p, q).value for eps in (0.0, 0.3, 1.0, 3.0)]
    assert values[0] == 0
    assert np.all(np.diff(values) > 0)
    for scale in (1e-5, 7.0, 1e5):
        np.testing.assert_allclose(check(net, scale * x, scale, p, q).value, scale * values[2], rtol=2e-6)


@pytest.mark.parametrize("scale", [1e-5, 1e5])
@pytest.mark.parametrize(("p", "q"), NORMS)
def test_weights_and_biases_of_any_scale(scale, p, q):
    net, x = draw(6, "vanilla", 3, 2, 4, 2)
    value = exact_adversarial_loss(net, x, 1.0, p, q).value
    # h_l -> c^l h_l, for weights c W_l and biases c^l b_l
    weights = jax.tree.map(lambda w: scale * w, net.params.weights)
    biases = tuple(scale ** (i + 1) * bias for i, bias in enumerate(net.params.biases))
    scaled = Network(Params(weights, biases), net.frozen, net.spec)
    np.testing.assert_allclose(exact_adversarial_loss(scaled, x, 1.0, p, q).value, scale**2 * value, rtol=2e-6)


@pytest.mark.parametrize(("p", "q"), NORMS)
@pytest.mark.slow
def test_a_ball_far_smaller_or_larger_than_the_input(p, q):
    net, x = draw(7, "signed", 3, 2, 4, 3)
    for size, eps in ((1.0, 1e-6), (1e6, 1e-6)):  # no gate within reach
        exact = exact_adversarial_loss(net, size * x, eps, p, q)
        np.testing.assert_allclose(exact.value, linear_loss(frozen_gates(net, size * x), eps, p, q), rtol=1e-9)
    # to the ball, x is the origin: the loss there, with a relative error of the order of |x|/eps
    origin = exact_adversarial_loss(net, 0 * x, 1e6, p, q)
    np.testing.assert_allclose(check(net, 1e-6 * x, 1e6, p, q).value, origin.value, rtol=2e-6)


@pytest.mark.slow
def test_gates_exactly_at_zero():
    for block, (p, q) in itertools.product(BLOCKS, NORMS):
        net, x = draw(8, block, 3, 2, 3, 2, b2=0.0)
        exact = check(net, 0 * x, 1.0, p, q)
        assert exact.value > 0
        assert losses(net, 0 * x, ball(np.random.default_rng(0), 3, 1.0, p, 5000), q).max() <= exact.value * (1 + 1e-9)


@pytest.mark.parametrize(("p", "q"), NORMS)
def test_a_constant_function_has_none(p, q):
    net, x = draw(9, "vanilla", 3, 1, 4, 2)
    dead = Network(net.params._replace(biases=(-100 * np.ones(4), *net.params.biases[1:])), net.frozen, net.spec)
    exact = exact_adversarial_loss(dead, x, 1.0, p, q)
    assert exact.value == exact.bound == 0
    # gates that move, and cancel in the output
    twice = jax.tree.map(lambda w: np.repeat(w[:2], 2, axis=0), (net.frozen.embedding, net.params))
    readout = jax.tree.map(lambda w: np.array([[1.0, -1.0, 2.0, -2.0]]), net.frozen.readout)
    frozen = net.frozen._replace(embedding=twice[0], readout=readout)
    exact = exact_adversarial_loss(Network(twice[1], frozen, net.spec), x, 1.0, p, q)
    assert exact.value <= exact.bound <= 1e-7


def test_what_the_solver_does_not_prove_is_an_error(monkeypatch):
    net, x = draw(0)
    solve = optimize.milp

    def stopped(*args, **kwargs):
        solution = solve(*args, **kwargs)
        solution.status, solution.message = 1, "Time limit reached"
        return solution

    def loose(*args, **kwargs):
        solution = solve(*args, **kwargs)
        if solution.mip_dual_bound is not None:
            solution.mip_dual_bound *= 1.01
        return solution

    for solver, message in ((stopped, "HiGHS: expected an optimum, got Time limit"), (loose, "bound: expected within")):
        monkeypatch.setattr(optimize, "milp", solver)
        with pytest.raises(RuntimeError, match=message):
            exact_adversarial_loss(net, x, 1.0, 1, 1)


def batch(net):
    return jax.tree.map(lambda leaf: np.stack([leaf, leaf]), net)


def with_nan(net):
    return Network(net.params._replace(biases=(np.full(3, np.nan), *net.params.biases[1:])), net.frozen, net.spec)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net, x: (jnp.sin, x, 1.0, 1, 1), "net: expected a Network, got "),
        (
            lambda net, x: (init(jax.random.key(0), net.spec, "matrix_free", (2, 2)), x, 1.0, 1, 1),
            "net: expected dense matrices, got MatrixFree",
        ),
        (lambda net, x: (batch(net), x, 1.0, 1, 1), r"net: expected one network, .* \(3, 1, 1\) dimensions"),
        (lambda net, x: (with_nan(net), x, 1.0, 1, 1), "net: expected finite entries"),
        (lambda net, x: (draw(0, N=8, L=4)[0], x, 1.0, 1, 1), r"net: expected width \* depth <= 30 .* got 8 \* 4"),
        (lambda net, x: (draw(0, d=7)[0], np.ones(7), 1.0, 1, 1), "net: expected .* d <= 6, got .* 7"),
        (lambda net, x: (net, x, 1.0, 2, 1), "p: expected 1 or inf, got 2"),
        (lambda net, x: (net, x, 1.0, 1, "inf"), "q: expected 1 or inf, got 'inf'"),
        (lambda net, x: (net, x, -1.0, 1, 1), "eps: expected a finite number >= 0, got -1.0"),
        (lambda net, x: (net, x, math.inf, 1, 1), "eps: expected a finite number >= 0, got inf"),
        (lambda net, x: (net, x, math.nan, 1, 1), "eps: expected a finite number >= 0, got nan"),
        (lambda net, x: (net, x[None], 1.0, 1, 1), r"x: expected finite numbers \[2\], got \[1, 2\]"),
        (lambda net, x: (net, x * math.nan, 1.0, 1, 1), r"x: expected finite numbers \[2\], got \[nan, nan\]"),
    ],
)
@pytest.mark.slow
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        exact_adversarial_loss(*call(*draw(0)))
