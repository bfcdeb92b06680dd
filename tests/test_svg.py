"""Short SVG files: they draw what matplotlib drew, in the same style and order, in less than half the bytes."""

import io
import re
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from mftadv.report import _svg

STEPS = {"M": 2, "L": 2, "Q": 4, "C": 6}


@pytest.fixture(scope="module")
def svg():
    figure, x = Figure((6, 4), layout="constrained"), np.linspace(-3, 3, 50)
    figure.set_label('not <a> d="M 1 1" style="x"')
    axes = figure.subplots(2, 2).flat
    axes[0].plot(x, np.sin(x), "o--", color="#3b6ea8", alpha=0.5, label=r"$\omega^L < d$")
    axes[0].errorbar(x, np.cos(x), 0.1, capsize=2, label="s & t")
    axes[0].legend()
    axes[1].stairs(np.exp(-(x**2)), np.append(x, 4), fill=True, hatch="/")
    axes[1].set(yscale="log", xlabel='d="M 1 1 z" id="a"', ylabel="density")
    axes[2].imshow(np.outer(x, x))
    axes[3].scatter(x, x**2, x**2 + 1, color="#d98c21", edgecolor="black")
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "mftadv", "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", metadata={"Description": figure.get_label(), "Date": None})
    return file.getvalue()


def points(path):
    """The points of path data, absolute, and its letters, [n, 2] and text; whatever way it is written."""
    at, start, found, letters = np.zeros(2), np.zeros(2), [], ""
    for letter, rest in re.findall(r"([A-Za-z])([^A-Za-z]*)", path):
        numbers = [float(number) for number in re.findall(r"-?(?:\d+\.?\d*|\.\d+)", rest)]
        if letter in "zZ":
            at, letters = start, letters + "Z"
            continue
        if letter in "hv":
            numbers = [number for each in numbers for number in ((each, 0) if letter == "h" else (0, each))]
        kind = {"h": "L", "v": "L"}.get(letter, letter.upper())
        for part in np.reshape(numbers, (-1, STEPS[kind] // 2, 2)):
            absolute = part + at if letter.islower() else part
            at, letters = absolute[-1], letters + kind
            start = at if kind == "M" else start
            found.extend(absolute)
    return np.array(found), letters


def drawn(svg):
    """Everything that is drawn, in order: tag, letters, and words, where names are numbers; and all numbers."""
    root = ElementTree.fromstring(svg)
    text = svg.decode()
    styles = dict(re.findall(r"\.(s\d+)\{([^}]*)\}", text))
    order = {each.get("id"): i for i, each in enumerate(each for each in root.iter() if f"#{each.get('id')}" in text)}
    words, numbers = [], []
    for each in root.iter():
        tag = each.tag.rpartition("}")[2]
        if "svg" not in each.tag or tag in ("svg", "metadata", "title", "style", "defs"):
            continue
        facts = {name.rpartition("}")[2]: value for name, value in each.attrib.items()}
        facts.pop("id", None)
        if "class" in facts:
            facts["style"] = styles[facts.pop("class")]
        moved = re.fullmatch(r"translate\((\S+) (\S+)\)", facts.get("transform", ""))
        if tag == "use" and moved:
            facts |= {"x": moved[1], "y": moved[2]}
            del facts["transform"]
        data, letters = points(facts.pop("d", ""))
        numbers += [data.ravel(), [float(facts.pop(name, 0)) for name in ("x", "y")]]
        for name, value in facts.items():
            value = re.sub(r"#(\w[\w-]*)(?=$|\))", lambda id: f"#{order.get(id[1], id[1])}", value)
            if name == "transform":
                numbers.append([float(number) for number in re.findall(r"-?[\d.]+", value)])
                value = re.sub(r"-?[\d.]+", "", value)
            facts[name] = value.replace(" ", "")
        words.append((tag, letters, sorted(facts.items())))
    return [each for each in words if each != ("g", "", [])], np.concatenate(numbers)


@pytest.mark.slow
def test_what_is_drawn_is_the_same_in_less_than_half_the_bytes(svg, monkeypatch):
    short = _svg.compact(svg)
    assert len(short) < len(svg) / 2
    (words, numbers), (same, close) = drawn(svg), drawn(short)
    assert words == same
    assert np.max(np.abs(numbers - close)) <= 0.00501
    assert len(numbers) > 1000 < 10 * len(words)
    assert b'not &lt;a&gt; d="M 1 1" style="x"' in short
    monkeypatch.setattr(_svg, "_UNIT", 10)
    assert np.max(np.abs(numbers - drawn(_svg.compact(svg))[1])) > 0.04


@pytest.mark.parametrize(
    ("path", "short"),
    [
        ("M 0 547.2 \nL 1152 547.2 \nL 1152 0 \nL 0 0 \nz\n", "m0 547.2h1152v-547.2h-1152z"),
        ("M 1 1 \nL 1.5 0.25 \nL 2.5 0.5 \nz\nM 2 2 \nQ 3 3 4.004 5 \nQ 5 5 6 -0.001 \n",
         "m1 1l.5-.75 1 .25zm1 1q1 1 2 3 1 0 2-5"),
        ("", ""),
    ],
)  # fmt: skip
def test_paths_by_differences(path, short):
    assert _svg._relative(path) == short
