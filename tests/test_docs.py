"""What the pages in docs/ say is true: names exist, code runs, generated pages are complete."""

import dataclasses
import functools
import importlib.util
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


def code_of(page, **sizes):
    """The blocks of code of a page, with smaller sizes in place of those that it shows."""
    text = (ROOT / "docs" / page).read_text()
    for size, smaller in sizes.values():
        assert text.count(size) == 1
        text = text.replace(size, smaller)
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@functools.cache
def pages():
    """The module that makes the site, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    shown = re.findall(r"^    mftadv ([a-z].*?)(?: +#.*)?$", pages[ROOT / "docs" / "running.md"], re.MULTILINE)
    assert {command.split()[0] for command in shown} >= {*experiments.EXPERIMENTS, "sweep", "status", "show", "merge"}
    for text in pages.values():
        shown += re.findall(r"`mftadv ((?:validate|bounds|width|train|trainability|capacity)[^`]*)`", text)
    for command in shown:
        if "--help" not in command:
            assert callable(cli._parse(command.split())), command
    with pytest.raises(ValueError, match="widht"):
        cli._parse(["validate", "--widht", "3"])


@pytest.mark.usefixtures("not_rendered")
@pytest.mark.slow
def test_the_code_of_running_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "running.md").read_text()
    names = {"__name__": "running"}
    monkeypatch.setitem(sys.modules, "running", types.ModuleType("running"))  # where a dataclass looks for its names
    for block in code_of("running.md"):
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


@pytest.mark.usefixtures("not_rendered")
@pytest.mark.slow
def test_the_code_of_the_tour_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    law, loss, training, runs = code_of("tour.md", law=("width=200, depth=5", "width=100, depth=2"))
    exec(compile(law, "tour.md", "exec"), names)
    measured = names["measured"]["J"]
    assert abs(measured.mean - mf.theory.jacobian_variance(names["spec"])) < 4 * measured.standard_error
    capsys.readouterr()
    exec(compile(loss, "tour.md", "exec"), names)
    below, exactly, *_ = (float(re.findall(r"\d+\.\d+", line)[0]) for line in capsys.readouterr().out.splitlines())
    assert 0 < below < exactly * (1 + 1e-5)  # in the 2-norm and the 1-norm of the outputs
    exec(compile(training, "tour.md", "exec"), dict(names))
    assert capsys.readouterr().out.count("accuracy") == 1
    exec(compile(runs, "tour.md", "exec"), names)
    assert {"data.nc", "claims.json", "figures"} <= {path.name for path in Path("results/law").iterdir()}
    assert "fails" not in names["result"].counts
    found, spec = names["found"], names["spec"]
    for depth in (2, 4):
        for s in (1.0, 2.0):
            at, there = found.sel(depth=depth, weight_variance=s), spec.replace(depth=depth, weight_variance=s)
            error = float(at["J"]) - float(mf.theory.jacobian_variance(there))
            assert abs(error) < 4 * float(at["J_standard_error"])


@pytest.mark.slow
def test_the_code_of_matrix_free_networks_runs():
    names = {}
    sizes = {
        "wide": ("width=1_000_000, depth=10", "width=1_000, depth=2"),
        "trained": ("width=20_000, depth=2", "width=300, depth=1"),
    }
    for block in code_of("matrix_free.md", **sizes):
        exec(compile(block, "matrix_free.md", "exec"), names)
    assert names["law_exact"]
    assert names["record"].network.law_exact
    assert (names["J"].shape, names["y"].shape) == ((1, 20), (1,))


@pytest.mark.slow
def test_the_code_of_devices_runs():
    names = {}
    (block,) = code_of("devices.md")
    exec(compile(block, "devices.md", "exec"), names)
    assert names["mesh"].size == 4
    assert float(names["sharded"].mean) == pytest.approx(float(names["alone"].mean), rel=1e-6)


@pytest.mark.slow
def test_the_code_of_how_to_choose_prints_what_the_page_says(capsys):
    names = {}
    for block in code_of("choosing.md"):
        exec(compile(block, "choosing.md", "exec"), names)
    said = re.findall(r"```text\n(.*?)```", (ROOT / "docs" / "choosing.md").read_text(), re.DOTALL)
    assert capsys.readouterr().out == "".join(said)


# What the site generates


def test_the_index_has_every_formula_with_its_tests():
    text = pages().index_of_formulas()
    entries = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    functions = {name for name in mf.theory.__all__ if name.islower()}
    assert set(entries) == functions
    for name, entry in entries.items():
        formula = re.search(r"```text\n(.*?)\n```", entry, re.DOTALL).group(1)
        assert formula.strip(), name
        assert re.search(r"Tests: `tests/theory/|Tests: `tests/test_", entry), name
        assert re.search(r"Source: (the paper|ours)\.", entry), name
    assert "alpha = (u^2 + v^2) / 2." in entries["alpha"]
    assert "signed   (1 + 2/N)" in entries["finite_width_factor"]  # lines that follow the formula's paragraph


def test_the_api_has_every_public_name():
    names = set(pages().documented().values())
    assert {f"mf.{name}" for name in mf.__all__ if name not in ("theory", "statistics")} <= names
    assert {f"mf.theory.{name}" for name in mf.theory.__all__ if name != "QUANTITIES"} <= names
    assert "mf.diagnose.flax_nnx.RandomNetwork" in names
    assert not any(name.endswith(".statistics.monte_carlo") for name in names)  # what the package itself has


def test_docstrings_become_restructured_text():
    text = """The norm |x|_p of `x`(1).

    |x| = 2 * y

See x_ and **bold** text:
    a |b|
of a list
* one, |c|

Args:
    x: of `f`.

Source: ours, *exact*
and long."""
    assert (
        pages().to_rst(text)
        == """The norm \\|x\\|_p of \\ ``x``\\ (1).

::

    |x| = 2 * y

See x\\_ and **bold** text:

::

    a |b|

of a list
* one, \\|c\\|

Args:
    x: of \\ ``f``\\ .

Source:
    ours, \\*exact\\*
    and long."""
    )


def test_a_notebook_shows_what_its_cells_print(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("# %% [markdown]\n# ## Title\n# text\n\n# %%\nx = 1\nprint(x + 1)\n\n# %%\ny = x\n")
    shown = [line for line in pages().notebook(script).splitlines() if line]
    assert shown == ["## Title", "text", "```python", "x = 1", "print(x + 1)", "```", "```text", "2", "```",
                     "```python", "y = x", "```"]  # fmt: skip


def test_the_version_is_one():
    assert re.search(rf"^version: {re.escape(mf.__version__)}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE).group(1) == mf.__version__
    assert 'version = { attr = "mftadv.__version__" }' in (ROOT / "pyproject.toml").read_text()
