"""The page of a report: whatever the names are, it is one whole file; intervals; the records."""

import base64
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Train
from pages import check_whole
from programs import resume, status

import test
from engine.report.common import compare_images, find_report, interval, percent
from engine.report.figures import draw_chart
from engine.report.page import COLOURS, document, element, escape, image, keys, table
from engine.report.records import (
    Records,
    read_judged,
    read_metrics,
    read_options,
    read_points,
    read_records,
)
from tools import compare

HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=y>', "a&b", "\udcff\x00\u202e", "'"]


def test_hostile_names_are_text() -> None:
    picture = torch.zeros(3, 8, 8, dtype=torch.uint8)
    parts = [table(HOSTILE, [HOSTILE]), keys(HOSTILE)]
    parts += [element("p", name, title=name) for name in HOSTILE]
    parts += [image(picture, name, name) for name in HOSTILE]
    page = check_whole(document(HOSTILE[0], *parts))
    for name in HOSTILE[:3]:
        assert page.texts.count(name) >= 5 and name in page.all("alt")
    assert escape(HOSTILE[3]) == "\ufffd" * 3


def test_charts_share_a_page() -> None:
    random = np.random.default_rng(0)
    lines = [(list(range(n)), [float("nan"), *random.random(n - 1)]) for n in (5, 3000)]
    charts = [draw_chart(lines, '"<i>"', marks=[3]) for _ in range(2)]
    text = document("charts", *charts, draw_chart([([0.4, 0.9], [0.5, 0.7])], "shares"))
    page = check_whole(text)
    assert page.all("alt").count('"<i>"') == 2 and page.all("class").count("chart") == 3
    for source in page.all("src"):
        chart = check_whole(base64.b64decode(str(source).partition(",")[2]).decode())
        assert {tag for tag, _ in chart.found} >= {"svg", "path", "text"}, "text stays text"
    assert charts[0] == charts[1], "the same each time"
    assert max(map(len, charts)) < 40_000, "a long curve is thinned out"


def test_the_legend_has_the_colours_of_the_curves() -> None:
    names = [str(i) for i in range(len(COLOURS) + 2)]
    chart = draw_chart([([0, 1], [0.0, i]) for i in range(len(names))], "a chart")
    drawn = base64.b64decode(re.findall('base64,([^"]*)', chart)[0]).decode()
    curves = re.findall(r"fill: none;( stroke-dash.*)? stroke: (#\w+); stroke-width: 1.3", drawn)
    shown = re.findall(r"background: (#\w+)\"></span>\d( \(dashed\))?", keys(names))
    assert len(names) == len(shown) == len(curves)
    assert [(c, bool(d)) for d, c in curves] == [(c, bool(d)) for c, d in shown]


def test_the_interval_covers_the_true_mean() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        low, high = interval(random.random(300) < 0.8) or (0, 0)
        assert 0.06 < high - low < 0.12, "about four standard errors"
        covered += low <= 0.8 <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_few_images_get_no_interval() -> None:
    """Their bootstrap would be too narrow, and call chance a difference."""
    assert interval(np.arange(9.0)) is None
    assert interval(np.arange(10.0)) is not None
    ours, theirs = {"a.png": 31.0, "b.png": 30.0}, {"a.png": 30.0, "b.png": 30.5}
    assert compare_images(ours, theirs, "dB") == (
        "Better on 1 of 2 images, +0.25 dB on average: too few images for an interval."
    )


def test_a_paired_comparison_sees_what_two_intervals_do_not() -> None:
    random = np.random.default_rng(0)
    values = random.normal(30, 5, 100)
    ours = {f"{i}.png": value for i, value in enumerate(values + 0.1)}
    theirs = {f"{i}.png": value for i, value in enumerate(values)}
    assert "Better: +0.10 dB" in compare_images(ours, theirs, "dB")
    assert "Worse: -0.10 dB" in compare_images(theirs, ours, "dB")
    assert "No clear difference: +0.00 dB" in compare_images(ours, ours, "dB")
    assert "other images" in compare_images(ours, {**theirs, "more.png": 1.0}, "dB")


def test_a_share_is_rounded_to_all_only_if_it_is_all() -> None:
    shown = [percent(share) for share in (0, 0.1234, 0.9994, 0.9996, 1)]
    assert shown == ["0.0 %", "12.3 %", "99.9 %", "> 99.9 %", "100.0 %"]


# The records of a run.


@pytest.mark.slow
def test_resumes_are_recorded_and_marked(train: Train) -> None:
    assert train("run", "--epochs=1", "--log-every=1") == 0
    records = read_records(Path("run"))
    last = records.points[-1]["n_iter"]
    assert records.resumes() == [] and len(records.starts) == 1
    assert resume(Path("run"), "--epochs=2") == 0
    records = read_records(Path("run"))
    assert records.resumes() == [last] and len(records.starts) == 2
    assert records.starts[1]["torch"] == torch.__version__
    assert status(test.main, "test.py", "--checkpoint=run", "--device=cpu") == 0
    text = Path("run/report/index.html").read_text(encoding="utf-8")
    assert f"stopped and resumed after step {last}." in text
    page = check_whole(text)
    assert "The training was resumed 1 time; the last start is shown." in page.texts
    assert "--epochs" in page.texts and "A batch" in page.texts and "Speed" in page.texts


def test_damaged_records_are_passed_over() -> None:
    point = '{"n_iter": 1, "epoch": 1, "split": "val", "values": {"loss": NaN}}'
    Path("metrics.jsonl").write_text("\n".join([point, "[]", '{"n_iter": 2}', '{"n_it']))
    assert [p["n_iter"] for p in read_points(Path("metrics.jsonl"))] == [1]
    Path("metrics.json").write_text("[")
    assert read_metrics(Path()) == {}
    assert read_records(Path("nowhere")) == Records(Path("nowhere"), [], [])


