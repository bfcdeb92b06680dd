"""Run folders: parts are believed only after all checks, and nothing of the user's is lost."""

import dataclasses
import errno
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mftadv import store
from mftadv.spec import NetworkSpec
from mftadv.store import RunFolder

ROOT = Path(__file__).parent.parent
IDENTITY = {"name": "validate", "seed": 7, "p": (1.0, np.inf), "spec": {"width": 8, "weight_variance": 2.0}}
WIDE, NARROW = {"entries": ((2, 3), "float32"), "steps": ((), "int64")}, {"loss": ((4,), "float64")}
LAYOUTS = [WIDE, WIDE, NARROW]
HERE = {"versions": {"jax": "0.8.0"}}


def open_run(path, said=None, identity=IDENTITY, layouts=LAYOUTS, provenance=HERE, **options):
    say = (lambda sentence: None) if said is None else said.append
    return RunFolder.open(path, identity, layouts, provenance, say, **options)


def arrays_of(cells, networks, layout=None):
    """Numbers that are known from their cell and network."""
    lead = np.array([[100 * cell + network for network in networks] for cell in cells])
    layout = layout or LAYOUTS[cells.start]
    return {
        name: np.broadcast_to(lead.reshape(*lead.shape, *[1] * len(shape)), (*lead.shape, *shape)).astype(dtype)
        for name, (shape, dtype) in layout.items()
    }


def write(run, cells, networks):
    run.write_part(cells, networks, arrays_of(cells, networks))


def tree(path):
    """Every name below a folder, with its content where it is a file."""
    return {str(p.relative_to(path)): p.read_bytes() if p.is_file() else None for p in sorted(path.rglob("*"))}


def text(content):
    return lambda path: path.write_text(content)


@pytest.fixture
def run_path(tmp_path):
    """A run with three parts: networks 0-4 and 5-8 of cells 0 and 1, networks 0-6 of cell 2."""
    with open_run(tmp_path / "run") as run:
        run.aim([9, 9, 7])
        write(run, range(0, 2), range(0, 5))
        write(run, range(0, 2), range(5, 9))
        write(run, range(2, 3), range(0, 7))
    return tmp_path / "run"


def the_part(path):
    """The part that the tests damage: networks 5-8 of cells 0 and 1."""
    return next((path / "parts").glob("cells-0-2-networks-5-9-*.npz"))


def check_whole(run):
    """The run has exactly the networks it is to have, each with its numbers."""
    assert [run.missing(cell, stop) for cell, stop in enumerate(run.networks)] == [[], [], []]
    for part in run.parts:
        got, expected = run.load(part), arrays_of(part.cells, part.networks)
        assert got.keys() == expected.keys()
        for name, array in got.items():
            np.testing.assert_array_equal(array, expected[name], strict=True)


# A run, gone on with


def test_a_run_goes_on_where_it_was(tmp_path):
    path, said = tmp_path / "results" / "validate", []
    with open_run(path, said) as run:
        assert run.networks == [0, 0, 0]
        run.aim([9, 9, 7])
        assert run.missing(0, 9) == [range(9)]
        write(run, range(0, 2), range(3, 5))
        assert run.missing(0, 9) == run.missing(1, 9) == [range(0, 3), range(5, 9)]
        assert run.missing(2, 7) == [range(7)]
        assert run.missing(0, 4) == [range(0, 3)]
        assert run.missing(0, 9, 4) == [range(5, 9)]
        assert run.missing(0, 9, 7) == [range(7, 9)]
        assert run.missing(0, 2, 1) == [range(1, 2)]
        assert run.missing(0, 0) == []
    with open_run(path, said) as run:
        assert run.networks == [9, 9, 7]
        for networks in run.missing(0, 9):
            write(run, range(0, 2), networks)
        write(run, range(2, 3), range(7))
    with open_run(path, said) as run:
        check_whole(run)
        assert [part.networks for part in run.parts] == [range(0, 3), range(3, 5), range(5, 9), range(7)]
        run.aim([12, 9, 7])
        assert run.missing(0, 12) == [range(9, 12)]
    assert said == []
    assert sorted(os.listdir(path)) == ["parts", "run.json"]


def test_the_same_numbers_make_the_same_file(tmp_path):
    for name in ("a", "b"):
        with open_run(tmp_path / name) as run:
            write(run, range(0, 2), range(5))
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"identity": {**IDENTITY, "seed": 8}}, "seed is 7 there and 8 here$"),
        ({"identity": {**IDENTITY, "seed": True}}, "seed is 7 there and true here$"),
        ({"identity": {**IDENTITY, "p": (1.0, 2.0)}}, r'p.1 is "inf" there and 2.0 here$'),
        ({"identity": {**IDENTITY, "p": (1.0,)}}, r'p is \[1.0, "inf"\] there and \[1.0\] here$'),
        ({"identity": {**IDENTITY, "eps": 0.1}}, "eps is nothing there and 0.1 here$"),
        (
            {"identity": {"name": "validate", "seed": 9, "p": (1.0, np.inf), "spec": {"width": 8}}},
            "seed is 7 there and 9 here; spec.weight_variance is 2.0 there and nothing here$",
        ),
        ({"layouts": [WIDE, WIDE, {"loss": ((5,), "float64")}]}, "layouts.2.loss.0.0 is 4 there and 5 here$"),
        ({"layouts": LAYOUTS[:2]}, "layouts is .* there and .* here$"),
        ({"reduced": True}, "reduced is false there and true here$"),
    ],
)
def test_another_run_is_refused_and_what_differs_is_named(run_path, changes, words):
    before = tree(run_path)
    with pytest.raises(ValueError, match=f"^folder: expected the run in {run_path}, got another: {words}"):
        open_run(run_path, **changes)
    assert tree(run_path) == before


