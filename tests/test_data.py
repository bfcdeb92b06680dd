"""Inputs from every source a user may have, and one line for every one that will not do."""

import gzip
import io
import os
import struct
import tracemalloc
import zipfile

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import numpy as np
import pytest
from sklearn.datasets import load_digits

from mftadv import data
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
        ("empty.npy", "data: expected a .npy, .npz, .csv, .tsv, .txt or idx file, gzipped or not, got an empty one"),
        ("none.npy", r"data: expected an array \[n, d\], got shape \[0, 3\]"),
        ("nan.npy", "data: expected finite numbers, got nan or infinity in row 1"),
        ("zero.npy", "data: expected numbers of finite, nonzero mean square"),
        ("complex.npy", "data: expected real numbers of at most 64 bits, got complex128"),
        ("pickle.npy", "data: expected real numbers of at most 64 bits, got object"),
        ("two.npz", r"data: expected an array \[n, d\] named x, .*, or a single one, got a \[2\], b \[2\]"),
        ("broken.npz", "data: "),
        ("words.csv", "data: could not convert string"),
        ("text.idx", "data: expected a .npy, .npz, .csv, .tsv, .txt or idx file, .* got something else"),
        ("short.idx", "data: "),
        ("cut.gz", "data: "),
    ],
)
def test_bad_files(tmp_path, name, message):
    with pytest.raises(ValueError, match=message) as error:
        load_inputs(bad_file(tmp_path, name), 1, 0)
    assert "\n" not in str(error.value)


def saved(values):
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def savez(save=np.savez, **arrays):
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def text(values, delimiter):
    return "\n".join(delimiter.join(f"{x:.17g}" for x in row) for row in values).encode()


WRITERS = {
    "a.npy": saved,
    "fortran.npy": lambda values: saved(np.asfortranarray(values)),
    "big-endian.npy": lambda values: saved(values.astype(">f8")),
    "a.npy.gz": lambda values: gzip.compress(saved(values)),
    "one.npz": lambda values: savez(anything=values),
    "keras.npz": lambda values: savez(np.savez_compressed, x_test=values + 1, x_train=values),
    "a.csv": lambda values: text(values, ","),
    "crlf.csv": lambda values: text(values, ", ").replace(b"\n", b"\r\n"),
    "header.csv": lambda values: text(values, ";").join([b";".join([b'"a, b"'] * values.shape[1]) + b"\n", b"\n"]),
    "a.csv.gz": lambda values: gzip.compress(text(values, ";")),
    "unpacked.csv.gz": lambda values: text(values, ","),
    "a.tsv": lambda values: text(values, "\t"),
    "a.txt": lambda values: b"# a, b\n" + text(values, "  "),
    "a-idx2": lambda values: idx(values, 14, ">f8"),
}


@pytest.mark.parametrize("name", WRITERS)
@hypothesis.given(
    hypothesis.extra.numpy.arrays(
        np.float64, st.tuples(st.integers(1, 4), st.integers(2, 5)), elements=st.floats(0.5, 1e9)
    ).map(lambda values: values * (-1) ** np.arange(values.shape[1]))
)
@pytest.mark.slow
def test_round_trip(tmp_path_factory, name, values):
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(WRITERS[name](values))
    inputs = load_inputs(str(path), len(values), 0, scale=False)
    np.testing.assert_array_equal(inputs.values, values, strict=True)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["x_train", "x_test", "x"], "x"),
        (["x_test", "X_train", "x_train"], "x_train"),
        (["images", "data"], "data"),
        (["X", "images"], "X"),
        (["x_test", "whatever"], None),
    ],
)
def test_choice_within_an_archive(tmp_path, names, chosen):
    arrays = {name: np.full((2, 3), 1.0 + i) for i, name in enumerate(names)}
    (tmp_path / "a.npz").write_bytes(savez(**arrays, mean=np.ones(3)))
    if chosen is None:
        with pytest.raises(ValueError, match=r"data: expected an array .* got x_test \[2, 3\], whatever \[2, 3\], m"):
            load_inputs(str(tmp_path / "a.npz"), 2, 0)
    else:
        values = load_inputs(str(tmp_path / "a.npz"), 2, 0, scale=False).values
        np.testing.assert_array_equal(values, arrays[chosen])


COUNTS = r"data: expected rows of inputs, got a (first|column).* to_csv\(index=False, header=False\)"
ONE_AXIS = r"data: expected an array \[n, d\] of n inputs, got one axis of length 3: .* shape \[1, d\], labels as"


