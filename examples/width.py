"""Theory against width: what a finite width N does to the Jacobian of a ReLU network, from N = 30 to a million.

    python examples/width.py [--networks N] [--widths N ...] [--depth L] [--seed SEED] [--out FOLDER]

Networks are vanilla ReLU, s = 2 (omega = 1), without bias, at x = e_1, drawn matrix-free: one of width 10^6 has 10^13
weights, of which none is ever held. J [K, n] are the n = d - 1 columns of the Jacobian orthogonal to x, scaled to
E J_ij^2 = 1/n. P_in is independent of all else there, so for K = 1 J = r g / sqrt n, exactly, with g [n] standard
normal and a scale r independent of it. Its law is exact as well: flipping the sign of a row of W_l makes its gate a
fair coin that no length depends on, so layers multiply the length of a tangent vector by independent factors,

    r = |g_N| / sqrt N  prod_l sqrt(2/N) |g_B|,    B ~ Binomial(N, 1/2) the open gates;    E r^2 = 1,    E r^4 = F.

(a) The excess kurtosis 3 (F - 1) of an entry of J, estimated from lengths: E |J|^4 = F (1 + 2/n), so with m the mean of
    (|J|^2 - 1)^2, F - 1 is (m - 2/n) / (1 + 2/n). At N = 10^6 and L = 10 it is 5 10^-5, which fourth powers of entries,
    one a network, would show after 10^10 networks, and lengths, with n about N, after some tens.
(b) The shortfall 1 - E r = 1 - E |J|/k, k = E |g|/sqrt n. |J| is replaced by |J| - (|J|^2 - 1)/2 = 1 - (|J| - 1)^2/2,
    of the same mean since E |J|^2 = 1 exactly, and of far smaller spread. Were r lognormal, E r would be exp(-w/8),
    with w = ln F. In wide networks (a) and (b) see the same fluctuations, and err together.
(c) The error E |J|_{p->2}/beta - 1 of the sharp coefficients beta, with the same control variate. For K = 1 it is
    E r - 1 whatever p. For K = 10 the layers spread the singular values, and finite width adds, to first order in 1/N
    as `theory.spectral_norm_mean` says.
"""

import argparse
import json
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Column, Table
from scipy import special, stats

import mftadv as mf
from mftadv import store, sweep
from mftadv.statistics import mean_estimate