def test_an_identity_is_compared_as_json_holds_it(run_path):
    same = {
        "spec": {"weight_variance": np.float32(2), "width": np.int64(8)},
        "p": [1, "inf"],
        "seed": 7.0,
        "name": "validate",
    }
    with open_run(run_path, identity=same) as run:
        check_whole(run)
        assert run.damaged == []


def test_who_wrote_is_recorded_once_and_a_change_is_said(run_path):
    record = (run_path / "run.json").read_bytes()
    said, there = [], {"versions": {"jax": "0.9.0"}}
    with open_run(run_path, said, provenance=there) as run:
        assert said == [
            "run.json: the run goes on under other conditions than before: "
            'versions.jax is "0.8.0" there and "0.9.0" here.'
        ]
        assert (run_path / "run.json").read_bytes() == record
        write(run, range(2, 3), range(7, 9))
        write(run, range(2, 3), range(9, 10))
    assert json.loads((run_path / "run.json").read_text())["sessions"] == [HERE, there]


def test_what_is_written_is_checked(tmp_path):
    with open_run(tmp_path) as run:
        good = arrays_of(range(0, 2), range(5))
        for cells, networks, arrays, words in [
            (range(0, 2), range(5), {**good, "steps": good["steps"].astype(np.int32)}, "array steps: expected int64"),
            (range(0, 2), range(5), {"steps": good["steps"]}, "array entries: expected .*, got none"),
            (
                range(0, 2),
                range(6),
                good,
                r"entries: expected float32 \[2, 6, 2, 3\], got float32 \[2, 5, 2, 3\]",
            ),
            (range(1, 3), range(5), good, "cells of one layout"),
            (range(2, 4), range(5), good, "cells from 0 to 3"),
            (range(0, 2), range(0), good, "expected networks"),
        ]:
            with pytest.raises(ValueError, match=words):
                run.write_part(cells, networks, arrays)
        write(run, range(0, 2), range(5))
        with pytest.raises(ValueError, match="networks: expected some that are missing"):
            write(run, range(0, 2), range(1, 4))
        for networks in ([1, 2], [1, 2, -1]):
            with pytest.raises(ValueError, match="networks: expected a number, at least 0, for each of 3 cells"):
                run.aim(networks)
    with pytest.raises(ValueError, match="layouts: expected data types of numbers, got"):
        open_run(tmp_path / "other", layouts=[{"name": ((), "object")}])
    assert not (tmp_path / "other").exists()


def test_parts_that_overlap(run_path):
    with open_run(run_path) as run:
        run.aim([12, 12, 7])
        write(run, range(0, 1), range(7, 12))  # 7 and 8 are there already: the rest is new
        write(run, range(0, 2), range(10, 11))  # within what cell 0 has already
        assert run.missing(0, 12) == []
    with open_run(run_path) as run:
        assert run.missing(0, 12) == []
        assert run.missing(1, 12) == [range(9, 10), range(11, 12)]
        networks = [range(0, 5), range(5, 9), range(7, 12), range(10, 11), range(7)]
        assert [part.networks for part in run.parts] == networks


def test_reduced_parts_never_overlap(tmp_path):
    layouts = [{"mean": ((2,), "float64")}] * 2
    with open_run(tmp_path / "a", layouts=layouts, reduced=True) as run:
        run.aim([9, 9])
        run.write_part(range(2), range(0, 4), {"mean": np.zeros((2, 2))})
        with pytest.raises(ValueError, match="networks: expected some that are missing"):
            run.write_part(range(2), range(3, 9), {"mean": np.zeros((2, 2))})
    with open_run(tmp_path / "b", layouts=layouts, reduced=True) as run:
        run.write_part(range(2), range(3, 9), {"mean": np.zeros((2, 2))})
    assert store.merge(tmp_path / "a", [tmp_path / "b"]) == 0
    shutil.copy(next((tmp_path / "b" / "parts").iterdir()), tmp_path / "a" / "parts")
    with open_run(tmp_path / "a", layouts=layouts, reduced=True) as run:
        assert [part.networks for part in run.parts] == [range(0, 4)]
        assert run.missing(0, 9) == [range(4, 9)]


# Parts that are not what they seem


def rewrite(part, change, name=None):
    """Replace a part by one with other arrays and a checksum that is right for them."""
    with np.load(part) as archive:
        arrays = change(dict(archive))
    file = io.BytesIO()
    np.savez(file, **arrays)
    part.unlink()
    stem = (name or part.name).rpartition("-")[0]
    (part.parent / f"{stem}-{hashlib.sha256(file.getvalue()).hexdigest()}.npz").write_bytes(file.getvalue())


def replaced(**arrays):
    return lambda part: rewrite(part, lambda old: {**old, **arrays})


def in_place(change):
    return lambda part: part.write_bytes(change(part.read_bytes()))


def instead(make):
    def damage(part):
        part.unlink()
        make(part)

    return damage


def of_another_run(part):
    with open_run(part.parent.parent.parent / "other", identity={**IDENTITY, "seed": 8}) as other:
        write(other, range(0, 2), range(5, 9))
    part.unlink()
    shutil.copy(the_part(other.path), part.parent)


def copied_over(part):
    shutil.copy(next(part.parent.glob("cells-0-2-networks-0-5-*")), part)


def renamed(old, new):
    return lambda part: part.rename(part.with_name(part.name.replace(old, new)))


class Trap:
    """An object that ends the process that loads it."""

    def __reduce__(self):
        return os._exit, (3,)


