"""The paper reproduced: the registry names what the experiments claim, runs are gone on with, the page is in order."""

import dataclasses
import json
import re
from typing import ClassVar

import jax
import numpy as np
import pytest
import xarray
from matplotlib.figure import Figure

from mftadv import experiments, store
from mftadv.__main__ import command_line
from mftadv.compare import judge
from mftadv.experiments import EXPERIMENTS, _reproduce
from mftadv.experiments._paper import CLAIMS, RUNS, PaperClaim, Part
from mftadv.sweep import _compute
from tests.pages import check_page, look
from tests.runs import Toy

TINY = {
    "law": {"width": 4, "depth": 1, "output_dim": 1, "data": "gaussian", "input_dim": 3, "inputs": 1},
    "signed": {"width": 4, "depth": 1, "data": "gaussian", "input_dim": 3},
    "residual": {"width": 4, "depth": 1, "output_dim": 1, "data": "gaussian", "input_dim": 3},
    "bounds": {"width": 4, "depth": 1, "p": (1.0,), "q": (2.0,), "eps": (0.1,), "dims": (3, 30), "outputs": (4, 16),
               "input_dim": 3, "attack": "frugal"},
    "supremum": {"dims": (2, 3)},
    "width": {"widths": (30,), "depth": 1},
    "train": {"width": 4, "depth": 1, "inputs": 2, "input_dim": 3, "steps": 2, "evaluations": 2, "learning_rate": 0.3},
    "training-law": {"widths": (4, 5, 6), "input_dim": 3},
    "trainability": {"depths": (1, 2), "values": (4.0, 5.0), "inputs": 20, "evaluated": 20, "batch": 5, "steps": 1},
    "capacity": {"widths": (4, 5), "depth": 1, "inputs": 2, "input_dim": 3, "steps": 2, "evaluations": 2},
}  # fmt: skip


