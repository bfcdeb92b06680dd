"""The results of a run as files: what was drawn and predicted, the claims, the pictures, the page."""

import csv
import dataclasses
import json
import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mftadv import report, store
from mftadv.compare import FAMILY_ERROR, Judgement
from mftadv.experiments._experiment import Experiment, fastest_key
from mftadv.sweep import Cell, Dataset


def predictions(experiment: Experiment, cells: Sequence[Cell]) -> dict[str, Any]:
    """What theory says of every cell, as variables over the cells; nan where it says nothing."""
    found = [experiment.predict(cell) for cell in cells]
    every = dict.fromkeys(name for each in found for name in each)
    return {f"theory_{name}": ("cell", [float(each.get(name, math.nan)) for each in found]) for name in every}


def outputs(
    experiment: Experiment, data: Dataset, judged: Sequence[Judgement], folder: Path
) -> Iterator[tuple[str, Callable[[Path], Any]]]:
    """The files of the results: for each name a function that writes it at a path.

    Args:
        experiment: that was run.
        data: what was drawn, and what is predicted.
        judged: its claims.
        folder: of the run, with its record and its parts.
    """
    facts = {"experiment": experiment.name, "version": experiment.version, "source": experiment.source}
    labelled = data.assign_attrs({**facts, "options": json.dumps(store.jsonable(experiment))})
    compressed = {
        name: {"zlib": True, "complevel": 1} for name, each in data.data_vars.items() if each.dtype.kind != "U"
    }
    yield "data.nc", lambda path: labelled.to_netcdf(path, engine="h5netcdf", encoding=compressed)
    facts |= {"summary": str(experiment.__doc__).partition("\n")[0], "command": command(experiment, folder)}
    records = [judgement.as_dict() for judgement in judged]
    text = json.dumps({**facts, "family_error": FAMILY_ERROR, "claims": records}, indent=1, allow_nan=False) + "\n"
    files = {"claims.json": text.encode()}
    for name, figure in experiment.figures(data, judged).items():
        files |= {f"figures/{file}": content for file, content in report.figure_files(name, figure)}
    for name, content in files.items():
        yield name, lambda path, content=content: path.write_bytes(content)
    yield "claims.csv", lambda path: _write_csv(path, records)
    yield report.PAGE, lambda path: path.write_text(report.page(folder, files), "utf-8")


def command(experiment: Experiment, folder: Path | str) -> str | None:
    """The command line that draws the networks of a run, without its folder; None where there is none.

    Args:
        experiment: that was run.
        folder: of the run.
    """
    from mftadv.experiments import EXPERIMENTS

    record = store.read_record(folder)
    own_key = store.jsonable(fastest_key(experiment.seed))
    if EXPERIMENTS.get(experiment.name) is not type(experiment) or record.identity["key"] != own_key:
        return None
    words = ["mftadv", experiment.name]
    for field in dataclasses.fields(experiment):
        value, option = getattr(experiment, field.name), field.name.replace("_", "-")
        if isinstance(value, bool) and value != field.default:
            words.append(f"--{option}" if value else f"--no-{option}")
        elif value != field.default:
            words += [f"--{option}", *map(str, value if isinstance(value, tuple) else (value,))]
    if len(set(record.networks)) == 1:
        words += ["--networks", f"{record.networks[0]}"]
    return shlex.join(words)


def _write_csv(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    flat = [{**record.pop("coords"), **record} for record in map(dict, records)]
    columns = dict.fromkeys(("id", *(name for record in flat for name in record)))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(flat)