NO_INPUTS = {
    "columns.csv": (b"0,1,2\n5,6,7\n8,9,9\n", COUNTS),
    "quoted.csv": (b'"0","1","2"\n5,6,7\n8,9,9\n', COUNTS),
    "both.csv": (b",0,1\n0,5,6\n1,8,9\n", COUNTS),
    "rows.csv": (b",a,b\n17,5,6\n3,8,9\n", COUNTS),
    "quoted-rows.csv": (b'"","a","b"\n"1",5,6\n"2",8,9\n', COUNTS),
    "shorter-header.txt": (b"a b\n1 5 6\n2 8 9\n", COUNTS),
    "rows-without-header.csv": (b"0,5,6\n1,8,9\n2,5,5\n", COUNTS),
    "named-rows.csv": (b"id,label,a,b\n0,7,5,6\n1,7,8,9\n", COUNTS),
    "one-axis.npy": (saved(np.ones(3)), ONE_AXIS),
    "one-axis.npy.gz": (gzip.compress(saved(np.arange(3))), ONE_AXIS),
    "one-axis.npz": (savez(x=np.ones(3)), ONE_AXIS),
    "labels-idx1-ubyte": (idx(np.ones(3), 8, ">u1"), ONE_AXIS),
    "column.csv": (b"5\n6\n7\n", ONE_AXIS),
}


@pytest.mark.parametrize("name", NO_INPUTS)
def test_refuses_rows_that_are_no_inputs(tmp_path, name):
    content, message = NO_INPUTS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_inputs(str(tmp_path / name), 1, 0)


@pytest.mark.parametrize("content", [b"0,1,3\n1,2,0\n3,3,3\n", b"0,0\n0,1\n1,0\n1,1\n", b"5,6\n0,1\n"])
def test_reads_rows_that_count_no_further(tmp_path, content):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match="inputs: expected at most"):  # read, and only then refused
        load_inputs(str(tmp_path / "a.csv"), 9, 0)


def declared(shape):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return file.getvalue() + bytes(64)


def archive(compression=zipfile.ZIP_STORED, content=None):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as members:
        members.writestr("x.npy", saved(VALUES) if content is None else content)
    return file.getvalue()


def encrypted():
    content = bytearray(archive())
    content[content.index(b"PK\1\2") + 8] |= 1
    return bytes(content)


SIZE = r"data: expected at most 65536 bytes"


HOSTILE = {
    "shape.npy": (declared((2**40, 3)), SIZE),
    "shape.npz": (archive(content=declared((2**40, 3))), SIZE),
    "shape-idx2": (struct.pack(">BBBBII", 0, 0, 8, 2, 2**32 - 1, 2**32 - 1), SIZE),
    "float64.npy": (saved(np.ones((2, 2**13), np.uint8)), SIZE),
    "plain.npy": (saved(np.ones((2, 2**18))), SIZE),
    "bomb.npy.gz": (gzip.compress(declared((2, 3)) + bytes(2**22)), SIZE),
    "bomb.npz": (archive(zipfile.ZIP_DEFLATED, declared((2, 3)) + bytes(2**22)), SIZE),
    "bomb.csv.gz": (gzip.compress(b"1,1\n" * 2**20), SIZE),
    "float64.csv": (b"1,1\n" * 2**13, SIZE),
    "zeros.csv": (bytes(2**15), "data: expected text in UTF-8"),
    "header-length.npz": (archive(content=b"\x93NUMPY\2\0" + b"\xff" * 4 + bytes(2**22)), "data: "),
    "negative.npy": (declared((-1, 3)), r"data: expected an array \[n, d\], got shape \[-1, 3\]"),
    "encrypted.npz": (encrypted(), "data: expected an .npz as NumPy packs it, got x.npy"),
    "lzma.npz": (archive(zipfile.ZIP_LZMA), "data: expected an .npz as NumPy packs it, got x.npy"),
    "header.npy": (saved(VALUES).replace(b"(4, 2, 3)", b"(4, 2, 03"), "data: "),
    "header.npz": (archive(content=saved(VALUES).replace(b"shape", b"shapo")), "data: "),
    "twice.npy": (saved(VALUES) + saved(VALUES), "data: "),
    "sheet.npz": (archive().replace(b"x.npy", b"x.xml"), "data: expected an array .* got none"),
    "utf16.csv": ("1,2\n".encode("utf-16"), "data: "),
    "comma.csv": (b"1,5;2,5\n3,5;4,5\n", "data: could not convert string '3,5'"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(tmp_path, monkeypatch, name):
    content, message = HOSTILE[name]
    monkeypatch.setattr(data, "_LIMIT", 2**16)
    (tmp_path / name).write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message) as error:
            load_inputs(str(tmp_path / name), 1, 0)
        assert tracemalloc.get_traced_memory()[1] < 2**20  # a quarter of what the files above unpack to
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value)


