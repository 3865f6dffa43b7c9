"""The tests of a project hold for their owner's network, loss and data.

The edits that docs/edits.md prints are applied to a project as its owner would apply them; then its
own tests are run, all of them. The same after the network and the losses were replaced, options
taken out, defaults changed: only tests/example.py, the one file that says so, changes with them.
"""

import json
import os
import re
from collections.abc import Callable

import pytest
from conftest import TASKS, Project
from edits import apply, printed_edits, remove, replace

# The names that the edits of docs/edits.md give to the owner's parts.
MINE = {
    "image-classification": ["--network=plain", "--loss=brier"],
    "image-to-image": ["--losses=charbonnier,adversarial", "--degrade=blur"],
}
SMALL = {
    "image-classification": ["--img-size=8", "--batch-size=256"],
    "image-to-image": ["--img-size=16", "--width=4", "--batch-size=8", "--crops=2"],
}
SMALL["image-to-image"] += ["--d-width=4", "--d-layers=1", "--d-scales=1"]
METRIC = {"image-classification": "accuracy", "image-to-image": "psnr"}
NETWORK = {"image-classification": "PlainNetwork", "image-to-image": "PlainGenerator"}
TAKEN_OUT = "is not in this project"  # why a test of what is ours is skipped


@pytest.fixture
def edited(bake: Callable[..., Project], task: str) -> Project:
    """A project after the three edits that docs/edits.md prints."""
    project = bake(task=task, accelerator="cpu")
    edits = printed_edits(project)
    assert len(edits) >= 5
    for edit in edits:
        apply(project, edit)
    return project


def run_tests(project: Project, *words: str) -> str:
    """Runs the tests of a project, which must pass; returns what pytest printed.

    Those that start processes are run in projects as they are, by `make stress`.
    """
    words += ("-q", "-rfs", "--tb=short", "-p", "no:cacheprovider", "-m", "not slow")
    threads = os.environ.get("OMP_NUM_THREADS", "")  # "" for its tests as well as for ours
    tested = project.run("python", "-m", "pytest", *words, OMP_NUM_THREADS=threads)
    assert tested.returncode == 0, tested.stdout[-6000:] + tested.stderr[-2000:]
    return tested.stdout


def train(project: Project, *words: str, run: str = "runs/mine") -> str:
    """Trains an epoch with the owner's parts and tests the result; returns what train.py said."""
    how = [f"--run-dir={run}", "--epochs=1", "--workers=0", "--device=cpu"]
    trained = project.run("python", "train.py", *how, *words)
    assert trained.returncode == 0, trained.stderr
    tested = project.run("python", "test.py", f"--checkpoint={run}", "--device=cpu")
    assert tested.returncode == 0, tested.stderr
    return trained.stdout


def values(project: Project) -> dict[str, float]:
    """The metrics of the last validation."""
    (*_, last) = project.read("runs/mine/metrics.jsonl").splitlines()
    return json.loads(last)["values"]


@pytest.mark.parametrize("task", TASKS)
def test_the_printed_edits_train(edited: Project, task: str) -> None:
    assert NETWORK[task] in train(edited, *MINE[task], *SMALL[task])
    assert METRIC[task] in values(edited)
    assert "data: stripes" in train(edited, "--data=stripes", *SMALL[task], run="runs/stripes")


@pytest.mark.parametrize("task", TASKS)
def test_the_projects_tests_pass_after_the_printed_edits(
    edited: Project, task: str, full: bool
) -> None:
    """Whatever was added, nothing of ours is gone, so no test is skipped for that."""
    if full == (task == TASKS[0]):
        pytest.skip("`make test` has one task, `make stress` the other")
    assert TAKEN_OUT not in run_tests(edited)


def replace_classification(project: Project) -> None:
    """Keeps the owner's network and loss alone, and their options; changes some defaults."""
    remove(project, "networks.py", "SimpleNetwork")
    replace(
        project,
        "networks.py",
        ('NETWORKS = ("simple", "resnet9", "plain", "trained")', 'NETWORKS = ("plain",)'),
        ('    if opt.network == "simple":\n...return NetworkSpec(network, *CENTRED)\n', ""),
        ("PlainNetwork(num_classes)", "PlainNetwork(num_classes, opt.width)"),
    )
    remove(project, "losses.py", "CrossEntropy", "FocalLoss", "balanced_weights")
    replace(
        project,
        "losses.py",
        ('LOSSES = ("cross-entropy", "focal", "brier")', 'LOSSES = ("brier",)'),
        ("    weight = balanced_weights(counts) if opt.balance else None\n", ""),
        ('    if opt.loss == "focal":\n...CrossEntropy(weight, opt.label_smoothing)\n', ""),
    )
    taken = ("blocks", "norm", "dropout", "label-smoothing")
    replace(
        project,
        "options.py",
        *((f'    add("--{name}"...\n    add(', "    add(") for name in taken),
        ('    add("--balance"...alike")\n', ""),
        ('    if opt.sample == "balanced" and opt.balance:\n...leave out --balance")\n', ""),
        ("from engine.errors import BadInput\n", ""),
        ('"--network", default="simple"', '"--network", default="plain"'),
        ('default="cross-entropy"', 'default="brier"'),
        ("epochs=10", "epochs=3"),
        ('batch_size=64, optimizer="adamw", lr=2e-3', 'batch_size=32, optimizer="sgd", lr=1e-2'),
    )
    replace(
        project,
        "tests/example.py",
        (', "--blocks=1"', ""),
        ('"--dropout=0.2", ', ""),
        (', "--dropout=0.3"]', "]"),
        ("SEPARABLE = ...]\n", ""),  # the network has a batch norm whatever the options are
        ('BY_HEART = ["--dropout=0"]', 'BY_HEART = ["--optimizer=adam"]'),
    )


def replace_to_image(project: Project) -> None:
    """Keeps the owner's network alone, and its options; changes some defaults."""
    remove(project, "networks.py", "Generator")
    taken = ("n-downsampling", "blocks", "padding", "norm", "dropout")
    replace(
        project,
        "options.py",
        *((f'    add("--{name}"...\n    add(', "    add(") for name in taken),
        ('    add("--residual"...and input")\n', ""),
        ('default="l1:100,adversarial"', 'default="charbonnier:50,adversarial"'),
        ("epochs=10", "epochs=3"),
        ('batch_size=16, optimizer="adam", lr=5e-4', 'batch_size=8, optimizer="adamw", lr=1e-3'),
    )
    replace(
        project,
        "tests/example.py",
        (' "--blocks=1",', ""),
        ('"--dropout=0.2", ', ""),
        ('SEPARABLE = ["--norm=none", "--dropout=0", ', "SEPARABLE = ["),
        ('BY_HEART = ["--dropout=0", "--losses=l1"', 'BY_HEART = ["--losses=charbonnier"'),
        ('"--no-residual", ', ""),
        ("--losses=l1:10,adversarial", "--losses=charbonnier:10,adversarial"),
    )


REPLACE = {
    "image-classification": replace_classification,
    "image-to-image": replace_to_image,
}


@pytest.mark.parametrize("task", TASKS)
def test_the_projects_tests_pass_or_are_skipped_after_parts_were_replaced(
    edited: Project, task: str, full: bool
) -> None:
    if not full:
        pytest.skip("takes minutes; `make stress` has it")
    REPLACE[task](edited)
    assert NETWORK[task] in train(edited, *SMALL[task])
    skipped = sum(
        int(count) for count in re.findall(rf"SKIPPED \[(\d+)\].*{TAKEN_OUT}", run_tests(edited))
    )
    assert 0 < skipped < 120
