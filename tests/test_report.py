"""The page of a run: one file, escaped, the same for the same data, readable everywhere."""

import dataclasses
import json
import shlex
from typing import ClassVar

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

import mftadv as mf
from mftadv import experiments, report, store
from mftadv.__main__ import command_line
from mftadv.experiments import EXPERIMENTS, Budget, _outputs
from mftadv.experiments._experiment import fastest_key
from mftadv.report._page import sentence
from tests.pages import Page, check_page, look
from tests.runs import Toy

HOSTILE = "<b>&\"'.npz"


@dataclasses.dataclass(frozen=True)
class Drawn(Toy):
    """Variances <i>of</i> normal numbers & a picture."""

    name: ClassVar[str] = "drawn"

    data: str = HOSTILE
    """A file."""

    def claims(self, data):
        first, second = super().claims(data)
        more = {"quantity": "<script>alert(1)</script>", "note": "</details><img src=x>", "expected": "fails"}
        wrong = dataclasses.replace(first, theory=9.0, standard_error=0.0, id="wrong", **more)
        return [first, second, wrong, dataclasses.replace(wrong, expected="holds", id="worse", coords={"p": np.inf})]

    def figures(self, data, judged):
        figure = Figure((3, 2), layout="constrained")
        figure.suptitle("a title")
        figure.set_label("The mean square against the variance, <u>&amp; more</u>.")
        axes = figure.subplots()
        axes.plot(data["s"], data["square"].mean("network"), label="$a<b$")
        axes.legend()
        return {"squares": figure}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A merged run."""
    path = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as context:
        context.setitem(EXPERIMENTS, "drawn", Drawn)
        for share in range(2):
            mf.run(Drawn(), path / f"{share}", Budget(40, shard=(share, 2)))
        experiments.merge(path / "run", [path / "0", path / "1"])
        yield path / "run"


def test_the_page_of_a_run(folder):
    page = check_page(folder / "report.html")
    (image,) = page.all("img")
    assert image["alt"] == "The mean square against the variance, <u>&amp; more</u>."
    for shown in (HOSTILE, "<script>alert(1)</script>", "</details><img src=x>", "p=inf", "fails, as predicted"):
        assert shown in page.text
    assert "1 of 4 claims fails: theory and measurement are further apart" in page.text
    record = json.loads((folder / "run.json").read_text())
    for fact in (record["identity"]["dtype"], record["sessions"][0]["device"], "threefry", "40 networks", "UTC"):
        assert fact in page.text
    assert "mftadv drawn --networks 40" in page.text
    assert page.text.index("Verdict") < page.text.index("Pictures") < page.text.index("Numbers")


def test_the_same_files_make_the_same_page(folder, tmp_path):
    before = (folder / "report.html").read_bytes(), (folder / "run.json").read_bytes()
    assert report.write(folder) == folder / "report.html"
    assert before == ((folder / "report.html").read_bytes(), (folder / "run.json").read_bytes())
    data = experiments.show(folder).data
    figures = [Drawn().figures(data, ())["squares"] for _ in range(2)]
    first, second = (dict(report.figure_files("a", figure)) for figure in figures)
    assert first == second
    assert set(first) == {"a.png", "a.pdf", "a.svg"}


def test_a_page_is_written_again_and_what_is_the_users_stays(folder, capsys):
    page = folder / "report.html"
    before = page.read_bytes()
    page.write_text("mine")
    assert command_line(["report", str(folder)]) == 0
    said = capsys.readouterr().out
    assert page.read_bytes() == before
    assert "report.html is not from this run: renamed to report.html.yours." in said
    assert (folder / "report.html.yours").read_text() == "mine"
    page.unlink()
    assert command_line(["report", str(folder)]) == 0
    assert page.read_bytes() == before
    assert store.status(folder, check=True).is_current
    assert command_line(["show", str(folder)]) == 1  # a claim fails


def test_damaged_and_unfinished_runs_are_refused_in_one_line(folder, capsys):
    claims = folder / "claims.json"
    content, record = claims.read_bytes(), (folder / "run.json").read_bytes()
    for damage, message in ((b"{}", "as it was written, got a file that has changed"), (None, "to be readable")):
        claims.unlink()
        if damage:
            claims.write_bytes(damage)
        assert command_line(["report", str(folder)]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert message in err
        if not damage:
            claims.write_bytes(content)
    assert command_line(["report", str(folder.parent / "0")]) == 2
    assert "folder: expected a finished run, got" in capsys.readouterr().err
    assert (folder / "run.json").read_bytes() == record
    assert not (folder.parent / "0" / "report.html").exists()


def test_the_page_of_a_sweep(tmp_path):
    def value(key, spec):
        return spec.weight_variance

    spec = mf.NetworkSpec(1, 1, 1, 1)
    mf.sweep(value, jax.random.key(0), spec, {"depth": [1, 2]}, num_networks=2, folder=tmp_path / "sweep")
    assert command_line(["report", str(tmp_path / "sweep")]) == 0
    page = check_page(tmp_path / "sweep" / "report.html")
    assert "2 of 2 points" in page.text
    assert "2 +- 0" in page.text


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"holds": 2}, "No claim fails that should hold. Of 2: 2 hold."),
        ({"holds": 1, "underpowered": 1, "fails, as predicted": 3}, "Of 5: 1 holds, 1 is underpowered (too few "
         "networks to see 5%), 3 published ones fail, as predicted."),
        ({"fails": 1, "holds": 1}, "1 of 2 claims fails: "),
    ],
)  # fmt: skip
def test_what_came_out_in_a_sentence(counts, words):
    assert words in sentence(counts, 1e-3)


@pytest.mark.parametrize("kind", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_the_command_of_a_run_makes_the_same_run(kind, folder, monkeypatch):
    changed = {"seed": 3, "x64": True, "scale": False, "slopes": (1.0, 0.5), "quick": True, "p": np.inf, "width": 7}
    names = {field.name for field in dataclasses.fields(kind)}
    if kind in (experiments.LossBounds, experiments.Supremum):
        changed["p"] = (1.0, np.inf)
    experiment = kind(**{name: value for name, value in changed.items() if name in names})
    record = store.read_record(folder)
    key = store.jsonable(fastest_key(3))
    same = dataclasses.replace(record, identity={**record.identity, "key": key})
    monkeypatch.setattr(store, "read_record", lambda folder: same)
    words = _outputs.command(experiment, folder)
    seen = []
    monkeypatch.setattr(experiments, "run", lambda *a, **_: seen.append(a) or experiments.Result(a[0], None, None, ()))
    assert command_line(shlex.split(words)[1:]) == 0
    assert (seen[0][0], seen[0][2].networks) == (experiment, 40)


def test_the_check_of_pages_sees_what_is_wrong():
    for wrong in ("<p><b></p></b>", "<p>", "<p a=1 a=2></p>"):
        with pytest.raises((AssertionError, IndexError)):
            Page(wrong)


@pytest.mark.slow
def test_it_fits_a_phone_and_a_laptop_in_light_and_dark(folder, tmp_path):
    look(folder / "report.html", tmp_path)
