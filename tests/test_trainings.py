"""The experiments on networks in training: what they claim, count, draw and refuse; interrupted, they go on."""

import dataclasses
import math
import warnings

import jax
import numpy as np
import pytest
import xarray
from rich.console import Console

from mftadv import theory
from mftadv.compare import find, judge
from mftadv.experiments import Budget, Capacity, Train, Trainability, _training_figures, capacity, run, show
from mftadv.experiments._trainings import mean_and_error, running
from mftadv.sweep import Observer, _compute, _segments

TRAIN = Train(
    data="gaussian", input_dim=4, inputs=4, evaluated=4, standard_loss="none", width=8, depth=2, steps=6,
    evaluations=2, batch=None, eps=0.5, adversarial_weight=0.5, p=1, q=2,
)  # fmt: skip
GRID = Trainability(inputs=32, evaluated=8, depths=(2, 4), values=(8.0, 16.0), blocks=("vanilla", "residual"))
POWERS = Capacity(inputs=32, evaluated=8, widths=(8, 16, 32), depth=2, evaluations=2, steps=4)


def made(experiment, records):
    """A dataset of what networks recorded, one dictionary for each cell; what is not given is 1, nobody stopped."""
    cells = experiment.cells()
    count, depth = len(next(iter(records[0].values()))), max(cell.spec.depth for cell in cells)
    sizes = {"evaluation": cells[0].operands[2].num_segments, "layer": depth}
    sizes |= {"input": cells[0].statistic.evaluated, "component": cells[0].spec.output_dim}
    arrays = {}
    for name, axes in experiment.axes.items():
        shape = (len(cells), count, *(sizes[axis] for axis in axes))
        values = np.full(shape, -1.0 if name == "stopped" else 1.0)
        for i, record in enumerate(records):
            if name in record:
                given = np.asarray(record[name], float)
                values[i] = given.reshape(given.shape + (1,) * (values[i].ndim - given.ndim))
        arrays[name] = (("cell", "network", *axes), values)
    return xarray.Dataset({**arrays, "networks": ("cell", [count] * len(cells))})


def verdicts(experiment, data, id, **coords):
    return [judged.verdict for judged in find(judge(experiment.claims(data)), id, **coords)]


def samples(mean, error, count=8):
    """Numbers of this mean whose standard error is this one."""
    spread = np.resize([-1.0, 1.0], count) * math.sqrt(count - 1)
    return mean + error * spread


def scale_of_identity(change):
    """What the error of the identity is relative to: the change, or 500 times what float32 may lose of |W|^2."""
    return change + TRAIN.steps * 2.0**-24 * TRAIN.width * 2.0 / 2e-3


def drawn(experiment, data):
    """The figures, drawn: what a figure cannot show is seen only then."""
    figures = experiment.figures(data, ())
    for figure in figures.values():
        figure.draw_without_rendering()
    return figures


def lines(axes):
    return {line.get_label(): line for line in axes.lines}


# Training


@pytest.mark.parametrize(
    ("error", "verdict"),
    [(1e-6, "holds"), (2e-3 * (1 - 1e-6), "holds"), (2e-3 * (1 + 1e-6), "fails"), (math.nan, "underpowered")],
)
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_identity_is_claimed_of_the_worst_network(error, verdict, sign):
    predicted = np.ones((4, 3, 2)) * -5.0
    predicted[:, -1] = 1e-3  # a change that has come back: errors are relative to the largest
    measured = predicted.copy()
    measured[1, -1, 0] += 1e-5
    measured[2, -1, 1] += sign * error * scale_of_identity(5.0)
    variance = np.full((4, 3, 2), 2.0)
    record = {"norm_change": measured, "norm_change_predicted": predicted, "weight_variance": variance}
    data = made(TRAIN, [record])
    assert verdicts(TRAIN, data, "identity", layer=1) == ["holds"]
    assert verdicts(TRAIN, data, "identity", layer=2) == [verdict]


def test_changes_lost_in_rounding_are_no_error_of_the_identity():
    record = {"norm_change": np.zeros((3, 3, 2)), "norm_change_predicted": np.full((3, 3, 2), -1e-9)}
    assert verdicts(TRAIN, made(TRAIN, [record]), "identity") == ["holds"] * 2
    still = {"norm_change": np.zeros((3, 3, 2)), "norm_change_predicted": np.zeros((3, 3, 2))}
    assert verdicts(TRAIN, made(TRAIN, [still]), "identity") == ["underpowered"] * 2


@pytest.mark.parametrize(
    ("ratio", "verdict"), [(1.0, "holds"), (1.03, "holds"), (1.2, "fails"), (0.8, "fails"), (-1.0, "fails")]
)
def test_the_identity_of_shortcuts_is_one_of_means(ratio, verdict):
    experiment = dataclasses.replace(TRAIN, block="residual")
    predicted = -np.resize([1.0, 1.01], 40)[:, None, None] * np.ones((40, 3, 2))
    record = {"norm_change_predicted": predicted, "norm_change": ratio * predicted * np.ones((40, 3, 2))}
    record["norm_change"] *= (1 + 0.001 * np.resize([-1.0, 1.0, 1.0, -1.0], 40))[:, None, None]
    found = verdicts(experiment, made(experiment, [record]), "identity")
    assert found == [verdict]


