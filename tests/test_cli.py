"""The command line as a user meets it: real input, wrong input, an interruption, a machine that fails."""

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import xarray

import mftadv
from mftadv import experiments, store, theory
from mftadv.__main__ import Output, command_line, use_compilation_cache
from mftadv.compare import judge
from mftadv.experiments import EXPERIMENTS, loss_bounds
from mftadv.spec import NetworkSpec
from mftadv.sweep import _compute, sweep

ROOT = Path(__file__).parent.parent
BOUNDS = ["--width", "24", "--depth", "2", "--networks", "60", "--data", "gaussian", "--input-dim", "4",
          "--output-dim", "2", "--p", "inf", "--q", "2", "--eps", "1", "0.1", "--dims", "4",
          "--outputs", "2"]  # fmt: skip
SMALL = ["--width", "24", "--depth", "2", "--networks", "600", "--inputs", "2"]
TINY = ["--data", "gaussian", "--input-dim", "4", "--width", "8", "--depth", "1", "--networks", "20", "--inputs", "1"]


@pytest.fixture
def run_with_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def call(*arguments, command="validate"):
        status = command_line([command, *arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def run(run_with_figures, not_rendered):
    return run_with_figures


def no_programs(monkeypatch):
    monkeypatch.setattr(_compute, "compile_program", lambda *_, **__: pytest.fail("compiled"))


def content(folder):
    """The claims, the data, and the record."""
    with xarray.open_dataset(folder / "data.nc", engine="h5netcdf") as stored:
        data = stored.load()
    return *(json.loads((folder / name).read_text()) for name in ("claims.json", "run.json")), data


def claims_of(folder, id=None, **coords):
    claims = json.loads((folder / "claims.json").read_text())["claims"]
    return [claim for claim in claims if id in (None, claim["id"]) and {**claim["coords"], **coords} == claim["coords"]]


# Runs


@pytest.mark.slow
def test_validate_writes_what_it_says(run_with_figures, tmp_path):
    run = run_with_figures
    status, out, err = run(*SMALL)
    assert (status, err) == (0, "")
    folder = tmp_path / "results" / "validate-1"
    names = {"run.json", "parts", "data.nc", "claims.json", "claims.csv", "figures", "report.html"}
    assert {path.name for path in folder.iterdir()} == names
    claims, record, data = content(folder)
    assert record["networks"] == [600]
    assert record["identity"]["options"]["width"] == 24
    assert (folder / "figures" / "jacobian_law.png").read_bytes().startswith(b"\x89PNG")
    assert data["entries"].sizes == {"cell": 1, "network": 600, "input": 2, "output": 1, "column": 64}
    (variance,) = claims_of(folder, "jacobian_variance", input=1)
    entries = data["entries"].values[0, :, 1].astype(float)
    assert variance["measured"] == pytest.approx(np.mean(entries**2), rel=1e-6)
    assert variance["theory"] == pytest.approx(1 / 64)
    norms = np.linalg.norm(data["entries"].values[0], axis=(2, 3))
    np.testing.assert_allclose(data["norm_2_2"].values[0], norms, rtol=1e-5)
    assert "results   " in out
    assert str(folder) in out
    assert f"family error 0.001 over {len(claims['claims'])} claims" in out
    # the published coefficients are no bounds at K = 1, and the table says so
    assert {claim["verdict"] for claim in claims_of(folder, "norm_published", p=1.0)} == {"fails, as predicted"}
    assert {claim["verdict"] for claim in claims_of(folder, "norm_chevet", p=1.0)} == {"holds"}
    # shown again, with all columns too; nothing is drawn
    shown = run(str(folder), command="show")
    assert shown[0] == 0
    assert [line for line in out.splitlines() if "var J" in line] == [
        line for line in shown[1].splitlines() if "var J" in line
    ]
    assert "allowance" in run(str(folder), "--wide", command="show")[1]
    assert run(str(folder), command="report") == (0, f"{folder}/report.html\n", "")
    status, said, _ = run(str(folder), "--check", command="status")
    assert status == 0
    assert said.splitlines() == ["validate: 600 of 600 networks in 1 cell", "results   of these networks"]


@pytest.mark.parametrize(
    "options",
    [
        ["--block", "signed", "--output-dim", "3", "--slopes", "1", "0.3", "--weight-variance", "0.4"],
        ["--data", "gaussian", "--input-dim", "5", "--output-dim", "7", "--bias-variance", "0", "--x64"],
        ["--data", "gaussian", "--input-dim", "1", "--inputs", "1"],
    ],
)
@pytest.mark.slow
def test_everything_that_should_hold_holds(run, tmp_path, options):
    status, _, _ = run(*SMALL, *options, "--out", "here")
    assert status == 0
    _, record, data = content(tmp_path / "here")
    assert record["identity"]["dtype"] == ("float64" if "--x64" in options else "float32")
    assert data["entries"].dtype == record["identity"]["dtype"]
    assert jax.numpy.zeros(1).dtype == jax.numpy.float32  # the run's precision is its own
    if "0" in options:
        shift = [claim for claim in claims_of(tmp_path / "here") if claim["id"].startswith("shift")]
        assert shift
        assert all((claim["measured"], claim["verdict"]) == (0, "holds") for claim in shift)


@pytest.mark.slow
def test_residual_shows_the_published_law_failing_beside_the_corrected_one(run, tmp_path):
    status, out, _ = run("--block", "residual", "--width", "64", "--depth", "3", "--networks", "9000", "--out", "r",
                         "--weight-variance", "1.0", "--bias-variance", "0.05", "--inputs", "1")  # fmt: skip
    verdicts = {claim["id"]: claim["verdict"] for claim in claims_of(tmp_path / "r")}
    assert status == 0
    assert verdicts["jacobian_variance_along_input_published"] == "fails, as predicted"
    assert verdicts["jacobian_variance_published"] == "fails, as predicted"
    assert verdicts["jacobian_variance_corrected"] == "holds"
    assert "fails" not in verdicts.values()
    assert "skip and branch correlate" in out


@pytest.mark.slow
def test_a_theory_five_percent_off_is_caught(run, monkeypatch):
    variance = theory.jacobian_variance
    monkeypatch.setattr(theory, "jacobian_variance", lambda spec: 1.05 * variance(spec))
    status, out, _ = run("--width", "100", "--depth", "2", "--networks", "4000", "--inputs", "1")
    assert status == 1
    assert " fails" in out


@pytest.mark.slow
def test_few_networks_are_underpowered_and_say_so(run, tmp_path):
    for number in (1, 2):
        status, out, _ = run(*TINY, "--networks", "4")
        assert status == 0
        assert re.search(r"^var J .* underpowered", out, re.MULTILINE)
        assert (tmp_path / "results" / f"validate-{number}").exists()


@pytest.mark.slow
def test_a_dry_run_compiles_and_writes_nothing(run, tmp_path, monkeypatch):
    no_programs(monkeypatch)
    status, out, err = run("--dry-run")
    assert (status, err) == (0, "")
    assert re.search(r"plan .* a network takes about .*iB, all results of \d+ networks each", out)
    status, out, _ = run("--dry-run", "--networks", "7", "--out", "here")
    assert "all results of 7 networks" in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [["--width", "20", "--depth", "50"], ["--width", "2"]])
@pytest.mark.slow
def test_deep_and_narrow_networks_are_planned(run, options, monkeypatch):
    no_programs(monkeypatch)
    status, out, _ = run("--dry-run", *options)
    assert status == 0
    (networks,) = map(int, re.findall(r"all results of (\d+) networks", out))
    assert networks <= 3 * 10**6  # a network costs as much as some thousand numbers, however small it is


@pytest.mark.parametrize("command", ["validate", "bounds"])
@pytest.mark.slow
def test_an_interruption_is_gone_on_from(run, tmp_path, monkeypatch, command):
    first = options = [*BOUNDS, "--attack", "frugal", "--batch-size", "10"] if command == "bounds" else TINY
    if command == "validate":  # goes on in other batches
        first = [*TINY, "--batch-size", "10"]
    write, written = store.RunFolder.write_part, []

    def stopped(self, *arguments):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(arguments)
        return write(self, *arguments)

    monkeypatch.setattr(_compute, "_STRETCH", 0.0)
    with monkeypatch.context() as context:
        context.setattr(store.RunFolder, "write_part", stopped)
        status, _, err = run(*first, "--out", "here", command=command)
    assert (status, err) == (130, "mftadv: interrupted; the same command goes on from what is stored\n")
    assert not (tmp_path / "here" / "claims.json").exists()
    done = run("here", command="status")[1].splitlines()
    assert re.match(rf"{command}: \d+ of \d+ networks in \d cells?", done[0])
    assert done[1] == "results   not there"
    status, _, err = run("here", command="show")
    assert (status, err.count("\n")) == (2, 1)
    assert "folder: expected a finished run, got here with" in err
    assert run(*options, "--out", "here", command=command)[0] == 0
    assert run(*options, "--out", "whole", command=command)[0] == 0
    here, whole = content(tmp_path / "here"), content(tmp_path / "whole")
    assert here[0] == whole[0]
    xarray.testing.assert_allclose(here[2], whole[2], rtol=1e-6)  # of other batches
    status, _, err = run(*options, "--out", "here", "--seed", "1", command=command)
    assert status == 2
    assert "--out: expected the run in" in err
    assert "options.seed is 0 there and 1 here" in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_shards_are_merged(run, tmp_path):
    assert run(*TINY, "--out", "whole")[0] == 0
    for share in ("0", "1"):
        status, out, _ = run(*TINY, "--shard", f"{share}/2", "--out", share)
        assert status == 0
        assert f"share {share} of 2 is drawn; `mftadv merge` joins all of them" in out
    status, out, err = run("joined", "0", "1", command="merge")
    assert (status, err) == (0, "")
    assert "var J" in out
    joined, whole = content(tmp_path / "joined"), content(tmp_path / "whole")
    assert joined[0] == whole[0]
    xarray.testing.assert_allclose(joined[2], whole[2], rtol=1e-6)


@pytest.mark.slow
def test_shards_of_a_sweep_are_merged(run, tmp_path):
    text = 'statistic = "jacobian"\nnetworks = 21\n[network]\ninput_dim = 3\nwidth = 6\ndepth = 1\n[grid]\n'
    (tmp_path / "s.toml").write_text(text + "weight_variance = [1, 2.0]\np = [inf]\n")
    assert run("s.toml", "--out", "whole", command="sweep")[0] == 0
    for share in ("0", "1"):
        status, out, _ = run("s.toml", "--shard", f"{share}/2", "--out", share, command="sweep")
        assert status == 0
        assert f"share {share} of 2 is drawn" in out
        assert not (tmp_path / share / "data.nc").exists()
        assert not (tmp_path / share / "report.html").exists()
    status, out, err = run("joined", "1", "0", command="merge")
    assert (status, err) == (0, "")
    assert out.splitlines()[1:] == run("joined", command="show")[1].splitlines()  # but for the plan
    assert "theory_jacobian_variance" in (tmp_path / "joined" / "report.html").read_text()
    with xarray.open_dataset("joined/data.nc") as joined, xarray.open_dataset("whole/data.nc") as whole:
        assert int(joined["norm_count"].min()) == 21
        xarray.testing.assert_allclose(joined, whole, rtol=1e-6)
    run("half", "1", command="merge")  # what no shard has is drawn
    with xarray.open_dataset("half/data.nc") as half, xarray.open_dataset("whole/data.nc") as whole:
        xarray.testing.assert_allclose(half, whole, rtol=1e-6)
    for shard, message in (("3", "i/n, got '3'"), ("2/2", "(i, n) with 0 <= i < n, a folder and no target")):
        status, _, err = run("s.toml", "--shard", shard, "--out", "wrong", command="sweep")
        assert (status, err.count("\n")) == (2, 1)
        assert f"shard: expected {message}" in err
    spec = NetworkSpec(1, 1, 1, 1)
    sweep(lambda key, spec: spec.weight_variance, jax.random.key(0), spec, {"depth": [1]}, folder="own")
    status, _, err = run("wrong", "own", command="merge")
    assert (status, err.count("\n")) == (2, 1)
    assert "or a sweep that a file describes, got one of 'sweep'" in err
    assert not (tmp_path / "wrong").exists()


@pytest.mark.slow
def test_a_full_disk_is_exit_3_and_one_line(run, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as context:
        context.setattr(store.RunFolder, "publish", full)
        status, _, err = run(*TINY, "--out", "here")
    assert status == 3
    assert re.fullmatch(r"mftadv: OSError: .*No space left on device\n", err)
    assert sum(store.status(tmp_path / "here", check=True).networks) == 20
    assert run(*TINY, "--out", "here")[0] == 0


@pytest.mark.slow
def test_bounds_writes_what_it_says(run_with_figures, tmp_path):
    run = run_with_figures
    status, out, err = run(*BOUNDS, "--dims", "4", "8", "--outputs", "2", "1", command="bounds")
    assert (status, err) == (0, "")
    folder = tmp_path / "results" / "bounds-1"
    for name in ("loss", "dimensions"):
        assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    _, record, data = content(folder)
    # one for each of (d, K) = (4, 2), at the inputs of all sizes and at gaussian ones, (8, 2), (4, 1): nothing twice
    assert "plan      5 cells by 3 programs" in out
    cells = zip(*(data[name].values.tolist() for name in ("eps", "d", "K", "part")), strict=True)
    assert sorted(cells) == sorted(
        [(0.1, 4, 2, "inputs"), (1.0, 4, 2, "inputs"), (0.1, 4, 2, "d K"), (0.1, 8, 2, "d"), (0.1, 4, 1, "K")]
    )
    assert record["identity"]["options"]["p"] == ["inf"]
    for cell in range(5):
        at = data.isel(cell=cell)
        loss = float(at["loss"].mean())
        assert loss == pytest.approx(float(at["eps"] * at["norm"].mean()), rel=0.25)
        assert float(at["theory_published"]) < loss < float(at["theory_at_width"]) * 1.05
        assert not at["nonfinite"].any()
        assert at["law_exact"].all()
    assert {claim["verdict"] for claim in claims_of(folder, "loss_chevet")} == {"holds"}
    assert {claim["verdict"] for claim in claims_of(folder, "loss_published")} == {"fails, as predicted"}
    assert len(claims_of(folder)) == 10
    assert out.count("inf->2") == 5 + 1 + 3  # the rows, of which (4, 2) has two, and three names in the note
    assert "5 holds, 5 fails, as predicted" in out


@pytest.mark.slow
def test_bounds_without_matrices_and_a_wrong_bound(run, tmp_path, monkeypatch):
    true = theory.chevet_excess
    monkeypatch.setattr(theory, "chevet_excess", lambda *args: 0.25 * (1 + true(*args)) - 1)
    status, out, _ = run(*BOUNDS, "--depth", "1", "--engine", "matrix_free", "--attack", "frugal", command="bounds")
    assert status == 1
    assert "engine    matrix_free; cost of a network" in out
    folder = tmp_path / "results" / "bounds-1"
    assert [claim["verdict"] for claim in claims_of(folder, "loss_chevet")] == ["fails"] * 3
    assert content(folder)[2]["law_exact"].all()


@pytest.mark.parametrize(("broken", "verdict"), [(0, "holds"), (1, "fails")])
def test_an_attack_that_broke_down_holds_nothing(broken, verdict):
    spec, xs, loss = NetworkSpec(4, 2, 24, 2), np.ones((1, 4)), np.linspace(0.1, 0.2, 99)[:, None]
    predicted = loss_bounds.predictions(spec, xs, 1.0, 2.0, 2.0)
    sample = {"loss": loss, "nonfinite": np.where(loss < loss[1], broken, 0)}
    coords = {"p": 2.0, "q": 2.0, "eps": 1.0, "d": 4, "K": 2}
    claim = loss_bounds.claims_of(spec, predicted, sample, np.float32, coords)[0]
    assert claim.id == "loss_chevet"
    assert judge([claim], 1e-3)[0].verdict == verdict


# Bad usage

REFUSED = [
    (["--width", "0"], "--width: expected a positive integer, got 0"),
    (["--depth", "-3"], "--depth: expected a positive integer, got -3"),
    (["--output-dim", "0"], "--output-dim: expected a positive integer"),
    (["--input-dim", "0", "--data", "gaussian"], "--input-dim: expected a positive integer"),
    (["--networks", "1"], "--networks: expected at least 2"),
    (["--inputs", "0"], "--inputs: expected a positive integer, got 0"),
    (["--weight-variance", "-1"], "--weight-variance: expected a finite number >= 0, got -1.0"),
    (["--bias-variance", "nan"], "--bias-variance: expected a finite number >= 0, got nan"),
    (["--bias-variance", "1e39"], "--bias-variance: expected a number that float32 can hold, got 1e+39"),
    (["--weight-variance", "1e-140"], "--weight-variance: expected a number that float32 can hold, got 1e-140"),
    (["--weight-variance", "0"], "--weight-variance: expected omega^L within"),
    (["--slopes", "0", "0"], "at least one to be nonzero"),
    (["--block", "resnet"], "--block: expected one of vanilla, residual, signed, got 'resnet'"),
    (["--data", "absent.npy"], "--data: expected digits, gaussian or the path of a file, got 'absent.npy'"),
    (["--seed", "-1"], "--seed: expected"),
    (["--width", "many"], "--width"),
    (["--wdth", "3"], "--wdth"),
    (["--shard", "3"], "--shard: expected i/n, got '3'"),
    (["--shard", "²/2"], "--shard: expected i/n, got '²/2'"),
    (["--shard", "2/2", "--networks", "20"], "--shard: expected i/n with 0 <= i < n, got 2/2"),
    (["--shard", "0/2"], "--networks: expected a number where a run is divided into shards, got None"),
    (["--batch-size", "0"], "--batch-size: expected a positive integer, got 0"),
    (["--out", "x" * 256], "--out: expected one that can be made"),
    (["--out", "a\nfile/run"], "--out: expected one that can be made, read and written to, got"),
    # sizes that no machine has: nothing of them is allocated, traced or summed over
    (["--depth", "2147483648"], "--depth: expected at most 2000, got 2147483648"),
    (["--width", "2147483648"], "--width: expected at most 2147483647, got 2147483648"),
    (["--input-dim", "2147483648", "--data", "gaussian"], "--inputs, --input-dim: expected at most 2 GiB of numbers"),
    (["--inputs", "100000000", "--data", "gaussian"], "--inputs, --input-dim: expected at most 2 GiB of numbers"),
    (["--width", "10000000", "--engine", "dense"], "--width: expected networks that fit into"),
    (["--output-dim", "1000000000"], "--width: expected networks that fit into"),
    (["--networks", "4294967296"], "--networks: expected results whose analysis fits into"),
]
REFUSED_BY_BOUNDS = [
    (["--eps", "0"], "--eps: expected finite numbers > 0 in float32, got 0.0"),
    (["--eps", "0.1", "nan"], "--eps: expected finite numbers > 0 in float32, got nan"),
    (["--eps", "8/0"], "eps"),
    (["--eps", "-8/255"], "--eps: expected finite numbers > 0 in float32, got -0.03"),
    (["--eps", "1e39"], "--eps: expected finite numbers > 0 in float32, got 1e+39"),
    (["--p", "2", "0.5"], "--p: expected a number in [1, inf], got 0.5"),
    (["--q", "-1"], "--q: expected a number in [1, inf], got -1"),
    (["--dims", "16", "0"], "--dims: expected a positive integer, got 0"),
    (["--outputs", "-1"], "--outputs: expected a positive integer, got -1"),
    (["--attack", "hard"], "--attack"),
    (["--networks", "1"], "--networks: expected at least 2"),
    (["--dry-run", "--dims", "2147483648"], "--dims: expected at most 2147483647, got 2147483648"),
    (["--dry-run", "--outputs", "2147483648"], "--outputs: expected at most 2147483647, got 2147483648"),
    (["--dry-run", "--depth", "2147483648"], "--depth: expected at most 2000, got 2147483648"),
]
REFUSED_BY_OTHERS = [
    (["bounds", "--eps", "-1"], "--eps: expected finite numbers > 0 in float32, got -1.0"),
    (["width", "--widths", "0"], "--widths: expected a positive integer, got 0"),
    (["supremum", "--dims", "0"], "--dims: expected a positive integer, got 0"),
    (["supremum", "--expansion", "2147483647"], "--expansion: expected at most 16777215, got 2147483647"),
    (["train", "--p", "0.5"], "--p: expected a number in [1, inf], got 0.5"),
    (["train", "--eps", "1e39"], "--eps: expected a number that float32 can hold, got 1e+39"),
    (["train", "--steps", "2147483648"], "--steps: expected at most 2147483647, got 2147483648"),
    (["train", "--slopes", "nan", "0"], "--slopes: expected a finite number, got nan"),
    (["training-law", "--angles", "9"], "--angles: expected numbers in [1e-6, 1], got 9.0"),
    (["training-law", "--depths", "2147483648"], "--depths: expected at most 2000, got 2147483648"),
    (["trainability", "--depths", "0"], "--depths: expected a positive integer, got 0"),
    (["trainability", "--lower", "2"], "--lower: expected a number in [0, 1], got 2.0"),
    (["trainability", "--blocks", "resnet"], "--blocks"),
    (["capacity", "--widths", "-1"], "--widths: expected a positive integer, got -1"),
    (["validate", "--out", "."], "--out: expected a new or empty folder, or that of a run, got "),
    (["train", "--out", "."], "--out: expected a new or empty folder, or that of a run, got "),
    (["supremum", "--out", "."], "--out: expected a new or empty folder, or that of a run, got "),
    *(([name, "--networks", "0"], "--networks: expected a positive integer, got 0") for name in EXPERIMENTS),
    (["train", "--shard", "3/2", "--networks", "4"], "--shard: expected i/n with 0 <= i < n, got 3/2"),
    (["capacity", "--batch-size", "0"], "--batch-size: expected a positive integer, got 0"),
    (["reproduce", "--out", "."], "folder: expected a new or empty folder, or that of a run, got "),
    (["reproduce", "everything"], "claims: expected names among "),
    (["width", "--dry-run", "--depth", "2147483648"], "--depth: expected at most 2000, got 2147483648"),
    (["width", "--dry-run", "--widths", "2147483648"], "--widths: expected at most 2147483647, got 2147483648"),
    (["show", "absent"], "folder: expected the record of a run, got "),
    (["report", "absent"], "folder: expected the record of a run, got "),
    (["status", "absent"], "folder: expected the record of a run, got "),
    (["show", "."], "folder: expected the record of a run, got "),
    (["merge", "new", "absent"], "folder: expected the record of a run, got "),
    (["merge", "new"], "shards: expected at least one folder, got none"),
    (["sweep", "absent.toml"], "file: expected a TOML file, got absent.toml"),
    (["show"], "Missing from mftadv show: PATH of the run"),
    (["vaildate"], "vaildate"),
    ([], "validate, bounds"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *((["validate", *arguments], message) for arguments, message in REFUSED),
        *((["bounds", *arguments], message) for arguments, message in REFUSED_BY_BOUNDS),
        *REFUSED_BY_OTHERS,
    ],
)
def test_bad_usage_is_one_line_before_any_computing(tmp_path, monkeypatch, capsys, arguments, message):
    no_programs(monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a\nfile").write_text("")
    start = time.monotonic()
    status = command_line(arguments)
    out, err = capsys.readouterr()
    assert status == 2
    assert message.lower() in err.lower()
    assert err.startswith("mftadv: ")
    assert err.count("\n") == 1
    # at most what is asked for is said
    assert not {"folder", "plan"} & {line.partition(" ")[0] for line in out.splitlines()}
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["a\nfile"]
    assert time.monotonic() - start < 30


def test_inputs_beyond_the_float_type_are_refused(run, tmp_path, monkeypatch):
    no_programs(monkeypatch)
    np.save(tmp_path / "x.npy", np.full((3, 2), 1e39))
    for command in ("validate", "bounds"):
        status, _, err = run("--data", "x.npy", "--no-scale", command=command)
        assert (status, err) == (2, "mftadv: --data: expected numbers that float32 can hold, got 1e+39\n")


@pytest.mark.slow
def test_what_is_not_finite_is_null_in_json(run, tmp_path):
    status, _, _ = run(*TINY, "--weight-variance", "1e-30", "--x64", "--bias-variance", "1e-300", "--out", "here")
    assert status in (0, 1)
    for path in (tmp_path / "here").glob("*.json"):
        json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"found {name}"))


def test_an_error_of_the_program_is_exit_4_with_its_traceback(run, monkeypatch):
    monkeypatch.setattr(experiments, "run", lambda *_, **__: 1 / 0)
    status, _, err = run()
    assert status == 4
    assert err.startswith("Traceback")
    assert "ZeroDivisionError" in err


def test_help_names_every_option(capsys):
    for command, option in (("validate", "--weight-variance"), ("bounds", "--attack"), ("width", "--widths")):
        with pytest.raises(SystemExit) as stop:
            command_line([command, "--help"])
        assert stop.value.code == 0
        out = capsys.readouterr().out
        assert option in out
        assert "--networks" in out
    assert command_line(["--version"]) == 0
    assert capsys.readouterr().out == f"mftadv {mftadv.__version__}\n"


def test_a_user_without_a_home_has_no_cache(monkeypatch):
    def home(*_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    before = jax.config.jax_compilation_cache_dir
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == before


def test_the_shell_completes_commands_and_options(capsys):
    with pytest.raises(SystemExit) as stop:
        command_line(["--tyro-print-completion", "bash"])
    assert not stop.value.code
    script = capsys.readouterr().out
    for word in (*EXPERIMENTS, "sweep", "--weight-variance", "--networks"):
        assert word in script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.slow
def test_dry_run_of_bounds(run, tmp_path, monkeypatch):
    no_programs(monkeypatch)
    status, out, _ = run("--dry-run", command="bounds")
    assert status == 0
    assert "51 cells by 21 programs" in out
    assert "a network takes about" in out
    assert "attack    default, p=inf: " in out
    assert not list(tmp_path.iterdir())


def test_paper_names_the_papers_configuration(run, monkeypatch):
    seen = []

    def found(experiment, *_, **__):
        seen.append(experiment)
        return experiments.Result(experiment, None, None, ())

    monkeypatch.setattr(experiments, "run", found)
    assert run("--paper", "--networks", "8", "--block", "signed")[0] == 0
    paper = seen[0]
    assert (paper.data, paper.input_dim, paper.output_dim, paper.width, paper.depth) == ("gaussian", 1000, 1, 5000, 10)
    assert (paper.block, paper.bias_variance, paper.slopes, paper.weight_variance) == ("signed", 0.0, (1.0, 0.0), 2.0)
    run("--paper", "--width", "50")
    assert (seen[1].width, seen[1].depth) == (50, 10)


def test_quotients_are_numbers(run, monkeypatch):
    seen = []
    monkeypatch.setattr(experiments, "run", lambda e, *_, **__: seen.append(e) or experiments.Result(e, None, None, ()))
    assert run("--eps", "8/255", "1", "--p", "inf", command="bounds")[0] == 0
    assert (seen[0].eps, seen[0].p) == ((8 / 255, 1.0), (np.inf,))


# The process


@pytest.fixture(scope="module")
def environment():
    cache = {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return {**os.environ, "PYTHONPATH": str(ROOT), **cache}


def shell(command, folder, environment, **more):
    """Run a line of shell in which `mftadv` is the command."""
    line = f'set -o pipefail; mftadv() {{ "{sys.executable}" -m mftadv "$@"; }}; {command}'
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env={**environment, **more}, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_a_closed_pipe_or_output_loses_no_run(tmp_path, environment, monkeypatch):
    command = f"mftadv validate {' '.join(TINY)} --out é"
    found = shell(f"{command} | head -1", tmp_path, environment, PYTHONIOENCODING="ascii")
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.count("\n") == 1
    assert store.status(tmp_path / "é", check=True).is_current
    found = shell(f"{command} >&-", tmp_path, environment)
    assert (found.returncode, found.stderr) == (0, "")
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", Output(io.TextIOWrapper(written, "ascii", write_through=True)))
    monkeypatch.chdir(tmp_path)
    assert command_line(command.split()[1:]) == 0
    assert written.getvalue().decode("ascii").rstrip().endswith("/?")


@pytest.mark.slow
def test_the_machine_fails_in_one_line(tmp_path, environment):
    command = f"mftadv validate {' '.join(TINY)}"
    found = shell(f"{command} --out b", tmp_path, environment, JAX_PLATFORMS="cuda")
    assert (found.returncode, found.stderr.count("\n")) == (3, 1)
    assert "no device of the platform 'cuda'" in found.stderr
    assert not list(tmp_path.iterdir())
    found = shell(f"ulimit -f 2; {command} --out c", tmp_path, environment, JAX_ENABLE_COMPILATION_CACHE="false")
    assert (found.returncode, found.stderr.count("\n")) == (3, 1)
    assert "File too large" in found.stderr
    assert store.status(tmp_path / "c", check=True).damaged == []
    # without the extra "cli"
    (tmp_path / "tyro.py").write_text("raise ModuleNotFoundError(\"No module named 'tyro'\", name='tyro')")
    found = shell("mftadv validate", tmp_path, environment)
    assert (found.returncode, found.stderr.count("\n")) == (2, 1)
    assert 'pip install "mftadv[cli]"' in found.stderr


def started(folder, environment, *options):
    command = [sys.executable, "-m", "mftadv", "validate", *TINY, *options]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_signals_end_it_at_once(tmp_path, environment):
    for delay in (0.2, 0.5):  # while it is imported
        process = started(tmp_path, environment)
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "Traceback" not in err
    for number in (signal.SIGTERM, signal.SIGINT):
        process = started(tmp_path, environment, "--networks", "5000000", "--out", "run")
        assert process.stdout.readline().startswith("run")
        time.sleep(1)
        start = time.monotonic()
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err.count("\n")) == (130, 1)
        assert "interrupted; the same command goes on from what is stored" in err
        assert time.monotonic() - start < 10


@pytest.mark.slow
def test_two_at_once(run, tmp_path, environment):
    first = started(tmp_path, environment, "--networks", "5000000", "--out", "run")
    try:
        while not (tmp_path / "run" / "run.json").exists() and first.poll() is None:
            time.sleep(0.05)
        first.send_signal(signal.SIGSTOP)  # it holds its folder all the same
        status, _, err = run(*TINY, "--out", "run")
        assert (status, err.count("\n")) == (2, 1)
        assert "another process is at work in" in err
    finally:
        first.kill()
        first.communicate()
