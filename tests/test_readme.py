"""What the README shows is what a reader gets."""

import re
from pathlib import Path

import pytest

import mftadv as mf

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SMALLER = {
    "width=200, depth=5": "width=100, depth=2",
    "width=1_000_000, depth=10": "width=1_000, depth=1",
    "NetworkSpec(64, 10, 64, 3)": "NetworkSpec(64, 10, 64, 1)",
    "JacobianLaw(width=50, depth=3)": "JacobianLaw(width=50, depth=1)",
}


@pytest.mark.slow
def test_the_examples_run_and_agree_with_theory(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = README
    for size, smaller in SMALLER.items():
        assert examples.count(size) == 1
        examples = examples.replace(size, smaller)
    first, second, third, fourth, fifth = re.findall(r"```python\n(.*?)```", examples, re.DOTALL)
    assert len([line for line in first.splitlines() if line.strip()]) <= 15
    names = {}
    exec(compile(first, "README.md", "exec"), names)
    lines = capsys.readouterr().out.splitlines()
    for line in lines[:2]:
        measured, error, expected = (float(number) for number in re.findall(r"\d\.\d+(?:e-\d+)?", line))
        assert abs(measured - expected) < 4 * error
    assert float(lines[2].split()[-1]) > 0
    exec(compile(second, "README.md", "exec"), names)
    assert names["law_exact"]
    assert (names["J"].shape, names["y"].shape) == ((1, 20), (1,))
    exec(compile(third, "README.md", "exec"), names)
    below, exactly, *_ = (float(re.findall(r"\d+\.\d+", line)[0]) for line in capsys.readouterr().out.splitlines())
    assert 0 < below < exactly * (1 + 1e-5)  # in the 2-norm and the 1-norm of the outputs
    exec(compile(fourth, "README.md", "exec"), dict(names))
    assert capsys.readouterr().out.count("accuracy") == 1
    exec(compile(fifth, "README.md", "exec"), names)
    assert {"data.nc", "claims.json", "figures"} <= {path.name for path in Path("results/law").iterdir()}
    assert "fails" not in names["result"].counts
    found, spec = names["found"], names["spec"]
    for depth in (2, 4):
        for s in (1.0, 2.0):
            at, there = found.sel(depth=depth, weight_variance=s), spec.replace(depth=depth, weight_variance=s)
            error = float(at["J"]) - float(mf.theory.jacobian_variance(there))
            assert abs(error) < 4 * float(at["J_standard_error"])


def test_the_commands_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^ *|`)make (\w+)", README, re.MULTILINE)) <= targets
