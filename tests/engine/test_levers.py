"""The levers of the optimization: what each does, and that runs with them stay exact."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Build, Train
from faults import die_at_step
from needs import needs
from programs import last, resume, same_weights, tensors, train_refuses
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_small, resnet18, vgg11, vit_b_16

import options
from engine.averages import Averages
from engine.errors import BadInput
from engine.modules import head_of, layers_of, norms_of, rest_of
from engine.optimizers import Optimizers, make_optimizer, parameters_of
from engine.weights import load_fitting
from model import Model

NO_SCALER = torch.amp.GradScaler("cpu", enabled=False)
LEVERS = {
    "ema": ["--ema=0.9"],
    "head-epochs": ["--head-epochs=1"],
    "layer-decay": ["--layer-decay=0.5", "--weight-decay=0.1"],
    "one batch": ["--overfit-one-batch"],
}
LEVERS["all"] = [word for words in LEVERS.values() for word in words]
LEVERS["all"] += ["--accumulate=2", "--batch-size=2"]


@pytest.mark.parametrize(
    "lever", [n if n == "all" else pytest.param(n, marks=pytest.mark.slow) for n in LEVERS]
)
def test_a_run_with_a_lever_is_exact(
    train: Train, monkeypatch: pytest.MonkeyPatch, lever: str
) -> None:
    words = [*LEVERS[lever], "--save-every=1"]
    assert train("undisturbed", *words, "--cache") == 0
    with monkeypatch.context() as patch:
        die_at_step(patch, 5)
        assert train("killed", *words, "--no-cache", "--workers=1") == 9
    assert 0 < last(Path("killed"))["n_iter"] < last(Path("undisturbed"))["n_iter"]
    assert resume(Path("killed"), "--workers=2") == 0
    assert same_weights(Path("killed"), Path("undisturbed"))


@pytest.mark.parametrize("lever", LEVERS)
def test_every_lever_moves_something(train: Train, lever: str) -> None:
    without = [word for word in LEVERS[lever] if not word.startswith(("--optimizer", "--weight"))]
    rest = [word for word in LEVERS[lever] if word not in without]
    assert train("with", *LEVERS[lever]) == 0
    assert train("without", *rest) == 0
    one, other = tensors(last(Path("with"))), tensors(last(Path("without")))
    assert one.keys() != other.keys() or any(not one[name].equal(other[name]) for name in one)


# Groups of parameters.


def make_options(*words: str) -> Any:
    return options.parse([*words, "--flip"])


@pytest.mark.parametrize(
    ("network", "layers", "head"),
    [(resnet18(num_classes=7), 11, 2), (vit_b_16(num_classes=7), 17, 2), (nn.Linear(2, 3), 1, 2)],
    ids=["resnet18", "vit", "linear"],
)
def test_layers_are_in_order_and_the_head_is_the_last(
    network: nn.Module, layers: int, head: int
) -> None:
    found = layers_of(network)
    assert len(found) == layers
    assert len(found[-1]) == head
    assert [id(p) for p in found[-1]] == [id(p) for p in list(network.parameters())[-head:]]
    assert {id(p) for layer in found for p in layer} == {id(p) for p in network.parameters()}
    assert sum(map(len, found)) == len(list(network.parameters()))


def test_a_network_may_say_what_its_head_is() -> None:
    """Two parts of it, registered first, of which one lies in a larger part."""

    class TwoHeads(nn.Module):
        head_names: tuple[str, ...] = ("last", "side.1")

        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(8, 2)
            self.side = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
            self.body = nn.Linear(8, 8)

    network = TwoHeads()
    assert head_of(network) == [network.last, network.side[1]]
    layers = layers_of(network)
    assert [[*map(id, layer)] for layer in layers] == [
        [id(p) for p in parts]
        for parts in (
            network.side[0].parameters(),
            network.body.parameters(),
            [*network.last.parameters(), *network.side[1].parameters()],
        )
    ]
    assert rest_of(network) == [network.side[0], network.body]
    for wrong in ("head", "side.2", "drop"):
        network.head_names, network.drop = (wrong,), nn.Dropout()
        with pytest.raises(BadInput, match=f"head_names of TwoHeads: '{wrong}' is no module"):
            head_of(network)


def test_norms_and_biases_do_not_decay() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    opt = make_options("--weight-decay=0.3")
    decay = {
        id(p): group["weight_decay"]
        for group in make_optimizer(opt, network).param_groups
        for p in group["params"]
    }
    assert [decay[id(p)] for p in network.parameters()] == [0.3, 0, 0, 0, 0.3, 0]


def test_each_layer_learns_slower_than_the_next_one() -> None:
    network = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))
    opt = make_options("--layer-decay=0.5", "--weight-decay=0")
    optimizers = Optimizers(opt, {"net": network}, NO_SCALER)
    optimizers.begin_step(0, lr=0.8)
    (optimizer,) = optimizers.optimizers.values()
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert [rate[id(layer.weight)] for layer in network] == pytest.approx([0.2, 0.4, 0.8])


def test_a_weight_that_two_layers_share_is_in_one_group() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    network[2].weight = network[0].weight
    weights = parameters_of(make_optimizer(make_options(), network))
    assert len(weights) == len({id(weight) for weight in weights}) == 3


def test_sgd_looks_ahead_along_its_momentum() -> None:
    for momentum, looks_ahead in (("0.9", True), ("0", False)):
        opt = make_options("--optimizer=sgd", f"--momentum={momentum}")
        optimizer = make_optimizer(opt, nn.Linear(2, 2))
        assert {group["nesterov"] for group in optimizer.param_groups} == {looks_ahead}


# The head alone.


@pytest.mark.parametrize("more", [[], ["--accumulate=2"]], ids=["one batch", "two"])
def test_the_head_alone_is_trained_in_the_first_epochs(
    train: Train, build: Build, more: list[str]
) -> None:
    words = ["--head-epochs=1", "--weight-decay=0.5", *more]
    network = build(*words).networks["net"]
    head = {id(p) for p in layers_of(network)[-1]}
    before = {name: (p.detach().clone(), id(p) in head) for name, p in network.named_parameters()}
    states = {name: value.clone() for name, value in network.state_dict().items()}
    assert train("run", *words, "--epochs=1") == 0
    after = last(Path("run"))["net"]
    changed = {name for name, value in states.items() if not after[name].equal(value)}
    assert changed == {name for name, (_, is_head) in before.items() if is_head}  # no statistics
    assert resume(Path("run"), "--epochs=2") == 0
    after = last(Path("run"))["net"]
    assert any(not after[n].equal(v) for n, (v, is_head) in before.items() if not is_head)


def test_frozen_layers_stay_in_evaluation_mode_until_all_learn(build: Build) -> None:
    parts = build("--head-epochs=1")
    network, optimizers = parts.networks["net"], parts.optimizers
    rest = rest_of(network)
    assert rest
    for alone in (True, True, False):
        network.train()  # as after a validation
        optimizers.begin_step(0, 0.1, head_only=alone)
        assert {module.training for module in rest} == {not alone}
        assert network.training
    network.train = lambda mode=True: rest[0].eval()  # type: ignore[method-assign, assignment]
    optimizers.begin_step(0, 0.1, head_only=True)
    optimizers.begin_step(0, 0.1)  # asks the network, which may keep a part in evaluation mode
    assert not rest[0].training


@pytest.mark.slow
def test_dropout_of_the_head_is_on_while_the_head_alone_learns() -> None:
    """That of torchvision's classifiers, which precedes the last layer; not that of others."""
    block = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    early, late = nn.Dropout(), nn.Dropout()
    head = nn.Sequential(early, nn.Linear(2, 2), nn.ReLU(), late, nn.Linear(2, 3))
    network = nn.ModuleDict({"features": block, "drop": nn.Dropout(), "classifier": head})
    for words in (["--head-epochs=1"], ["--weights=x.pt", "--freeze"]):
        optimizers = Optimizers(make_options(*words), {"net": network.train()}, NO_SCALER)
        optimizers.begin_step(0, 0.1, head_only=True)
        assert [m for m in network.modules() if isinstance(m, nn.Dropout) and m.training] == [late]
        assert head.training and head[-1].training and not head[1].training
    found = rest_of(vit_b_16(num_classes=7))
    assert sum(isinstance(module, nn.Dropout) for module in found) == 12 * 3 + 1
    for network_of, count in ((mobilenet_v3_small, 1), (vgg11, 1), (resnet18, 0)):
        made = network_of()
        own = {*made.modules()} - {*rest_of(made)}
        assert sum(isinstance(module, nn.Dropout) for module in own) == count


