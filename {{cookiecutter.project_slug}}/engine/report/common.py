"""The page of a report: what every task shows of a run, and intervals for its numbers."""

import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from engine.arguments import NOT_IN_CONFIG, report_name
from engine.checkpoint import write_atomically
from engine.errors import BadInput
from engine.report.figures import draw_chart
from engine.report.page import Html, document, element, image, keys, section, table, tiles
from engine.report.records import Records, read_metrics, read_records, run_folder
from engine.run_dir import environment, report_dir
from engine.terminal import duration

RESAMPLES = 1000  # of a bootstrap
SPEED = ("images_per_second", "data_wait", "efficiency")  # logged beside the losses
MOST_CHARTS = 24
ENOUGH = 10  # images for an interval


class Report:
    """The folder of a report, and the page in it.

    Args:
        opt: The options of test.py.
        trained_with: The options of the training.
        defaults: Those that train.py has if none is given.

    Raises:
        BadInput: `--against` names no report that fits.
    """

    def __init__(self, opt: Namespace, trained_with: Namespace, defaults: Namespace) -> None:
        self.opt, self.trained_with, self.defaults = opt, trained_with, defaults
        name = report_name(opt, trained_with.data)
        self.against = find_report(opt.against, name) if opt.against else None
        self.records = read_records(run_folder(opt.checkpoint))
        self.folder = report_dir(opt.report, opt.checkpoint, name)

    def write_metrics(self, metrics: Mapping[str, object]) -> None:
        """Writes metrics.json."""
        text = json.dumps(metrics, indent=2) + "\n"
        write_atomically(self.folder / "metrics.json", lambda file: file.write(text.encode()))

    def write(self, verdict: list[Html], sections: list[Html], pairs: dict[str, str]) -> None:
        """Writes index.html.

        Args:
            verdict: What stands in the box at the top.
            sections: What the task has to show.
            pairs: Metrics of the validation, each with the loss of the training that is the same.
        """
        data = self.opt.data or self.trained_with.data
        source = f"{self.opt.checkpoint} on {self.opt.split} images of {data}"
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
        write_atomically(self.folder / "index.html", lambda file: file.write(text.encode()))

    def _batch_section(self) -> list[Html]:
        batches = sorted((self.records.folder / "report").glob("batch-*.png"))
        if not batches:
            return []
        step = batches[-1].stem.removeprefix("batch-").lstrip("0")
        caption = f"The batch of step {step}, as the network is trained on it"
        with Image.open(batches[-1]) as picture:
            shown = image(picture, caption, "images of a batch", most=900)
            return [section("A batch", element("div", shown, class_="batch"))]

    def _speed_section(self) -> list[Html]:
        facts = {}
        if self.records.seconds:
            facts["trained in"] = duration(self.records.seconds)
        for name in SPEED:
            if values := self.records.curve("train", name)[1]:
                middle = median(values)
                text = f"{middle:,.0f}" if name == SPEED[0] else percent(middle)
                facts[name.replace("_", " ").replace("images per second", "images/s")] = text
        note = "Medians over the logged steps. Efficiency: the share of the elapsed time that the "
        note += "same steps take on data already loaded."
        return [section("Speed", tiles(facts), element("p", note, class_="soft"))] if facts else []

    def _options_section(self) -> Html:
        usual = {k: "auto" if v is None else v for k, v in vars(self.defaults).items()}
        rows = [
            (f"--{name.replace('_', '-')}", value, usual.get(name, "none"))
            for name, value in sorted(vars(self.trained_with).items())
            if value not in (None, usual.get(name)) and name not in NOT_IN_CONFIG
        ]
        note = "Those of the training that differ from the defaults, or were chosen automatically; "
        note += "config.txt holds all."
        shown = table(("option", "value", "default"), rows) if rows else "None."
        return section("Options", element("p", note, class_="soft"), shown)

    def _environment_section(self) -> Html:
        starts, here = self.records.starts, environment()
        trained = starts[-1] if starts else {}
        rows = [(name, trained.get(name, ""), here.get(name, "")) for name in {**here, **trained}]
        count = len(starts) - 1
        resumed = f"was resumed {count} time{'s' * (count > 1)}; the last start is shown"
        note = f"The training {resumed if len(starts) > 1 else 'was not resumed'}."
        if not starts:
            note = "There is no environment.txt of the training beside the checkpoint."
        head = ("", "training", "this test")
        return section("Environment", element("p", note, class_="soft"), table(head, rows))