def test_what_is_no_number_is_no_point_of_a_curve() -> None:
    """Null stands for NaN; the rest was written by another program."""
    lines = [
        '{"n_iter": 1, "split": "val", "values": {"loss": null, "accuracy": 0.5}}',
        '{"n_iter": 2, "split": "val", "values": {"loss": "low", "accuracy": 0.6}}',
        '{"n_iter": 3, "split": "val", "values": [0.7]}',
        '{"n_iter": null, "split": "val", "values": {"loss": 1.0}}',
        "[1]",
    ]
    Path("metrics.jsonl").write_text("\n".join(lines))
    records = Records(Path(), read_points(Path("metrics.jsonl")), [])
    assert records.curve("val", "loss") == ([], [])
    assert records.curve("val", "accuracy") == ([1, 2], [0.5, 0.6])


def test_options_are_read_as_they_are_written(finished: Path) -> None:
    options = read_options(finished)
    assert options["device"] == "cpu" and options["deterministic"] == "no"
    assert options["flip"] in ("yes", "no") and "no-flip" not in options


@pytest.mark.parametrize("split", ["test", "val"])
def test_a_checkpoint_alone_gets_a_page(finished: Path, split: str) -> None:
    shutil.copy(finished / "checkpoints/best.pt", "alone.pt")
    words = ["--checkpoint=alone.pt", "--device=cpu", f"--split={split}", "--report=there"]
    assert status(test.main, "test.py", *words) == 0
    page = check_whole(Path("there/index.html").read_text(encoding="utf-8"))
    assert "There is no metrics.jsonl beside the checkpoint." in page.texts


@pytest.mark.slow
def test_a_report_is_compared_with_another(train: Train, capsys: pytest.CaptureFixture) -> None:
    for run in ("a", "b"):
        assert train(run, "--epochs=1") == 0
    words = ["--checkpoint=a", "--device=cpu", "--against=b"]
    assert status(test.main, "test.py", *words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "run test.py --checkpoint b first" in error
    assert status(test.main, "test.py", "--checkpoint=b", "--device=cpu") == 0
    assert status(test.main, "test.py", *words) == 0
    text = Path("a/report/index.html").read_text(encoding="utf-8")
    # Two runs of one seed; of less than ten images the better ones are counted.
    assert re.search(r"No clear difference: \+0.00|Better on 0 of \d images, \+0.00", text)
    assert "Against b" in capsys.readouterr().out
    digest = read_judged(Path("b/report"))["digest"]
    assert find_report("b/report", digest) == find_report("b", digest) == Path("b/report")


# Several runs.


@pytest.mark.slow
def test_runs_are_compared(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    runs = ["<b>first", "second"]
    for seed, run in enumerate(runs):
        assert train(run, "--epochs=1", "--log-every=1", f"--seed={seed}") == 0
    assert status(test.main, "test.py", "--checkpoint=second", "--device=cpu") == 0
    capsys.readouterr()
    assert status(compare.main, "compare.py", *runs, "--out=page.html") == 0
    head, first, second, wrote = capsys.readouterr().out.splitlines()
    assert head.split()[-3:] == ["steps", "time", "seed"], "all other options are equal"
    assert first.startswith("<b>first") and first.split()[-1] == "0"
    assert second.startswith("second") and second.split()[-1] == "1"
    assert first.split()[2] == "-" and second.split()[2] != "-", "the result of test.py"
    assert len(head) == len(first) == len(second) and wrote == "wrote page.html"
    page = check_whole(Path("page.html").read_text(encoding="utf-8"))
    assert page.texts.count("<b>first") == 2, "in the table and in the legend"


def test_runs_are_compared_by_the_metric_that_has_chosen_their_checkpoints() -> None:
    first, other = list(compare.Model.monitors)[:2]
    better = compare.Model.monitors[other]
    points = [
        {"n_iter": step, "split": "val", "values": {first: 0.5, other: value}}
        for step, value in ((1, 0.25), (2, 0.75))
    ]
    runs = [Records(Path("a"), points, []), Records(Path("b"), points, [])]
    head, rows = compare.compare(runs, [{"monitor": other}, {"monitor": other}])
    assert head[1:3] == [f"best val {other}", f"test {other}"]
    assert rows[0][1] == f"{better(0.25, 0.75):.4f}"
    for given in ({"monitor": first}, {"monitor": "gone"}, {}):
        head, _ = compare.compare(runs, [given, {"monitor": other}])
        assert head[1] == f"best val {first}", "what all runs have"


def test_a_table_of_runs_fits_into_the_terminal() -> None:
    rows = [["run", "best", "an-option", "another-option"]]
    rows += [[f"runs/{i}", f"0.{i}", str(i), "-"] for i in range(7)]
    assert compare.fitting(rows, 80) == compare.columns(rows)
    text = compare.fitting(rows, 32)
    assert max(map(len, text.splitlines())) <= 32
    blocks = [[line.split() for line in block.splitlines()] for block in text.split("\n\n")]
    assert all(block[0][0] == "run" for block in blocks)
    assert [name for block in blocks for name in block[0][1:]] == [f"runs/{i}" for i in range(7)]
    assert compare.fitting(rows, 1).count("run ") == 7, "one run is never cut"


@pytest.mark.parametrize("words", [["nowhere"], ["."], [], ["run", "--out=no/such/page.html"]])
def test_what_cannot_be_compared_is_refused_in_a_line(
    finished: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, "run")
    assert status(compare.main, "compare.py", *words) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(Path().glob("*.html"))