def published(experiment):
    """s(t) at the evaluations, by the theory with eps times lambda."""
    with jax.enable_x64(True):
        spec, times = experiment.spec, np.array([0.0, 0.03, 0.06])
        eps = experiment.eps * experiment.adversarial_weight
        return np.array([float(theory.weight_variance(spec, t, eps, 1, 2, kind="sharp")) for t in times])


def changes(experiment, factor, error, count=8):
    """Records whose mean change of s is the closed form's times a factor, with a relative standard error."""
    fall = (published(experiment) - 2.0) * experiment.width
    change = fall * samples(factor, error, count)[:, None]
    both = np.broadcast_to(change[..., None], (count, 3, 2))
    return {"norm_change": both, "norm_change_predicted": both, "weight_variance": np.full((count, 3, 2), 2.0)}


@pytest.mark.parametrize(
    ("factor", "error", "verdict"),
    [
        (1.0, 0.0, "holds"),
        (2.0, 0.01, "fails, as predicted"),
        (0.5, 0.01, "fails, as predicted"),
        (2.0, 1.0, "underpowered"),
    ],
)
def test_the_closed_form_is_that_of_the_theory_with_eps_times_lambda(factor, error, verdict):
    np.testing.assert_allclose(TRAIN.published(), published(TRAIN), rtol=1e-12)
    assert published(TRAIN)[-1] < 1.999
    data = made(TRAIN, [changes(TRAIN, factor, error)])
    judged = find(judge(TRAIN.claims(data)), "closed_form")
    assert [dict(each.claim.coords) for each in judged] == [{"evaluation": "first"}, {"evaluation": "last"}]
    np.testing.assert_allclose([each.claim.theory for each in judged], published(TRAIN)[1:] - 2.0, rtol=1e-9)
    assert [each.verdict for each in judged] == [verdict] * 2
    figure = TRAIN.figures(data, judged)["training"]
    (line,) = (line for line in figure.axes[0].lines if line.get_label() == "published closed form")
    np.testing.assert_allclose(line.get_ydata(), published(TRAIN) - 2.0, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(line.get_xdata(), [0.0, 0.03, 0.06])


def flow(layers, late=0.1, steps_to_horizon=45):
    """Networks under the theory of the start, and a record in which layers fall by so much of it, and ever less."""
    experiment = dataclasses.replace(TRAIN, p=2, adversarial_weight=1.0, width=400)
    with jax.enable_x64(True):
        norm = np.sqrt(np.mean(np.sum(experiment.points.values**2, axis=1)))
        horizon = float(theory.validity_horizon(experiment.spec, 0.5, norm, 4))
    experiment = dataclasses.replace(experiment, learning_rate=horizon / steps_to_horizon)
    scale, times = np.sqrt(1 + 0.5 * np.resize([-1.0, 1.0], 40)), experiment.times
    mean = 0.5 * theory.operator_norm_coefficient(2, 2, 4, 1, "sharp") * (1 - 1 / 1600) * (1 - 5 / 3200) ** 2
    loss = mean * scale / scale.mean()
    change = -2 * loss[:, None] * times * (1 - late * times / horizon)
    record = {"jacobian": np.repeat(scale[:, None] ** 2, 3, 1), "adversarial_loss": np.repeat(loss[:, None], 3, 1)}
    return experiment, made(experiment, [{**record, "norm_change": change[..., None] * np.array(layers)}])


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "holds"), (1.05, "fails"), (0.95, "fails")])
@pytest.mark.slow
def test_the_first_steps_lower_each_layer_by_the_rate_of_the_sharp_coefficient(factor, verdict):
    experiment, data = flow((1.0, factor))
    judged = judge(experiment.claims(data))
    assert [each.verdict for each in find(judged, "slope")] == ["holds", verdict]
    # the scale of |J|, 25% to both sides, is not in the error
    assert all(each.claim.standard_error < 0.01 * abs(each.claim.theory) for each in find(judged, "slope"))
    for changed in ({"standard_loss": "squared", "data": "digits"}, {"p": 1}, {"block": "signed"}):
        other = dataclasses.replace(experiment, **changed)
        assert not find(judge(other.claims(made(other, [{"jacobian": np.ones((9, 3))}]))), "slope")


@pytest.mark.slow
@pytest.mark.parametrize(("late", "verdict"), [(0.01, "holds"), (0.0999, "holds"), (0.106, "fails")])
def test_up_to_its_horizon_the_closed_form_is_off_by_a_tenth_at_most(late, verdict):
    experiment, data = flow((1.0, 1.0), late, 4)
    assert verdicts(experiment, data, "horizon") == [verdict]
    for steps, claimed in ((7, False), (2, False), (4, True)):
        assert bool(verdicts(*flow((1.0, 1.0), late, steps), "horizon")) == claimed


