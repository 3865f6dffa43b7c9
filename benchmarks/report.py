"""From results.json to RESULTS.md: medians and ratios."""

from statistics import median
from typing import Any

Measurement = dict[str, Any]  # contender, round, workers, and values of COLUMNS or `error`
CaseResults = dict[str, Any]  # about, contenders (texts by name), machine, measurements
Results = dict[str, CaseResults]  # cases by name

COLUMNS = {  # titles of what is measured; the first one that a case has is drawn
    "images_per_s": "images/s",
    "seconds": "seconds",
    "accuracy": "test accuracy",
    "startup_s": "start-up, s",
    "us_per_image": "µs for an image",
    "peak_mib": "peak, MiB",
    "workers_mib": "gain of workers, MiB",
    "share": "share of pure, in turns",
    "efficiency": "efficiency by its meter",
    "setup_s": "until the first step, s",
}
AUGMENTED = (  # the options of the case `augmentation`
    *("resize=crop", "trivial-augment", "color-jitter=0.4", "erasing=1"),
    *("mixup=0.2", "cutmix=1", "shift=4"),
)
WANTED = {  # by case: the least ratio of the first contender to the second
    "small": {
        "ours": {"guide": 2.5, "lightning": 2.3},
        "ours-fp32": {"guide": 1.5, "lightning": 1.5},
    },
    "photos": {
        "ours": {"guide": 2.0, "lightning": 2.0},
        "ours-fp32": {"guide": 1.2, "lightning": 1.2},
    },
    "augmentation": {name: {"none": 0.8} for name in AUGMENTED},
    "gpu-resnet18": {"ours": {"guide": 3.0}},
}
INTRODUCTION = """# Results

Written by `make bench` from results.json; [README.md](README.md) explains the method and the names.
A figure is the median of the rounds; the smallest and the largest one are in brackets.

![the first column of each table as bars](results.png)
"""


def best_workers(measurements: list[Measurement], name: str) -> list[int | None]:
    """The number of workers that was best in the first round, as a list; empty if all failed."""
    first = [
        one
        for one in measurements
        if one["contender"] == name and one["round"] == 0 and "error" not in one
    ]
    return [max(first, key=lambda one: one.get("images_per_s", 0.0))["workers"]] if first else []


def values(case: CaseResults, name: str, key: str) -> list[float]:
    """What was measured of a contender, in each round, for its best number of workers."""
    best = best_workers(case["measurements"], name)
    return [
        one[key]
        for one in case["measurements"]
        if one["contender"] == name and one["workers"] in best and one.get(key) is not None
    ]


def ratio(case: CaseResults, above: str, below: str) -> float | None:
    """The ratio of the medians of two contenders, if there are both."""
    both = [values(case, name, "images_per_s") for name in (above, below)]
    return median(both[0]) / median(both[1]) if all(both) else None


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def markdown(results: Results) -> str:
    """The text of RESULTS.md."""
    parts = [INTRODUCTION]
    for name, case in results.items():
        machine = "; ".join(f"{key} {value}" for key, value in case["machine"].items())
        parts += [f"## {name}\n", f"{case['about']}.\n", f"Measured on: {machine}.\n", _table(case)]
        for above, others in WANTED.get(name, {}).items():
            for below, least in others.items():
                if value := ratio(case, above, below):
                    met = "met" if value >= least else "not met"
                    parts.append(f"{above} / {below}: {value:.2f} (wanted: {least}, {met}).\n")
    return "\n".join(parts)


def _table(case: CaseResults) -> str:
    """A row for each contender that was measured, a column for all that some of them have."""
    rows = [["contender", "what", *COLUMNS.values(), "of pure", "workers", "error"]]
    for name, about in case["contenders"].items():
        own = [one for one in case["measurements"] if one["contender"] == name]
        share = ratio(case, name, "pure")
        tried = [one for one in own if one["round"] == 0 and one["workers"] is not None]
        workers = [f"{one['workers']}: {number(one.get('images_per_s', 0))}" for one in tried]
        rows.append([name, about, *(_spread(values(case, name, key)) for key in COLUMNS)])
        rows[-1] += ["" if share is None else f"{share:.2f}", "; ".join(workers)]
        rows[-1] += [next((one["error"].replace("|", "/") for one in own if "error" in one), "")]
    used = [column for column in zip(*rows, strict=True) if any(column[1:])]
    lines = [*zip(*used, strict=True)]
    lines.insert(1, ("---",) * len(used))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _spread(found: list[float]) -> str:
    if len(found) < 2:
        return "".join(map(number, found))
    return f"{number(median(found))} ({number(min(found))} - {number(max(found))})"
