"""The page of a report: what every task shows of a run, and intervals for its numbers."""

import hashlib
import json
import math
import re
from argparse import Namespace
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from engine import terminal
from engine.arguments import NOT_IN_CONFIG
from engine.checkpoint import digest_of, write_atomically
from engine.data.cache import images_of
from engine.data.mapped import digest_file
from engine.errors import BadInput
from engine.report.figures import draw_chart
from engine.report.grids import save_png
from engine.report.outputs import report_folder
from engine.report.page import Html, document, element, image, keys, section, table, tiles
from engine.report.records import Records, read_judged, read_metrics, read_records, run_folder
from engine.run_dir import environment

RESAMPLES = 1000  # of a bootstrap
MOST_CHARTS = 24
ENOUGH = 10  # images for the interval of a mean
Z = 1.959964  # 95 % of a normal distribution lie between -Z and Z
# What is between the brackets of a list or an object in JSON that holds no other one.
INNERMOST = re.compile(r'(?<=[\[{])\n[^\[\]{}"]*(?:"(?:\\.|[^"\\])*"[^\[\]{}"]*)*(?=[\]}])')


class Report:
    """The folder of a report, and the page in it.

    Args:
        opt: The options of test.py.
        trained_with: The options of the training.
        defaults: Those that train.py has if none is given.
        model: The trained model; its `checkpoint` goes into metrics.json.
        data_set: The images to judge it by.

    Raises:
        BadInput: `--against` names no report on these images, or the folder holds other things.
    """

    def __init__(
        self,
        opt: Namespace,
        trained_with: Namespace,
        defaults: Namespace,
        model: Any,
        data_set: Any,
    ) -> None:
        self.opt, self.trained_with, self.defaults = opt, trained_with, defaults
        folder = str(Path(opt.data or trained_with.data).resolve())
        digest = digest_images(data_set)
        judged = {"folder": folder, "split": opt.split, "digest": digest}
        self.facts = {"checkpoint": model.checkpoint, "data": judged}
        self.against = find_report(opt.against, digest) if opt.against else None
        self.records = read_records(run_folder(opt.checkpoint))
        self.folder = report_folder(opt, trained_with.data, digest)

    def write_metrics(self, metrics: Mapping[str, object]) -> None:
        """Writes metrics.json: which checkpoint was judged, by which images, and the metrics."""
        self._write("metrics.json", json_text({**self.facts, **metrics}) + "\n")

    def _write(self, name: str, text: str) -> None:
        write_atomically(self.folder / name, lambda file: file.write(text.encode()))

    def save_picture(self, name: str, draw: Callable[[], Tensor]) -> None:
        """Saves what `draw` returns, uint8 (3, H, W), unless that fails."""
        if (picture := terminal.attempt(draw, name)) is not None:
            save_png(picture, self.folder / name)

    def write(self, verdict: list[Html], sections: list[Html], pairs: dict[str, str]) -> None:
        """Writes index.html.

        Args:
            verdict: What stands in the box at the top.
            sections: What the task has to show.
            pairs: Metrics of the validation, each with the loss of the training that is the same.
        """
        data, step = self.opt.data or self.trained_with.data, self.facts["checkpoint"]["step"]
        source = f"{self.opt.checkpoint}, step {step}, on {self.opt.split} images of {data}"
        text = document(
            f"Report: {self.records.folder.name}",
            element("p", source, class_="soft"),
            element("div", *verdict, class_="verdict"),
            *sections,
            curves_section([self.records], pairs),
            *self._batch_section(),
            *self._speed_section(),
            self._options_section(),
            self._environment_section(),
        )
        self._write("index.html", text)

    def _batch_section(self) -> list[Html]:
        batches = sorted((self.records.folder / "report").glob("batch-*.png"))
        if not batches:
            return []
        step = batches[-1].stem.removeprefix("batch-").lstrip("0")
        caption = f"The batch of step {step}, as the network is trained on it"
        shown = drawn(
            lambda: image(Image.open(batches[-1]), caption, "images of a batch", most=900), "batch"
        )
        return [section("A batch", element("div", shown, class_="batch"))]

    def _speed_section(self) -> list[Html]:
        facts = {}
        if self.records.seconds:
            facts["trained in"] = terminal.duration(self.records.seconds)
        for name, (title, show) in SPEED.items():
            if values := self.records.curve("train", name)[1]:
                facts[title] = show(median(values))
        note = (
            "Medians over the logged steps. Efficiency: the share of the elapsed time that the "
            "same steps take on data already loaded."
        )
        return [section("Speed", tiles(facts), note=note)] if facts else []

    def _options_section(self) -> Html:
        usual = {k: "auto" if v is None else v for k, v in vars(self.defaults).items()}
        rows = [
            (f"--{name.replace('_', '-')}", value, usual.get(name, "none"))
            for name, value in sorted(vars(self.trained_with).items())
            if value not in (None, usual.get(name)) and name not in NOT_IN_CONFIG
        ]
        note = (
            "Those of the training that differ from the defaults, or were chosen automatically; "
            "config.txt holds all."
        )
        shown = table(("option", "value", "default"), rows) if rows else "None."
        return section("Options", shown, note=note)

    def _environment_section(self) -> Html:
        starts, here = self.records.starts, environment()
        # A resumed start does not tell the weights that the first one began with.
        trained = {**starts[0], **starts[-1]} if starts else {}
        rows = [(name, trained.get(name, ""), here.get(name, "")) for name in {**here, **trained}]
        note = "The training was not resumed."
        if not starts:
            note = "There is no environment.txt of the training beside the checkpoint."
        elif count := len(starts) - 1:
            times = f"{count} time{'s' * (count > 1)}"
            note = f"The training was resumed {times}; the last start is shown."
        return section("Environment", table(("", "training", "this test"), rows), note=note)


