"""The examples run, and what they print is true."""

import importlib.util
import json
import math
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

import mftadv as mf

EXAMPLES = Path(__file__).parents[1] / "examples"
DEPTH, WIDTHS = 2, (30, 100)


def load(name):
    definition = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(definition)
    definition.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def width():
    return load("width")


@pytest.fixture(scope="module")
def folder(width, tmp_path_factory):
    out = tmp_path_factory.mktemp("examples") / "width"
    options = ["--depth", str(DEPTH), "--networks", "20000", "--out", str(out)]
    width.main(["--widths", *map(str, WIDTHS), *options])
    return out


@pytest.fixture
def points(folder):
    return json.loads((folder / "width.json").read_text())["points"]


def z(points, quantity, theory=None):
    """Of every width, from the theory of the record or from another."""
    chosen = [p for p in points if p["quantity"] == quantity]
    assert [p["width"] for p in chosen] == list(WIDTHS)
    known = [p["theory"] if theory is None else theory(p["width"]) for p in chosen]
    found = [(p["measured"] - t) / p["standard_error"] for p, t in zip(chosen, known, strict=True)]
    if theory is None:
        assert [p["z"] for p in chosen] == pytest.approx(found)
    return np.abs(found)


def factor(width, c=5.0, scale=1.0):
    """F with another c, or another logarithm."""
    return ((1 + 2 / width) * (1 + c / width) ** DEPTH) ** scale


@pytest.mark.slow
def test_width_measures_what_theory_says(points):
    for quantity in ("(a) excess kurtosis", "(b) 1 - E r", "(c) 1->2, K=1", "(c) 2->2, K=1", "(c) inf->2, K=1"):
        assert max(z(points, quantity)) < 4
    assert max(z(points, "(a) excess kurtosis", lambda N: 3 * (factor(N) - 1))) < 4


@pytest.mark.parametrize("wrong", [{"c": 4.0}, {"c": 6.0}, {"scale": 0.9}, {"scale": 1.1}])
@pytest.mark.slow
def test_width_would_see_a_wrong_formula(points, wrong):
    assert max(z(points, "(a) excess kurtosis", lambda N: 3 * (factor(N, **wrong) - 1))) > 4
    # the lognormal law is good enough at the larger width
    assert z(points, "(b) 1 - E r", lambda N: 1 - factor(N, **wrong) ** -0.125)[-1] > 4


def test_width_shortfall_by_simulation_of_its_law(width):
    random, N, n = np.random.default_rng(0), 6, 400_000
    gates = random.binomial(N, 0.5, size=(n, DEPTH))
    squares = random.chisquare(N, n) / N * np.prod(random.chisquare(np.maximum(gates, 1)) * (gates > 0) * 2 / N, axis=1)
    error = np.std(np.sqrt(squares)) / math.sqrt(n)
    assert abs(np.sqrt(squares).mean() - width.mean_scale(mf.NetworkSpec(1, 1, N, DEPTH))) < 4 * error
    assert error < 0.002


def test_width_first_order_agrees_with_one_row(width):
    """For K = 1 the first-order error of the coefficient is the leading order of E r - 1."""
    for N in (3000, 30_000):
        spec = mf.NetworkSpec(1000, 1, N, DEPTH)
        assert width.first_order(spec) == pytest.approx(width.mean_scale(spec) - 1, rel=0.01)


def test_width_writes_a_figure(folder):
    assert {path.name for path in folder.iterdir()} == {"figure.png", "width.json"}
    picture = matplotlib.image.imread(folder / "figure.png")
    assert picture.shape[0] > 400
    assert picture.std() > 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--networks", "1"], "networks: expected at least 2, for an error bar, got 1"),
        (["--widths", "0"], "width: expected a positive integer, got 0"),
        (["--widths", "wide"], "argument --widths: invalid int value: 'wide'"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["--out", "."], "out: expected a folder that does not exist"),
    ],
)
def test_width_says_in_one_line_what_is_wrong(width, arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        width.main(arguments)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"width.py: {message}")
    assert captured.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_width_interrupted(width, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(width, "compiled", interrupted)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        width.main(["--widths", "30"])
    assert stop.value.code == 130
    assert capsys.readouterr().err == "width.py: interrupted; nothing was written\n"
    assert not list(tmp_path.iterdir())
