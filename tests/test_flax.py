"""The paper's network as a module of flax, and models of the reader's own, through both of its interfaces."""

import contextlib
import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import mftadv as mf
from mftadv.attack import LinearStarts, SteepestAscent
from mftadv.diagnose import flax_linen, flax_nnx

KEY = jax.random.key(5)
BLOCKS = ("vanilla", "residual", "signed")
QUICK = mf.Attack((LinearStarts(),), (SteepestAscent(12),))
X = np.random.default_rng(0).standard_normal((4, 7)).astype(np.float32)
# the two ways in which nnx walks through a module; older versions have one
MODES = (True, False) if hasattr(nnx, "set_graph_mode") else (True,)


def make_spec(block="signed"):
    return mf.NetworkSpec(7, 3, 16, 2, 1.6, 0.3, 1.0, 0.2, block)


def graph_mode(mode):
    return nnx.set_graph_mode(mode) if hasattr(nnx, "set_graph_mode") else contextlib.nullcontext()


def assert_equal(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS)
def test_the_modules_are_the_network_both_ways(block):
    spec = make_spec(block)
    net = jax.jit(mf.init)(KEY, spec)  # under jit the variances and slopes come back as arrays
    expected = mf.apply(net, X)
    variables, module = flax_linen.from_network(net), flax_nnx.from_network(net)
    model = flax_linen.RandomNetwork(spec)
    for x, y in ((X, expected), (X[0], expected[0])):
        for output in (model.apply(variables, x), module(x)):
            np.testing.assert_allclose(output, y, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(jax.jit(model.apply)(variables, X), jax.jit(mf.apply)(net, X))
    assert_equal(flax_linen.to_network(spec, variables), dataclasses.replace(net, spec=spec))
    assert_equal(flax_nnx.to_network(module), net)
    assert hash(nnx.graphdef(module)) == hash(nnx.graphdef(flax_nnx.from_network(net)))


class Rng(nn.Module):
    @nn.compact
    def __call__(self):
        return self.make_rng("params")


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS)
def test_the_draw_is_that_of_init_with_the_rng_of_the_module(block):
    spec = make_spec(block)
    old = jax.random.PRNGKey(2)  # what most code for flax passes
    typed = jax.random.wrap_key_data(old)
    drawn = mf.init(Rng().apply({}, rngs={"params": typed}), spec)
    variables = flax_linen.RandomNetwork(spec).init(typed, X)
    assert_equal(variables, flax_linen.from_network(drawn))
    assert_equal(flax_linen.RandomNetwork(spec).init(old, X), variables)
    assert_equal(flax_linen.RandomNetwork(spec).lazy_init(old, X), variables)
    for key in (typed, old):
        drawn = mf.init(nnx.Rngs(params=typed).params(), spec)
        module = flax_nnx.RandomNetwork(spec, rngs=nnx.Rngs(params=key))
        assert_equal(flax_nnx.to_network(module), drawn)


@pytest.mark.slow
def test_one_vmap_is_over_seeds():
    spec = make_spec()
    model, keys = flax_linen.RandomNetwork(spec), jax.random.split(KEY, 3)
    many = jax.jit(jax.vmap(lambda key: model.init(key, X)))(keys)
    outputs = jax.jit(jax.vmap(lambda variables: model.apply(variables, X)))(many)
    for i in range(3):
        alone = model.init(keys[i], X)
        np.testing.assert_allclose(outputs[i], model.apply(alone, X), rtol=1e-5, atol=1e-6)
    for mode in MODES:
        with graph_mode(mode):

            def draw(key):
                return nnx.split(flax_nnx.RandomNetwork(spec, rngs=nnx.Rngs(params=key)))[1]

            definition = nnx.graphdef(flax_nnx.RandomNetwork(spec, rngs=nnx.Rngs(0)))
            states = jax.vmap(draw)(keys)
            outputs = jax.jit(jax.vmap(lambda state, of=definition: nnx.merge(of, state)(X)))(states)
            for i in range(3):
                alone = flax_nnx.RandomNetwork(spec, rngs=nnx.Rngs(params=keys[i]))
                np.testing.assert_allclose(outputs[i], alone(X), rtol=1e-5, atol=1e-6)


