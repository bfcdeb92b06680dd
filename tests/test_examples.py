"""The scripts and notebooks of examples/ run as they are and do what they say."""

import ast
import re
from pathlib import Path

import jax
import pytest

import mftadv as mf

ROOT = Path(__file__).parent.parent / "examples"
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.py"))
LOOP = (ROOT / "optax_loop.py").read_text()


@pytest.fixture
def printed(capsys, monkeypatch, tmp_path):
    """What a script prints: its lines, or the numbers with a point of each."""
    monkeypatch.chdir(tmp_path)

    def lines(name):
        path = ROOT / f"{name}.py"
        exec(compile(path.read_text(), str(path), "exec"), {"__name__": name})
        assert not list(tmp_path.iterdir())
        return capsys.readouterr().out.splitlines()

    return lines


def numbers(line):
    return [float(number) for number in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", line)]


@pytest.mark.slow
def test_one_network(printed):
    outputs, entries, loss, bound = map(numbers, printed("one_network"))
    assert outputs[:2] == pytest.approx(outputs[2:], abs=1e-4)
    assert 0.5 < entries[0] / entries[1] < 2
    assert 0.9 < loss[0] / loss[1] < 1.1
    assert loss[1] < 1.3 * bound[0]


@pytest.mark.slow
def test_theory_against_measurement(printed):
    verdicts = [line.split(", ", 3)[-1] for line in printed("theory_against_measurement")]
    assert verdicts == ["holds", "fails, as predicted", "holds"]


@pytest.mark.slow
def test_sweep(printed):
    rows = [numbers(line.partition("L_adv")[2]) for line in printed("sweep")]
    assert len(rows) == 6
    assert all(0.6 * bound < loss < bound + 4 * error for loss, error, bound in rows)


@pytest.mark.slow
def test_choose_width(printed):
    rows = [[int(number) for number in re.findall(r"\d+", line)] for line in printed("choose_width")]
    for depth, width, *_ in rows:
        narrower, enough = (mf.NetworkSpec(100, 10, N, depth) for N in (width - 1, width))
        assert mf.theory.finite_width_factor(enough) < 1.05 <= mf.theory.finite_width_factor(narrower)
    assert [depth for depth, *_ in rows] == [2, 5, 20]


@pytest.mark.slow
def test_flax_model(printed):
    _, *rows = printed("flax_model")
    assert len(rows) == 3
    assert all(0.8 < numbers(row.partition("which is")[2])[0] < 1.2 for row in rows)


@pytest.mark.slow
def test_the_loop_trains_both_losses(capsys):
    quick = LOOP.replace(", 301)", ", 101)")  # two lines printed in place of four
    assert quick != LOOP
    with jax.numpy_dtype_promotion("standard"):  # optax promotes dtypes
        exec(compile(quick, "optax_loop.py", "exec"), {})
    (entropy, loss, clean, moved), after = map(numbers, capsys.readouterr().out.splitlines())
    assert after[0] < entropy / 3
    assert after[1] < loss
    assert after[2] > 0.8 > clean
    assert after[3] > 0.6 > moved


@pytest.mark.slow
def test_the_paper_in_ten_minutes(printed):
    lines = printed("notebooks/ten_minutes")
    for line in lines[:2]:
        measured, error, theory = numbers(line)
        assert abs(measured - theory) < 4 * error
    scatter, expected, _ = numbers(lines[2])
    assert scatter == pytest.approx(expected, rel=0.2)
    changes = {line.split("[")[0].strip(): numbers(line.partition("[")[2]) for line in lines if "[-" in line}
    assert changes["by the identity"] == pytest.approx(changes["change of |W_l|^2"], rel=1e-3)
    before, after = (numbers(line)[-1] for line in lines[-2:])
    assert after / before == pytest.approx(0.95**10, rel=1e-4)


@pytest.mark.slow
def test_own_network(printed):
    lines = printed("notebooks/own_network")
    ratios = [numbers(line.partition("eps |J|")[2])[0] for line in lines if line.startswith("eps ") and "L_adv" in line]
    assert ratios[0] == pytest.approx(1, abs=1e-3)
    assert ratios[-1] < 0.9
    assert min(numbers(lines[-1])) > 0


def test_every_example_is_run_here():
    source = Path(__file__).read_text()
    names = {*SCRIPTS, *(f"notebooks/{name}" for name in NOTEBOOKS)}
    assert {name for name in names if f'"{name}"' in source or f'"{name}.py"' in source} == names


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_is_short(name):
    tree = ast.parse((ROOT / f"{name}.py").read_text())
    lines = [line for line in (ROOT / f"{name}.py").read_text().splitlines()[tree.body[0].end_lineno :] if line.strip()]
    assert len(lines) <= 30, len(lines)
    assert f"python examples/{name}.py" in ast.get_docstring(tree)
