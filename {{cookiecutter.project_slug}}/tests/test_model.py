"""What every model has to keep, whichever networks and losses it is made of."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Build, Train
from needs import needs
from parts import Parts
from programs import last, tensors
from torch import Tensor, nn

import dataset
import train as program
from engine.data.loader import Batch
from engine.evaluation import Losses, forward, mean_losses
from engine.modules import to_device, with_parameters
from engine.optimizers import Optimizers, parameters_of


def losses_of(parts: Parts, batch: Batch) -> Losses:
    return forward(parts.parallel, batch, parts.amp)


def total(losses: Losses) -> Tensor:
    return torch.stack([loss for named in losses.values() for loss in named.values()]).sum()


def test_every_parameter_that_wants_a_gradient_gets_one(build: Build) -> None:
    parts = build()
    total(losses_of(parts, parts.first_batch())).backward()
    wanted = {n: p for n, p in parts.model.named_parameters() if p.requires_grad}
    assert wanted
    without = [name for name, parameter in wanted.items() if parameter.grad is None]
    assert not without
    assert all(p.grad is not None and p.grad.isfinite().all() for p in wanted.values())


def test_what_is_in_no_network_is_not_trained(build: Build) -> None:
    model = build().model
    model.judge = nn.Linear(2, 2)  # as a network that a loss compares features of
    to_device(model, torch.device("cpu"))
    names = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {"judge.weight", "judge.bias"} <= names
    assert any(p.requires_grad for p in model.parameters())


def test_the_first_weights_depend_on_the_seed_alone(train: Train, build: Build) -> None:
    torch.manual_seed(99)
    networks = build().networks
    weights: list[dict[str, Tensor]] = []
    for run, seed in enumerate((0, 0, 1)):
        # At a learning rate of 0 the first weights are the last ones.
        assert train(str(run), "--lr=0", "--epochs=1", f"--seed={seed}") == 0
        state = last(Path(str(run)))
        named = ((network, name) for network in networks for name in parameters(networks[network]))
        weights.append({f"{network}.{name}": state[network][name] for network, name in named})
    assert weights[0]
    assert all(value.equal(weights[1][name]) for name, value in weights[0].items())
    assert not all(value.equal(weights[2][name]) for name, value in weights[0].items())


def parameters(network: nn.Module) -> list[str]:
    return [name for name, _ in network.named_parameters()]


def test_every_parameter_that_wants_a_gradient_has_one_optimizer(build: Build) -> None:
    parts = build()
    wanted = [p for p in parts.model.parameters() if p.requires_grad]
    trained = [p for each in parts.optimizers.optimizers.values() for p in parameters_of(each)]
    assert len(trained) == len({id(p) for p in trained})
    assert {id(p) for p in trained} == {id(p) for p in wanted}


def test_a_batch_can_be_learned_by_heart(build: Build) -> None:
    parts = build("--lr=0.01", *needs("example.BY_HEART"))
    batch = parts.augmented(parts.first_batch())
    first = total(losses_of(parts, batch)).item()
    for _ in range(100):
        losses = parts.step([batch])
    assert sum(mean_losses(losses).values()) < first / 10


def test_samples_of_a_batch_do_not_leak_into_each_other(build: Build) -> None:
    parts = build()
    parts.model.eval()
    inputs: dict[nn.Module, Tensor] = {}

    def note(network: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        inputs[network] = arguments[0]

    for network in parts.networks.values():
        network.register_forward_pre_hook(note)
    with torch.no_grad():
        losses_of(parts, parts.first_batch())
    assert len(inputs) == len(parts.networks)
    for network in with_parameters(parts.networks).values():
        x = inputs[network].detach().clone().requires_grad_()
        of_one = [value[1].sum() for value in tensors(network(x)).values()]
        torch.stack(of_one).sum().backward()
        assert x.grad is not None
        touched = x.grad.flatten(1).abs().sum(dim=1) > 0
        assert touched.tolist() == [i == 1 for i in range(len(x))]


def test_evaluation_is_deterministic_and_changes_nothing(build: Build) -> None:
    parts = build()
    before = {name: value.clone() for name, value in parts.model.state_dict().items()}
    torch.manual_seed(1)
    first = parts.validate()
    torch.manual_seed(2)
    assert parts.validate() == first
    assert all(value.equal(before[name]) for name, value in parts.model.state_dict().items())


def test_a_validation_sees_the_images_as_they_are(
    build: Build, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(opt: object, info: object, random: object, *batch: Tensor) -> Batch:
        return tuple(torch.zeros_like(part) for part in batch)

    seen: list[Batch] = []

    def note(model: nn.Module, batch: Batch, *more: Any) -> Losses:
        seen.append(batch)
        return forward(model, batch, *more)

    parts = build()
    before = parts.validate()
    monkeypatch.setattr(dataset, "augment", change)
    assert parts.validate() == before
    monkeypatch.setattr(program, "forward", note)
    assert train("run", "--epochs=1") == 0  # where it does count
    assert seen
    assert not any(part.any() for batch in seen for part in batch)


def test_metrics_do_not_depend_on_the_size_of_the_batches(build: Build) -> None:
    results = []
    for size in (1, 5, 8):
        parts = build(f"--batch-size={size}", "--val-share=0.4")
        assert len(parts.val_set) > 5 and len(parts.val_set) % 5
        results.append(parts.validate())
    assert parts.model.monitors.keys() <= results[0].keys()
    for result in results[1:]:
        assert result == pytest.approx(results[0], rel=1e-4)


def test_training_after_a_validation_is_training(build: Build) -> None:
    parts = build()
    modes: list[bool] = []
    for network in parts.networks.values():
        network.register_forward_pre_hook(lambda network, _: modes.append(network.training))
    parts.validate()
    assert modes and not any(modes)
    modes.clear()
    parts.step([parts.first_batch()])
    assert len(modes) >= len(parts.networks) and all(modes)


def test_accumulated_gradients_are_those_of_one_big_batch(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    separable = needs("example.SEPARABLE")
    gradients: list[list[Tensor]] = []

    class Noting(Optimizers):
        def step(self) -> None:
            super().step()
            if self.n_iter == 0:  # they stay until the next step begins
                weights = [p for net in self.networks.values() for p in net.parameters()]
                gradients.append([p.grad.clone() for p in weights if p.grad is not None])

    monkeypatch.setattr(program, "Optimizers", Noting)
    for options in (["--batch-size=8"], ["--batch-size=2", "--accumulate=4"]):
        run = options[-1].strip("-")
        assert train(run, *separable, "--precision=fp32", "--epochs=1", *options) == 0
    assert gradients[0]
    for big, small in zip(*gradients, strict=True):
        assert small.allclose(big, rtol=1e-3, atol=1e-6)
    assert any(big.abs().max() > 1e-3 for big in gradients[0])


def test_the_summary_counts_the_parameters(
    train: Train, build: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("run", "--epochs=1") == 0
    out = capsys.readouterr().out
    for name, network in with_parameters(build().networks).items():
        count = sum(parameter.numel() for parameter in network.parameters())
        assert f"{name}: {type(network).__name__}, {count:,} parameters" in out