@pytest.mark.slow
def test_the_figure_has_the_band_of_theory_where_that_is_derived():
    experiment = dataclasses.replace(TRAIN, p=2, adversarial_weight=1.0, inputs=2, learning_rate=1e-3)
    level, count = theory.operator_norm_coefficient(2, 2, 4, 1, "sharp") * 0.5, 3
    record = {"output": np.zeros((count, 3)), "adversarial_loss": np.full((count, 3), level)}
    data = made(experiment, [record])
    (figure,) = drawn(experiment, data).values()
    predicted = theory.predict_training(
        experiment.points.values, np.zeros(2), spec=experiment.spec, eps=0.5, horizon=6e-3, adversarial_loss=level
    )
    bands = {each.get_label(): each for each in figure.axes[0].collections}
    (path,) = bands["theory, linear to rough start"].get_paths()
    corners = np.concatenate([predicted.weight_variance[0], predicted.weight_variance[1]]) - 2
    assert path.vertices[:, 1].min() == pytest.approx(corners.min(), rel=1e-4)
    assert path.vertices[:, 0].max() == pytest.approx(6e-3)
    for changed in ({"block": "signed"}, {"p": 1}, {"adversarial_weight": 0.5}, {"evaluated": 1}, {"output_dim": 2}):
        other = dataclasses.replace(experiment, **changed)
        assert other.band(running(made(other, [record]), 0)[0]) is None
    # Networks that begin with little of the loss, or with much output, have a shorter curve than is drawn.
    longer = dataclasses.replace(experiment, learning_rate=10.0)
    for changed in ({"adversarial_loss": record["adversarial_loss"] / 10}, {"output": np.full((count, 3), 50.0)}):
        band = longer.band(running(made(longer, [{**record, **changed}]), 0)[0])
        assert all(np.all(np.isfinite(each)) for each in band)


@pytest.mark.parametrize("changed", [{"adversarial_weight": 0.0}, {"eps": 0.0}])
def test_without_the_adversarial_loss_nothing_is_claimed_of_the_closed_form(changed):
    experiment = dataclasses.replace(TRAIN, **changed)
    data = made(experiment, [changes(TRAIN, 1.0, 0.1)])
    assert {claim.id for claim in experiment.claims(data)} == {"identity"}
    np.testing.assert_array_equal(experiment.published(), 2.0)
    assert set(experiment.figures(data, ())) == {"training"}


def test_networks_that_diverged_are_named_and_in_no_mean():
    right = changes(TRAIN, 2.0, 0.01, count=4)
    wrong = {name: np.concatenate([values, values[:1] * 1e30]) for name, values in right.items()}
    for values in wrong.values():
        values[-1, -1] = math.nan
    stopped = np.full((5, 3), -1.0)
    stopped[-1, -1] = 4
    all_of_them, without = made(TRAIN, [{**wrong, "stopped": stopped}]), made(TRAIN, [right])
    claims, expected = TRAIN.claims(all_of_them), TRAIN.claims(without)
    assert {claim.note.partition(";")[0] for claim in claims if claim.id == "identity"} == {
        "network 4 diverged at step 4"
    }
    assert [dataclasses.replace(claim, note="") for claim in claims] == [
        dataclasses.replace(claim, note="") for claim in expected
    ]
    (figure,) = drawn(TRAIN, all_of_them).values()
    assert "4 networks" in figure._suptitle.get_text()
    assert "network 4 diverged at step 4" in figure._suptitle.get_text()
    mean = lines(figure.axes[0])["measured"].get_ydata()
    np.testing.assert_allclose(mean, 2 * (published(TRAIN) - 2.0), rtol=1e-9)
    table = TRAIN.tables(all_of_them, ())[0]
    assert "network 4 diverged at step 4" in str(table.caption)


def test_where_all_networks_diverged_there_is_nothing_to_claim_or_draw():
    record = {"norm_change": np.full((3, 3), math.nan), "stopped": np.full((3, 3), [-1.0, 0.0, 0.0])}
    data = made(TRAIN, [record])
    assert TRAIN.claims(data) == []
    assert TRAIN.figures(data, ()) == {}
    table = TRAIN.tables(data, ())[0]
    assert "network 2 diverged at step 0" in str(table.caption)
    grid = made(GRID, [{"accuracy": np.full((3, 2), math.nan), "stopped": np.zeros((3, 2))}] * 16)
    assert set(verdicts(GRID, grid, "trend")) == {"fails"}  # none of them trained, and no depth or block did better
    assert set(drawn(GRID, grid)) == {"trainability"}
    powers = made(POWERS, [{"propagation": np.full((3, 3), math.nan), "stopped": np.zeros((3, 3))}] * 6)
    assert {judged.verdict for judged in judge(POWERS.claims(powers))} == {"underpowered"}
    assert set(drawn(POWERS, powers)) == {"capacity"}
    for experiment, stored in ((GRID, grid), (POWERS, powers)):
        assert "network 0 diverged at step 0" in str(experiment.tables(stored, ())[0].caption)