class Two(nn.Module):
    @nn.compact
    def __call__(self, x):
        return flax_linen.RandomNetwork(make_spec())(x) + flax_linen.RandomNetwork(make_spec())(x)


class TwoNnx(nnx.Module):
    def __init__(self, rngs):
        self.one, self.other = (flax_nnx.RandomNetwork(make_spec(), rngs=rngs) for _ in range(2))

    def __call__(self, x):
        return self.one(x) + self.other(x)


@pytest.mark.slow
def test_a_module_may_be_part_of_another():
    variables = Two().init(KEY, X)
    names = ("RandomNetwork_0", "RandomNetwork_1")
    parts = [{collection: variables[collection][name] for collection in ("params", "frozen")} for name in names]
    one, other = (flax_linen.to_network(make_spec(), part) for part in parts)
    np.testing.assert_allclose(Two().apply(variables, X), mf.apply(one, X) + mf.apply(other, X), rtol=1e-5)
    assert np.all(one.params.weights[0].entries != other.params.weights[0].entries)
    whole = TwoNnx(nnx.Rngs(0))
    one, other = flax_nnx.to_network(whole.one), flax_nnx.to_network(whole.other)
    np.testing.assert_allclose(whole(X), mf.apply(one, X) + mf.apply(other, X), rtol=1e-5)
    assert np.all(one.params.weights[0].entries != other.params.weights[0].entries)


