"""Every benchmark at toy size: contenders compute the same thing, and every goal names contenders."""

import dataclasses
import json

import numpy as np
import pytest

import mftadv as mf
from benchmarks import harness, tasks


@pytest.mark.parametrize("name", tasks.TASKS)
def test_task(name, unchecked):
    benchmark = dataclasses.replace(tasks.TASKS[name](quick=True), rounds=2)
    record = json.loads(json.dumps(harness.measure(benchmark, judged=False)))
    names = {contender.name for contender in benchmark.contenders}
    assert set(record["times"]) == names
    # one rounding is 1e-7; a wrong gate, a missing bias or another network is off by far more
    assert all(difference < 1e-5 for difference in record["agreement"].values())
    assert len(record["agreement"]) == sum(contender.like is not None for contender in benchmark.contenders)
    if harness.HAS_TORCH:
        assert {goal.ours for goal in benchmark.goals} | {n for g in benchmark.goals for n in g.others} <= names
        assert len(record["ratios"]) == len(benchmark.goals)
    lines = harness.table(name, record)
    assert all(contender in lines for contender in names)


def test_agreement_sees_another_answer():
    answer = lambda shift: lambda: (np.ones((2, 3)), np.ones(2) + shift)  # noqa: E731
    contenders = [harness.Contender(name, answer(shift), like="a") for name, shift in (("a", 0), ("b", 1e-3))]
    assert harness.agreement(harness.Benchmark({}, contenders, [])) == {"a": 0, "b": pytest.approx(1e-3)}


@pytest.mark.parametrize(("limit", "met"), [(0.6, True), (0.4, False), (None, None)])
def test_ratio_is_against_the_fastest(limit, met):
    seconds = {"ours": [1.0, 2.0, 3.0], "slow": [9.0, 9.0, 9.0], "fast": [4.0, 4.0, 4.0]}
    goal = harness.Goal("ours", ("slow", "fast", "absent"), limit)
    ratio = harness._ratio(goal, seconds, judged=True)
    assert (ratio["other"], ratio["median"], ratio["met"]) == ("fast", 0.5, met)
    assert ratio["quartiles"] == [0.375, 0.625]
    assert harness._ratio(goal, seconds, judged=False)["met"] is None


@pytest.mark.parametrize("batch", [(), (5,)])
def test_torch_draws_the_same_law(batch):
    pytest.importorskip("torch")
    from benchmarks import peers

    spec = mf.NetworkSpec(40, 30, 50, 3, 1.5, 0.4)
    for gaussian in (peers.normal, peers.scaled_randn):
        network = peers.draw(spec, gaussian, *batch)
        tensors = [network.embedding, network.readout, *network.weights, *network.biases]
        variances = [1 / 40, 1 / 50] + [1.5 / 50] * 3 + [0.4] * 3
        shapes = [(50, 40), (30, 50)] + [(50, 50)] * 3 + [(50,)] * 3
        assert [tuple(values.shape) for values in tensors] == [(*batch, *shape) for shape in shapes]
        for values, variance in zip(tensors, variances, strict=True):
            # the mean square of n Gaussians has relative standard error sqrt(2/n); torch is not seeded, hence 6
            assert abs(float((values**2).mean()) / variance - 1) < 6 * np.sqrt(2 / values.numel())
