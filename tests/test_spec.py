"""The law of a network: what it refuses, and that it is a pytree whose leaves are traced."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mftadv.spec import NetworkSpec, dual_exponent, fold_in_loop, key_for

SHAPE = {"input_dim": 3, "output_dim": 2, "width": 5, "depth": 4}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_dim": 0}, "input_dim: expected a positive integer, got 0"),
        ({"output_dim": -1}, "output_dim: expected a positive integer, got -1"),
        ({"width": 2.0}, "width: expected a positive integer, got 2.0"),
        ({"depth": True}, "depth: expected a positive integer, got True"),
        ({"weight_variance": -1e-9}, "weight_variance: expected a finite number >= 0, got -1e-09"),
        ({"weight_variance": math.nan}, "weight_variance: expected .* got nan"),
        ({"bias_variance": math.inf}, "bias_variance: expected .* got inf"),
        ({"bias_variance": "1"}, "bias_variance: expected .* got '1'"),
        ({"weight_variance": jnp.array([1.0, -1.0])}, "weight_variance: expected"),
        ({"positive_slope": 0.0}, "at least one to be nonzero"),
        ({"positive_slope": jnp.nan}, "positive_slope: expected a finite number, got nan"),
        ({"block": "resnet"}, "block: expected one of vanilla, residual, signed, got 'resnet'"),
    ],
)
def test_refused(change, message):
    with pytest.raises(ValueError, match=message):
        NetworkSpec(**{**SHAPE, **change})


def test_leaves_are_traced_and_shapes_are_not():
    @jax.jit
    @chex.assert_max_traces(n=2)
    def product(spec):
        return spec.weight_variance * spec.width

    assert product(NetworkSpec(**SHAPE, weight_variance=2)) == 10
    assert product(NetworkSpec(**SHAPE, weight_variance=3.0)) == 15
    assert product(NetworkSpec(**{**SHAPE, "width": 6})) == 12  # the second trace
    assert product(NetworkSpec(**{**SHAPE, "width": 6}, weight_variance=1.0)) == 6


@pytest.mark.slow
def test_transformations():
    spec = NetworkSpec(**SHAPE, weight_variance=3.0, bias_variance=0.5)
    gradient = jax.grad(lambda spec: -(spec.weight_variance**2) + spec.bias_variance)(spec)
    assert (gradient.weight_variance, gradient.bias_variance, gradient.positive_slope) == (-6.0, 1.0, 0.0)
    assert gradient.width == 5
    swept = spec.replace(weight_variance=jnp.arange(1.0, 4.0))
    double = jax.vmap(lambda spec: 2 * spec.weight_variance + spec.bias_variance, (swept.in_axes,))(swept)
    np.testing.assert_array_equal(double, [2.5, 4.5, 6.5])
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(spec)]
    assert names == [".weight_variance", ".bias_variance", ".positive_slope", ".negative_slope"]
    assert jax.tree.map(lambda leaf: leaf, spec) == spec
    assert hash(spec) == hash(NetworkSpec(**SHAPE, weight_variance=3, bias_variance=0.5))


def test_repr_shows_numbers_and_shapes():
    assert "weight_variance=2.0, bias_variance=0.0" in repr(NetworkSpec(**SHAPE))
    assert "bias_variance=float32[1000]" in repr(NetworkSpec(**SHAPE, bias_variance=jnp.ones(1000)))
    shown = []
    jax.eval_shape(lambda spec: shown.append(repr(spec)), NetworkSpec(**SHAPE))
    assert "weight_variance=float32[]" in shown[0]


@pytest.mark.usefixtures("unchecked")
def test_replace():
    spec = NetworkSpec(**SHAPE)
    assert spec.replace(width=7, weight_variance=1.5) == NetworkSpec(**{**SHAPE, "width": 7}, weight_variance=1.5)
    with pytest.raises(ValueError, match="widht: expected a field of NetworkSpec"):
        spec.replace(widht=7)
    with pytest.raises(ValueError, match="width: expected a positive integer, got 0"):
        spec.replace(width=0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("key", "message"),
    [
        (0, "got 0"),
        (jax.random.key_data(jax.random.key(0)), "got Array"),
        (NetworkSpec(**SHAPE), "the key comes first"),
        (jax.random.split(jax.random.key(0), 3), r"expected one key, got \[3\] of them; jax.vmap"),
    ],
)
def test_what_is_no_key(key, message):
    with pytest.raises(ValueError, match=f"key: expected .*{message}|key: {message}"):
        key_for("init", key)


@pytest.mark.parametrize("rows", [[[5]], [[5, 7]], [[1, 2], [3, 4], [5, 6]]])
def test_keys_of_a_loop(rows):
    """They are the folded keys, derived in a loop that the compiler keeps."""
    key = jax.random.key(3, impl="threefry4x32")
    derive = jax.jit(lambda key: jax.random.key_data(fold_in_loop(key, rows))).lower(key).compile()
    folded = [functools.reduce(jax.random.fold_in, row, key) for row in rows]
    np.testing.assert_array_equal(derive(key), [jax.random.key_data(each) for each in folded])
    assert " while(" in derive.as_text()


@pytest.mark.parametrize(("p", "dual"), [(1, math.inf), (2, 2.0), (math.inf, 1.0), (3, 1.5), (1.5, 3.0)])
def test_dual_exponent(p, dual):
    assert dual_exponent(p) == pytest.approx(dual)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("p", [0.5, -1, math.nan, True, "2", None])
def test_dual_exponent_refuses(p):
    with pytest.raises(ValueError, match=r"p: expected a number in \[1, inf\]"):
        dual_exponent(p)
