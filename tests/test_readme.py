"""What the README shows is what a reader gets."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_example_runs_and_agrees_with_theory(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 15
    assert example.count("width=200, depth=5") == 1
    exec(compile(example.replace("width=200, depth=5", "width=100, depth=2"), "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    for line in lines[:2]:
        measured, error, expected = (float(number) for number in re.findall(r"\d\.\d+(?:e-\d+)?", line))
        assert abs(measured - expected) < 4 * error
    assert float(lines[2].split()[-1]) > 0


def test_the_commands_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    pages = README, *(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    for page in pages:
        assert set(re.findall(r"(?:^ *|`)make (\w+)", page, re.MULTILINE)) <= targets


def test_what_the_readme_links_to_exists():
    links = re.findall(r"\]\(([^)#]+)", README)
    assert "docs/picture.png" in links
    for link in links:
        assert (ROOT / link).exists(), link