def invented(experiment):
    """The claims of an experiment about numbers that were made up: nothing is compiled, and little is traced."""
    cells, rng, layouts = experiment.cells(), np.random.default_rng(0), {}
    arrays = {name: [] for name in experiment.axes}
    for cell in cells:
        kind = cell.statistic, cell.spec.output_dim
        if kind not in layouts:
            layouts[kind] = jax.eval_shape(cell.statistic, jax.random.key(0), cell.spec, *cell.operands)
        for name, shape in layouts[kind].items():
            drawn = rng.uniform(0.2, 1.8) * rng.uniform(0.9, 1.1, (5, *shape.shape))
            whole = {"stopped": -1, "nonfinite": 0}.get(name)
            arrays[name].append(drawn if whole is None else np.full(drawn.shape, whole))
    most = {name: len(values) for name, values in arrays.items() if values}
    variables = {
        name: (("cell", "network", *experiment.axes[name]), np.stack(arrays[name] * (len(cells) // most[name] or 1)))
        for name in most
    }
    return judge(experiment.claims(xarray.Dataset(variables, {"networks": ("cell", [5] * len(cells))})))


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.slow
def test_the_registry_names_claims_that_the_experiments_make(name):
    scales = [experiment for experiment, _ in RUNS[name].values()]
    assert len({type(experiment) for experiment in scales}) == 1
    judged = {name: invented(dataclasses.replace(scales[0], **TINY[name]))}
    found = set()
    for claim in CLAIMS:
        for part in claim.parts:
            if part.run == name:
                some = _reproduce._of([part], judged)
                assert some, part
                found.update((each.claim.id, str(each.claim.coords)) for each in some)
    assert found


def test_the_registry_is_in_order():
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)
    assert {run for claim in CLAIMS for run in claim.runs} == set(RUNS) == set(TINY)
    for claim in CLAIMS:
        assert re.fullmatch(r"[a-z-]+", claim.name)
        assert claim.statement.endswith(".")
        assert claim.found.endswith(".")
        assert claim.picture[0] in claim.runs
    for scales in RUNS.values():
        assert set(scales) == {"quick", "full"}


@dataclasses.dataclass(frozen=True)
class Drawn(Toy):
    """Variances of normal numbers, and a picture."""

    name: ClassVar[str] = "drawn"

    def figures(self, data, judged):
        figure = Figure((3, 2))
        figure.set_label("A straight line, which shows nothing at all.")
        figure.subplots().plot([0, 1])
        return {"line": figure}


def claim(name, parts, picture, ours=False):
    return PaperClaim(name, f"What <b>{name}</b> says.", tuple(parts), picture, "Nothing & more.", ours)


@pytest.fixture
def drawn(monkeypatch):
    """A registry of two small runs and three claims, and the networks that are drawn."""
    claims = (
        claim("small", [Part("one", "square", {"s": (1.0,)})], ("one", "line")),
        claim("both", [Part("one", "square"), Part("two", "square")], ("one", "line")),
        claim("shifted", [Part("two", "square", {"s": (4.0,)})], ("two", "line"), ours=True),
    )
    runs = {
        name: {"quick": (Drawn(seed=seed), 600), "full": (Drawn(seed=seed), 900)}
        for seed, name in enumerate(("one", "two"))
    }
    monkeypatch.setattr(_reproduce, "CLAIMS", claims)
    monkeypatch.setattr(_reproduce, "RUNS", runs)
    monkeypatch.setitem(EXPERIMENTS, "drawn", Drawn)
    found, draw = [], _compute._draw

    def counted(plan, program, cells, networks):
        found.append((cells, networks))
        return draw(plan, program, cells, networks)

    monkeypatch.setattr(_compute, "_draw", counted)
    return found


def test_an_interruption_between_two_runs_is_gone_on_from(tmp_path, monkeypatch, capsys, drawn):
    monkeypatch.chdir(tmp_path)
    run = _reproduce.run

    def stopped(experiment, *arguments, **options):
        if experiment.seed == 1:
            raise KeyboardInterrupt
        return run(experiment, *arguments, **options)

    with monkeypatch.context() as context:
        context.setattr(_reproduce, "run", stopped)
        assert command_line(["reproduce"]) == 130
    folder = tmp_path / "results" / "reproduce-1"
    assert {path.name for path in folder.iterdir()} == {"run.json", "one"}
    drawn.clear()
    assert command_line(["reproduce"]) == 0  # that of the same claims and scale which is not finished
    assert sum(len(cells) * len(networks) for cells, networks in drawn) == 1200
    assert {path.name for path in folder.iterdir()} == {"run.json", "one", "two", "claims.json", "report.html"}
    out = capsys.readouterr().out
    assert re.search(r"both +\d\S+ +(to \S+ +)?4 holds", out)
    page = check_page(folder / "report.html")
    for shown in (
        "What <b>small</b> says.",
        "(ours)",
        "Its picture is that of small",
        "mftadv reproduce --scale quick",
    ):
        assert shown in page.text
    assert len(page.all("img")) == 2
    assert {each["href"] for each in page.all("a")} >= {"#both", "one/report.html", "two/report.html"}
    look(folder / "report.html", tmp_path)


def test_a_finished_folder_is_not_drawn_again_and_another_scale_is_refused(tmp_path, capsys, drawn):
    folder = tmp_path / "here"
    found = experiments.reproduce(["shifted"], "quick", folder)
    assert [each.claim.name for each in found.claims] == ["shifted"]
    assert found.claims[0].counts == {"holds": 1}
    before = (folder / "report.html").read_bytes()
    drawn.clear()
    assert experiments.reproduce(["shifted"], "quick", folder).claims == found.claims
    (folder / "report.html").write_text("mine")
    assert command_line(["report", str(folder)]) == 0
    assert (folder / "report.html").read_bytes() == before
    assert (folder / "report.html.yours").read_text() == "mine"
    for arguments, words in ((["--scale", "full", "shifted"], "scale is"), (["both"], "claims")):
        assert command_line(["reproduce", *arguments, "--out", str(folder)]) == 2
        assert re.search(f"expected the run in .*{words}", capsys.readouterr().err)
    for command, status, words in (("status", 0, "of these networks"), ("show", 2, "got one of 'reproduce'")):
        assert command_line([command, str(folder)]) == status
        assert words in "".join(capsys.readouterr())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("")
    assert command_line(["reproduce", "--out", str(tmp_path / "mine")]) == 2
    assert not drawn


def test_a_claim_that_fails_is_exit_1_and_others_do_not_count(tmp_path, monkeypatch, drawn):
    runs = _reproduce.RUNS
    monkeypatch.setitem(runs, "two", {"quick": (Drawn(seed=1, shift=0.5), 600)})
    assert command_line(["reproduce", "small", "--out", str(tmp_path / "a")]) == 0
    assert command_line(["reproduce", "shifted", "--out", str(tmp_path / "b")]) == 1
    assert "1 of 1 claims fails" in check_page(tmp_path / "b" / "report.html").text
    assert experiments.reproduce(["shifted"], folder=tmp_path / "b").fails
    record = json.loads((tmp_path / "b" / "claims.json").read_text())
    assert record["entries"][0]["claims"][0]["verdict"] == "fails"
    assert store.status(tmp_path / "b").is_current


@pytest.mark.usefixtures("unchecked")
def test_the_list_and_wrong_names(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command_line(["reproduce", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [claim.name for claim in CLAIMS]
    assert all(claim.statement in line for claim, line in zip(CLAIMS, lines, strict=True))
    assert command_line(["reproduce", "bound", "bond"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "claims: expected names among gaussian, independent, " in err
    assert "got 'bond'" in err
    with pytest.raises(ValueError, match="scale: expected quick or full, got 'slow'"):
        experiments.reproduce(scale="slow")
    assert not list(tmp_path.iterdir())