DAMAGES = {
    "empty": in_place(lambda content: b""),
    "truncated": in_place(lambda content: content[:-1]),
    "half": in_place(lambda content: content[: len(content) // 2]),
    "longer": in_place(lambda content: content + b"\0"),
    "zeroed": in_place(lambda content: bytes(len(content))),
    "text": in_place(lambda content: b"not numbers\n" * 100),
    "huge and sparse": lambda part: os.truncate(part, 2**40),
    "folder": instead(Path.mkdir),
    "folder with a file": instead(lambda part: (part.mkdir(), (part / "notes").write_text("mine"))),
    "named pipe": instead(os.mkfifo),
    "link to itself": instead(lambda part: part.symlink_to(part)),
    "link to nothing": instead(lambda part: part.symlink_to("nothing")),
    "link to the same": lambda part: part.symlink_to(part.rename(part.parent.parent / "moved")),
    "of another run": of_another_run,
    "another part copied over": copied_over,
    "networks renamed": renamed("networks-5-9", "networks-9-13"),
    "cells renamed": renamed("cells-0-2", "cells-1-3"),
    "cells outside the run": renamed("cells-0-2", "cells-2-4"),
    "no cells": renamed("cells-0-2", "cells-2-2"),
    "zeros before a number": renamed("networks-5-9", "networks-05-9"),
    "numbers beyond all memory": renamed("networks-5-9", "networks-5-" + "9" * 18),
    "another checksum": renamed(".npz", ".npz.npz"),
    "other networks inside": replaced(networks=np.array([9, 13])),
    "other cells inside": replaced(cells=np.array([0, 1])),
    "another run inside": replaced(run=np.array("0" * 64)),
    "one array too many": replaced(more=np.zeros(3)),
    "one array too few": lambda part: rewrite(part, lambda old: {n: a for n, a in old.items() if n != "value.steps"}),
    "nothing inside": lambda part: rewrite(part, lambda old: {}),
    "half of the networks": lambda part: rewrite(
        part, lambda old: {n: a[:, :2] if n.startswith("value") else a for n, a in old.items()}
    ),
    "flat": lambda part: rewrite(part, lambda old: {n: a.ravel() for n, a in old.items()}),
    "strings": replaced(**{"value.steps": np.full((2, 4), "mftadv")}),
    "complex": replaced(**{"value.steps": np.zeros((2, 4), complex)}),
    "of the other byte order": replaced(**{"value.steps": np.zeros((2, 4), ">i8")}),
    "pickled objects": replaced(**{"value.steps": np.array([[Trap()] * 4] * 2, object)}),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_part_is_named_set_aside_and_computed_again(run_path, damage):
    damage(the_part(run_path))
    (damaged,) = {p.name for p in (run_path / "parts").iterdir()} - {
        p.name for p in open_twin(run_path) if "networks-5-9" not in p.name
    }
    said = []
    with open_run(run_path, said) as run:
        assert run.damaged == [f"parts/{damaged}"]
        assert len(said) == 1
        assert said[0].startswith(f"parts/{damaged} is not a part of this run (")
        assert said[0].endswith(f"): set aside as {damaged}.damaged.")
        assert os.path.lexists(run_path / "parts" / f"{damaged}.damaged")
        assert not os.path.lexists(run_path / "parts" / damaged)
        assert run.missing(0, 9) == run.missing(1, 9) == [range(5, 9)]
        write(run, range(0, 2), range(5, 9))
        check_whole(run)
    with open_run(run_path, said) as run:
        check_whole(run)
        assert len(said) == 1


def open_twin(run_path):
    """The files of parts that the same run writes elsewhere."""
    with open_run(run_path.parent / "twin") as run:
        write(run, range(0, 2), range(0, 5))
        write(run, range(2, 3), range(0, 7))
    return list((run.path / "parts").iterdir())


def test_every_flipped_bit_is_seen(run_path):
    part = the_part(run_path)
    content = part.read_bytes()
    for offset in np.random.default_rng(0).integers(8 * len(content), size=50).tolist():
        flipped = bytearray(content)
        flipped[offset // 8] ^= 1 << offset % 8
        part.write_bytes(flipped)
        with open_run(run_path) as run:
            assert run.damaged == [f"parts/{part.name}"]
            assert run.missing(0, 9) == [range(5, 9)]
    assert len(list(part.parent.glob("*.damaged*"))) == 50
    assert {file.read_bytes() for file in part.parent.glob("*.damaged*")} - {content}
    part.write_bytes(content)
    with open_run(run_path) as run:
        check_whole(run)


def test_nothing_is_replaced_when_a_part_is_set_aside(run_path):
    part = the_part(run_path)
    part.write_bytes(b"half")
    for suffix, make in [("", make_file), ("-2", Path.mkdir), ("-3", lambda path: path.symlink_to("nothing"))]:
        make(part.with_name(f"{part.name}.damaged{suffix}"))
    before = tree(run_path)
    with open_run(run_path):
        pass
    after = tree(run_path)
    assert after.pop(f"parts/{part.name}.damaged-4") == before.pop(f"parts/{part.name}") == b"half"
    assert after == before


def test_a_missing_part_is_computed_again(run_path):
    the_part(run_path).unlink()
    with open_run(run_path) as run:
        assert run.damaged == []
        assert run.missing(0, 9) == [range(5, 9)]
    shutil.rmtree(run_path / "parts")
    with open_run(run_path) as run:
        assert run.missing(0, 9) == [range(9)]
        write(run, range(0, 2), range(9))


def test_a_part_that_may_not_be_read(run_path):
    the_part(run_path).chmod(0)
    if os.access(the_part(run_path), os.R_OK):
        pytest.skip("this user may read anything")
    with open_run(run_path) as run:
        assert len(run.damaged) == 1
        assert run.missing(0, 9) == [range(5, 9)]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_part_that_cannot_be_read(run_path, monkeypatch, number):
    part, said = the_part(run_path), []
    fail(monkeypatch, "open", number, lambda path, *rest: Path(path) == part)
    with open_run(run_path, said) as run:
        assert run.damaged == [f"parts/{part.name}"]
        assert os.strerror(number) in said[0]
        assert run.missing(0, 9) == [range(5, 9)]


def test_a_part_that_changes_while_the_run_is_at_work(run_path):
    with open_run(run_path) as run:
        part = next(part for part in run.parts if part.path == the_part(run_path))
        part.path.write_bytes(b"")
        with pytest.raises(OSError, match="has changed"):
            run.load(part)


def test_other_files_among_the_parts_are_left_alone(run_path):
    (run_path / "parts" / "notes.txt").write_text("mine")
    os.mkfifo(run_path / "parts" / "pipe")
    before, said = tree(run_path), []
    with open_run(run_path, said) as run:
        check_whole(run)
    assert tree(run_path) == before
    assert said == []


# The folder


def make_file(path):
    path.write_text("mine")


def make_folder_of_files(path):
    path.mkdir()
    (path / "results.json").write_text("mine")


def make_folder_of_parts(path):
    (path / "parts").mkdir(parents=True)


def make_link(path):
    (path.parent / "project").mkdir()
    (path.parent / "project" / "thesis.tex").write_text("years of work")
    path.symlink_to("project")


def make_record(content):
    def make(path):
        path.mkdir()
        (path / "run.json").write_bytes(content)
        (path / "parts").mkdir()

    return make


def make_record_of(make):
    def make_in(path):
        path.mkdir()
        make(path / "run.json")

    return make_in


RECORD = {
    "format": 1, "identity": {}, "layouts": [], "reduced": False, "networks": [], "sessions": [{}], "outputs": {},
    "results_of": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (make_file, "one that can be made, read and written to, got .* "),
        (make_folder_of_files, "a new or empty folder, or that of a run, got .*/run with results.json in it"),
        (make_folder_of_parts, "a new or empty folder, or that of a run, got .*/run with parts in it"),
        (make_link, "a new or empty folder, or that of a run, got .*/project with thesis.tex in it"),
        (lambda path: path.symlink_to(path), "one that can be made"),
        (os.mkfifo, "one that can be made"),
        (make_record(b""), "the record of a run, got .*/run.json"),
        (make_record(b"\0" * 512), "the record of a run"),
        (make_record(b"\xff\xfe"), "the record of a run"),
        (make_record(b"[" * 10**5), "the record of a run"),
        (make_record(b"[]"), "the record of a run, .*not of format 1"),
        (make_record(b'{"runs": 3}'), "the record of a run, .*not of format 1"),
        *(
            (make_record(json.dumps({**RECORD, **changes}).encode()), "the record of a run, got .*/run.json")
            for changes in (
                {"format": 2}, {"more": 1}, {"identity": []}, {"networks": [3]}, {"networks": "3"}, {"sessions": []},
                {"layouts": [{"a": [[-1], "float32"]}], "networks": [1]}, {"layouts": [3], "networks": [1]},
                {"layouts": [{"a": [[1], "O"]}], "networks": [1]}, {"layouts": [{"a": 3}], "networks": [1]},
                {"outputs": {"data.nc": 3}}, {"results_of": 3}, {"reduced": None}, {"sessions": [3]},
            )
        ),
        (make_record_of(os.mkfifo), "the record of a run"),
        (make_record_of(Path.mkdir), "the record of a run"),
        (make_record_of(lambda path: path.symlink_to("/etc/hostname")), "the record of a run, .*symbolic link"),
    ],
)  # fmt: skip
def test_a_folder_of_the_users_is_refused_and_stays_as_it_is(tmp_path, make, words):
    make(tmp_path / "run")
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=f"folder: expected {words}"):
        open_run(tmp_path / "run")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["file/run", "x" * 256, "a\0b", "/".join(["x" * 200] * 30)])
def test_a_place_where_no_folder_can_be(tmp_path, name):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"folder: expected (one that can be made, read and written to|a path), got"):
        open_run(tmp_path / name)
    assert os.listdir(tmp_path) == ["file"]


