"""From measurements to RESULTS.md: medians and ratios. results.json holds all that this needs."""

from dataclasses import dataclass
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

Measurement = dict[str, Any]  # contender, round, workers, and what was measured or `error`
Results = dict[str, dict[str, Any]]  # cases by name, as __main__.describe_case makes them

PAIRS = (  # whose ratios are of interest
    ("ours", "pure"),
    ("ours", "guide"),
    ("ours", "lightning"),
    ("ours", "lightning-bf16"),
    ("ours", "timm"),
    ("ours-fp32", "pure-fp32"),
    ("ours-fp32", "guide"),
    ("ours-fp32", "lightning"),
    ("ours-fp32", "timm"),
    ("guide", "pure"),
    ("guide", "pure-guide"),
    ("lightning", "pure"),
    ("ours", "ours-workers"),
    ("ours-no-cache", "ours-no-cache-workers"),
)
INTRODUCTION = """# How fast it is

Written by `make bench` from results.json; [README.md](README.md) says how it measures and what each
name stands for. A figure is the median of the rounds; in brackets stand the smallest and the
largest one.
"""


@dataclass
class Figure:
    """What the rounds say of a contender.

    Attributes:
        values: Of each round, for the best number of workers.
        workers: That number, if several were tried.
        tried: The value of the first round by the number of workers.
        error: Why there is no value.
    """

    values: list[float]
    workers: int | None = None
    tried: dict[int, float] | None = None
    error: str = ""

    @property
    def median(self) -> float:
        return median(self.values)


def best_workers(measurements: list[Measurement], name: str) -> list[int | None]:
    """The number of workers that was best in the first round, as a list; empty if all failed."""
    first = [
        one
        for one in measurements
        if one["contender"] == name and one["round"] == 0 and "error" not in one
    ]
    return [max(first, key=lambda one: one.get("images_per_s", 0.0))["workers"]] if first else []


def figure(measurements: list[Measurement], name: str, key: str) -> Figure | None:
    """The figure of one contender, out of the values `key`; None if it was not measured."""
    own = [one for one in measurements if one["contender"] == name]
    good = [one for one in own if one.get(key) is not None]
    if not good:
        return Figure([], error=own[0].get("error", "failed")) if own else None
    first = {one["workers"]: one[key] for one in good if one["round"] == 0}
    workers = best_workers(measurements, name)[0]
    values = [one[key] for one in good if one["workers"] == workers]
    return Figure(values, workers, first if workers is not None else None)


def figures(case: dict[str, Any], key: str) -> dict[str, Figure]:
    """The figures of all contenders that were measured, in the order of the case."""
    found = {name: figure(case["measurements"], name, key) for name in case["contenders"]}
    return {name: one for name, one in found.items() if one is not None}


def ratio(have: dict[str, Figure], above: str, below: str) -> float | None:
    """The ratio of two medians, if there are both."""
    if not all(name in have and have[name].values for name in (above, below)):
        return None
    return have[above].median / have[below].median


def write(results: Results, out: Path) -> None:
    """Writes RESULTS.md and, where matplotlib is installed, results.png."""
    try:
        from benchmarks.picture import draw
    except ModuleNotFoundError as error:
        print(f"no picture: {error.name} is not installed")
        drawn = False
    else:
        drawn = draw(results, out / "results.png")
    (out / "RESULTS.md").write_text(markdown(results, drawn), encoding="utf-8")


def markdown(results: Results, drawn: bool) -> str:
    """The text of RESULTS.md."""
    tables = {
        "throughput": _throughput,
        "startup": _startup,
        "scaling": _scaling,
        "accuracy": _accuracy,
    }
    machines = [case["machine"] for case in results.values()]
    same = all(machine == machines[0] for machine in machines)
    parts = [INTRODUCTION, *([_machine(machines[0])] if same else [])]
    parts += ["![the figures below as bars](results.png)\n"] if drawn else []
    for name, case in results.items():
        parts += [f"## {name}\n", f"{case['about']}.\n"]
        parts += [] if same else [_machine(case["machine"])]
        parts += tables[case["kind"]](case)
    return "\n".join(parts)


def _machine(machine: dict[str, str]) -> str:
    return "Measured on: " + "; ".join(f"{key} {value}" for key, value in machine.items()) + ".\n"


def _throughput(case: dict[str, Any]) -> list[str]:
    have = figures(case, "images_per_s")
    rows = []
    for name, one in have.items():
        share = ratio(have, name, "pure")
        tried = "; ".join(f"{n}: {_number(v)}" for n, v in (one.tried or {}).items())
        rows.append(
            [
                name,
                case["contenders"][name],
                _spread(one),
                "" if share is None else f"{share:.2f}",
                str(len(one.values)),
                "" if one.workers is None else f"**{one.workers}** ({tried})",
            ]
        )
    titles = ["contender", "what", "images/s", "of pure", "rounds", "workers (first round)"]
    parts = [_table(titles, rows), *_ratio_table(case, have)]
    return [*parts, *_notes(case, have)]


def _ratio_table(case: dict[str, Any], have: dict[str, Figure]) -> list[str]:
    wanted = {(above, below): least for above, below, least in case["wanted"]}
    rows = []
    for above, below in dict.fromkeys([*PAIRS, *wanted]):
        value, least = ratio(have, above, below), wanted.get((above, below))
        if value is not None:
            met = "" if least is None else f"{least:g}: {'met' if value >= least else 'not met'}"
            rows.append([f"{above} / {below}", f"{value:.2f}", met])
    return [_table(["ratio", "", "wanted at least"], rows)] if rows else []


