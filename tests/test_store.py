"""Result folders appear whole or not at all."""

import json
import os

import jax
import numpy as np
import pytest

from mftadv import store
from mftadv.spec import NetworkSpec


def text(content):
    return lambda path: path.write_text(content)


def test_written_whole_and_never_over_another(tmp_path):
    folder = tmp_path / "a" / "run"
    store.write_run(folder, {"results.json": text("1"), "b": text("2")})
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"results.json": "1", "b": "2"}
    with pytest.raises(ValueError, match="out: expected a folder that does not exist, or --overwrite"):
        store.write_run(folder, {"results.json": text("3")})
    store.write_run(folder, {"results.json": text("3")}, overwrite=True)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"results.json": "3"}
    assert [path.name for path in folder.parent.iterdir()] == ["run"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interruption_between_the_renames_restores_the_old_run(tmp_path, monkeypatch, error):
    folder, rename = tmp_path / "run", type(tmp_path).rename
    store.write_run(folder, {"results.json": text("old")})

    def interrupted(self, target):
        if self.name == "fresh":
            raise error
        return rename(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", interrupted)
    with pytest.raises(error):
        store.write_run(folder, {"results.json": text("new")}, overwrite=True)
    assert (folder / "results.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_finished_meanwhile_is_not_lost(tmp_path):
    folder = tmp_path / "run"

    def slow(path):
        path.write_text("mine")
        if not folder.exists():
            store.write_run(folder, {"results.json": text("theirs")})

    with pytest.raises(ValueError, match="out: expected a folder that does not exist"):
        store.write_run(folder, {"results.json": slow})
    assert (folder / "results.json").read_text() == "theirs"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interruption_leaves_the_old_run_and_nothing_else(tmp_path, error):
    folder = tmp_path / "run"
    store.write_run(folder, {"results.json": text("old")})

    def interrupted(path):
        path.write_text("half")
        raise error

    with pytest.raises(error):
        store.write_run(folder, {"results.json": text("new"), "figure.png": interrupted}, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (folder / "results.json").read_text() == "old"


def test_only_results_are_overwritten(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"out: expected a result folder to overwrite"):
        store.write_run(tmp_path / "thesis", {"results.json": text("")}, overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="out: expected a folder, got the file"):
        store.check_vacant(tmp_path / "file", overwrite=True)
    with pytest.raises(ValueError, match="out: expected a place one may write to"):
        store.check_vacant(tmp_path / "file" / "run", overwrite=False)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_one_may_not_write_to(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="out: expected a place one may write to"):
        store.check_vacant(tmp_path / "run", overwrite=False)


def test_next_vacant(tmp_path):
    stem = tmp_path / "validate"
    assert store.next_vacant(stem).name == "validate-1"
    (tmp_path / "validate-1").mkdir()
    assert store.next_vacant(stem).name == "validate-2"


def test_parts_are_kept_for_the_same_run_alone(tmp_path, monkeypatch):
    certificate = {"arguments": {"seed": 7, "out": None}, "commit": "abc"}
    kept = store.Kept(tmp_path / "run-1", certificate)
    assert kept.load("0") is None
    kept.save("0", [np.arange(3), np.zeros((0, 2))])
    first, second = store.Kept(tmp_path / "run-2", {**certificate, "arguments": {"seed": 7, "out": "here"}}).load("0")
    np.testing.assert_array_equal(first, np.arange(3))
    assert second.shape == (0, 2)
    for other in ({"arguments": {"seed": 8, "out": None}, "commit": "abc"}, {**certificate, "commit": "abd"}):
        assert store.Kept(tmp_path / "run-1", other).load("0") is None

    def killed(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        kept.save("1", [np.arange(3)])
    assert kept.load("1") is None
    kept.discard()
    assert not list(tmp_path.iterdir())


def test_birth_certificate_replays_a_network():
    spec = NetworkSpec(3, 1, 4, 2, 1.5, block="signed")
    key = jax.random.key(7)
    record = json.loads(
        json.dumps(
            store.birth_certificate(
                spec, key, 10, arguments={"seed": 7, "p": (1.0, np.inf)}, engine="dense", preprocessing="none",
                batch_size=5, dtype=np.float32,
            ),
            allow_nan=False,
        )
    )  # fmt: skip
    again = jax.random.wrap_key_data(np.array(record["root_key"]["data"], np.uint32), impl=record["root_key"]["impl"])
    assert jax.random.normal(again) == jax.random.normal(key)
    assert NetworkSpec(**record["spec"]) == spec
    assert record["networks"] == [0, 10]
    assert (record["dtype"], record["engine"]) == ("float32", "dense")
    assert record["arguments"] == {"seed": 7, "p": [1.0, "inf"]}
    assert {"jax", "mftadv", "python"} <= set(record["versions"])