def test_an_empty_folder_and_links_to_folders_of_runs_are_used(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / ".mftadv-0123456789abcdef.tmp").write_text("half")
    (tmp_path / "link").symlink_to("real")
    with open_run(tmp_path / "link") as run:
        write(run, range(0, 2), range(5))
    assert sorted(os.listdir(tmp_path / "real")) == ["parts", "run.json"]
    with open_run(tmp_path / "link" / ".." / "link") as run:
        assert run.path == tmp_path / "real"
        assert run.missing(0, 5) == []


def test_a_link_in_the_place_of_the_parts_is_not_followed(run_path):
    (run_path / "parts").rename(run_path.parent / "elsewhere")
    (run_path / "parts").symlink_to("../elsewhere")
    with pytest.raises(ValueError, match=f"folder: expected a folder named {run_path}/parts, got something else"):
        open_run(run_path)
    with pytest.raises(ValueError, match="folder: expected a folder named"):
        store.status(run_path)


def test_only_scratch_files_are_removed(run_path):
    with open_run(run_path) as run:
        run.publish({"figures/a.png": text("a")})
    keep = [".mftadv-notes.tmp", "mine.tmp", ".mftadv-0123456789abcdef.tmp.txt"]
    for folder in (run_path, run_path / "parts", run_path / "figures"):
        (folder / ".mftadv-0123456789abcdef.tmp").write_text("half a file")
        (folder / ".mftadv-0000000000000000.tmp").mkdir()
        for name in keep:
            (folder / name).write_text("mine")
    with open_run(run_path):
        pass
    left = [name for name in tree(run_path) if "tmp" in name]
    assert len(left) == 3 * (len(keep) + 1)
    assert not any(name.endswith(".mftadv-0123456789abcdef.tmp") for name in left)


def test_a_second_process_is_refused(run_path):
    with open_run(run_path) as run:
        with pytest.raises(ValueError, match=f"folder: another process is at work in {run_path}"):
            open_run(run_path)
        with pytest.raises(ValueError, match="folder: another process is at work"):
            store.merge(run_path, [run_path])
        store.status(run_path, check=True)
        check_whole(run)
    with open_run(run_path) as run:
        check_whole(run)
    with pytest.raises(ValueError, match="got another"):  # a refusal lets go of the lock
        open_run(run_path, identity={})
    open_run(run_path).close()


