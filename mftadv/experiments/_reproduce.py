"""The paper reproduced: for each of its claims a run that measures it, and a page that holds one beside the other."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mftadv import report, store
from mftadv.compare import FAMILY_ERROR, Judgement
from mftadv.experiments._paper import CLAIMS, RUNS, PaperClaim, Part, Scale
from mftadv.experiments._runner import Budget, open_run, run
from mftadv.sweep import Observer


class Reproduced(NamedTuple):
    """A claim of the registry, and the claims of its runs that belong to it, as they were judged."""

    claim: PaperClaim
    judged: tuple[Judgement, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many have each verdict."""
        verdicts = [judgement.verdict for judgement in self.judged]
        return {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)}


class Reproduction(NamedTuple):
    """What was found.

    Attributes:
        folder: with a folder for each run, and report.html.
        claims: one by one.
    """

    folder: Path
    claims: tuple[Reproduced, ...]

    @property
    def fails(self) -> bool:
        """Whether a claim that should hold fails."""
        return any("fails" in each.counts for each in self.claims)

    @property
    def tables(self) -> Sequence[Any]:
        """What came out of each claim, as `rich` prints it."""
        legend = "measured/theory: the lowest to the highest ratio, but of underpowered ones. fails*: as predicted."
        rows = report.table("the claims", legend)
        for name in ("claim", "measured/theory", "verdicts"):
            rows.add_column(name)
        for each in self.claims:
            seen = [judged.ratio for judged in each.judged if judged.verdict != "underpowered"]
            ratios = [ratio for ratio in seen if not math.isnan(ratio)]
            verdicts = ", ".join(f"{count} {report.verdict(verdict)}" for verdict, count in each.counts.items())
            rows.add_row(each.claim.name, report.span(ratios), verdicts or "nothing measured")
        return [rows]


def paper_claims(names: Sequence[str] = ()) -> tuple[PaperClaim, ...]:
    """The claims of these names in the order of the registry, all where there are no names.

    Raises:
        ValueError: there is no claim of a name.
    """
    known = [claim.name for claim in CLAIMS]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"claims: expected names among {', '.join(known)}, got {unknown[0]!r}")
    return tuple(claim for claim in CLAIMS if not names or claim.name in names)


def reproduce(
    claims: Sequence[str] = (),
    scale: Scale = "quick",
    folder: Path | str = "results/reproduce-{}",
    observer: Observer | None = None,
) -> Reproduction:
    """Measure claims of the paper, and ours, and write a page of what was found.

    Every run has a folder of its own in the folder, and serves all claims that it has something to say of. Interrupted,
    the same call with the same folder goes on.

    Args:
        claims: names in the registry; none for all.
        scale: "quick", minutes on two cores for all claims together, or "full", for one GPU.
        folder: as for `mftadv.run`; "{}" in its name stands for a number.
        observer: is told how it goes.

    Returns:
        A `Reproduction`.

    Raises:
        ValueError: there is no such claim or scale, or the folder holds anything else.

    Source: ours.
    """
    observer, some = observer or Observer(), paper_claims(claims)
    if scale not in ("quick", "full"):
        raise ValueError(f"scale: expected quick or full, got {scale!r}")
    names = [name for name in RUNS if any(name in claim.runs for claim in some)]
    runs = {name: RUNS[name][scale] for name in names}
    identity = {"name": "reproduce", "scale": scale, "claims": [claim.name for claim in some], "cells": []}
    with open_run(folder, identity, {"layouts": []}, store.provenance(), observer) as whole:
        judged = {}
        for number, (name, (experiment, networks)) in enumerate(runs.items(), 1):
            observer.say(f"\n{number} of {len(runs)}    {name}")
            judged[name] = run(experiment, whole.path / name, Budget(networks), observer=observer).judged
        found = tuple(Reproduced(claim, _of(claim.parts, judged)) for claim in some)
        records = [_record(each, whole.path, judged) for each in found]
        facts = {"scale": scale, "command": _command(claims, scale), "family_error": FAMILY_ERROR, "entries": records}
        files = {"claims.json": (json.dumps(facts, indent=1, allow_nan=False) + "\n").encode()}
        whole.publish(
            {
                "claims.json": lambda path: path.write_bytes(files["claims.json"]),
                report.PAGE: lambda path: path.write_text(report.page(whole.path, files), "utf-8"),
            }
        )
        return Reproduction(whole.path, found)


def _of(parts: Iterable[Part], judged: Mapping[str, Sequence[Judgement]]) -> tuple[Judgement, ...]:
    """The judgements of these parts, in the order of the parts."""
    return tuple(
        each
        for part in parts
        for each in judged[part.run]
        if each.claim.id == part.id
        and all(each.claim.coords.get(name) in values for name, values in part.coords.items())
    )


def _record(found: Reproduced, folder: Path, judged: Mapping[str, Sequence[Judgement]]) -> dict[str, Any]:
    """What the page says of a claim."""
    claim = found.claim
    run, figure = claim.picture
    picture = f"{run}/figures/{figure}.svg"
    own = [{"run": part.run, **each.as_dict()} for part in claim.parts for each in _of([part], judged)]
    return {
        **{field.name: getattr(claim, field.name) for field in dataclasses.fields(claim) if field.name != "parts"},
        "runs": claim.runs,
        "picture": picture if (folder / picture).exists() else None,
        "claims": own,
    }


def _command(claims: Sequence[str], scale: str) -> str:
    return " ".join(["mftadv", "reproduce", *claims, "--scale", scale])
