"""What the pages in docs/ say is true: names exist, code runs."""

import dataclasses
import functools
import inspect
import pkgutil
import re
import sys
import types
from pathlib import Path

import pytest

import mftadv as mf
from mftadv import experiments

ROOT = Path(__file__).parent.parent
ROWS = [
    re.split(r"(?<!\\)\|", line)[1:-1]
    for line in (ROOT / "docs" / "glossary.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| symbol")
]


def quoted(text):
    return re.findall(r"`([^`]+)`", text)


def check_name(name):
    """Look up a name of the table: `module.name`, `module.Class.field` or `module.function(argument)`."""
    path, _, argument = name.rstrip(")").partition("(")
    holder, _, last = path.rpartition(".")
    if holder.startswith("mftadv"):
        found = pkgutil.resolve_name(holder)
    else:  # here mf.sweep is the function, not the module
        assert holder.split(".")[0] == "mf", name
        found = functools.reduce(getattr, holder.split(".")[1:], mf)
    if dataclasses.is_dataclass(found) and last in {field.name for field in dataclasses.fields(found)}:
        return  # a field without a default is no attribute of its class
    found = getattr(found, last)
    assert not argument or argument in inspect.signature(found).parameters, name


def check_test(reference):
    file, _, test = reference.partition("::")
    assert (ROOT / file).is_file(), reference
    assert not test or re.search(rf"^def {test}\(", (ROOT / file).read_text(), re.MULTILINE), reference


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip())
def test_every_row_of_the_glossary_names_code_and_tests_that_exist(row):
    symbol, meaning, names, tests = row
    assert symbol.strip()
    assert meaning.strip()
    assert quoted(names)
    assert quoted(tests)
    for name in quoted(names):
        check_name(name)
    for test in quoted(tests):
        check_test(test)


@pytest.mark.parametrize(
    "name",
    ["mf.theory.alpa", "mf.NetworkSpec.widht", "mf.run(fodler)", "mf.NetworkSpec.width.more", "mftadv.cel", "np.mean"],
)
def test_a_wrong_name_is_seen(name):
    with pytest.raises((AttributeError, AssertionError)):
        check_name(name)


@pytest.mark.parametrize("reference", ["tests/test_none.py", "tests/test_spec.py::test_none"])
def test_a_wrong_test_is_seen(reference):
    with pytest.raises(AssertionError):
        check_test(reference)


def test_the_glossary_has_every_public_name():
    named = {name for row in ROWS for name in quoted(row[2])}
    public = {f"mf.{name}" for name in mf.__all__} | {f"mf.theory.{name}" for name in mf.theory.__all__}
    assert public <= named, public - named
    fields = {f"mf.NetworkSpec.{field.name}" for field in dataclasses.fields(mf.NetworkSpec)}
    assert fields <= named, fields - named


def test_the_commands_of_all_pages_are_understood():
    from mftadv import cli

    pages = {path: path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))}
    shown = re.findall(r"^    mftadv (.*?)(?: +#.*)?$", pages[ROOT / "docs" / "running.md"], re.MULTILINE)
    assert len(shown) > 5
    for text in pages.values():
        shown += re.findall(r"`mftadv ((?:validate|bounds|width|train|trainability|capacity)[^`]*)`", text)
    for command in shown:
        if "--help" not in command:
            assert callable(cli._parse(command.split())), command
    with pytest.raises(ValueError, match="widht"):
        cli._parse(["validate", "--widht", "3"])


@pytest.mark.slow
def test_the_code_of_running_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "running.md").read_text()
    names = {"__name__": "running"}
    monkeypatch.setitem(sys.modules, "running", types.ModuleType("running"))  # where a dataclass looks for its names
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "running.md", "exec"), names)
    result, data, found = names["result"], names["data"], names["found"]
    assert "fails" not in result.counts
    assert [judged.verdict for judged in names["again"].judged] == [judged.verdict for judged in result.judged]
    assert set(data["entries"].dims) == {"cell", "network", "input", "output", "column"}
    assert abs(names["variance"].item() / float(mf.theory.jacobian_variance(names["experiment"].law)) - 1) < 0.5
    assert dict(found["value"].sizes) == {"weight_variance": 2, "size": 2}
    assert capsys.readouterr().out.splitlines()[-1] == "{'holds': 2}"
    inside = {path.name for path in Path("results/law").iterdir()}
    listed = re.search(r"\| name \| content \|\n\|[-|]+\|\n(.*?)\n\n", page, re.DOTALL).group(1)
    assert inside == {name.strip("/ ") for row in listed.splitlines() for name in row.split("|")[1].split(",")}

    (toml,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    Path("sweep.toml").write_text(toml)
    file = experiments.SweepFile.read("sweep.toml")
    assert {name: len(values) for name, values in file.grid.items()} == {"depth": 2, "p": 3}
    swept = dataclasses.replace(file, grid={**file.grid, "depth": [1]}).run("results/sweep")
    assert dict(swept["norm"].sizes) == {"depth": 1, "p": 3}
    assert float(abs(swept["jacobian_variance"] / swept["theory_jacobian_variance"] - 1).max()) < 0.5