WIDTHS = (30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
ROWS, COLUMNS = 10, 1000  # K and d of the networks with K > 1
NAMES = ("width", "quantity", "networks", "measured", "standard_error", "theory", "z")
GREY, BLUE, RED, ORANGE = "#555555", "#3b6ea8", "#c0392b", "#d98c21"  # those of mftadv.report


def runs(args):
    """The law, the number and the key of the networks of each run: equal work, so that all widths are seen as well."""
    widths, L = sorted(set(args.widths)), args.depth
    laws = [(mf.NetworkSpec(max(N, 100), 1, N, L), max(40, min(200_000, 30_000_000 // N))) for N in widths]
    # ten rows take ten times the memory and up to a hundred times the work: every second width of those that fit
    some = [N for N in widths if 100 <= N <= 100_000][::-2]
    laws += [(mf.NetworkSpec(COLUMNS, ROWS, N, L), max(16, min(400, 1_000_000 // N))) for N in some]
    for spec, networks in laws:
        # runs that shared a key would share some of their noise, and err together
        key = jax.random.fold_in(jax.random.key(args.seed, impl="threefry4x32"), spec.width)
        yield spec, min(networks, args.networks), jax.random.fold_in(key, spec.output_dim)


def statistic(key, spec):
    """The Frobenius norm of one network's J, and its norms p -> 2."""
    net = mf.init(key, spec, engine="matrix_free", capacity=mf.capacity_for(spec, linear_representation=1))
    J = mf.linear_representation(net, jax.nn.one_hot(0, spec.input_dim)).jacobian[:, 1:]
    J = J * math.sqrt(spec.input_dim / J.shape[1])
    exponents = (1, 2, math.inf) if len(J) == 1 else (2,)
    return mf.vector_norm(J.ravel(), 2), {str(p): mf.exact_operator_norm(J, p, 2) for p in exponents}


def compiled(run):
    """The run, ready to go, in chunks of about the same work whatever the width."""
    spec, networks, key = run
    batch_size = max(1, (60_000 if spec.output_dim == 1 else 2000) // spec.width)
    return sweep.draws(statistic, key, spec, num_networks=networks, batch_size=batch_size)


def excess(spec):
    """F - 1, with all its digits."""
    with jax.enable_x64(True):
        return float(mf.theory.finite_width_factor(spec)) - 1


def mean_scale(spec):
    """E r, exactly; E |g_n| = sqrt 2 Gamma((n + 1)/2) / Gamma(n/2)."""
    N, B = spec.width, np.arange(1, spec.width + 1)
    layer = stats.binom.pmf(B, N, 0.5) @ special.poch(B / 2, 0.5) * 2 / math.sqrt(N)
    return special.poch(N / 2, 0.5) * math.sqrt(2 / N) * layer**spec.depth


def first_order(spec):
    """The error of beta_{2,2}, to first order in 1/N."""
    across = spec.replace(input_dim=spec.input_dim - 1)
    beta = mf.theory.operator_norm_coefficient(2, 2, across.input_dim, across.output_dim, "sharp")
    return mf.theory.spectral_norm_mean(across) / beta - 1


def points(spec, frobenius, norms):
    """What the networks of one run measure, beside the theory."""
    n, K, N = spec.input_dim - 1, spec.output_dim, spec.width
    squares, errors = np.square(frobenius, dtype=float) / K, {}
    for p, norm in norms.items():
        beta = mf.theory.operator_norm_coefficient(float(p), 2, n, K, "sharp")
        errors[p] = np.asarray(norm, float) / beta - (squares - 1) / 2 - 1

    def point(quantity, values, theory):
        mean = mean_estimate(values)
        z = (mean.value - theory) / mean.standard_error
        return dict(zip(NAMES, (N, quantity, len(values), mean.value, mean.standard_error, theory, z), strict=True))

    if K > 1:
        return [point(f"(c) 2->2, K={K}, first order", errors["2"], first_order(spec))]
    shortfall, fourth = float(1 - mean_scale(spec)), ((squares - 1) ** 2 - 2 / n) / (1 + 2 / n)
    return [
        point("(a) excess kurtosis", 3 * fourth, 3 * excess(spec)),
        point("(b) 1 - E r", -errors["2"], shortfall),
        point("(b) 1 - E r, lognormal", -errors["2"], -math.expm1(-math.log1p(excess(spec)) / 8)),
        *(point(f"(c) {p}->2, K=1", errors[p], -shortfall) for p in errors),
    ]


def figure(measured, depth):
    """Three panels: kurtosis, shortfall of the length, error of the coefficients. The points come sorted by width."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(14.5, 5.2), layout="constrained")
    drawn.suptitle(f"The Jacobian at finite width: vanilla ReLU networks, $L = {depth}$, $\\omega = 1$", fontsize=13)
    drawn.supxlabel("lines: theory; points: measured $\\pm$ 2 s.e. by network, shown if 2 s.e. < |theory|", size=10)
    a, b, c = drawn.subplots(1, 3)

    def label(axes, x, y, text, colour, side="right"):
        axes.text(x, y, text, transform=axes.transAxes, color=colour, fontsize=10, ha=side, linespacing=1.5)

    def panel(axes, title, estimator):
        axes.set_title(title, loc="left", fontsize=11)
        axes.set(xscale="log", yscale="log", xlabel="width $N$")
        axes.grid(color=GREY, alpha=0.15, lw=0.6)
        label(axes, 0.04, 0.04, f"estimated {estimator}", GREY, "left")

    def dots(axes, quantity, marker="o", colour=BLUE, shift=1.0):
        # chosen by what theory expects: chosen by what was measured, the points shown would be the larger ones
        seen = [p for p in measured if p["quantity"] == quantity and 2 * p["standard_error"] < abs(p["theory"])]
        xyz = [(shift * p["width"], abs(p["measured"]), 2 * p["standard_error"]) for p in seen] or [(math.nan,) * 3]
        axes.errorbar(*np.transpose(xyz), fmt=marker, color=colour, ms=4.5, elinewidth=1, capsize=2, zorder=3)

    N = np.unique(np.geomspace(measured[0]["width"], measured[-1]["width"] + 1, 61).astype(int))
    specs = [mf.NetworkSpec(COLUMNS, ROWS, int(width), depth) for width in N]
    excesses, shortfall = np.transpose([(excess(spec), 1 - mean_scale(spec)) for spec in specs])
    panel(a, "(a) excess kurtosis of an entry of $J$", "from lengths, $E\\,|J|^4 = F\\,(1 + 2/n)$")
    a.plot(N, 3 * excesses, color=RED, lw=1.2)
    dots(a, "(a) excess kurtosis")
    label(a, 0.96, 0.87, "exact: $3\\,(F - 1)$\n$F = (1 + 2/N)\\,(1 + 5/N)^L$", RED)
    panel(b, "(b) shortfall of the mean length, $1 - E\\,r$", "from $|J| - (|J|^2 - 1)/2$, as $E\\,|J|^2 = 1$")
    b.plot(N, -np.expm1(-np.log1p(excesses) / 8), color=GREY, lw=1.2, ls="--")
    b.plot(N, shortfall, color=RED, lw=1.2)
    dots(b, "(b) 1 - E r")
    label(b, 0.96, 0.87, "exact: a product of $\\chi$ laws\n(dashed: $1 - e^{-w/8}$, $w = \\ln F$)", RED)
    panel(c, "(c) error of sharp coefficients, $|E\\,\\|J\\|_{p \\to 2}/\\beta - 1|$", "as in (b)")
    c.plot(N, shortfall, color=RED, lw=1.2)
    c.plot(N, [first_order(spec) for spec in specs], color=ORANGE, lw=1.2)
    dots(c, f"(c) 2->2, K={ROWS}, first order", "s", ORANGE)
    for p, marker, shift in zip(("1", "2", "inf"), "vo^", (0.9, 1, 1.11), strict=True):
        dots(c, f"(c) {p}->2, K=1", marker, shift=shift)
    label(c, 0.96, 0.87, f"$K = {ROWS}$, $p = 2$: $\\beta$ too low\nline: first order in $1/N$", ORANGE)
    label(c, 0.04, 0.12, "$K = 1$: $\\beta$ too high by $1 - E\\,r$\n$p$ = 1 ▼, 2 ●, $\\infty$ ▲", RED, "left")
    return drawn


def measure(args, console):
    """Draw, print and write."""
    out = args.out or store.next_vacant(Path("results/width"))
    store.check_vacant(out, overwrite=False)
    planned, measured, certificates = list(runs(args)), [], []
    compiler = ThreadPoolExecutor(1)  # a program takes as long to compile as to run: the next one while this one runs
    try:
        for (spec, networks, key), run in zip(planned, compiler.map(compiled, planned), strict=True):
            name = f"N={spec.width:<9,} K={spec.output_dim:<2} {networks:7,} networks"
            with console.status(name):
                sample = jax.tree.map(lambda *parts: np.concatenate(parts), *(chunk for _, chunk in run))
            console.print(f"{name}, compiled in {run.compile_seconds:.1f} s")
            measured += points(spec, *sample)
            facts = {"arguments": vars(args), "engine": "matrix_free", "preprocessing": "x = e_1", "dtype": np.float32}
            certificates.append(store.birth_certificate(spec, key, networks, batch_size=run.batch_size, **facts))
    finally:
        compiler.shutdown(wait=False, cancel_futures=True)
    measured.sort(key=lambda point: point["width"])
    table = Table(*(Column(name, justify="right") for name in NAMES), box=None, header_style="bold", pad_edge=False)
    for width, quantity, networks, *numbers, z in (point.values() for point in measured):
        table.add_row(f"{width:,}", quantity, f"{networks:,}", *(f"{x:.4g}" for x in numbers), f"{z:+.1f}")
    console.print(table)
    text = json.dumps({"points": measured, "certificates": certificates}, indent=1) + "\n"
    picture = figure(measured, args.depth)
    save = {"width.json": lambda path: path.write_text(text), "figure.png": lambda path: picture.savefig(path, dpi=150)}
    store.write_run(out, save)
    console.print(f"wrote width.json and figure.png in {out}")


def main(arguments=None):
    """Run the command line; exit status 2 for bad usage, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(description="Theory against width; see the head of the file.")
    parser.add_argument("--networks", type=int, default=10**6, help="of one width, at most; fewer in wide networks")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS, metavar="N")
    parser.add_argument("--depth", type=int, default=10, help="hidden layers L")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a new folder (default: the next free one of results/width-NUMBER)")
    parser.error = lambda message: parser.exit(2, f"width.py: {message}\n")  # argparse's own takes several lines
    args = parser.parse_args(arguments)
    try:
        if args.networks < 2:
            raise ValueError(f"networks: expected at least 2, for an error bar, got {args.networks}")
        measure(args, Console(highlight=False, width=None if sys.stdout.isatty() else 100))
    except (ValueError, OverflowError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        parser.exit(130, "width.py: interrupted; nothing was written\n")


if __name__ == "__main__":
    main()