def test_networks_with_nothing_to_train_are_refused() -> None:
    networks = {"net": nn.Linear(2, 2).requires_grad_(False), "pool": nn.Identity()}
    with pytest.raises(BadInput, match="no parameter requires a gradient"):
        Optimizers(make_options(), networks, NO_SCALER)


@pytest.mark.slow
def test_held_norms_keep_their_statistics_and_learn(
    train: Train, build: Build, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not norms_of(build().networks["net"]):
        assert "--hold-norms: the networks have no batch norm" in train_refuses_with(
            train, capsys, f"--weights={trained}", "--hold-norms"
        )
        return
    before = last(trained)["ema"]["net"]
    for more in ([], ["--head-epochs=1"]):
        run = f"held{len(more)}"
        assert train(run, f"--weights={trained}", "--hold-norms", "--epochs=2", *more) == 0
        after = last(Path(run))["net"]
        same = {name for name, value in after.items() if value.equal(before[name])}
        assert same == {name for name in before if "running_" in name or "num_batches" in name}
        assert "--hold-norms\n" in (Path(run) / "config.txt").read_text()
    die_with = ["--hold-norms", "--save-every=1", "--ema=0.9"]
    assert train("whole", f"--weights={trained}", *die_with) == 0
    assert train("half", f"--weights={trained}", *die_with, "--epochs=1") == 0
    assert resume(Path("half"), "--epochs=2", "--no-hold-norms") == 0


def train_refuses_with(train: Train, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert train("run", *words) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("option", ["--freeze", "--hold-norms"])
def test_what_has_not_learned_is_not_kept(capsys: pytest.CaptureFixture[str], option: str) -> None:
    line = train_refuses(capsys, option)
    assert f"{option}: the network is not trained yet; add --weights FILE" in line


def test_frozen_weights_of_any_network_are_those_of_the_file(train: Train, trained: Path) -> None:
    before = last(trained)["ema"]["net"]
    assert train("run", f"--weights={trained}", "--freeze") == 0
    after = last(Path("run"))["net"]
    changed = [name for name, value in after.items() if not value.equal(before[name])]
    assert changed and len(changed) <= 2


# Averages of the weights.


def test_the_average_follows_the_weights() -> None:
    linear, norm = nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1)
    network = nn.Sequential(linear, norm)
    averages = Averages({"net": network}, decay=0.5)
    with torch.no_grad():
        linear.weight.fill_(8)
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.fill_(3)
    averages.restart()
    expected = 8.0
    for n_iter, weight in enumerate((0.0, 16.0, 4.0)):
        with torch.no_grad():
            linear.weight.fill_(weight)
        averages.update(n_iter)
        keep = (0.1, 2 / 11, 0.25)[n_iter]
        expected = keep * expected + (1 - keep) * weight
        with averages.in_use():
            assert linear.weight.item() == pytest.approx(expected)
            assert norm.num_batches_tracked == 3
        assert linear.weight.item() == weight
    averages.update(10**6)
    with averages.in_use():
        assert linear.weight.item() == pytest.approx(0.5 * expected + 2)


def test_averages_change_nothing_of_the_training_and_are_what_is_judged(train: Train) -> None:
    assert train("plain") == 0
    assert train("averaged", "--ema=0.8") == 0
    plain, state = last(Path("plain")), last(Path("averaged"))
    assert "ema" not in plain
    assert all(value.equal(state["net"][name]) for name, value in plain["net"].items())
    average: dict[str, Tensor] = state["ema"]["net"]
    assert any(not value.equal(state["net"][name]) for name, value in average.items())
    model, _ = Model.from_checkpoint("averaged/checkpoints/last.pt")
    used = model.networks()["net"].state_dict()
    assert all(value.equal(used[name]) for name, value in average.items())


def test_what_is_validated_is_the_average(train: Train, build: Build) -> None:
    words = ["--ema=0.95", "--epochs=1"]
    assert train("run", *words) == 0
    parts = build(*words)
    state = last(Path("run"))
    found = {}
    for name, networks in (("ema", state["ema"]), ("raw", state)):
        for key, network in parts.networks.items():
            if key in networks:
                network.load_state_dict(networks[key])
        found[name] = parts.validate()
    lines = Path("run/metrics.jsonl").read_text().splitlines()
    said = [json.loads(line)["values"] for line in lines if '"val"' in line]
    assert said[-1] == pytest.approx(found["ema"], abs=1e-6)
    assert found["ema"] != found["raw"]


def test_averages_can_begin_with_a_resume(train: Train) -> None:
    assert train("run", "--epochs=1") == 0
    assert resume(Path("run"), "--epochs=2", "--ema=0.9") == 0
    assert last(Path("run"))["ema"]["net"]


# Weights to start from.


@pytest.fixture(scope="module")
def trained(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    assert train(run, "--ema=0.9") == 0
    return run


def started_from(train: Train, path: Path | str) -> dict[str, Tensor]:
    """The weights of a run that has started from a file, at a learning rate of 0."""
    words = ["--lr=0", "--epochs=1", "--head-epochs=0", "--save-every=1"]
    assert train("started", f"--weights={path}", *words) == 0
    network: dict[str, Tensor] = last(Path("started"))["net"]
    return network


def test_a_run_starts_from_the_average_of_another(
    train: Train, build: Build, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, average = started_from(train, trained), last(trained)["ema"]["net"]
    names = [name for name, _ in build().networks["net"].named_parameters()]
    assert all(weights[name].equal(average[name]) for name in names)
    count = len(average)
    assert f"weights: {count} of {count} tensors of net from {trained}" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["state_dict", "safetensors"])
def test_a_run_starts_from_a_state_dict(
    train: Train, build: Build, trained: Path, form: str
) -> None:
    average = last(trained)["ema"]["net"]
    path = Path("weights.safetensors" if form == "safetensors" else "weights.pt")
    if form == "safetensors":
        save_file({name: value.contiguous() for name, value in average.items()}, path)
    else:
        torch.save({"state_dict": average, "epoch": 3}, path)
    weights, network = started_from(train, path), build().networks["net"]
    head = {id(parameter) for parameter in layers_of(network)[-1]}  # which has no names of classes
    names = [name for name, p in network.named_parameters() if id(p) not in head]
    assert all(weights[name].equal(average[name]) for name in names)


def test_what_does_not_fit_is_named_and_starts_at_random(
    train: Train, build: Build, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    average = last(trained)["ema"]["net"]
    name, _ = next(build().networks["net"].named_parameters())
    shape = tuple(average[name].shape)
    other = {**average, name: torch.zeros(5, *shape)}
    torch.save(other, "other.pt")
    assert not started_from(train, "other.pt")[name].equal(average[name])
    said = capsys.readouterr().out
    assert f" of {len(average)} tensors of net from other.pt" in said
    assert f"at random: {name} {shape} is {(5, *shape)} there" in said


def test_weights_that_cannot_be_used_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"unknown": torch.zeros(1)}, "unknown.pt")
    torch.save([1, 2], "list.pt")
    Path("text.pt").write_text("no weights")
    Path("text.safetensors").write_text("no weights")
    for name in ("missing.pt", "unknown.pt", "list.pt", "text.pt", "text.safetensors"):
        assert f"--weights {name}: " in train_refuses(capsys, f"--weights={name}")
    Path("folder").mkdir()
    assert "--weights folder: is no folder of a run" in train_refuses(capsys, "--weights=folder")


def test_weights_of_another_network_are_refused_with_its_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    network = nn.ModuleDict({"mine": nn.Linear(2, 3)})
    weights = {"unknown": torch.zeros(1)}
    torch.save({"net": weights, "n_iter": 1, "args": {"network": "resnet18"}}, "other.pt")
    with pytest.raises(BadInput, match=r"; other\.pt was trained with --network resnet18$"):
        load_fitting({"net": network}, "other.pt", {"network": "simple", "lr": 1}, {})
    with pytest.raises(BadInput, match=r"of another network\?$"):
        load_fitting({"net": network}, "other.pt", {"network": "resnet18", "lr": 1}, {})


def test_a_resumed_run_needs_its_first_weights_no_more(train: Train, trained: Path) -> None:
    torch.save(last(trained)["net"], "gone.pt")
    assert train("run", "--weights=gone.pt", "--epochs=1") == 0
    Path("gone.pt").unlink()
    assert resume(Path("run"), "--epochs=2") == 0


# Looking at a run.


@pytest.mark.slow
def test_one_batch_can_be_learned_by_heart(train: Train) -> None:
    words = ["--overfit-one-batch", "--epochs=60", "--lr=0.01", "--log-every=1", "--val-every=99"]
    assert train("run", *words, *needs("example.SEPARABLE"), *needs("example.BY_HEART")) == 0
    points = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    losses = [sum_of_losses(p["values"]) for p in points if p["split"] == "train"]
    assert losses[-1] < 0.1 * losses[0]


def sum_of_losses(values: dict[str, float]) -> float:
    other = {"lr", "images_per_second", "data_wait", "efficiency"}
    return sum(value for name, value in values.items() if name not in other)


def test_a_profile_has_the_steps_that_were_asked_for(train: Train, finished: Path) -> None:
    assert train("run", "--profile=2", "--epochs=4") == 0
    (path,) = Path("run/profile").glob("*.pt.trace.json")
    events = json.loads(path.read_text())["traceEvents"]
    steps = {event["name"] for event in events if event["name"].startswith("ProfilerStep#")}
    assert len(steps) == 2
    assert any(event["name"].startswith("aten::") for event in events)
    assert train("plain", "--epochs=4") == 0
    assert same_weights(Path("run"), Path("plain"))
