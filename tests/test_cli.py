"""The command line as a user meets it: real input, wrong input, an interruption."""

import json
import math

import chex
import jax
import numpy as np
import pytest

from mftadv import cli, sweep, theory
from mftadv.cli import _options, _validate
from mftadv.compare import judge
from mftadv.experiments import bounds
from mftadv.spec import NetworkSpec

BOUNDS = ["--width", "24", "--depth", "2", "--networks", "60", "--data", "gaussian", "--input-dim", "4",
          "--output-dim", "2", "--p", "inf", "--q", "2", "--eps", "1", "0.1", "--dims", "4",
          "--outputs", "2"]  # fmt: skip
SMALL = ["--width", "24", "--depth", "2", "--networks", "600", "--inputs", "2"]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def call(*arguments, command="validate"):
        status = cli.main([command, *arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def records(folder):
    return json.loads((folder / "results.json").read_text())


def claims(record):
    return [claim for at in record["inputs"] for claim in at["claims"]]


@pytest.mark.slow
def test_validate_writes_what_it_says(run, tmp_path):
    status, out, err = run(*SMALL, "--draws")
    assert (status, err) == (0, "")
    folder = tmp_path / "results" / "validate-1"
    assert {path.name for path in folder.iterdir()} == {"results.json", "figure.png", "draws.npz"}
    record = records(folder)
    assert record["certificate"]["networks"] == [0, 600]
    assert record["certificate"]["spec"]["width"] == 24
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    with np.load(folder / "draws.npz") as draws:
        assert draws["jacobian"].shape == (600, 2, 1, 64)
        variance = next(claim for claim in record["inputs"][1]["claims"] if claim["quantity"] == "variance of J")
        assert variance["measured"] == pytest.approx(np.mean(draws["jacobian"][:, 1].astype(float) ** 2), rel=1e-6)
        assert variance["theory"] == pytest.approx(1 / 64)
        np.testing.assert_allclose(draws["norm_2_2"], np.linalg.norm(draws["jacobian"], axis=(2, 3)), rtol=1e-5)
    assert "wrote results.json, figure.png, draws.npz in results/validate-1" in out
    assert "compiled in" in out
    # the published coefficients are no bounds at K = 1, and the table says so
    verdicts = {(c["quantity"], c["verdict"]) for c in claims(record)}
    assert ("mean |J| 1->2, published", "fails, as predicted") in verdicts
    assert ("mean |J| 1->2, Chevet", "holds") in verdicts
    run(*SMALL)
    assert (tmp_path / "results" / "validate-2").exists()


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
    record = records(tmp_path / "here")
    assert record["certificate"]["dtype"] == ("float64" if "--x64" in options else "float32")
    assert jax.numpy.zeros(1).dtype == jax.numpy.float32  # the run's precision is its own
    if "0" in options:
        shift = [claim for claim in claims(record) if claim["quantity"] == "variance of a"]
        assert all((claim["measured"], claim["verdict"]) == (0, "holds") for claim in shift)


@pytest.mark.slow
def test_residual_shows_the_published_law_failing_beside_the_corrected_one(run, tmp_path):
    status, out, _ = run("--block", "residual", "--width", "64", "--depth", "3", "--networks", "9000", "--out", "r",
                         "--weight-variance", "1.0", "--bias-variance", "0.05", "--inputs", "1")  # fmt: skip
    verdicts = {claim["quantity"]: claim["verdict"] for claim in claims(records(tmp_path / "r"))}
    assert status == 0
    assert verdicts["variance of J along x, published"] == "fails, as predicted"
    assert verdicts["variance of J, published"] == "fails, as predicted"
    assert verdicts["variance of J, corrected"] == "holds"
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
def test_few_networks_are_underpowered_and_say_so(run):
    status, out, _ = run("--width", "24", "--depth", "2", "--networks", "4")
    assert status == 0
    assert "underpowered (sees" in out


@pytest.mark.slow
def test_dry_run_computes_and_writes_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep.Draws, "__iter__", lambda self: pytest.fail("drew networks"))
    status, out, _ = run("--dry-run")
    assert status == 0
    assert "networks to see 5%" in out
    assert "each; compiled" in out
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_interruption_leaves_nothing(run, tmp_path, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep.Draws, "__iter__", interrupted)
    status, _, err = run(*SMALL, "--out", "here")
    assert (status, err) == (130, "mftadv: interrupted; nothing was written\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--width", "0"], "width: expected a positive integer, got 0"),
        (["--depth", "-3"], "depth: expected a positive integer, got -3"),
        (["--output-dim", "0"], "output_dim: expected a positive integer"),
        (["--input-dim", "0", "--data", "gaussian"], "input_dim: expected a positive integer"),
        (["--networks", "1"], "networks: expected at least 2"),
        (["--inputs", "0"], "inputs: expected a positive integer, got 0"),
        (["--weight-variance", "-1"], "weight_variance: expected a finite number >= 0, got -1.0"),
        (["--bias-variance", "nan"], "bias_variance: expected a finite number >= 0, got nan"),
        (["--weight-variance", "0"], "weight_variance: expected omega^L within"),
        (["--slopes", "0", "0"], "at least one to be nonzero"),
        (["--block", "resnet"], "block: expected one of vanilla, residual, signed, got 'resnet'"),
        (["--data", "absent.npy"], "data: expected digits, gaussian or the path of a file, got 'absent.npy'"),
        (["--seed", "-1"], "seed: expected"),
        (["--width", "many"], "--width"),
        (["--wdth", "3"], "--wdth"),
    ],
)
def test_bad_usage_is_one_line_before_any_computing(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr(sweep, "draws", lambda *_, **__: pytest.fail("computed"))
    status, out, err = run(*arguments)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
    assert "Traceback" not in err + out
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_existing_result_is_refused_and_overwritten_when_told(run, tmp_path):
    assert run(*SMALL, "--out", "here")[0] == 0
    status, _, err = run(*SMALL, "--out", "here")
    assert status == 2
    assert "out: expected a folder that does not exist, or --overwrite, got here" in err
    assert run(*SMALL, "--out", "here", "--overwrite", "--seed", "1")[0] == 0
    data = records(tmp_path / "here")["certificate"]["root_key"]["data"]
    assert data == jax.random.key_data(_options.fastest_key(1)).tolist()


@pytest.mark.slow
def test_bounds_writes_what_it_says(run, tmp_path, monkeypatch):
    # twice for each of three programs: for the shapes and for the program
    counted = chex.assert_max_traces(bounds.adversarial_loss, n=2 * 3)
    monkeypatch.setattr(bounds, "adversarial_loss", counted)
    status, out, err = run(*BOUNDS, "--dims", "4", "8", "--outputs", "2", "1", command="bounds")
    assert (status, err) == (0, "")
    folder = tmp_path / "results" / "bounds-1"
    assert {path.name for path in folder.iterdir()} == {"results.json", "loss.png", "dimensions.png"}
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in ("loss.png", "dimensions.png"))
    record = records(folder)
    # one for each of (d, K) = (4, 2), at the inputs of all sizes and at gaussian ones, (8, 2), (4, 1): nothing twice
    assert record["programs"] == 3
    assert [(cell["eps"], cell["d"], cell["K"], cell["parts"]) for cell in record["cells"]] == [
        *[(0.1, 4, 2, ["inputs"]), (1.0, 4, 2, ["inputs"])],
        *[(0.1, 4, 2, ["d", "K"]), (0.1, 8, 2, ["d"]), (0.1, 4, 1, ["K"])],
    ]
    assert record["certificate"]["arguments"]["p"] == ["inf"]
    for cell in record["cells"]:
        assert cell["quantiles"]["05"] < cell["quantiles"]["50"] < cell["quantiles"]["95"]
        assert cell["loss"] == pytest.approx(cell["eps_norm"], rel=0.25)
        assert cell["published"] < cell["loss"] < cell["at_width"] * 1.05
        assert cell["tightness"] == cell["loss"] / cell["chevet"]
        assert cell["verdicts"] == {"chevet": "holds", "published": "fails, as predicted"}
        assert (cell["nonfinite"], cell["law_exact"]) == (0, True)
    assert out.count("inf->2") == 5 + 3 + 1  # the rows, of which (4, 2) has two, and three names in the note
    assert "5 holds, 5 fails, as predicted" in out