def test_a_system_without_locks_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(ValueError, match="folder: expected a system that can lock folders, Linux or macOS"):
        open_run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


KILLED = """
import os, random, select, signal, sys, time
import numpy as np
from mftadv import store

path, random = sys.argv[1], random.Random(0)
done, results, said = 0, 0, []
names = ("data.nc", "figures/a.png")
def run():
    return store.RunFolder.open(path, {"seed": 0}, [{"a": ((8,), "float64")}], {}, said.append)
def work(report):
    with run() as folder:
        while True:
            start = folder.missing(0, 10**6)[0].start
            folder.write_part(range(1), range(start, start + 2), {"a": np.full((1, 2, 8), start + 0.0)})
            os.write(report, b"%d " % (start + 2))
            if start % 4 == 0:
                folder.publish({name: lambda file: file.write_text(str(start) * 1000) for name in names})

for trial in range(20):
    read, report = os.pipe()
    child = os.fork()
    if child == 0:
        work(report)
    os.close(report)
    written = b""
    for _ in range(random.randrange(4)):
        written += os.read(read, 1000)
    time.sleep(random.uniform(0, 0.02))
    if written:
        try:
            run()
            raise AssertionError("two are at work")
        except ValueError as error:
            assert "another process" in str(error), error
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while more := os.read(read, 1000):
        written += more
    done = max(done, *map(int, written.split()), 0)
    with run() as folder:
        have = folder.missing(0, 10**6)[0].start
        assert have >= done, (have, done)
        for part in folder.parts:
            assert (folder.load(part)["a"] == part.networks.start).all()
        files = [name for _, _, names in os.walk(path) for name in names]
        assert not [name for name in files if name.endswith(("tmp", "damaged", "yours"))], files
        for file in (os.path.join(path, name) for name in names):
            if os.path.exists(file):
                content = open(file).read()
                assert content and content == content[: len(content) // 1000] * 1000
                results += 1
assert not said, said
assert done > 20, done
assert results > 10, results
"""


@pytest.mark.slow
def test_a_process_killed_at_any_moment_loses_nothing_that_it_wrote(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, tmp_path / "run"], check=True, env=environment, timeout=60
    )


# No space, no right to write