def _notes(case: dict[str, Any], have: dict[str, Figure]) -> list[str]:
    share = figure(case["measurements"], "ours-beside-pure", "share")
    said = figure(case["measurements"], "ours-beside-pure", "efficiency")
    notes = []
    if share and share.values and said and said.values:
        apart = 100 * abs(said.median - share.median)
        notes.append(
            f"In turns within one process, train.py reached {_spread(share, '{:.3f}')} of pure "
            f"compute (wanted: 0.95), and its own meter said {said.median:.3f}: {apart:.1f} points "
            "apart (wanted: within 5)."
        )
    setup = [one for one in case["measurements"] if one["contender"] == "ours" and "setup_s" in one]
    if setup:
        every = ", ".join(f"{one['setup_s']:.1f} s" for one in setup)
        epochs = ", ".join(f"{one['first_epoch_s']:.1f} s" for one in setup)
        notes.append(
            f"Not in the figures: ours from the command to its first epoch took {every} in turn "
            f"and that epoch {epochs}; the first time, the cache is made."
        )
    return [note + "\n" for note in notes]


def _startup(case: dict[str, Any]) -> list[str]:
    have = figures(case, "seconds")
    rows = [
        [name, case["contenders"][name], _spread(one, "{:.2f}"), str(len(one.values))]
        for name, one in have.items()
    ]
    return [_table(["command", "what", "seconds", "rounds"], rows)]


def _accuracy(case: dict[str, Any]) -> list[str]:
    have = figures(case, "accuracy")
    rows = [
        [
            name,
            case["contenders"][name],
            _spread(one, "{:.4f}"),
            ", ".join(f"{value:.4f}" for value in one.values),
        ]
        for name, one in have.items()
    ]
    titles = ["contender", "what", "test accuracy", "seed 0, 1, ..."]
    return [_table(titles, rows), *_ratio_table(case, have)]


def _scaling(case: dict[str, Any]) -> list[str]:
    rows, parts = [], []
    for listed, mode, one in scaling_points(case):
        rows.append(
            [f"{listed:,}", mode, one["error"], "", "", "", ""]
            if "error" in one
            else [
                f"{listed:,}",
                mode,
                f"{one['startup_s']:.2f}",
                f"{one['s_per_image'] * listed:.2f}",
                f"{one['s_per_image'] * 1e6:.1f}",
                f"{one['peak_mib']:,.0f}",
                f"{one['workers_mib']:.1f}",
            ]
        )
    titles = ["images", "mode", "start-up, s", "epoch, s", "µs an image", "peak, MiB"]
    parts.append(_table([*titles, "workers gain, MiB"], rows))
    return [*parts, *_fits(case)]


def scaling_points(case: dict[str, Any]) -> list[tuple[int, str, Measurement]]:
    """Number of images, mode and measurement, out of the names "N images, MODE"."""
    points = []
    for one in case["measurements"]:
        listed, _, mode = one["contender"].partition(" images, ")
        points.append((int(listed), mode, one))
    return sorted(points, key=lambda point: (point[1], point[0]))


def _fits(case: dict[str, Any]) -> list[str]:
    """For each mode and quantity: how much a million images add, and whether that is linear."""
    quantities = {
        "start-up, s": lambda listed, one: one["startup_s"],
        "epoch, s": lambda listed, one: one["s_per_image"] * listed,
        "peak memory, MiB": lambda listed, one: one["peak_mib"],
    }
    rows = []
    points = [point for point in scaling_points(case) if "error" not in point[2]]
    for mode in dict.fromkeys(mode for _, mode, _ in points):
        for title, read in quantities.items():
            curve = [(listed, read(listed, one)) for listed, m, one in points if m == mode]
            if len(curve) >= 2:
                slope, growth = fit(curve)
                linear = "" if growth is None else f"{growth:.2f}"
                rows.append([mode, title, f"{slope * 1e6:,.1f}", linear])
    titles = ["mode", "", "for each million images", "the last step's growth an image / before"]
    note = "The last column is 1 if the growth is linear, and above 1 if it is faster.\n"
    return [_table(titles, rows), note] if rows else []


def fit(curve: list[tuple[int, float]]) -> tuple[float, float | None]:
    """A straight line through points (images, quantity), and how straight the end is.

    Returns:
        The growth for each image, by least squares; and the growth for each image between the last
        two points over that between the first and the last but one, if there are three points.
    """
    slope = linear_regression(*zip(*curve, strict=True)).slope
    if len(curve) < 3:
        return slope, None
    (x0, y0), (x1, y1), (x2, y2) = curve[0], curve[-2], curve[-1]
    before, last = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    return slope, last / before if before > 0 else None


def _spread(one: Figure, form: str = "") -> str:
    if not one.values:
        return one.error
    low, middle, high = (
        form.format(value) if form else _number(value)
        for value in (min(one.values), one.median, max(one.values))
    )
    return f"{middle} ({low} - {high})" if len(one.values) > 1 else middle


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _table(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join("| " + " | ".join(cells).replace("\n", " ") + " |\n" for cells in lines)
