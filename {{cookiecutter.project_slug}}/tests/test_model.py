"""What every model has to keep, whichever networks and losses it is made of."""

import example
import pytest
import torch
from conftest import Prepare
from programs import tensors
from torch import Tensor, nn

import data
from engine.devices import computing
from engine.evaluating import evaluate, mean_losses
from engine.loading import Batch
from engine.optimizing import trained_by
from train import Training


def first_batch(training: Training) -> Batch:
    with training.train_loader.batches() as batches:
        return next(batches)


def judge(training: Training) -> dict[str, float]:
    return evaluate(training.model.measure, training.test_loader, training.precision)


def total(losses: dict[str, dict[str, Tensor]]) -> Tensor:
    return torch.stack([loss for group in losses.values() for loss in group.values()]).sum()


def test_every_parameter_that_wants_a_gradient_gets_one(prepare: Prepare) -> None:
    training = prepare()
    training.model.train()
    total(training.compute(*first_batch(training))).backward()
    wanted = {n: p for n, p in training.model.named_parameters() if p.requires_grad}
    assert wanted
    without = [name for name, parameter in wanted.items() if parameter.grad is None]
    assert not without
    assert all(p.grad is not None and p.grad.isfinite().all() for p in wanted.values())


def test_the_first_weights_follow_from_the_seed(prepare: Prepare) -> None:
    torch.manual_seed(99)
    states = [prepare(f"--seed={seed}").model.state_dict() for seed in (0, 0, 1)]
    assert all(value.equal(states[1][name]) for name, value in states[0].items())
    assert not all(value.equal(states[2][name]) for name, value in states[0].items())


def test_every_parameter_that_wants_a_gradient_has_one_optimizer(prepare: Prepare) -> None:
    training = prepare()
    wanted = [p for p in training.model.parameters() if p.requires_grad]
    trained = [p for optimizer in training.optimizers.values() for p in trained_by(optimizer)]
    assert len(trained) == len({id(p) for p in trained})
    assert {id(p) for p in trained} == {id(p) for p in wanted}


def test_a_batch_can_be_learned_by_heart(prepare: Prepare) -> None:
    how = ["--lr=0.01", "--schedule=constant", "--warmup=0", "--dropout=0"]
    training = prepare(*how, *example.BY_HEART)
    batch = first_batch(training)
    training.model.train()
    first = total(training.compute(*batch)).item()
    training.opt.accumulate = 1
    for _ in range(100):
        losses, _ = training.step(iter([batch]))
    assert sum(mean_losses(losses).values()) < first / 10


def test_samples_of_a_batch_do_not_leak_into_each_other(prepare: Prepare) -> None:
    training = prepare()
    training.model.eval()
    inputs: dict[nn.Module, Tensor] = {}

    def note(network: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        inputs[network] = arguments[0]

    for network in training.networks.values():
        network.register_forward_pre_hook(note)
    with torch.no_grad():
        training.compute(*first_batch(training))
    assert len(inputs) == len(training.networks)
    for network in computing(training.networks).values():
        x = inputs[network].detach().clone().requires_grad_()
        of_one = [value[1].sum() for value in tensors(network(x)).values()]
        torch.stack(of_one).sum().backward()
        assert x.grad is not None
        touched = x.grad.flatten(1).abs().sum(dim=1) > 0
        assert touched.tolist() == [i == 1 for i in range(len(x))]


def test_evaluation_is_deterministic_and_changes_nothing(prepare: Prepare) -> None:
    training = prepare()
    training.model.eval()
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    torch.manual_seed(1)
    first = judge(training)
    torch.manual_seed(2)
    assert judge(training) == first
    assert all(value.equal(before[name]) for name, value in training.model.state_dict().items())


def test_the_test_pass_sees_the_images_as_they_are(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(opt: object, random: object, *batch: Tensor) -> Batch:
        return tuple(torch.zeros_like(part) for part in batch)

    training = prepare()
    training.model.eval()
    before = judge(training)
    monkeypatch.setattr(data, "augment", change)
    assert judge(training) == before
    with training.train_loader.batches() as batches:
        _, batch = training.step(batches)  # where it does count
    assert not any(part.any() for part in batch)


def test_metrics_do_not_depend_on_the_size_of_test_batches(prepare: Prepare) -> None:
    results = []
    for size in (1, 5, 12):
        training = prepare(f"--batch-size={size}")
        training.model.eval()
        results.append(judge(training))
    assert training.model.headline in results[0]
    for result in results[1:]:
        assert result == pytest.approx(results[0], rel=1e-4)


def test_training_after_a_test_pass_is_training(prepare: Prepare) -> None:
    training = prepare()
    training.test()
    training.train_epoch()
    assert all(network.training for network in training.networks.values())


def test_accumulated_gradients_are_those_of_one_big_batch(prepare: Prepare) -> None:
    gradients = []
    for options in (["--batch-size=8"], ["--batch-size=2", "--accumulate=4"]):
        training = prepare(*example.SEPARABLE, "--precision=fp32", *options)
        training.model.train()
        with training.train_loader.batches() as batches:
            training.step(batches)
        parameters = training.model.parameters()
        gradients.append([p.grad for p in parameters if p.grad is not None])
    assert gradients[0]
    for big, small in zip(*gradients, strict=True):
        assert small.allclose(big, rtol=1e-3, atol=1e-6)
    assert any(big.abs().max() > 1e-3 for big in gradients[0])


def test_the_summary_counts_the_parameters(
    prepare: Prepare, capsys: pytest.CaptureFixture[str]
) -> None:
    training = prepare()
    out = capsys.readouterr().out
    for name, network in training.networks.items():
        count = sum(parameter.numel() for parameter in network.parameters())
        assert f"{name}: {type(network).__name__}, {count:,} parameters" in out