def test_the_figure_of_training_shows_what_was_recorded():
    experiment = dataclasses.replace(TRAIN, block="signed")
    random = np.random.default_rng(0)
    record = {name: random.random((4, 3)) for name in experiment.axes if name != "stopped"}
    (figure,) = experiment.figures(made(experiment, [record]), ()).values()
    for panel, label, name in (
        (1, "$L_{adv}$", "adversarial_loss"),
        (3, "clean", "accuracy"),
        (3, "attacked with labels", "attacked_accuracy"),
        (4, r"$\omega^L$ of the weights", "propagation"),
        (5, "tangent kernel, cosine", "kernel_similarity"),
        (6, "layer 1", "gradient_norm"),
    ):
        shown = lines(figure.axes[panel])[label].get_ydata()
        np.testing.assert_allclose(shown, record[name].mean(axis=0))
    quotient = lines(figure.axes[7])["measured"].get_ydata()
    np.testing.assert_allclose(quotient, (record["fisher_rao"] / record["cotangent"]).mean(axis=0))
    assert all(axes.get_xlabel() for axes in figure.axes)


def test_panels_without_labels_say_so():
    nothing = dict.fromkeys(("standard_loss", "accuracy", "robust_accuracy", "attacked_accuracy"), np.full(3, math.nan))
    record = {name: np.broadcast_to(values, (4, 3)) for name, values in nothing.items()}
    (figure,) = drawn(TRAIN, made(TRAIN, [record])).values()
    assert [axes.texts[0].get_text() for axes in figure.axes if axes.texts] == ["needs labels"] * 2


# Trainability


def reached(accuracy, propagation=0.9, count=8, error=0.0):
    values = samples(accuracy, error, count)
    return {"accuracy": np.stack([values, values], axis=1), "propagation": np.full((count, 2), propagation)}


def grid_of(**different):
    """Accuracy .9 everywhere, but for what is given by block, training, depth, width."""
    records = []
    for cell in GRID.cells():
        block, way, depth, width = (cell.coords[name] for name in ("block", "training", "depth", "width"))
        records.append(different.get(f"{block}_{way}_{depth}_{width:.0f}", reached(0.9)))
    return made(GRID, records)


@pytest.mark.parametrize(
    ("gain", "error", "verdict"),
    [
        (0.5, 0.02, "holds"),
        (0.5, 0.2, "underpowered"),
        (0.06, 0.001, "holds"),
        (0.04, 0.001, "fails"),  # it is seen to be less than a trend
        (0.02, 0.005, "underpowered"),  # of the right sign, but not surely: nothing is seen of it
        (0.0, 0.001, "fails"),
        (0.0, 0.0, "fails"),
        (0.0, 0.1, "underpowered"),
        (-0.3, 0.02, "fails"),
    ],
)
def test_a_trend_holds_only_where_it_is_seen(gain, error, verdict):
    deep = reached(0.9 - gain, error=error)
    data = grid_of(vanilla_adversarial_4_8=deep)
    judged = judge(GRID.claims(data))
    found = {each.claim.coords["of"]: each for each in find(judged, "trend")}
    assert list(found) == ["depth", "residual", "width", "adversarial"]
    assert {each.verdict for each in found.values()} == {verdict}
    if verdict == "holds":
        assert all(each.claim.measured + 4 * each.claim.standard_error < 0 for each in found.values())


@pytest.mark.parametrize(
    ("where", "of"),
    [
        ("vanilla_adversarial_2_8", "depth"),
        ("residual_adversarial_4_8", "residual"),
        ("vanilla_adversarial_4_16", "width"),
        ("vanilla_standard_4_8", "adversarial"),
    ],
)
def test_each_trend_compares_what_it_says(where, of):
    deep = reached(0.2, error=0.001)
    data = grid_of(**{"vanilla_adversarial_4_8": deep, where: deep})
    seen = {judged.claim.coords["of"]: judged.verdict for judged in find(judge(GRID.claims(data)), "trend")}
    assert seen == {each: "fails" if each == of else "holds" for each in ("depth", "residual", "width", "adversarial")}


def test_trends_do_not_depend_on_the_order_of_options():
    turned = dataclasses.replace(GRID, depths=(4, 2, 4), values=(16.0, 8.0), blocks=("vanilla", "residual", "vanilla"))
    assert [cell.coords for cell in turned.cells()] == [cell.coords for cell in GRID.cells()]
    data = grid_of(vanilla_adversarial_4_8=reached(0.2, error=0.01))
    assert turned.claims(data) == GRID.claims(data)


@pytest.mark.parametrize(("propagation", "verdict"), [(0.95, "fails, as predicted"), (0.5, "holds"), (0.3, "holds")])
def test_the_mechanism_is_asked_of_what_does_not_train(propagation, verdict):
    data = grid_of(vanilla_adversarial_4_8=reached(0.7, propagation), vanilla_adversarial_4_16=reached(0.73, 0.9))
    (judged,) = find(judge(GRID.claims(data)), "mechanism")  # .73 is more than .8 of .9
    assert judged.claim.coords == {"depth": 4, "width": 8.0}
    assert judged.verdict == verdict


