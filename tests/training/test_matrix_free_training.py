"""Training without matrices: all products together determine matrices, and these were trained entry by entry."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import mftadv as mf
from mftadv import training
from mftadv.attack import PowerMethod, RandomStarts
from mftadv.matrices import DenseMatrix, matrix_free_gaussian, noise_size
from mftadv.training import _train
from tests.training.attacks import CHEAP

KEY = jax.random.key(7)


@jax.jit
def interleaved(matrix, v, g, weights):
    """Products before and after each of three updates along queried vectors, the updates' sizes, and all entries."""
    records = []
    for t in range(3):
        matrix, forward = matrix.matvec(v[t])
        matrix, backward = matrix.rmatvec(g[t])
        # combinations of vectors of this and of earlier queries
        left, right = weights[t] @ jnp.concatenate(g[: t + 1]), weights[t] @ jnp.concatenate(v[: t + 1])
        update = matrix.rank_one_update(left, right)
        matrix = update.matrix
        records.append((forward, backward, left.T @ right, update.norm_change, update.size))
    matrix, entries = matrix.matvec(jnp.eye(v[0].shape[1]))
    return records, entries.T, matrix.law_exact


@pytest.mark.parametrize("shape", [(7, 5), (6, 6)])
@pytest.mark.slow
def test_products_and_norms_are_those_of_a_matrix_that_is_updated(shape):
    (m, n), rng = shape, np.random.default_rng(0)
    with jax.enable_x64(True):
        matrix = matrix_free_gaussian(jnp.asarray(rng.standard_normal(noise_size(shape, (n, m)))), shape, 1.7, (n, m))
        v, g = (tuple(jnp.asarray(rng.standard_normal((2, size))) for _ in range(3)) for size in (n, m))
        weights = tuple(jnp.asarray(rng.standard_normal((2, 2 * t + 2))) for t in range(3))
        records, W, law_exact = jax.tree.map(np.asarray, interleaved(matrix, v, g, weights))
        assert law_exact
        for *_, update, norm_change, size in records[::-1]:
            assert norm_change == pytest.approx(np.sum(W**2) - np.sum((W - update) ** 2), rel=1e-11, abs=1e-11)
            assert size == pytest.approx(np.sum(np.square(update)), rel=1e-12)
            W = W - update
        for t, (forward, backward, update, *_) in enumerate(records):
            np.testing.assert_allclose(forward, v[t] @ W.T, rtol=0, atol=1e-11)
            np.testing.assert_allclose(backward, g[t] @ W, rtol=0, atol=1e-11)
            dense = DenseMatrix(jnp.asarray(W)).rank_one_update(jnp.eye(m), jnp.asarray(update))
            np.testing.assert_allclose(dense.matrix.entries, W := W + update, rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.slow
def test_an_update_along_what_was_not_queried_is_no_law(side):
    @jax.jit
    def law_exact(shift):
        matrix = matrix_free_gaussian(jax.random.normal(KEY, (noise_size((6, 6), (2, 2)),)), (6, 6), 1.0, (2, 2))
        vectors = {"right": jnp.ones((1, 6)), "left": jnp.ones((1, 6))}
        matrix, _ = matrix.matvec(vectors["right"])
        matrix, _ = matrix.rmatvec(vectors["left"])
        vectors[side] = vectors[side].at[0, 0].add(shift)
        return matrix.rank_one_update(**vectors).matrix.law_exact

    assert law_exact(0.0)
    assert law_exact(1e-6)
    assert not law_exact(1e-3)


def configuration(warm, loss="squared", adversarial="paper", **changes):
    attack = mf.Attack((RandomStarts(2),), (PowerMethod(1),)) if warm else CHEAP
    options = {"standard_loss": loss, "adversarial": adversarial, "attack": attack, "warm_start": warm, **changes}
    return training.TrainingConfig(4, 0.05, 0.4, evaluate_every=2, **options)


@functools.partial(jax.jit, static_argnames="engine")
def trained(spec, data, config, engine):
    """The record, and of a matrix-free network also the entries before the training."""
    if engine == "dense":
        return mf.train(KEY, spec, data, config)
    record = mf.train(KEY, spec, data, config, engine=engine)
    weights = []
    for matrix in record.network.params.weights:
        whole, entries = matrix.matvec(jnp.eye(spec.width))
        learnt = whole.outputs.directions.T @ whole.core @ whole.inputs.directions
        weights.append(DenseMatrix(entries.T - learnt))
    embedding, readout = (
        DenseMatrix(matrix.matvec(jnp.eye(size))[1].T)
        for matrix, size in (
            (record.network.frozen.embedding, spec.input_dim),
            (record.network.frozen.readout, spec.width),
        )
    )
    return record, (embedding, readout, tuple(weights))


@pytest.mark.parametrize(
    ("block", "output_dim", "width", "depth", "bias_variance", "config"),
    [
        ("vanilla", 1, 100, 1, 0.0, configuration(True, None)),  # of more dimensions than queries
        ("signed", 3, 9, 2, 0.3, configuration(False, "cross_entropy", "madry")),
    ],
    ids=["paper-warm", "madry-signed-biases"],
)
@pytest.mark.slow
def test_the_record_is_that_of_the_dense_network_it_turns_out_to_be(
    block, output_dim, width, depth, bias_variance, config, monkeypatch
):
    """All entries of the matrices before the training follow from all products; trained densely they do the same."""
    with jax.enable_x64(True):
        spec = mf.NetworkSpec(5, output_dim, width, depth, 1.5, bias_variance, 1.0, 0.1, block)
        rng = np.random.default_rng(1)
        data = jnp.asarray(rng.standard_normal((2, 5))), jnp.arange(2, dtype=jnp.int32)
        record, (embedding, readout, weights) = trained(spec, data, config, "matrix_free")
        assert record.network.law_exact
        ranks = max(max(matrix.inputs.rank, matrix.outputs.rank) for matrix in record.network.params.weights)
        assert ranks <= max(training.queries_of_training(spec, config, 2, 2))
        assert (ranks < width) == (width == 100)
        network = mf.init(KEY, spec)  # biases and signs are drawn alike by both engines
        frozen = network.frozen._replace(embedding=embedding, readout=readout)

        @jax.jit
        def densely(network):
            monkeypatch.setattr(_train.networks, "init", lambda *_: network)
            return mf.train(KEY, spec, data, config)

        expected = densely(mf.Network(network.params._replace(weights=weights), frozen, spec))
        assert float(jnp.max(jnp.abs(expected.norm_change))) > 1e-3
        # of |W_l|_F^2, which takes all products to know, a matrix-free record has the mean and the change
        unknown = {"network", "weight_variance", "propagation_factor", "propagation"}
        if spec.has_shortcut:
            unknown.add("norm_change_predicted")
        for name in set(record._fields) - unknown:
            got, wanted = getattr(record, name), getattr(expected, name)
            np.testing.assert_allclose(got, wanted, rtol=1e-8, atol=1e-10, err_msg=name)
        before_and_after = np.asarray(expected.weight_variance)
        change = np.asarray(record.weight_variance) - spec.weight_variance
        np.testing.assert_allclose(change, before_and_after - before_and_after[0], atol=1e-10)
        if not spec.has_shortcut:
            np.testing.assert_allclose(record.norm_change, record.norm_change_predicted, rtol=1e-6)


SPEC, NUM_NETWORKS = mf.NetworkSpec(6, 1, 16, 1, 2.0), 1500
X = jnp.asarray(np.random.default_rng(2).standard_normal((1, 6)), jnp.float32)
LAW = training.TrainingConfig(
    5, 0.02, 0.5, standard_loss=None, attack=mf.Attack((RandomStarts(2),), (PowerMethod(1),)), evaluate_every=5,
    warm_start=True, trained=("weights",),
)  # fmt: skip


@functools.partial(jax.jit, static_argnames="engine")
def samples(keys, config, engine):
    """L_adv at the start and its ratio after five steps, the changes of the norms over L_adv, |J|^2 at the end."""

    def one(key):
        record = mf.train(key, SPEC, (X, None), config, engine=engine)
        first, last = record.adversarial_loss
        return jnp.stack([first, last / first, *record.norm_change[-1] / first, record.jacobian[-1]])

    return jax.lax.map(one, keys, batch_size=250)


def differ(one, other):
    """The least p-value over all statistics, of the means and of the distributions, times the number of tests."""
    values = [
        test(a, b).pvalue
        for a, b in zip(np.asarray(one).T, np.asarray(other).T, strict=True)
        for test in (functools.partial(stats.ttest_ind, equal_var=False), stats.ks_2samp)
    ]
    return min(values) * len(values)


@pytest.mark.law
def test_the_law_after_training_is_that_of_dense_networks():
    keys = jax.random.split(jax.random.key(5), 2 * NUM_NETWORKS)
    dense, free = samples(keys[:NUM_NETWORKS], LAW, "dense"), samples(keys[NUM_NETWORKS:], LAW, "matrix_free")
    assert np.mean(dense[:, 1]) < 0.97
    assert differ(dense, free) > 1e-3
    faster = jax.tree.unflatten(jax.tree.structure(LAW), [1.05 * LAW.learning_rate, LAW.eps, LAW.adversarial_weight])
    assert differ(dense, samples(keys[NUM_NETWORKS:], faster, "matrix_free")) < 1e-9
