"""The page of a run: one HTML file with all in it, made from the files of the run's folder."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mftadv import store
from mftadv.report._figures import Picture
from mftadv.report._terminal import grid_rows, notes_of, number
from mftadv.sweep import import_xarray

PAGE = "report.html"
VERDICTS = ("fails", "holds", "fails, as predicted", "underpowered")
_MOST_POINTS = 1000  # of a sweep; data.nc has all
_OPEN = 20  # rows of a table that is not folded


def write(folder: Path | str, say: Callable[[str], None] = lambda line: None) -> Path:
    """Write the page of a finished run, or of a sweep, into its folder, as report.html.

    A file there that is not from this run is renamed to report.html.yours, as is done with the results themselves.

    Args:
        folder: of the run.
        say: is told each event in one sentence.

    Returns:
        The path of the page.

    Raises:
        ValueError: the folder holds no run, one that is not finished, or a result that has changed.
        OSError: the page cannot be written.

    Source: ours.
    """
    files = store.read_results(folder, ("claims.json", ".svg"))
    store.add_result(folder, PAGE, page(folder, files).encode(), say)
    return Path(folder) / PAGE


def page(folder: Path | str, files: Mapping[str, bytes]) -> str:
    """The page of a run, the same for the same files of its folder.

    Args:
        folder: of the run, with its record and its parts; of a sweep also with data.nc.
        files: claims.json and figures/NAME.svg by name, as far as there are any.

    Raises:
        ValueError: it is not the folder of a run.
    """
    record = store.read_record(folder)
    sessions = [{name: _words(value) for name, value in session.items()} for session in record.sessions]
    if "entries" in (facts := json.loads(files.get("claims.json", b"{}"))):
        return _index(Path(folder), facts, sessions)
    facts = facts and {"summary": "", "command": None, **facts}
    identity = {**record.identity, "cells": len(record.identity["cells"])}
    options = identity.pop("options", {})
    first, last = store.drawn_between(folder)
    return render(
        "run.html",
        name=str(identity.get("name")),
        facts=facts,
        claims=claims_of(facts.get("claims", [])),
        pictures=[Picture.of(Path(name).stem, svg) for name, svg in files.items() if name.endswith(".svg")],
        sweep=None if facts else _points(folder),
        options={name: _words(value) for name, value in options.items()},
        identity={name: _words(value) for name, value in identity.items()},
        networks=_networks(record.networks),
        sessions=sessions,
        first=first,
        last=last,
        open_rows=_OPEN,
    )


def _index(folder: Path, facts: Mapping[str, Any], sessions: Sequence[Mapping[str, str]]) -> str:
    """The page over several runs: entry by entry what is claimed, what was measured, and a picture.

    Args:
        folder: in which each run has a folder.
        facts: scale, command, family_error, and entries of name, statement, found, ours, runs, picture and claims.
        sessions: who wrote it.
    """
    entries, first = [], {}
    for entry in facts["entries"]:
        picture = entry["picture"]
        seen = [each for each in entry["claims"] if each["verdict"] != "underpowered"]
        image = _picture(folder, picture) if picture and picture not in first else None
        entries.append(
            {
                **entry,
                "tally": claims_of(entry["claims"]),
                "span": span([each["ratio"] for each in seen if each["ratio"] is not None]),
                "shown": None if picture is None else first.setdefault(picture, entry["name"]),
                "image": image,
            }
        )
    every = {(each["run"], each["id"], str(each["coords"])): each for entry in entries for each in entry["claims"]}
    runs = dict.fromkeys(run for entry in entries for run in entry["runs"])
    counts = claims_of([*every.values()])["counts"]
    return render(
        "index.html", facts=facts, entries=entries, counts=counts, runs=runs, sessions=sessions, open_rows=_OPEN
    )


def _picture(folder: Path, name: str) -> Picture:
    run, _, figure = name.partition("/")
    return Picture.of(Path(name).stem, store.read_results(folder / run, (figure,))[figure])


def render(template: str, **values: Any) -> str:
    """A page from a template of this package; all values are escaped."""
    return _environment().get_template(template).render(**values)


@functools.cache
def _environment() -> Any:
    """Where the templates of this package are, each compiled once."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"number": number, "sentence": sentence, "coordinates": _coordinates, "verdicts": VERDICTS}
    return environment


def claims_of(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a page shows of the claims in claims.json: themselves, how many have each verdict, why some fail, groups."""
    counts = {verdict: sum(each["verdict"] == verdict for each in records) for verdict in VERDICTS}
    ids = dict.fromkeys(each["id"] for each in records)
    return {
        "all": records,
        "counts": {verdict: count for verdict, count in counts.items() if count},
        "notes": notes_of((each["note"], each["quantity"], each["verdict"]) for each in records),
        "groups": {id: [each for each in records if each["id"] == id] for id in ids},
    }


def sentence(counts: Mapping[str, int], family_error: float) -> str:
    """What came out, from how many claims have each verdict."""
    total = sum(counts.values())
    if fails := counts.get("fails"):
        return (
            f"{fails} of {total} claims {'fail' if fails > 1 else 'fails'}: theory and measurement are further apart "
            f"than chance explains (it would make any true claim of the table fail with probability {family_error:g})."
        )
    holds, underpowered, predicted = (counts.get(name, 0) for name in ("holds", "underpowered", "fails, as predicted"))
    parts = [f"{holds} hold{'s' * (holds == 1)}"]
    if underpowered:
        parts.append(f"{underpowered} {'are' if underpowered > 1 else 'is'} underpowered (too few networks to see 5%)")
    if predicted:
        parts.append(f"{predicted} published one{'s' * (predicted > 1)} fail{'s' * (predicted == 1)}, as predicted")
    return f"No claim fails that should hold. Of {total}: {', '.join(parts)}."


def span(numbers: Sequence[float]) -> str:
    """From the least to the largest of some numbers, in words."""
    ends = dict.fromkeys(f"{number:.3g}" for number in (min(numbers), max(numbers))) if numbers else ["-"]
    return " to ".join(ends)


def _coordinates(coords: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_words(value)}" for name, value in coords.items())


def _words(value: Any) -> str:
    """A JSON value as people write it."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(each)}" for name, each in value.items())
    if isinstance(value, list):
        return " ".join(f"({_words(each)})" if isinstance(each, list | dict) else _words(each) for each in value)
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _networks(counts: Sequence[int]) -> str:
    few, many = min(counts), max(counts)
    return f"{few:,}" if few == many else f"{few:,} to {many:,}"


def _points(folder: Path | str) -> dict[str, Any]:
    """The table of a sweep, from its dataset."""
    with import_xarray().open_dataset(Path(folder) / "data.nc", engine="h5netcdf") as stored:
        columns, rows, total = grid_rows(stored.load(), _MOST_POINTS)
    return {"columns": columns, "rows": rows, "total": total}
