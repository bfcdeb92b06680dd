"""Sweeps that a file describes: what is refused, and theory beside the built-in statistics."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mftadv import theory
from mftadv.attack import capacity_for
from mftadv.experiments import SweepFile, sweep_file
from mftadv.linear import linear_representation
from mftadv.network import init
from mftadv.spec import NetworkSpec

GOOD = """
statistic = "jacobian"
networks = 20
[network]
input_dim = 3
output_dim = 2
width = 6
bias_variance = 0.1
[grid]
depth = [1, 2]
p = [1, inf]
"""


def read(tmp_path, text):
    (tmp_path / "sweep.toml").write_text(text)
    return SweepFile.read(tmp_path / "sweep.toml")


def test_what_is_read(tmp_path):
    found = read(tmp_path, GOOD)
    assert found.spec == NetworkSpec(3, 2, 6, 1, bias_variance=0.1)  # the grid's first value where it names a field
    assert (found.networks, found.target, found.seed, found.x64) == (20, None, 0, False)
    assert dict(found.grid) == {"depth": [1, 2], "p": [1, math.inf]}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"jacobian"', '"jacobin"', "statistic: expected one of jacobian, adversarial_loss, got 'jacobin'"),
        ('"jacobian"', "3", "statistic: expected one of"),
        ("networks", "network_s", "file: expected .* got network_s"),
        ("[grid]", "[grid", "file: expected a TOML file"),
        ("depth = [1, 2]", "depth = 3", "grid: expected a list of values for depth, got 3"),
        ("depth = [1, 2]", "depth = []", "grid: expected a list of values for depth"),
        ("depth = [1, 2]", "eps = [0.1]", "grid: expected .* got eps"),
        ("width = 6", "width = 0", "width: expected a positive integer, got 0"),
        ("width = 6", "wdth = 6", "network: expected .* got wdth"),
        ("[grid]\ndepth = [1, 2]\np = [1, inf]", "", r"grid: expected a table \[grid\]"),
    ],
)
def test_what_is_refused(tmp_path, old, new, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ValueError, match="file: expected a TOML file"):
        SweepFile.read(tmp_path / "absent.toml")


@pytest.mark.slow
def test_the_jacobian_with_its_theory(tmp_path):
    found = read(tmp_path, GOOD.replace("depth = [1, 2]\np = [1, inf]", "depth = [2]\np = [1]")).run()
    spec = NetworkSpec(3, 2, 6, 2, bias_variance=0.1)
    at = found.sel(depth=2, p=1.0)
    keys = jax.vmap(lambda i: jax.random.fold_in(sweep_file.fastest_key(0), i))(jnp.arange(20))
    capacity = capacity_for(spec, linear_representation=1)

    @jax.jit
    def represented(key):
        rep = linear_representation(init(key, spec, "auto", capacity), jnp.ones(3))
        return rep.jacobian, rep.shift

    J, shifts = (np.stack(each) for each in zip(*map(represented, keys), strict=True))
    assert float(at["jacobian_variance"]) == pytest.approx(np.mean(J**2), rel=1e-5)
    assert float(at["shift_variance"]) == pytest.approx(np.mean(shifts**2), rel=1e-5)
    assert float(at["norm"]) == pytest.approx(np.mean(np.linalg.norm(J, axis=1).max(-1)), rel=1e-5)
    singular = np.linalg.svd(J, compute_uv=False).mean(0)
    np.testing.assert_allclose(at["singular_values"], singular, rtol=1e-4)
    assert float(at["theory_jacobian_variance"]) == pytest.approx(float(theory.jacobian_variance(spec)), rel=1e-6)
    chevet = float(theory.operator_norm_coefficient(1, 2, 3, 2)) * math.sqrt(3 * float(theory.jacobian_variance(spec)))
    assert float(at["theory_norm_chevet"]) == pytest.approx(chevet, rel=1e-6)


@pytest.mark.slow
def test_the_loss_is_below_its_bound(tmp_path):
    text = GOOD.replace('"jacobian"', '"adversarial_loss"').replace("depth = [1, 2]", "eps = [0.1, 0.2]")
    found = read(tmp_path, text.replace("p = [1, inf]", 'attack = ["frugal"]')).run()
    loss = found["loss"].values.ravel()
    assert np.all(loss > 0.9 * found["norm"].values.ravel() * [0.1, 0.2])
    assert np.all(loss < found["theory_loss_at_width"].values.ravel())
    np.testing.assert_allclose(np.diff(found["theory_loss_chevet"].values.ravel()), found["theory_loss_chevet"][0, 0])