def test_a_network_that_diverged_did_not_train():
    deep = reached(0.9)
    for values in deep.values():
        values[0] = math.nan
    stopped = np.full((8, 2), -1.0)
    stopped[0] = 3
    data = grid_of(vanilla_adversarial_4_8={**deep, "stopped": stopped})
    (row,) = (row for row in GRID.rows(data) if row["stopped"])
    np.testing.assert_array_equal(row["accuracy"], [0.0] + [0.9] * 7)
    assert len(row["propagation"]) == 7
    figure = drawn(GRID, data)["trainability"]
    assert "8 networks a point" in figure._suptitle.get_text()


def test_the_figure_of_trainability_shows_every_cell():
    random, records = np.random.default_rng(0), []
    for cell in GRID.cells():
        size = 3.0 if cell.spec.has_shortcut else 1.0  # which are drawn after those without
        names = ("accuracy", "propagation", "jacobian")
        records.append({name: (size if name != "accuracy" else 1) * random.random((8, 2)) for name in names})
    figure = drawn(GRID, made(GRID, records))["trainability"]
    grid = np.reshape(figure.axes, (4, 4))
    for row, name in enumerate(("accuracy", "propagation", "jacobian"), start=1):
        for column, (block, way) in enumerate((b, w) for b in GRID.blocks for w in ("standard", "adversarial")):
            axes = grid[row, column]
            low, high = axes.get_ylim()
            shown = {
                (x, y)
                for line in axes.lines
                if line.get_marker() == "."
                for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
            }
            cells = [(cell, record) for cell, record in zip(GRID.cells(), records, strict=True)]
            assert shown == {
                (cell.spec.depth, value)
                for cell, record in cells
                if (cell.coords["block"], cell.coords["training"]) == (block, way)
                for value in record[name][:, -1]
            }
            assert all(low <= y <= high for _, y in shown)


def test_the_map_of_trainability_has_the_mean_of_every_cell():
    random = np.random.default_rng(0)
    records = [{"accuracy": random.random((8, 2))} for _ in GRID.cells()]
    figure = drawn(GRID, made(GRID, records))["trainability"]
    wanted = {
        (*cell.coords.values(), round(record["accuracy"][:, -1].mean(), 9))
        for cell, record in zip(GRID.cells(), records, strict=True)
    }
    shown = set()
    for axes in figure.axes[:4]:
        block, way = axes.get_title().split(", ")
        texts = iter(axes.texts)
        for points in axes.collections:
            for (depth, level), mean in zip(points.get_offsets(), points.get_array(), strict=True):
                shown.add((block, way, int(depth), GRID.values[int(level)], round(float(mean), 9)))
                text = next(texts)
                assert (text.get_position(), float(text.get_text())) == ((depth, level), pytest.approx(mean, abs=0.006))
    assert shown == wanted
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["8", "16"]


BEYOND = Trainability(quick=True, blocks=("residual", "vanilla"))  # depths 4 and 16


@pytest.mark.parametrize(
    ("changed", "limits"),
    [
        ({}, (33, 66)),  # for the widths 64 and 128
        ({"values": (64.0,)}, (33,)),
        ({"against": "eps", "values": (0.2, 2.0)}, (417, 41)),
        ({"against": "weight_variance", "values": (1.5, 2.5)}, (2, 357)),
        ({"against": "eps", "values": (0.0, 2.0)}, (math.inf, 41)),
        ({"against": "eps", "values": (0.001, 2.0)}, (83503, 41)),  # more than a hundred times 16
        ({"lower": 1.0}, (0, 0)),
    ],
)
def test_the_boundary_of_theory_is_drawn_at_its_depth_and_shaded_beyond(changed, limits):
    experiment = dataclasses.replace(BEYOND, **changed)
    figure = drawn(experiment, made(experiment, [reached(0.9)] * len(experiment.cells())))["trainability"]
    left, right = figure.axes[0].get_xlim()
    within = [limit for limit in limits if 0 < limit < 1600]
    assert left < min(4, *within, 16) / 1.2
    assert 1.2 * max(16, *within, 4) < right < 2 * max(16, *within, 4)
    grid = np.reshape(figure.axes, (4, 4))
    for axes in grid[:3, 3]:
        assert axes.get_xlim() == (left, right)
        assert sorted(line.get_xdata()[0] for line in vertical(axes)) == sorted(within)
        shaded = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches]
        assert shaded == [(max(limit, left), pytest.approx(right)) for limit in limits if limit < 1600]
    strips = [(patch.get_y(), patch.get_height()) for patch in grid[0, 3].patches]
    share = 1 / len(limits)  # in the map every value of the other axis has a strip
    assert strips == [(pytest.approx(i * share), pytest.approx(share)) for i, at in enumerate(limits) if at < 1600]
    words = {0: "trains at no $L$", math.inf: "trains at every $L$"}
    told = [text.get_text().partition("theory: ")[2] for text in grid[1, 3].get_legend().get_texts()]
    assert told == [words.get(limit, f"trains to $L$ = {limit:g}") for limit in limits]
    for axes in [*grid[:, :3].flat, grid[3, 3]]:  # of other networks, and of |J|, theory has no such limit
        assert not axes.patches
        assert not vertical(axes)