def curves_section(runs: list[Records], pairs: dict[str, str]) -> Html:
    """The curves of one run (training and validation), or of several (a colour for each).

    For the `pairs` of one run see Report.write.
    """
    alone, marks, note = runs[0], runs[0].resumes(), "Over the steps of the optimizer."
    if len(runs) == 1:
        charts = {
            name: [alone.curve("train", pairs.get(name, name)), alone.curve("val", name)]
            for name in alone.names("val")
        }
        rest = [n for n in alone.names("train") if n not in (*charts, *pairs.values())]
        charts |= {name: [alone.curve("train", name)] for name in rest}
        names = ["training", "validation"]
        if marks:
            steps = ", ".join(map(str, marks))
            note += f" Dotted lines: the run was stopped and resumed after step {steps}."
    else:
        charts = {
            f"{split} {name}": [run.curve(split, name) for run in runs]
            for split in ("val", "train")
            for name in chain.from_iterable(run.names(split) for run in runs)
        }
        names, marks = [str(run.folder) for run in runs], []
    if not charts:
        return section("Curves", element("p", "There is no metrics.jsonl beside the checkpoint."))
    figures = []
    for title, lines in list(charts.items())[:MOST_CHARTS]:
        draw = partial(draw_chart, lines, f"{title} over the steps of the training", marks)
        chart = drawn(draw, f"curve of {title}")
        figures.append(element("figure", element("h3", title.replace("_", " ")), chart))
    grid = element("div", *figures, class_="charts")
    return section("Curves", keys(names), grid, note=note)


def drawn(draw: Callable[[], Html], what: str) -> Html:
    """What `draw` returns, or a dash if it fails."""
    return terminal.attempt(draw, what) or element("p", "-")


def find_report(named: str, digest: str) -> Path:
    """The folder of the report on some images: `named`, or one in that run; or BadInput."""
    folders = [Path(named), *sorted(Path(named).glob("report*"))]
    found = [folder for folder in folders if "images" in read_metrics(folder)]
    for folder in found:
        if read_judged(folder).get("digest") == digest:
            judged = read_metrics(folder).get("checkpoint")
            if isinstance(judged, dict) and is_of_best(folder) is False:
                raise BadInput(
                    f"--against {named}: its report is of step {judged.get('step')} and not of its "
                    f"best.pt; run test.py --checkpoint {named} again"
                )
            return folder
    what = "no report in it"
    if found:
        judged = read_judged(found[0])
        what = f"its report is of other images ({judged.get('folder')}, {judged.get('split')})"
    remedy = f"run test.py --checkpoint {named} first, on the same images"
    raise BadInput(f"--against {named}: {what}; {remedy}")


def is_of_best(report: Path) -> bool | None:
    """Whether the report in a run folder is of its best.pt; None if that is not there."""
    judged, best = read_metrics(report).get("checkpoint"), report.parent / "checkpoints/best.pt"
    if not best.is_file():
        return None
    return isinstance(judged, dict) and judged.get("digest") == digest_of(best)