def fail(monkeypatch, name, number, when):
    """Have a function of os fail where `when` says so of its arguments."""
    plain = getattr(os, name)

    def failing(*arguments, **options):
        if when(*arguments):
            raise OSError(number, os.strerror(number))
        return plain(*arguments, **options)

    monkeypatch.setattr(os, name, failing)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_all_parts_and_no_scratch(run_path, monkeypatch, step, number):
    def half(self, content):
        with open(self, "wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(number, os.strerror(number))

    with open_run(run_path) as run:
        run.publish({"data.nc": text("old"), "claims.json": text("old")})
        before = tree(run_path)
        with monkeypatch.context() as context:
            if step == "write":
                context.setattr(Path, "write_bytes", half)
            else:
                fail(context, step, number, lambda *arguments: True)
            with pytest.raises(OSError, match=os.strerror(number)):
                write(run, range(2, 3), range(7, 9))
            with pytest.raises(OSError, match=os.strerror(number)):
                run.publish({"data.nc": text("new"), "claims.json": lambda path: path.write_bytes(b"new")})
        assert tree(run_path) == before
        assert run.is_published
        write(run, range(2, 3), range(7, 9))
    with open_run(run_path) as run:
        check_whole(run)
        assert run.missing(2, 9) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_device_that_is_full(tmp_path):
    def onto_full_device(path):
        with open("/dev/full", "wb") as file:
            file.write(b"content")

    (tmp_path / "file").write_text("old")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        store.write_atomically(tmp_path / "file", onto_full_device)
    assert tree(tmp_path) == {"file": b"old"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_leaves_what_was_there(tmp_path, error):
    def interrupted(path):
        path.write_text("half")
        raise error

    (tmp_path / "file").write_text("old")
    with pytest.raises(error):
        store.write_atomically(tmp_path / "file", interrupted)
    assert tree(tmp_path) == {"file": b"old"}
    assert store.write_atomically(tmp_path / "file", text("new")) == hashlib.sha256(b"new").hexdigest()
    assert tree(tmp_path) == {"file": b"new"}


def test_the_file_is_on_the_disk_before_its_name(tmp_path, monkeypatch):
    steps = []
    for name in ("fsync", "replace"):
        plain = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, plain=plain: (steps.append(name), plain(*a))[1])
    store.write_atomically(tmp_path / "file", text("new"))
    assert steps == ["fsync", "replace", "fsync"]


def read_only(monkeypatch):
    """A file system on which nothing can be changed, for root as well."""
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    fail(monkeypatch, "open", errno.EROFS, lambda path, flags=0, *rest: flags & writing)
    for name in ("rename", "replace", "unlink", "mkdir"):
        fail(monkeypatch, name, errno.EROFS, lambda *arguments: True)
    monkeypatch.setattr(Path, "write_text", lambda *arguments, **options: os.open(arguments[0], os.O_WRONLY))


def test_a_finished_run_is_opened_where_nothing_can_be_written(run_path, monkeypatch):
    with open_run(run_path) as run:
        run.publish({"data.nc": text("numbers")})
    (run_path / ".mftadv-0123456789abcdef.tmp").write_text("half")
    before = tree(run_path)
    read_only(monkeypatch)
    with open_run(run_path, provenance={"versions": {}}) as run:
        check_whole(run)
        assert run.is_published
        run.aim(run.networks)
        with pytest.raises(OSError, match="Read-only"):
            run.aim([10, 10, 10])
        with pytest.raises(OSError, match="Read-only"):
            write(run, range(2, 3), range(7, 9))
    assert store.status(run_path, check=True).is_current
    assert tree(run_path) == before


def test_a_damaged_part_where_nothing_can_be_written(run_path, monkeypatch):
    the_part(run_path).write_bytes(b"")
    before, said = tree(run_path), []
    read_only(monkeypatch)
    with open_run(run_path, said) as run:
        assert len(run.damaged) == 1
        assert run.missing(0, 9) == [range(5, 9)]
    assert said[0].endswith("not used, nor set aside (Read-only file system).")
    assert tree(run_path) == before


@pytest.mark.parametrize("name", ["new", "empty"])
def test_no_run_begins_where_nothing_can_be_written(tmp_path, monkeypatch, name):
    (tmp_path / "empty").mkdir()
    with monkeypatch.context() as context:
        read_only(context)
        with pytest.raises(ValueError, match=f"folder: expected one that can be made.*{name}.*Read-only file system"):
            open_run(tmp_path / name)
    assert tree(tmp_path) == {"empty": None}


# Networks on their way

ON_THEIR_WAY = {"progress": ((), "int64"), "state.place": ((2,), "float32"), "state.above": ((), "bool")}


def open_on_the_way(path, said=None, **options):
    return open_run(path, said, on_their_way=[ON_THEIR_WAY, ON_THEIR_WAY, {}], **options)


def checkpoint(run, cell, networks, progress):
    lead = np.array([*networks])
    place = np.stack([lead + 100.0 * progress, lead], axis=1).astype(np.float32)
    arrays = {"progress": np.full(len(networks), progress), "state.place": place, "state.above": lead % 2 == 0}
    run.checkpoints.write(cell, networks, arrays)


def found(run, cell, networks):
    """Which networks go on together, and from where."""
    some, arrays = run.checkpoints.find(cell, networks)
    if arrays is None:
        return some, 0
    (progress,) = set(arrays["progress"].tolist())
    np.testing.assert_array_equal(arrays["state.place"][:, 0], np.array([*some]) + np.float32(100 * progress))
    np.testing.assert_array_equal(arrays["state.above"], np.array([*some]) % 2 == 0)
    return some, progress


def begun(path):
    return sorted(name.split("-networks-")[1].rsplit("-", 1)[0] for name in os.listdir(path / "checkpoints"))


def test_networks_go_on_from_the_checkpoint_that_is_furthest(tmp_path):
    with open_on_the_way(tmp_path / "run") as run:
        assert found(run, 0, range(9)) == (range(9), 0)
        checkpoint(run, 0, range(2, 6), 1)
        checkpoint(run, 1, range(0, 3), 5)
    with open_on_the_way(tmp_path / "run") as run:
        assert found(run, 0, range(9)) == (range(2), 0)  # they begin anew, and do not cover what is further on
        assert found(run, 0, range(2, 9)) == (range(2, 6), 1)
        assert found(run, 0, range(3, 5)) == (range(3, 5), 1)
        assert found(run, 0, range(6, 9)) == (range(6, 9), 0)
        assert found(run, 1, range(1, 9)) == (range(1, 3), 5)
        checkpoint(run, 0, range(2, 6), 2)
        checkpoint(run, 0, range(4, 9), 3)
        assert found(run, 0, range(2, 9)) == (range(2, 4), 2)
        assert found(run, 0, range(5, 9)) == (range(5, 9), 3)
        checkpoint(run, 0, range(0, 9), 2)  # is as far as one of the two
        assert begun(tmp_path / "run") == ["0-3", "0-9", "4-9"]
        assert found(run, 0, range(9)) == (range(4), 2)
        checkpoint(run, 0, range(0, 9), 4)
        assert begun(tmp_path / "run") == ["0-3", "0-9"]
    with open_on_the_way(tmp_path / "run") as run:
        assert found(run, 0, range(9)) == (range(9), 4)


def test_a_checkpoint_goes_when_its_networks_have_parts(tmp_path):
    path = tmp_path / "run"
    with open_on_the_way(path) as run:
        checkpoint(run, 0, range(0, 4), 1)
        checkpoint(run, 0, range(4, 9), 1)
        write(run, range(0, 1), range(0, 3))
        assert begun(path) == ["0-4", "4-9"]
        write(run, range(0, 1), range(3, 5))
        assert begun(path) == ["4-9"]
        shutil.copytree(path / "checkpoints", tmp_path / "old")
        write(run, range(0, 1), range(5, 9))
        assert begun(path) == []
    shutil.copytree(tmp_path / "old", path / "checkpoints", dirs_exist_ok=True)  # a kill came before it was removed
    with open_on_the_way(path):
        assert begun(path) == []


def test_a_checkpoint_is_checked_as_a_part_is(tmp_path):
    path, said = tmp_path / "run", []
    with open_on_the_way(path) as run:
        with pytest.raises(ValueError, match=r"array state.above: expected bool \[1, 1\], got none"):
            run.checkpoints.write(
                0, range(1), {"progress": np.ones(1, int), "state.place": np.ones((1, 2), np.float32)}
            )
        checkpoint(run, 0, range(4), 1)
        (name,) = os.listdir(path / "checkpoints")
        with pytest.MonkeyPatch.context() as context:
            fail(context, "replace", errno.ENOSPC, lambda *arguments: True)
            with pytest.raises(OSError, match="No space left"):
                checkpoint(run, 0, range(4), 2)
        assert os.listdir(path / "checkpoints") == [name]
        assert found(run, 0, range(4)) == (range(4), 1)
        (path / "checkpoints" / name).write_bytes(b"")
        with pytest.raises(OSError, match="has changed: its checksum"):
            run.checkpoints.find(0, range(4))
    with open_on_the_way(path, said) as run:
        assert found(run, 0, range(4)) == (range(4), 0)
        assert run.damaged == [f"checkpoints/{name}"]
    assert said[0].startswith(f"checkpoints/{name} is not a checkpoint of this run (it has 0 bytes")
    assert os.listdir(path / "checkpoints") == [f"{name}.damaged"]


def test_a_run_that_stores_none_leaves_checkpoints_alone(tmp_path):
    path = tmp_path / "run"
    with open_on_the_way(path) as run:
        checkpoint(run, 0, range(4), 1)
    (path / "checkpoints" / "mine.npz").write_text("mine")
    before, said = tree(path), []
    for layouts in ((), [{}, {}, {}]):
        with open_run(path, said, on_their_way=layouts) as run:
            assert found(run, 0, range(4)) == (range(4), 0)
    assert tree(path) == before
    assert said == []


def test_a_link_in_the_place_of_the_checkpoints_is_not_followed(run_path):
    (run_path.parent / "elsewhere").mkdir()
    (run_path / "checkpoints").symlink_to("../elsewhere")
    with pytest.raises(ValueError, match=f"folder: expected a folder named {run_path}/checkpoints, got something"):
        open_on_the_way(run_path)


# Results


def test_results_are_of_the_parts_there_are(run_path):
    with open_run(run_path) as run:
        assert not run.is_published
        run.publish({"data.nc": text("numbers"), "figures/a.png": text("a")})
        assert run.is_published
    with open_run(run_path) as run:
        assert run.is_published
        digest = run.digest
        write(run, range(2, 3), range(7, 9))
        assert run.digest != digest
        assert not run.is_published
        run.publish({"data.nc": text("more numbers")})
        assert run.is_published
        run.aim([9, 9, 5])  # results of fewer networks are other results
        assert not run.is_published
        run.aim([9, 9, 7])
        assert run.is_published
        assert (run_path / "data.nc").read_text() == "more numbers"
        (run_path / "data.nc").unlink()
        assert not run.is_published


def test_results_that_stay_the_same_are_not_written_again(run_path):
    with open_run(run_path) as run:
        run.publish({"data.nc": text("numbers")})
        before = (run_path / "data.nc").stat().st_ino
        run.publish({"data.nc": text("numbers")})
        assert (run_path / "data.nc").stat().st_ino == before


THEIRS = {
    "notes": lambda path: path.write_text("mine"),
    "folder": lambda path: (path.mkdir(), (path / "notes").write_text("mine")),
    "named pipe": os.mkfifo,
    "link": lambda path: (path.parent / "mine").write_text("mine") and path.symlink_to("mine"),
    "link to nothing": lambda path: path.symlink_to("nothing"),
}


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("make", THEIRS.values(), ids=THEIRS.keys())
def test_files_of_the_users_in_the_place_of_results_are_renamed(run_path, make, published):
    said = []
    with open_run(run_path, said) as run:
        if published:
            run.publish({"data.nc": text("numbers")})
            (run_path / "data.nc").unlink()
        make(run_path / "data.nc")
        before = tree(run_path)
        assert not run.is_published
        run.publish({"data.nc": text("numbers")})
        run.publish({"data.nc": text("new numbers")})
        assert run.is_published
    assert said == ["data.nc is not from this run: renamed to data.nc.yours."]
    after = tree(run_path)
    assert after.pop("data.nc") == b"new numbers"
    for changing in (before, after):
        changing.pop("run.json")
    assert after == {name.replace("data.nc", "data.nc.yours"): content for name, content in before.items()}


def test_a_link_in_the_place_of_a_folder_of_results_is_not_followed(run_path):
    (run_path.parent / "elsewhere").mkdir()
    (run_path / "figures").symlink_to("../elsewhere")
    said = []
    with open_run(run_path, said) as run:
        run.publish({"figures/a.png": text("a"), "figures/b.png": text("b")})
    assert said == ["figures is not from this run: renamed to figures.yours."]
    assert sorted(os.listdir(run_path / "figures")) == ["a.png", "b.png"]
    assert os.listdir(run_path.parent / "elsewhere") == []


def test_notes_beside_the_results_stay(run_path):
    (run_path / "notes.txt").write_text("mine")
    (run_path / "figures").mkdir()
    (run_path / "figures" / "mine.png").write_text("mine")
    with open_run(run_path) as run:
        run.publish({"data.nc": text("numbers"), "figures/a.png": text("a")})
    assert tree(run_path)["notes.txt"] == tree(run_path)["figures/mine.png"] == b"mine"


@pytest.mark.parametrize("moves", [0, 1])
def test_results_half_in_place_are_known_as_ours(run_path, monkeypatch, moves):
    """As after a kill between the record of the checksums and the last rename."""
    said, plain, count = [], os.replace, iter(range(10))
    with open_run(run_path, said) as run:
        run.publish({"data.nc": text("old"), "claims.json": text("old")})

        def killed(source, target):
            if Path(target).name != "run.json" and next(count) == moves:
                raise KeyboardInterrupt
            plain(source, target)

        with monkeypatch.context() as context:
            context.setattr(os, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                run.publish({"data.nc": text("new"), "claims.json": text("new")})
        assert not run.is_published
    with open_run(run_path, said) as run:
        assert not run.is_published
        run.publish({"data.nc": text("newer"), "claims.json": text("newer")})
        assert run.is_published
    assert said == []
    assert not list(run_path.glob("*.yours"))


# Seen from outside


def test_status_changes_nothing_and_checks_if_told(run_path):
    assert dataclasses.asdict(store.status(run_path)) == {
        "name": "validate", "networks": [9, 9, 7], "aimed": [9, 9, 7], "missing": 0, "on_their_way": {},
        "damaged": [], "has_results": False, "is_current": False,
    }  # fmt: skip
    with open_run(run_path) as run:
        run.aim([12, 9, 5])
        run.publish({"data.nc": text("numbers")})
    part = the_part(run_path)
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    (run_path / "data.nc").write_text("other numbers")
    before = tree(run_path)
    quick, full = store.status(run_path), store.status(run_path, check=True)
    assert (quick.missing, quick.damaged, quick.has_results, quick.is_current) == (3, [], True, True)
    assert (full.missing, full.damaged, full.has_results) == (3 + 4 + 4, [f"parts/{part.name}"], False)
    assert full.networks == [5, 5, 7]
    assert not full.is_current
    json.dumps(dataclasses.asdict(full), allow_nan=False)
    part.write_bytes(content[:100])
    assert store.status(run_path).damaged == [f"parts/{part.name}"]
    part.unlink()
    part.mkdir()
    assert store.status(run_path).damaged == [f"parts/{part.name}"]
    part.rmdir()
    part.write_bytes(content)
    assert tree(run_path) == before


@pytest.mark.parametrize("make", [None, Path.mkdir, make_file, make_folder_of_files, make_record(b"{")])
def test_status_and_merge_of_what_is_no_run(tmp_path, make):
    if make:
        make(tmp_path / "run")
    before = tree(tmp_path)
    for look in (store.status, lambda path: store.merge(tmp_path / "all", [path])):
        with pytest.raises(ValueError, match=f"folder: expected .* run, got {tmp_path}/run"):
            look(tmp_path / "run")
    assert tree(tmp_path) == before


def test_shards_are_merged_into_what_one_run_writes(tmp_path):
    ranges = [(range(0, 2), range(0, 5)), (range(0, 2), range(5, 9)), (range(2, 3), range(0, 7))]
    for name, chosen in [("single", ranges), ("a", ranges[::2]), ("b", ranges[1:])]:
        with open_run(tmp_path / name, provenance={"shard": name}) as run:
            run.aim([9, 9, 7])
            for cells, networks in chosen:
                write(run, cells, networks)
    before = tree(tmp_path / "a"), tree(tmp_path / "b")
    assert store.merge(tmp_path / "all", [tmp_path / "a", tmp_path / "b"]) == 3
    assert (tree(tmp_path / "a"), tree(tmp_path / "b")) == before
    assert tree(tmp_path / "all" / "parts") == tree(tmp_path / "single" / "parts")
    assert json.loads((tmp_path / "all" / "run.json").read_text())["sessions"] == [{"shard": "a"}, {"shard": "b"}]
    with open_run(tmp_path / "all") as merged, open_run(tmp_path / "single") as single:
        check_whole(merged)
        assert merged.digest == single.digest
    assert store.merge(tmp_path / "all", [tmp_path / "a", tmp_path / "b"]) == 0
    assert store.merge(tmp_path / "b", [tmp_path / "a", tmp_path / "b"]) == 1


def test_damaged_parts_of_a_source_are_named_and_not_copied(run_path, tmp_path):
    part, said = the_part(run_path), []
    part.write_bytes(b"")
    before = tree(run_path)
    assert store.merge(tmp_path / "all", [run_path], said.append) == 2
    assert len(said) == 1
    assert said[0].startswith(f"run/parts/{part.name} is not a part of this run (")
    assert tree(run_path) == before
    assert store.status(tmp_path / "all", check=True).missing == 8


def test_different_runs_are_not_merged(run_path, tmp_path):
    with open_run(tmp_path / "other", identity={**IDENTITY, "seed": 8}):
        pass
    with pytest.raises(ValueError, match=r"sources: expected folders of one run, .*seed is 7 there and 8 here"):
        store.merge(tmp_path / "all", [run_path, tmp_path / "other"])
    assert not (tmp_path / "all").exists()
    with pytest.raises(ValueError, match=r"folder: expected the run in .*/other, got another: seed is 8 there"):
        store.merge(tmp_path / "other", [run_path])
    with pytest.raises(ValueError, match="sources: expected at least one folder"):
        store.merge(tmp_path / "all", [])


# Provenance


def test_jsonable_holds_what_a_run_is():
    spec = NetworkSpec(3, 1, 4, 2, 1.5, block="signed")
    key = jax.random.key(7, impl="threefry2x32")
    record = store.jsonable(
        {
            "spec": spec, "key": key, "p": (1, np.inf, -np.inf, np.nan), "eps": np.float32(0.5), "x": jnp.ones((2, 1)),
            "half": jnp.bfloat16(1.5), "n": np.int64(3), "on": np.bool_(True), 3: range(2),
            "dtype": np.dtype("float32"), "path": Path("a/b"), "none": None, "big": 2**70,
            "nonfinite": np.array([np.nan, np.inf]),
        }
    )  # fmt: skip
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    again = jax.random.wrap_key_data(np.array(record["key"]["data"], np.uint32), impl=record["key"]["impl"])
    assert jax.random.normal(again) == jax.random.normal(key)
    assert NetworkSpec(**record["spec"]) == spec
    del record["spec"], record["key"]
    assert record == {
        "p": [1, "inf", "-inf", None], "eps": 0.5, "x": [[1.0], [1.0]], "half": 1.5, "n": 3, "on": True, "3": [0, 1],
        "dtype": "float32", "path": "a/b", "none": None, "nonfinite": [None, "inf"], "big": 2**70,
    }  # fmt: skip
    for value in (print, 1j, object(), np.array(["a", None])):
        with pytest.raises(ValueError, match="value: expected numbers, words"):
            store.jsonable({"a": value})


def test_provenance_names_versions_device_and_commit():
    mesh = jax.make_mesh((2,), ("networks",), devices=jax.devices()[:2], axis_types=(jax.sharding.AxisType.Auto,))
    record = store.provenance(mesh=mesh, batch_size=np.int64(5), engine="dense")
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert {"python", "mftadv", "jax", "jaxlib", "numpy", "scipy"} == record["versions"].keys()
    assert record["batch_size"] == 5
    assert record["engine"] == "dense"
    assert record["mesh"] == {"networks": 2}
    assert record["device"].startswith("cpu")
    assert record["matmul_precision"] == "highest"
    assert store.provenance()["mesh"] is None