def vertical(axes):
    return [line for line in axes.lines if line.get_linestyle() == ":" and len(line.get_xdata())]


def test_a_boundary_that_is_not_derived_is_named_and_not_drawn():
    rows = BEYOND.rows(made(BEYOND, [reached(0.9)] * len(BEYOND.cells())))
    figure = _training_figures.trainability("", rows, "width", 0.5, {128.0: 66})
    axes = figure.axes[7]
    assert [line.get_xdata()[0] for line in vertical(axes)] == [66]
    assert len(axes.patches) == 1
    told = [text.get_text() for text in axes.get_legend().get_texts()]
    assert told == ["width 64, theory: not derived", "width 128, theory: trains to $L$ = 66"]


@pytest.mark.parametrize(("largest", "scale"), [(1.2, "linear"), (800.0, "log")])
def test_a_large_omega_hides_no_small_one(largest, scale):
    records = [{"propagation": np.full((8, 2), largest if i % 2 else 0.9)} for i in range(len(GRID.cells()))]
    figure = drawn(GRID, made(GRID, records))["trainability"]
    low, high = figure.axes[8].get_ylim()
    assert figure.axes[8].get_yscale() == scale
    assert low < 0.5 < largest < high


def test_the_grid_of_trainability():
    cells = GRID.cells()
    assert len(cells) == 16
    for cell in cells:
        assert (cell.spec.width, cell.spec.depth, cell.spec.block) == tuple(
            cell.coords[name] for name in ("width", "depth", "block")
        )
        config = cell.operands[2]
        assert config.adversarial == ("paper" if cell.coords["training"] == "adversarial" else None)
    assert len({cell.coords.values() for cell in cells}) == 16
    variances = dataclasses.replace(GRID, against="weight_variance", values=(1.0, 3.0), width=8).cells()
    expected = {"vanilla": {1.0: 1.0, 3.0: 3.0}, "residual": {1.0: 0.5, 3.0: 1.5}}
    for cell in variances:
        default = 1 / cell.spec.depth if cell.spec.has_shortcut else 1.0
        wanted = expected[cell.spec.block][cell.coords["weight_variance"]] * default
        assert float(cell.spec.weight_variance) == pytest.approx(wanted)
    radii = dataclasses.replace(GRID, against="eps", values=(0.0, 2.0), width=8)
    assert {cell.operands[2].eps for cell in radii.cells()} == {0.0, 2.0}
    assert "eps=0 2 " in radii.describe(radii.cells())[1]


def test_quick_is_small_where_nothing_else_is_asked_for():
    quick = Trainability(quick=True)
    assert (quick.depths, quick.values, quick.steps) == ((4, 16), (64.0, 128.0), 150)
    assert 2 <= quick.seeds <= Trainability().seeds
    assert Trainability(quick=True, depths=(3,)).depths == (3,)
    assert Trainability(quick=True, against="eps").values == (0.2, 2.0)
    assert Trainability().values == (100.0, 200.0, 400.0)
    assert len(quick.cells()) == 24


# Capacity


def powers(widths, exponent, error, count=400, seed=0):
    random = np.random.default_rng(seed)
    return [width**exponent * (1 + error * math.sqrt(count) * random.standard_normal(count)) for width in widths]