def digest_images(data_set: Any) -> str:
    """A digest of the names and the files of the images of a data set."""
    names = set(data_set.names())
    digest = hashlib.sha256(ascii(sorted(names)).encode())
    for images in images_of(data_set):
        # A name is that of a file, or of one in A/ and one in B/.
        chosen = [f for f in images.files if f in names or f.partition("/")[2] in names]
        for file in sorted(chosen or images.files):
            digest.update(ascii(file).encode())
            digest.update(digest_file(f"{images.root}/{file}").numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def json_text(value: object) -> str:
    """JSON with a line for each value, and for each row of a table; what is not finite is null."""
    finite = json.loads(json.dumps(value), parse_constant=lambda name: None)
    text = json.dumps(finite, indent=2)
    return INNERMOST.sub(lambda found: re.sub("\n *", " ", found[0]).strip(), text)


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float] | None:
    """The 95 % interval of a mean, by bootstrap over images (Efron 1979): percentiles of the means.

    It is too narrow for few images: that of 4 normal values covers their mean in 80 % of cases,
    that of 10 in 91 %, that of 30 in 93 %. So there is none for less than ENOUGH images, nor if all
    values are equal, as resamples of them say nothing of other images. The seed is that of the
    resamples, so that a report can be repeated.
    """
    values = values.astype(float)
    if len(values) < ENOUGH or np.ptp(values) <= 1e-9 * np.abs(values).max():
        return None
    random, means = np.random.default_rng(seed), []
    for _ in range(0, RESAMPLES, 50):  # not all at once, which would take much memory
        chosen = random.integers(len(values), size=(50, len(values)))
        means.append(values[chosen].mean(axis=1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def no_interval(count: int) -> str:
    """Why `interval` has none, of `count` images."""
    return "too few images for an interval" if count < ENOUGH else "all are equal: no interval"


def share_interval(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share, exact for any number of images (Clopper and Pearson 1934)."""
    numbers = np.arange(1, count + 1)
    ways = np.concatenate([[0.0], np.cumsum(np.log(count + 1 - numbers) - np.log(numbers))])

    def lowest(k: int) -> float:
        """The share for which k or more are right with a probability of 2.5 %, by bisection."""
        found, low, high = np.arange(k, count + 1), 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            logs = found * math.log(middle) + (count - found) * math.log1p(-middle)
            enough = np.exp(ways[k:] + logs).sum() > 0.025
            low, high = (low, middle) if enough else (middle, high)
        return low if k else 0.0

    return lowest(right), 1 - lowest(count - right)


def paired_interval(better: int, worse: int, count: int) -> tuple[float, float]:
    """The 95 % interval of the difference of two shares of the same images (Agresti and Min 2005).

    Of all, `better` images are right here alone and `worse` there alone. Half an image is added to
    each of the four cases, so that it has a width even if no image differs.
    """
    difference, differ = (better - worse) / (count + 2), (better + worse + 1) / (count + 2)
    half = Z * math.sqrt((differ - difference**2) / (count + 2))
    return max(-1.0, difference - half), min(1.0, difference + half)


def compare_images(
    ours: Mapping[str, float], theirs: Mapping[str, float], unit: str, scale: float = 1
) -> str:
    """What is better than in another report of the same images, as a sentence; paired.

    The metrics of images are given by their files; the sentence has them times `scale`, in `unit`.
    """
    if ours.keys() != theirs.keys():
        return "That report lists other images, so there is no comparison by image."
    pairs = [(ours[file], theirs[file]) for file in ours]
    differences = np.array([our - their for our, their in pairs])
    count, mean = len(pairs), f"{scale * differences.mean():+.2f} {unit}"
    if {value for pair in pairs for value in pair} <= {0.0, 1.0}:
        better, worse = int((differences > 0).sum()), int((differences < 0).sum())
        ends: Any = paired_interval(better, worse, count)
        how = "for pairs (Agresti and Min)"
    else:
        ends, how = interval(differences), "by paired bootstrap"
    if ends is None and count < ENOUGH:
        which = f"{(differences > 0).sum()} of {count} images"
        return f"Better on {which}, {mean} on average: {no_interval(count)}."
    if ends is None:
        sign = int(np.sign(round(differences.mean(), 9)))
        found = ("No clear difference", "Better", "Worse")[sign]
        return (
            f"{found}: {mean} on each of the same {count} images; of other images up to "
            f"{percent(1 - share_interval(count, count)[0])} may differ (95 % limit)."
        )
    low, high = (scale * end for end in ends)
    found = "Better" if low > 0 else "Worse" if high < 0 else "No clear difference"
    return (
        f"{found}: {mean}, 95 % interval {low:+.2f} to {high:+.2f}, {how} over the same {count} "
        "images."
    )


def percent(share: float) -> str:
    """A share as text; what is not all is never rounded to 100 %."""
    return "> 99.9 %" if 0.9995 <= share < 1 else f"{share:.1%}".replace("%", " %")


SPEED = {  # logged beside the losses
    "images_per_second": ("images/s", "{:,.0f}".format),
    "data_wait": ("data wait", percent),
    "efficiency": ("efficiency", percent),
}