@pytest.mark.slow
def test_bounds_without_matrices_and_a_wrong_bound(run, tmp_path, monkeypatch):
    true = theory.chevet_excess
    monkeypatch.setattr(theory, "chevet_excess", lambda *args: 0.25 * (1 + true(*args)) - 1)
    status, out, _ = run(*BOUNDS, "--engine", "matrix_free", command="bounds")
    assert status == 1
    assert "matrix_free; cost of a network" in out
    cells = records(tmp_path / "results" / "bounds-1")["cells"]
    assert [cell["verdicts"]["chevet"] for cell in cells] == ["fails"] * 3
    assert all(cell["law_exact"] for cell in cells)


@pytest.mark.parametrize(("broken", "verdict"), [(0, "holds"), (1, "fails")])
@pytest.mark.slow
def test_an_attack_that_broke_down_holds_nothing(broken, verdict):
    spec, xs, loss = NetworkSpec(4, 2, 24, 2), np.ones((1, 4)), np.linspace(0.1, 0.2, 99)[:, None]
    predicted = bounds.predictions(spec, xs, 1.0, 2.0, 2.0)
    nonfinite = np.where(loss < loss[1], broken, 0)
    sample = bounds.Sample(loss, loss, loss > 0, nonfinite, np.ones(99, bool))
    claim = bounds.claims(spec, xs, predicted, 1.0, 2.0, 2.0, sample)["chevet"]
    assert judge([claim], 1e-3)[0].verdict == verdict