def curves_section(runs: list[Records], pairs: dict[str, str]) -> Html:
    """The curves of one run (training and validation), or of several (a colour for each).

    Args:
        runs: Their records.
        pairs: As in Report.write.
    """
    charts, alone = [], len(runs) == 1
    in_val = dict.fromkeys(name for run in runs for name in run.names("val"))
    in_train = dict.fromkeys(name for run in runs for name in run.names("train"))
    both = {*in_val, *pairs.values()} if alone else set()  # in one chart, or in one for each
    rest = [name for name in in_train if name not in both]
    for split, name in [*(("val", n) for n in in_val), *(("train", n) for n in rest)]:
        lines = [run.curve(split, name) for run in runs]
        if alone and split == "val":
            lines.insert(0, runs[0].curve("train", pairs.get(name, name)))
        marks = runs[0].resumes() if alone else ()
        title = f"{split} {name}" if not alone else name
        chart = draw_chart(lines, f"{title} over the steps of the training", marks)
        charts.append(element("figure", element("h3", title.replace("_", " ")), chart))
    if not charts:
        return section("Curves", element("p", "There is no metrics.jsonl beside the checkpoint."))
    names = ("training", "validation") if alone else [str(run.folder) for run in runs]
    note = "Over the steps of the optimizer."
    if alone and runs[0].resumes():
        steps = ", ".join(map(str, runs[0].resumes()))
        note += f" Dotted lines: the run was stopped and resumed after step {steps}."
    grid = element("div", *charts[:MOST_CHARTS], class_="charts")
    return section("Curves", element("p", note, class_="soft"), keys(names), grid)


def find_report(named: str, name: str) -> Path:
    """The folder of a report: that of a run, with the given name, or the one named itself.

    Raises:
        BadInput: There is none.
    """
    for folder in (Path(named) / name, Path(named)):
        if read_metrics(folder):
            return folder
    raise BadInput(
        f"--against {named}: no {name}/metrics.json in it; run test.py --checkpoint {named} first"
    )


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float] | None:
    """The 95 % interval of a mean, by bootstrap over images (Efron 1979): percentiles of the means.

    It is too narrow for few images: that of 4 normal values covers their mean in 80 % of cases,
    that of 10 in 91 %, that of 30 in 93 %.

    Args:
        values: Of each image, of shape (N,).
        seed: Of the resamples, so that a report can be repeated.

    Returns:
        Its ends; None for less than ENOUGH images.
    """
    if len(values) < ENOUGH:
        return None
    random, means = np.random.default_rng(seed), []
    for _ in range(0, RESAMPLES, 50):  # not all at once, which would take much memory
        chosen = random.integers(len(values), size=(50, len(values)))
        means.append(values[chosen].mean(axis=1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def compare_images(
    ours: Mapping[str, float], theirs: Mapping[str, float], unit: str, scale: float = 1
) -> str:
    """What is better than in another report, as a sentence; paired, if the images are the same.

    Args:
        ours: The metric of each image, by its file.
        theirs: The same of the other report.
        unit: Of the metric, for the sentence.
        scale: By which the metric is multiplied for the sentence.
    """
    if ours.keys() != theirs.keys():
        return "That report lists other images, so there is no comparison by image."
    differences = scale * np.array([ours[file] - theirs[file] for file in ours])
    mean, ends = f"{differences.mean():+.2f} {unit}", interval(differences)
    if ends is None:
        count = f"{(differences > 0).sum()} of {len(ours)} images"
        return f"Better on {count}, {mean} on average: too few images for an interval."
    low, high = ends
    found = "Better" if low > 0 else "Worse" if high < 0 else "No clear difference"
    return (
        f"{found}: {mean}, 95 % interval {low:+.2f} to {high:+.2f}, by paired bootstrap over the "
        f"same {len(ours)} images."
    )


def percent(share: float) -> str:
    """A share as text; what is not all is never rounded to 100 %."""
    return "> 99.9 %" if 0.9995 <= share < 1 else f"{share:.1%}".replace("%", " %")
