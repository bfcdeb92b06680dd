"""The pictures of the adversarial loss: against the size of the perturbation, and against the dimensions."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mftadv.experiments._networks import exponent
from mftadv.report import BLUE, GREY, ORANGE, RED

_BOUNDS = {
    "chevet": {"color": GREY, "ls": "-", "lw": 1.2, "label": "Chevet's bound"},
    "at_width": {"color": GREY, "ls": "--", "lw": 1.2, "label": "Chevet's bound at this width"},
    "sharp": {"color": RED, "ls": "--", "lw": 1.2, "label": "sharp mean"},
    "published": {"color": ORANGE, "ls": "-", "lw": 1.2, "label": "published"},
    "one_step": {"color": RED, "ls": ":", "lw": 1.4, "label": "law of one step"},
}

Rows = Sequence[Mapping[str, Any]]


def sizes(title: str, rows: Rows):
    """The adversarial loss over eps against eps, a panel for each p and q, so that bounds are level."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if row["part"] == "inputs"]
    ps, qs = (list(dict.fromkeys(row[name] for row in rows)) for name in ("p", "q"))
    figure = Figure(figsize=(max(3.2 * len(qs) + 0.6, 8.0), 2.6 * len(ps) + 1.0), layout="constrained")
    figure.suptitle(title, fontsize=11)
    figure.set_label(
        "The adversarial loss over the size eps of the perturbation, against eps, for each p and q: what the attack "
        "reaches, the norm of J, and the bounds and coefficients of theory."
    )
    grid = figure.subplots(len(ps), len(qs), squeeze=False, sharex=True)
    for axes, (p, q) in zip(grid.flat, itertools.product(ps, qs), strict=True):
        own = [row for row in rows if (row["p"], row["q"]) == (p, q)]
        eps = np.array([row["eps"] for row in own])

        def over_eps(name, own=own, eps=eps):
            return np.array([row[name] for row in own]) / eps

        axes.fill_between(eps, over_eps("low"), over_eps("high"), color=BLUE, alpha=0.2, lw=0)
        axes.plot(eps, over_eps("loss"), "o-", color=BLUE, ms=3.5, label="attack: mean, 5% to 95%")
        axes.plot(eps, over_eps("eps_norm"), ":", color=BLUE, label=r"$\|J(x)\|_{p\to q}$")
        for name, style in _BOUNDS.items():
            if name in own[0]:
                axes.plot(eps, over_eps(name), **style)
        axes.set(xscale="log", title=rf"${_tex(p)}\to{_tex(q)}$")
        axes.set_ylim(bottom=0)
    for axes in grid[-1]:
        axes.set_xlabel(r"$\epsilon$")
    figure.supylabel(r"$L_{adv}\,/\,\epsilon$", fontsize=10)
    handles = {
        label: handle for axes in grid.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def dimensions(title: str, rows: Rows):
    """The adversarial loss against the input dimension d, and against the output dimension K, a line for each p."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    figure.suptitle(title, fontsize=11)
    figure.set_label(
        "The adversarial loss that the attack reaches against the input dimension d and the output dimension K, for "
        "each p, with Chevet's bound at infinite width and at this one."
    )
    for axes, name in zip(figure.subplots(1, 2), ("d", "K"), strict=True):
        chosen = sorted((row for row in rows if name in row["part"].split()), key=lambda row: row[name])
        for p, color in zip(dict.fromkeys(row["p"] for row in chosen), itertools.cycle((BLUE, ORANGE, RED, GREY))):
            own = [row for row in chosen if row["p"] == p]
            at, losses, errors, chevet, at_width = (
                [row[key] for row in own] for key in (name, "loss", "standard_error", "chevet", "at_width")
            )
            axes.errorbar(at, losses, 2 * np.array(errors), fmt="o", color=color, ms=4, capsize=3)
            axes.plot(at, chevet, "-", color=color, lw=1.2, label=f"p = {exponent(p)}, Chevet's bound")
            axes.plot(at, at_width, "--", color=color, lw=1.2)
        other, ticks = "K" if name == "d" else "d", sorted({row[name] for row in chosen})
        axes.set(xscale="log", yscale="log", xlabel=name, title=f"{other} = {chosen[0][other]}")
        axes.set_xticks(ticks, ticks, minor=False)
        axes.xaxis.minorticks_off()
        axes.legend(frameon=False, fontsize=8)
        axes.set_ylabel(r"$L_{adv}$ (dots: attack, $\pm$ 2 s.e.; dashes: at this width)", fontsize=9)
    return figure


def _tex(p: float) -> str:
    return r"\infty" if p == math.inf else exponent(p)
