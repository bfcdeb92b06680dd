"""Inputs from every source a user may have, and one line for every one that will not do."""

import gzip
import struct

import numpy as np
import pytest

from mftadv.data import load_inputs

VALUES = np.arange(1.0, 25.0).reshape(4, 2, 3)


def idx(values, code=13, kind=">f4"):
    header = struct.pack(">BBBB", 0, 0, code, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.astype(kind).tobytes()


def write(folder, kind):
    path = folder / f"data{kind}"
    match kind:
        case ".npy":
            np.save(path, VALUES)
        case ".npz":
            np.savez(path, x=VALUES, y=np.arange(4))
        case ".csv":
            np.savetxt(path, VALUES.reshape(4, 6), delimiter=",", header="a,b,c,d,e,f", comments="")
        case "-idx3-ubyte":
            path.write_bytes(idx(VALUES, 8, ">u1"))
        case "-idx3.gz":
            path.write_bytes(gzip.compress(idx(VALUES)))
    return path


@pytest.mark.parametrize("kind", [".npy", ".npz", ".csv", "-idx3-ubyte", "-idx3.gz"])
def test_files(tmp_path, kind):
    path = write(tmp_path, kind)
    raw = load_inputs(str(path), 4, 0, scale=False)
    np.testing.assert_array_equal(raw.values, VALUES.reshape(4, 6))
    assert "not rescaled" in raw.preprocessing
    scaled = load_inputs(str(path), 4, 0)
    np.testing.assert_allclose(np.mean(scaled.values**2), 1.0)
    np.testing.assert_allclose(scaled.values * np.sqrt(np.mean(VALUES**2)), raw.values)


def test_csv_without_header(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("1,2\n3,4\n")
    np.testing.assert_array_equal(load_inputs(str(path), 2, 0, scale=False).values, [[1, 2], [3, 4]])


def test_csv_keeps_every_row(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("\ufeff1,2\n3,4\n", encoding="utf-8")
    assert load_inputs(str(path), 2, 0).values.shape == (2, 2)
    path.write_text("1,,3\n4,5,6\n")
    with pytest.raises(ValueError, match="data: could not convert"):
        load_inputs(str(path), 1, 0)
    path.write_text("a,b\n")
    with pytest.raises(ValueError, match="data: expected rows of numbers, got none"):
        load_inputs(str(path), 1, 0)


def test_digits_and_gaussian():
    digits = load_inputs("digits", 3, 5)
    assert digits.values.shape == (3, 64)
    assert len(np.unique(digits.values, axis=0)) == 3
    np.testing.assert_array_equal(digits.values, load_inputs("digits", 3, 5).values)
    assert not np.array_equal(digits.values, load_inputs("digits", 3, 6).values)
    everything = load_inputs("digits", 1797, 0).values
    np.testing.assert_allclose(np.mean(everything**2), 1.0)
    assert load_inputs("gaussian", 2, 0, input_dim=17).values.shape == (2, 17)


def bad_file(folder, name):
    path = folder / name
    match name:
        case "empty.npy":
            path.write_bytes(b"")
        case "none.npy":
            np.save(path, np.zeros((0, 3)))
        case "nan.npy":
            np.save(path, np.array([[1.0, 2.0], [np.nan, 1.0]]))
        case "zero.npy":
            np.save(path, np.zeros((2, 3)))
        case "complex.npy":
            np.save(path, np.ones((2, 3), complex))
        case "pickle.npy":
            np.save(path, np.array([{}, {}], dtype=object), allow_pickle=True)
        case "two.npz":
            np.savez(path, a=np.ones(2), b=np.ones(2))
        case "broken.npz" | "text.idx":
            path.write_text("no numbers here")
        case "words.csv":
            path.write_text("a,b\n1,2\nx,y\n")
        case "short.idx":
            path.write_bytes(idx(VALUES)[:-4])
        case "cut.gz":
            path.write_bytes(gzip.compress(idx(VALUES))[:-9])
    return str(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.npy", "data: expected digits, gaussian or the path of a file"),
        ("empty.npy", "data: expected numbers, got the empty file"),
        ("none.npy", r"data: expected an array \[n, d\], got shape \[0, 3\]"),
        ("nan.npy", "data: expected finite numbers, got nan or infinity in row 1"),
        ("zero.npy", "data: expected numbers of finite, nonzero mean square"),
        ("complex.npy", "data: expected real numbers, got complex128"),
        ("pickle.npy", "allow_pickle"),
        ("two.npz", 'data: expected an array named "x" or a single one, got a, b'),
        ("broken.npz", "data: "),
        ("words.csv", "data: could not convert string"),
        ("text.idx", "data: expected a .npy, .npz, .csv or idx file"),
        ("short.idx", "data: "),
        ("cut.gz", "data: "),
    ],
)
def test_bad_files(tmp_path, name, message):
    with pytest.raises(ValueError, match=message) as error:
        load_inputs(bad_file(tmp_path, name), 1, 0)
    assert "\n" not in str(error.value)


def test_bad_counts(tmp_path):
    path = str(write(tmp_path, ".npy"))
    with pytest.raises(ValueError, match=r"inputs: expected at most 4, .* got 5"):
        load_inputs(path, 5, 0)
    with pytest.raises(ValueError, match="inputs: expected a positive integer, got 0"):
        load_inputs(path, 0, 0)
    with pytest.raises(ValueError, match="input_dim: expected a positive integer"):
        load_inputs("gaussian", 1, 0, input_dim=0)
    np.save(tmp_path / "half.npy", np.array([[0.0, 0.0], [1.0, 1.0]]))
    with pytest.raises(ValueError, match="data: expected nonzero inputs, got zeros in row 0"):
        load_inputs(str(tmp_path / "half.npy"), 2, 0)
