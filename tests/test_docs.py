"""What the pages in docs/ say is true: names exist, code runs."""

import dataclasses
import functools
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import mftadv as mf

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