def test_bounds_interrupted_leaves_nothing(run, tmp_path, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep.Draws, "__iter__", interrupted)
    status, _, err = run(*BOUNDS, "--out", "here", command="bounds")
    assert (status, err) == (130, "mftadv: interrupted; nothing was written\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_bounds_goes_on_after_an_interruption(run, tmp_path, monkeypatch):
    collect, collected = _options.collect, []

    def stopped(draws, advance):
        if len(collected) == 2:
            raise KeyboardInterrupt
        collected.append(None)
        return collect(draws, advance)

    monkeypatch.setattr(_options, "collect", stopped)
    status, _, err = run(*BOUNDS, "--out", "here", command="bounds")
    assert (status, err) == (130, "mftadv: interrupted; the same command goes on from there\n")
    assert not (tmp_path / "here").exists()
    monkeypatch.setattr(_options, "collect", lambda *args: collected.append(None) or collect(*args))
    assert "going on" not in run(*BOUNDS, "--out", "other", "--seed", "1", command="bounds")[1]
    collected.clear()
    status, out, _ = run(*BOUNDS, "--out", "here", command="bounds")
    assert status == 0
    assert "going on  2 of 3 runs were done before" in out
    assert len(collected) == 1
    assert run(*BOUNDS, "--out", "whole", command="bounds")[0] == 0
    assert records(tmp_path / "here")["cells"] == records(tmp_path / "whole")["cells"]
    assert {path.name for path in tmp_path.iterdir()} == {"here", "other", "whole"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--eps", "0"], "eps: expected finite numbers > 0 in float32, got 0.0"),
        (["--eps", "0.1", "nan"], "eps: expected finite numbers > 0 in float32, got nan"),
        (["--eps", "8/0"], "eps"),
        (["--eps", "-8/255"], "eps: expected finite numbers > 0 in float32, got -0.03"),
        (["--eps", "1e39"], "eps: expected finite numbers > 0 in float32, got 1e+39"),
        (["--p", "2", "0.5"], "p: expected a number in [1, inf], got 0.5"),
        (["--q", "-1"], "q: expected a number in [1, inf], got -1"),
        (["--dims", "16", "0"], "dims: expected positive integers, got 0"),
        (["--outputs", "-1"], "outputs: expected positive integers, got -1"),
        (["--attack", "hard"], "--attack"),
        (["--networks", "1"], "networks: expected at least 2"),
    ],
)
def test_bad_usage_of_bounds_is_one_line(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr(sweep, "draws", lambda *_, **__: pytest.fail("computed"))
    status, out, err = run(*arguments, command="bounds")
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
    assert "Traceback" not in err + out
    assert not list(tmp_path.iterdir())


def test_dry_run_of_bounds(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "draws", lambda *_, **__: pytest.fail("compiled"))
    status, out, _ = run("--dry-run", command="bounds")
    assert status == 0
    assert "51 runs" in out
    assert "21 programs" in out
    assert not list(tmp_path.iterdir())


def test_no_command_and_help(capsys):
    assert cli.main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit) as stop:
        cli.main(["validate", "--help"])
    assert stop.value.code == 0
    assert "--weight-variance" in capsys.readouterr().out


def test_paper_names_the_papers_configuration(run, monkeypatch):
    seen = []
    monkeypatch.setattr(_validate, "_validate", lambda args, console: seen.append(args) or 0)
    assert run("--paper", "--networks", "8", "--block", "signed")[0] == 0
    args = seen[0]
    assert (args.data, args.input_dim, args.output_dim, args.width, args.depth) == ("gaussian", 1000, 1, 5000, 10)
    assert (args.networks, args.block, args.bias_variance, args.slopes) == (8, "signed", 0.0, (1.0, 0.0))
    assert math.isclose(args.weight_variance, 2.0)
    run("--paper", "--width", "50")
    assert (seen[1].width, seen[1].depth) == (50, 10)