def test_paths_that_lead_nowhere(tmp_path):
    os.symlink(tmp_path / "loop.npy", tmp_path / "loop.npy")
    for path in (tmp_path / "loop.npy", tmp_path, tmp_path / ("a" * 300), "nul\0.npy", "/dev/zero", "~/a.npy"):
        with pytest.raises(ValueError, match="data: expected digits, gaussian or the path of a file"):
            load_inputs(str(path), 1, 0)


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="long double is float64 here")
def test_long_double_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((2, 3), np.longdouble))
    with pytest.raises(ValueError, match="data: expected real numbers of at most 64 bits, got float"):
        load_inputs(str(tmp_path / "a.npy"), 1, 0)


Y = np.array([7, 0, 2, 2, 9, 1])
X = np.stack([1.0 + Y, np.full(6, 5.0)], axis=1)  # an input tells its label: x[0] - 1


LABELLED = {
    "y.npz": savez(x=X, y=Y.astype(np.uint8)),
    "train.npz": savez(x_train=X, y_train=Y[:, None], x_test=X[:2], y_test=Y[:2], y=Y + 1),
    "labels.npz": savez(images=X[:, :, None], labels=Y.astype(float)),
    "pair.npz": savez(arr_0=X, arr_1=Y),
    "label.csv": b"label,1x1,1x2\n" + text(np.column_stack([Y, X]), ","),
    "target.tsv": b"0\t1\ttarget\n" + text(np.column_stack([X, Y]), "\t"),
}


@pytest.mark.parametrize("name", LABELLED)
def test_labels_follow_their_inputs(tmp_path, name):
    (tmp_path / name).write_bytes(LABELLED[name])
    inputs = load_inputs(str(tmp_path / name), 4, 3, scale=False)
    assert inputs.values.shape == (4, 2)
    assert inputs.labels is not None
    np.testing.assert_array_equal(inputs.labels, (inputs.values[:, 0] - 1).astype(np.int64), strict=True)
    np.testing.assert_array_equal(inputs.labels, Y[inputs.rows])


UNLABELLED = {
    "none.npy": saved(X),
    "one-hot.npz": savez(x=X, y=np.eye(10)[Y]),
    "real.npz": savez(x=X, y=Y + 0.5),
    "nan.npz": savez(x=X, y=np.where(Y == 9, np.nan, Y)),
    "words.npz": savez(x=X, y=Y.astype(str)),
    "scalar.npz": savez(x=X, y=7),
    "other.npz": savez(x=X, order=np.arange(3)),
}


@pytest.mark.parametrize("name", UNLABELLED)
def test_no_labels(tmp_path, name):
    (tmp_path / name).write_bytes(UNLABELLED[name])
    inputs = load_inputs(str(tmp_path / name), 6, 0, scale=False)
    np.testing.assert_array_equal(inputs.values, X)
    assert inputs.labels is None
    assert load_inputs("gaussian", 2, 0, input_dim=3).labels is None


@pytest.mark.parametrize("labels", [Y[:5], np.append(Y, 0)])
def test_as_many_labels_as_inputs(tmp_path, labels):
    np.savez(tmp_path / "a.npz", x=X, y=labels)
    with pytest.raises(ValueError, match=f"data: expected one label an input, got {len(labels)} labels and 6 inputs"):
        load_inputs(str(tmp_path / "a.npz"), 2, 0)


def test_digits_have_labels_and_print_short():
    images, labels = load_digits(return_X_y=True)
    inputs = load_inputs("digits", 256, 1, scale=False)
    np.testing.assert_array_equal(inputs.values, images[inputs.rows])
    np.testing.assert_array_equal(inputs.labels, labels[inputs.rows])
    assert np.all(np.diff(inputs.rows) > 0)
    first, second, third = inputs.rows[:3]
    assert inputs.preprocessing.startswith(
        f"rows {first}, {second}, {third}, ... of digits (256 of 1797, seed 1), 64 columns, not rescaled"
    )
    assert repr(inputs) == f"Inputs([256, 64], labels, {inputs.preprocessing!r})"
    assert load_inputs("gaussian", 2, 0).preprocessing.startswith("rows 0, 1 of gaussian (2 of 2, seed 0), 1000 c")


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
