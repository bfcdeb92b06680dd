"""The scripts of examples/ run as they are and do what they say."""

import ast
import re
from pathlib import Path

import jax
import pytest

SCRIPT = (Path(__file__).parent.parent / "examples" / "optax_loop.py").read_text()
QUICK = SCRIPT.replace(", 301)", ", 101)")  # two lines printed in place of four


@pytest.mark.slow
def test_the_loop_trains_both_losses(capsys):
    assert SCRIPT != QUICK
    with jax.numpy_dtype_promotion("standard"):  # optax promotes dtypes
        exec(compile(QUICK, "optax_loop.py", "exec"), {})
    numbers = [[float(n) for n in re.findall(r"\d+\.\d+", line)] for line in capsys.readouterr().out.splitlines()]
    (entropy, loss, clean, moved), after = numbers
    assert after[0] < entropy / 3
    assert after[1] < loss
    assert after[2] > 0.8 > clean
    assert after[3] > 0.6 > moved


def test_it_has_thirty_lines_of_code():
    docstring = ast.parse(SCRIPT).body[0].end_lineno
    lines = [line for line in SCRIPT.splitlines()[docstring:] if line.strip()]
    assert len(lines) <= 30, len(lines)