@pytest.mark.slow
def test_an_optimiser_trains_what_the_paper_trains():
    """A step of gradient descent is that of mf.apply on net.params, and nothing else moves."""
    spec = make_spec()
    net, rate = mf.init(KEY, spec), 0.1

    def loss(outputs):
        return jnp.mean(outputs**2)

    gradient = jax.grad(lambda params: loss(mf.apply(dataclasses.replace(net, params=params), X)))(net.params)
    expected = jax.tree.map(lambda value, slope: value - rate * slope, net.params, gradient)

    model, variables, optimiser = flax_linen.RandomNetwork(spec), flax_linen.from_network(net), optax.sgd(rate)
    params, frozen = variables["params"], variables["frozen"]
    gradient = jax.grad(lambda params: loss(model.apply({"params": params, "frozen": frozen}, X)))(params)
    updates, _ = optimiser.update(gradient, optimiser.init(params), params)
    trained = [flax_linen.to_network(spec, {"params": optax.apply_updates(params, updates), "frozen": frozen})]

    module = flax_nnx.from_network(net)
    gradient = nnx.grad(lambda module: loss(module(X)))(module)
    nnx.Optimizer(module, optimiser, wrt=nnx.Param).update(module, gradient)
    trained.append(flax_nnx.to_network(module))
    for network in trained:
        assert_equal(network.frozen, net.frozen)
        for a, b in zip(jax.tree.leaves(network.params), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert not np.array_equal(trained[0].params.biases[0], net.params.biases[0])


NAMES = ("embedding", "layer_1", "layer_2", "readout")


def forward(layers, x):
    """h -> P_out h_L of a vanilla ReLU network, by layers of flax."""
    h = layers["embedding"](x)
    for name in ("layer_1", "layer_2"):
        h = jax.nn.relu(layers[name](h))
    return layers["readout"](h)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        layers = {name: nn.Dense(16, name=name) for name in NAMES[:-1]} | {"readout": nn.Dense(3, name="readout")}
        return forward(layers, nn.Dropout(0.5, deterministic=True)(x))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        for name, size, of in zip(NAMES, (7, 16, 16, 16), (16, 16, 16, 3), strict=True):
            setattr(self, name, nnx.Linear(size, of, rngs=rngs))
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return forward({name: getattr(self, name) for name in NAMES}, self.dropout(x))


def kernels_of(net):
    """Kernels are transposed, W_l^T, and every layer has a bias."""
    matrices = [np.asarray(matrix.entries).T for matrix in net.matrices]
    biases = [np.zeros(16, np.float32), *net.params.biases, np.zeros(3, np.float32)]
    return {name: {"kernel": k, "bias": b} for name, k, b in zip(NAMES, matrices, biases, strict=True)}


def linen_function(net):
    variables = {"params": kernels_of(net)}
    return lambda x: Linen().apply(variables, x)


def nnx_function(net):
    model = Nnx(nnx.Rngs(0))
    for name, values in kernels_of(net).items():
        getattr(model, name).kernel[...], getattr(model, name).bias[...] = values["kernel"], values["bias"]
    model.eval()
    graphdef, state = nnx.split(model)
    return lambda x: nnx.merge(graphdef, state)(x)


@pytest.mark.slow
@pytest.mark.parametrize(("make", "mode"), [(linen_function, True), *((nnx_function, mode) for mode in MODES)])
def test_a_model_of_the_readers_own_is_a_plain_function(make, mode):
    spec = mf.NetworkSpec(7, 3, 16, 2, 1.6, 0.3)
    net = mf.init(KEY, spec)
    with graph_mode(mode):
        function = make(net)
        found = jax.jit(lambda x: mf.linear_representation(function, x))(X)
        loss = jax.jit(lambda x: mf.adversarial_loss(function, x, 0.5, 2, 2, KEY, QUICK))(X)
    expected = mf.linear_representation(net, X)
    np.testing.assert_allclose(found.jacobian, expected.jacobian, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.shift, expected.shift, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.output, mf.apply(net, X), rtol=1e-4, atol=1e-5)
    of_network = jax.jit(lambda net, x: mf.adversarial_loss(net, x, 0.5, 2, 2, KEY, QUICK).value)(net, X)
    np.testing.assert_allclose(loss.value, of_network, rtol=1e-2)
    difference = mf.apply(net, X + loss.perturbation) - mf.apply(net, X)
    np.testing.assert_allclose(loss.value, np.linalg.norm(difference, axis=1), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_what_is_no_network_is_refused():
    spec = make_spec()
    matrix_free = mf.init(KEY, spec, "matrix_free", (1, 1))
    for convert in (flax_linen.from_network, flax_nnx.from_network):
        with pytest.raises(ValueError, match="network: expected dense matrices"):
            convert(matrix_free)
    model, variables = flax_linen.RandomNetwork(spec), flax_linen.from_network(mf.init(KEY, spec))
    with pytest.raises(ValueError, match=r"embedding \(frozen\): expected shape \[16, 7\], got no such array"):
        model.apply({"params": variables["params"]}, X)
    with pytest.raises(ValueError, match=r"sign_1 \(frozen\): expected no such array, got shape \[16\]"):
        flax_linen.to_network(make_spec("vanilla"), variables)
    narrow = variables["params"] | {"bias_1": jnp.zeros(15)}
    with pytest.raises(ValueError, match=r"bias_1 \(trained\): expected shape \[16\], got shape \[15\]"):
        model.apply({**variables, "params": narrow}, X)


@pytest.mark.slow
def test_the_code_of_the_page_runs():
    page = (Path(__file__).parent.parent / "docs" / "flax.md").read_text()
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "flax.md", "exec"), names)
    assert names["y"].shape == names["z"].shape == (5, 3)
    for output in names["outputs"]:
        np.testing.assert_allclose(output, mf.apply(names["net"], names["x"]), rtol=1e-5, atol=1e-6)
    expected = jax.jacrev(lambda x: names["mlp"].apply(names["weights"], x))(names["x"][0])
    np.testing.assert_allclose(names["rep"].jacobian[0], expected, rtol=1e-4, atol=1e-5)
    moved = names["mine"](names["x"] + names["found"].perturbation) - names["mine"](names["x"])
    np.testing.assert_allclose(names["found"].value, np.linalg.norm(moved, axis=1), rtol=1e-3)