@pytest.mark.parametrize("exponent", [-1.0, -0.3, 0.0, 2.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_fit_of_exact_powers(exponent, sign):
    widths = np.array([8.0, 16.0, 100.0, 300.0])
    exact = [sign * 0.3 * width**exponent * samples(1.0, 0.01, 10) for width in widths]
    found = capacity.fit(widths, exact)
    slope, intercept = np.polyfit(np.log(widths), np.log(0.3 * widths**exponent), 1)
    assert found.exponent == pytest.approx(slope, abs=1e-12)
    np.testing.assert_allclose(found.curve, np.exp(intercept + slope * np.log(widths)))
    np.testing.assert_allclose(found.falls, sign * found.curve)


def test_the_fit_of_noisy_powers_is_a_weighted_one():
    widths = np.array([8.0, 16.0, 100.0, 300.0])
    spread = dict(zip(widths, [0.01, 0.1, 0.02, 0.3], strict=True))
    noisy = [powers([width], -1.0, error, 50, int(width))[0] for width, error in spread.items()]
    found = capacity.fit(widths, noisy)
    means, errors = np.transpose([mean_and_error(values) for values in noisy])
    (slope, _), covariance = np.polyfit(np.log(widths), np.log(means), 1, w=means / errors, cov="unscaled")
    assert found.exponent == pytest.approx(slope, rel=1e-9)
    assert found.error == pytest.approx(math.sqrt(covariance[0, 0]), rel=1e-9)


def test_the_error_of_the_fit_by_simulation():
    widths = np.array([8.0, 16.0, 64.0])
    fits = [capacity.fit(widths, powers(widths, -1.0, 0.02, count=100, seed=seed)) for seed in range(400)]
    exponents = np.array([each.exponent for each in fits])
    assert np.mean(exponents) == pytest.approx(-1.0, abs=4 * np.std(exponents) / 20)
    assert np.mean([each.error for each in fits]) == pytest.approx(np.std(exponents), rel=0.15)  # 4 errors: 14%


def falling(exponents, experiment=POWERS, count=40):
    """Records of networks whose omega^L and Fisher-Rao norm fall as these powers of the width."""
    records = []
    for i, cell in enumerate(experiment.cells()):
        random, columns = np.random.default_rng(i), {}
        for name, exponent in zip(("propagation", "fisher_rao"), exponents, strict=True):
            fall = cell.spec.width**exponent * (1 + 0.001 * random.standard_normal(count))
            columns[name] = np.stack([np.ones(count), 1 - fall, 1 - fall], axis=1)
        records.append({**columns, "cotangent": np.full((count, 3), 0.5)})
    return records


@pytest.mark.parametrize("loss", ["none", "cross_entropy"])
@pytest.mark.parametrize(("exponent", "right"), [(-1.0, True), (-1.01, True), (-0.9, False), (-1.1, False)])
def test_exponents_of_the_capacity_and_their_verdicts(loss, exponent, right):
    experiment = dataclasses.replace(POWERS, standard_loss=loss)
    data = made(experiment, falling((exponent, -0.5), experiment))
    judged = judge(experiment.claims(data))
    wrong = "fails" if loss == "none" else "fails, as predicted"
    for each in find(judged, "exponent_propagation"):
        assert each.claim.measured == pytest.approx(exponent, abs=5 * each.claim.standard_error)
        assert each.verdict == ("holds" if right else wrong)
    capacities = find(judged, "exponent_capacity")
    assert [each.verdict for each in capacities] == ["fails, as predicted"] * len(experiment.ways)
    assert [each.claim.coords["training"] for each in capacities] == list(experiment.ways)


def test_the_figure_of_the_capacity():
    (figure,) = drawn(POWERS, made(POWERS, falling((-1.0, -0.5)))).values()
    panel = figure.axes[-1]
    fits = {name: line for name, line in lines(panel).items() if not name.startswith("_")}
    assert len(fits) == 4
    for name, line in fits.items():
        exponent = -1.0 if "omega" in name else -0.5
        np.testing.assert_allclose(line.get_ydata(), np.array(POWERS.widths) ** exponent, rtol=0.01)
    assert [label.get_text() for label in panel.get_xticklabels()] == ["8", "16", "32"]
    assert [axes.get_title("left") for axes in figure.axes[:-1]] == ["standard", "adversarial"]
    assert [len(axes.lines) for axes in figure.axes[:-1]] == [3, 3]


def test_capacities_that_rise_are_drawn_by_their_size():
    records = falling((-1.0, -1.0))
    rising = [{**record, "fisher_rao": 2 - record["fisher_rao"]} for record in records]
    data = made(POWERS, rising)
    (figure,) = drawn(POWERS, data).values()
    low, high = figure.axes[-1].get_ylim()
    assert 1e-3 < low < high < 10
    assert verdicts(POWERS, data, "exponent_capacity")[0] != "fails"


# Tables, and what is refused


@pytest.mark.parametrize("experiment", [TRAIN, GRID, POWERS], ids=lambda each: each.name)
def test_tables_of_trainings_fit_80_columns(experiment):
    random = np.random.default_rng(0)
    cells = experiment.cells()
    shape = (8, cells[0].operands[2].num_segments)
    given = [name for name in experiment.axes if name != "stopped"]
    data = made(experiment, [{name: random.random(shape) for name in given} for _ in cells])
    with warnings.catch_warnings(action="error"):
        judged = judge(experiment.claims(data))
        for wide in (False, True):
            tables = experiment.tables(data, judged, wide)
            assert max(Console(width=1000).measure(table).maximum for table in tables) <= (200 if wide else 80)


REFUSED = [
    (Train, {"seed": -1}, "seed: expected an integer from 0 to"),
    (Train, {"batch": 0}, "batch: expected a positive integer, got 0"),
    (Train, {"evaluations": 0}, "evaluations: expected a positive integer, got 0"),
    (Train, {"evaluated": 0}, "evaluated: expected a positive integer, got 0"),
    (Train, {"steps": 0}, "steps: expected a positive integer, got 0"),
    (Train, {"eps": -1.0}, "eps: expected a finite number >= 0, got -1"),
    (Train, {"p": 0.5}, r"p: expected a number in \[1, inf\], got 0.5"),
    (Train, {"adversarial_weight": -1.0}, "adversarial_weight: expected a finite number >= 0, got -1"),
    (Train, {"adversarial_weight": 2.0, "adversarial": "madry"}, r"adversarial_weight: expected a number in \[0, 1\]"),
    (Train, {"learning_rate": 0.0}, "learning_rate: expected a finite number > 0, got 0"),
    (Train, {"weight_variance": 0.0}, "weight_variance: expected a number > 0"),
    (Train, {"output_dim": 3}, "data: expected labels 0 ... 2, as the network has 3 outputs, got 0 ... 9"),
    (Train, {"standard_loss": "none", "adversarial": "madry"}, "standard_loss: expected one where"),
    (Train, {"standard_loss": "none", "adversarial": "none"}, "standard_loss: expected one where"),
    (Train, {"data": "gaussian"}, "data: expected whole numbers as labels, one an input, which --standard-loss cross"),
    (Trainability, {"depths": ()}, "depths: expected at least one, got none"),
    (Trainability, {"depths": (0,)}, "depths: expected a positive integer, got 0"),
    (Trainability, {"values": (8.5,)}, "values: expected integers as widths, at most 2147483647, got 8.5"),
    (Trainability, {"values": (-8.0,)}, "values: expected finite numbers > 0"),
    (Trainability, {"values": (0.0,), "against": "weight_variance"}, "values: expected finite numbers > 0"),
    (Trainability, {"seeds": 1}, "seeds: expected at least 2, for an error bar, got 1"),
    (Trainability, {"standard_loss": "none"}, "standard_loss: expected one, since accuracy"),
    (Trainability, {"standard_loss": "none", "quick": True}, "standard_loss: expected one, since accuracy"),
    (Capacity, {"widths": (8, 8)}, "widths: expected at least two, for a fit"),
    (Capacity, {"widths": (0, 8)}, "widths: expected a positive integer, got 0"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "options", "message"), REFUSED)
def test_options_out_of_range_are_named_as_typed(unchecked, kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**{"inputs": 32, **options}).cells()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "expected whole numbers as labels"),
        (np.arange(20) + 0.5, "expected whole numbers as labels"),
        (np.arange(10), "expected one label an input, got 10 labels and 20 inputs"),
        (np.ones(20, int), "expected labels of more than one class, got 1 alone"),
        (np.arange(20) - 1, "expected labels 0 ... 18, as the network has 19 outputs, got -1 ... 18"),
    ],
)
def test_labels_that_are_none(tmp_path, labels, message):
    arrays = {"x": np.random.default_rng(0).random((20, 3)), **({} if labels is None else {"y": labels})}
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(ValueError, match=f"^data: {message}"):
        Train(data=str(tmp_path / "data.npz"), inputs=20).cells()


