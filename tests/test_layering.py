"""A stage imports only stages above it; the public names and the map of the modules follow the same order."""

import ast
import re
from pathlib import Path

import pytest

import mftadv

STAGES = (
    "spec", "theory", "statistics", "compare", "matrices", "network", "oracle", "linear", "norms", "attack", "data",
    "store", "sweep", "training", "diagnose", "report", "experiments", "cli",
)  # fmt: skip
ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "mftadv").rglob("*.py"))


def stage_of(file):
    return file.relative_to(ROOT / "mftadv").with_suffix("").parts[0]


def imported_stages(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            if node.module == "mftadv":
                yield from (alias.name for alias in node.names)
            elif (node.module or "").startswith("mftadv."):
                yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("mftadv."))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_stage_imports_only_stages_above_it(file):
    stage = stage_of(file)
    if stage in ("__init__", "__main__"):
        return
    for imported in imported_stages(ast.parse(file.read_text())):
        assert imported in STAGES, f"{file.name} imports {imported}"
        assert imported == stage or STAGES.index(imported) < STAGES.index(stage), f"{stage} imports {imported}"


def test_the_check_sees_a_wrong_import():
    assert list(imported_stages(ast.parse("def f():\n    from mftadv.cli import main"))) == ["cli"]
    assert list(imported_stages(ast.parse("import mftadv.cli"))) == ["cli"]
    assert list(imported_stages(ast.parse("from mftadv import sweep"))) == ["sweep"]


def test_every_file_is_of_a_stage_and_short():
    assert {stage_of(file) for file in FILES} - {"__init__", "__main__"} <= set(STAGES)
    assert all(len(file.read_text().splitlines()) <= 400 for file in FILES)


def test_public_names_are_those_imported_in_the_order_of_the_stages():
    tree = ast.parse((ROOT / "mftadv" / "__init__.py").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    order = [STAGES.index(stage) for node in imports for stage in imported_stages(node)]
    assert order == sorted(order)
    names = [alias.name for node in imports for alias in node.names]
    assert sorted(names) == sorted(mftadv.__all__)


def test_the_page_on_the_architecture_has_every_stage_there_is():
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    assert rows == [stage for stage in STAGES if stage in {stage_of(file) for file in FILES}]


@pytest.mark.parametrize("name", mftadv.theory.__all__)
def test_every_closed_form_names_its_source(name):
    assert (
        name == "QUANTITIES"
        or isinstance(getattr(mftadv.theory, name), type)
        or re.search(r"^    Source: (the paper|ours), ", getattr(mftadv.theory, name).__doc__, re.MULTILINE)
    )


@pytest.mark.slow
def test_library_code_has_no_bare_assert_and_no_private_jax():
    for file in FILES:
        text = file.read_text()
        assert "jax._src" not in text
        assert not any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(text))), file


@pytest.mark.slow
def test_importing_touches_no_configuration(tmp_path):
    import os
    import subprocess
    import sys

    code = (
        "import jax, os; before = dict(jax.config.values), dict(os.environ); import mftadv; "
        "after = dict(jax.config.values), dict(os.environ); assert before == after; "
        "import sys; slow = {'matplotlib', 'sklearn', 'tyro', 'rich', 'xarray', 'flax', 'optax', 'scipy.special'}; "
        "assert not slow & set(sys.modules)"  # scipy imports its modules itself, where they are used
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)