def test_the_number_of_outputs_is_that_of_the_classes(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).random((20, 3)), y=np.arange(20.0) % 3)
    experiment = Train(data=str(tmp_path / "data.npz"), inputs=20)
    assert experiment.spec.output_dim == 3
    assert dataclasses.replace(experiment, output_dim=5).spec.output_dim == 5
    assert dataclasses.replace(experiment, standard_loss="none").spec.output_dim == 1
    (cell,) = dataclasses.replace(experiment, batch=100, evaluated=100).cells()
    assert cell.statistic.evaluated == 20


# Runs


class Interrupt(Observer):
    """Ctrl-C after so many segments."""

    def __init__(self, monkeypatch, after):
        go_on, self.left = _segments.OnTheWay.go_on, after

        def counted(*arguments):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            return go_on(*arguments)

        monkeypatch.setattr(_segments.OnTheWay, "go_on", counted)
        monkeypatch.setattr(_compute, "_STRETCH", -1.0)
        monkeypatch.setattr(_compute, "_WRITING", -1.0)


@pytest.mark.usefixtures("not_rendered")
@pytest.mark.slow
def test_interrupted_it_goes_on_to_the_same_results(tmp_path, monkeypatch):
    experiment, networks = dataclasses.replace(TRAIN, adversarial_weight=1.0, depth=1), 4
    whole = run(experiment, tmp_path / "whole", Budget(networks))
    assert "fails" not in {each.verdict for each in find(whole.judged, "identity")}
    for after in (1, 2):
        folder = tmp_path / f"after {after}"
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            run(experiment, folder, Budget(networks), observer=Interrupt(patched, after))
        assert any((folder / "checkpoints").iterdir()) or any((folder / "parts").iterdir())
        again = run(experiment, folder, Budget(networks))
        xarray.testing.assert_identical(again.data, whole.data)
        assert not any((folder / "checkpoints").iterdir())
        for name in ("claims.json", "claims.csv"):
            assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        xarray.testing.assert_equal(show(folder).data, whole.data)
    assert any((tmp_path / "whole" / "figures").iterdir())


@pytest.mark.slow
def test_networks_that_diverge_are_stored_up_to_there():
    found = run(dataclasses.replace(TRAIN, learning_rate=1e10), None, Budget(3))
    stopped = found.data["stopped"].values[0]
    assert (stopped[:, 0] == -1).all()
    assert (stopped[:, -1] >= 0).all()
    assert np.isfinite(found.data["adversarial_loss"].values[0, :, 0]).all()
    assert np.isnan(found.data["adversarial_loss"].values[0, :, -1]).all()
    assert found.judged == ()
