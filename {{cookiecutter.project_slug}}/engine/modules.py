"""The model as a module: moved to its device, frozen, compiled, split over several GPUs."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import default_collate

from engine import terminal
from engine.devices import Amp, gpu_count, memory_format
from engine.errors import BadInput
from engine.evaluation import Losses

Module = TypeVar("Module", bound=nn.Module)
PARALLEL = ("auto", "none", "split", "super")  # what --parallel may name
BLOCK = 16  # images at a time that go through the frozen part of a network


def to_device(model: Module, device: torch.device, freeze: bool = False) -> Module:
    """Moves a model to its device, in place, in training mode.

    What is in none of its networks is never trained, such as the network of a perceptual loss: its
    parameters get no gradients. With `freeze` those of the heads alone get some, and what precedes
    a head gives the same bits for an image in any batch (see `Frozen`).
    """
    networks = with_parameters(model.networks()).values()  # type: ignore[operator]  # not of Module
    for network in networks if freeze else ():
        _freeze(network)
    chosen = (layers_of(net)[-1] if freeze else net.parameters() for net in networks)
    trained = {id(parameter) for parameters in chosen for parameter in parameters}
    for parameter in model.parameters():
        if id(parameter) not in trained:
            parameter.requires_grad_(False)
    return model.to(device).to(memory_format=memory_format(device)).train()


def head_of(network: nn.Module) -> list[nn.Module]:
    """The modules that are the head of a network, which is trained anew for other data.

    A network says so by the attribute `head_names`, their names in it: `("fc",)`, or two if it has
    two outputs. Without it, the head is the last layer, as in `layers_of`.

    Raises:
        BadInput: A name is that of no module, or of one without parameters.
    """
    names: tuple[str, ...] = getattr(network, "head_names", ())
    found = dict(network.named_modules())
    for name in names:
        if name not in found or not list(found[name].parameters()):
            kind = type(network).__name__
            raise BadInput(f"head_names of {kind}: {name!r} is no module of it with parameters")
    return [found[name] for name in names] or [_walk(network)[-1][0]]


def layers_of(network: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters of each layer, from the input to the head, which is the last one.

    A `Sequential`, and every module with more than half of all parameters, is taken apart; what is
    left counts as a layer. ResNet-18 has 11: a convolution, its norm, eight blocks, the head. It
    relies on modules being registered in the order in which they are called; the head may be
    registered anywhere if the network has `head_names` (see `head_of`).
    """
    layers = [layer for _, layer in _walk(network)]
    if not getattr(network, "head_names", ()):
        return layers
    head = {id(p): p for part in head_of(network) for p in part.parameters()}
    rest = [[p for p in layer if id(p) not in head] for layer in layers]
    return [*filter(None, rest), list(head.values())]


def _walk(network: nn.Module) -> list[tuple[nn.Module, list[nn.Parameter]]]:
    """The layers of a network in the order of their registration, each with its parameters."""
    half = sum(parameter.numel() for parameter in network.parameters()) / 2

    def walk(module: nn.Module) -> Iterator[tuple[nn.Module, list[nn.Parameter]]]:
        size = sum(parameter.numel() for parameter in module.parameters())
        parts = list(module.children())
        if parts and (isinstance(module, nn.Sequential) or size > half):
            yield module, list(module.parameters(recurse=False))
            for part in parts:
                yield from walk(part)
        else:
            yield module, list(module.parameters())

    return [(module, layer) for module, layer in walk(network) if layer]


def rest_of(network: nn.Module) -> list[nn.Module]:
    """The modules before the head (see `head_of`). Dropout right before it is the head's own."""
    head = {id(parameter) for parameter in layers_of(network)[-1]}
    rest = [m for m in network.modules() if not any(id(p) in head for p in m.parameters())]
    layers = {part for m in rest if list(m.parameters()) for part in m.modules()}
    while rest and rest[-1] not in layers:
        rest.pop()
    return rest


def norms_of(network: nn.Module) -> list[nn.Module]:
    """The modules of a network that keep running statistics, such as batch norm."""
    return [m for m in network.modules() if getattr(m, "running_mean", None) is not None]


def with_parameters(networks: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """The networks that have parameters; the others, such as an image pool, only hold state.

    A copy of a pool, or a compiled one, would spoil what it remembers.
    """
    return {name: network for name, network in networks.items() if list(network.parameters())}


class InFloat32(nn.Module):
    """What makes a convolution compute in float32 where autocast would take a shorter type.

    On CUDA also without TF32, whose numbers have 10 bits. See `in_float32`.
    """

    def forward(self, images: Tensor) -> Tensor:
        kind = images.device.type
        if not torch.is_autocast_enabled(kind) and kind != "cuda":
            return super().forward(images)
        before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False
        try:
            with torch.autocast(kind, enabled=False):
                return super().forward(images.float())
        finally:
            torch.backends.cudnn.allow_tf32 = before


def in_float32(network: nn.Module, last: bool = False) -> None:
    """Makes the first convolution of a network compute in float32, in place; also the `last` one.

    Rounded to bf16, 1,252 of the 4,096 levels of 12 bits remain. Names of weights stay as they are.
    """
    found: list[Any] = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    for conv in {*found[:1], *found[-1:]} if last else found[:1]:
        kind = type(conv)
        conv.__class__ = type(f"{kind.__name__}InFloat32", (InFloat32, kind), {})


class Frozen(nn.Module):
    """A network that is trained in its head alone: the class of such a network is made of this too.

    Its features, what the head is called with (dropout right before it is the head's own), are
    computed without gradients in evaluation mode, by blocks of BLOCK images, the last one filled up
    with zeros: so they do not depend on the batch. Features (N, D) may be given in the place of
    images, which they are made of.

    That needs a network that is its head applied to vectors. Its first batch of images tells;
    others are computed as ever.

    Attributes:
        frozen_tail: The names of the head, and of the dropout before it, in their order.
        frozen_apart: Whether it is such a network; None before the first batch.
        frozen_features: Those of the last batch of images, (N, D).
    """

    # Networks have modules called `head` and `features`, which names here must not hide.
    frozen_tail: tuple[str, ...] = ()
    frozen_apart: bool | None = None
    frozen_features: Tensor | None = None

    def forward(self, *inputs: Any, **named: Any) -> Any:
        images = inputs[0] if len(inputs) == 1 and not named else None
        dim = images.dim() if isinstance(images, Tensor) else 0
        if self.frozen_apart is None and dim == 4:
            self.frozen_apart = self._try_apart(images)
        if not self.frozen_apart or dim not in (2, 4):
            return super().forward(*inputs, **named)
        if dim == 2:
            return self._apply_tail(images)
        features = self._compute_features(images)
        self.frozen_features = features.clone()  # dropout may change them in place
        return self._apply_tail(features)

    def _apply_tail(self, features: Any) -> Tensor:
        for name in self.frozen_tail:
            features = self.get_submodule(name)(features)
        return features

    @torch.no_grad()
    def _compute_features(self, images: Any) -> Tensor:
        with _modes_kept(self):
            for module in self.modules():
                module.training = False
            found = [self._before_tail(_filled(part))[: len(part)] for part in images.split(BLOCK)]
        return torch.cat(found)

    def _before_tail(self, images: Tensor) -> Any:
        """What the tail is called with; None if it is not called, or with several things."""
        _asked.stops = True
        try:
            super().forward(images)
        except _AtHead as reached:
            return reached.args[0] if len(reached.args) == 1 else None
        finally:
            _asked.stops = False

    @torch.no_grad()
    def _try_apart(self, images: Any) -> bool:
        """Whether the tail applied to features gives what the network gives in training, in bits.

        Images are filled up to a block only if its features are vectors: others may be large.
        """
        devices = [images.device] if images.device.type == "cuda" else []
        before = [buffer.clone() for buffer in self.buffers()]
        with _modes_kept(self), torch.random.fork_rng(devices):
            found = self.eval()._before_tail(images)
            if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != len(images):
                return False
            block = _filled(images[:BLOCK])
            features = self._compute_features(block)
            self.train()
            for module in rest_of(self):
                module.training = False
            torch.manual_seed(0)
            whole = super().forward(block)
            torch.manual_seed(0)
            own = self._apply_tail(features)
            for buffer, value in zip(self.buffers(), before, strict=True):
                buffer.copy_(value)  # of a norm without weights, which belongs to no layer
        return isinstance(whole, Tensor) and whole.shape == own.shape and whole.equal(own)


class _AtHead(Exception):
    """A head is about to be called, with what is in `args`."""


_asked = threading.local()  # whether this thread wants a network to stop before its head


def _stop_before(head: nn.Module, inputs: tuple[Any, ...]) -> None:
    if getattr(_asked, "stops", False):
        raise _AtHead(*inputs)


def _freeze(network: nn.Module) -> None:
    """Makes a network a `Frozen` one, in place; not what has several heads, or is one."""
    heads, names = head_of(network), {m: name for name, m in network.named_modules()}
    if len(heads) > 1 or not names[heads[0]] or isinstance(network, Frozen):
        return
    modules = [m for m in names if not list(m.children()) or m is heads[0]]
    tail = [heads[0]]
    for module in reversed(modules[: modules.index(heads[0])]):
        if not isinstance(module, nn.Dropout):
            break
        tail.insert(0, module)
    kind = type(network)
    # A class, not a `forward` of the instance, which copies for several GPUs would share.
    network.__class__ = type(kind.__name__, (Frozen, kind), {"__module__": kind.__module__})
    network.frozen_tail = tuple(names[m] for m in tail)  # type: ignore[assignment]
    tail[0].register_forward_pre_hook(_stop_before)


@contextmanager
def _modes_kept(network: nn.Module) -> Iterator[None]:
    """A block after which each module is in the mode, training or evaluation, that it was in."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _filled(images: Tensor) -> Tensor:
    """Up to BLOCK images, and zeros for those that are missing: (BLOCK, C, H, W)."""
    filled = functional.pad(images, (0, 0, 0, 0, 0, 0, 0, BLOCK - len(images)))
    return filled.contiguous(memory_format=memory_format(images.device))


@torch.no_grad()
def refuses(network: nn.Module, size: int, channels: int = 3) -> str:
    """Why a network, which is in evaluation mode afterwards, cannot take (1, channels, size, size).
    """
    try:
        network.eval()(torch.zeros(1, channels, size, size))
    except Exception as error:  # networks of others raise almost anything
        return " ".join(str(error).split()) or type(error).__name__
    return ""


@torch.no_grad()
def run_with_hooks(
    model: nn.Module, sample: tuple[Tensor, ...], hooks: dict[nn.Module, Callable[..., None]]
) -> None:
    """Runs a model once, in evaluation mode, on a batch of a sample twice, with forward hooks."""
    tensors = (*model.parameters(), *model.buffers(), torch.empty(0))
    device = tensors[0].device
    with ExitStack() as hooked:
        hooked.callback(model.train, model.training)
        for module, hook in hooks.items():
            hooked.enter_context(module.register_forward_hook(hook))
        model.eval()
        model(*(part.to(device) for part in default_collate([sample, sample])))


def check_bf16_gradients(model: nn.Module, sample: tuple[Tensor, ...], amp: Amp) -> None:
    """Raises BadInput for convolutions of which PyTorch silently computes a wrong gradient.

    In bf16 on the CPU, parts of the weight's gradient of a convolution with padding are left unset
    if its input is narrower than its stride (found with PyTorch 2.14, by repeating steps).
    """
    if amp.device.type != "cpu" or amp.dtype != torch.bfloat16:
        return
    names = {module: name for name, module in model.named_modules()}

    def check(conv: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        images = output if isinstance(conv, nn.ConvTranspose2d) else inputs[0]
        if conv.padding != "valid" and conv.padding[1] and images.shape[3] < conv.stride[1]:
            raise BadInput(
                f"--precision bf16: {names[conv]} has images narrower than its stride, for which "
                "PyTorch computes no gradient on the CPU; use --precision fp32 or larger images"
            )

    convolutions = [m for m in names if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    run_with_hooks(model, sample, dict.fromkeys(convolutions, check))


def compile_networks(networks: dict[str, nn.Module]) -> None:
    """Compiles the networks with `torch.compile`, in place, at their first call."""
    for network in with_parameters(networks).values():
        if isinstance(network, Frozen):  # its part before the head, which is computed once, is not
            network._compute_features = torch.compiler.disable(  # type: ignore[method-assign]
                network._compute_features
            )
        network.compile()


def parallelize(model: nn.Module, networks: dict[str, nn.Module], how: str, amp: Amp) -> nn.Module:
    """Spreads the work over the GPUs of this machine.

    `split` (and `auto` where there are several GPUs and none was named) divides the batch of each
    network, in place; the losses see the whole batch. `super` takes the model as one super network
    of networks and losses: each GPU computes the losses of its share, and only they come back. The
    modules in `networks` stay the bare ones, so that state dicts have no `module.` prefix. On the
    CPU there is nothing to divide, and the wrappers hand the batches through.

    Args:
        model: The finished model; its attributes that are networks are wrapped for `split`.
        networks: The bare networks by the name of the attribute.
        how: One of PARALLEL.
        amp: The device of the model, and its precision.

    Returns:
        The module to call with a batch for its losses.

    Raises:
        BadInput: `split` or `super`, with one GPU named or with compiled networks.
    """
    device = amp.device
    if how in ("split", "super") and device.index is not None:
        raise BadInput(f"--parallel {how} uses all GPUs; use --device cuda instead of {device}")
    several = device.type == "cuda" and device.index is None and gpu_count() > 1
    if several and how == "auto":
        torchrun = f"torchrun --standalone --nproc-per-node {gpu_count()} train.py"
        terminal.say(f"{gpu_count()} GPUs share each batch; a process each is faster: {torchrun}")
    how = ("split" if several else "none") if how == "auto" else how
    # A copy of a compiled network would compute with the weights of the original.
    compiled = any(network._compiled_call_impl is not None for network in networks.values())
    if several and compiled and how != "none":
        raise BadInput("--compile: not on several GPUs at once; add --parallel none")
    if how == "super":
        return SuperNetwork(model, amp)
    for name, network in with_parameters(networks).items() if how == "split" else ():
        setattr(model, name, _data_parallel(_WithAutocast(network, amp), amp))
    return model


class SuperNetwork(nn.Module):
    """A model with its networks and losses, copied to every GPU; each takes a share of the batch.

    A loss of the whole batch is the mean of those of the shares, which are means over samples,
    weighted by their numbers of samples, since the last share may be smaller.
    """

    def __init__(self, model: nn.Module, amp: Amp) -> None:
        super().__init__()
        self.replicas = _data_parallel(_Share(model, amp), amp)

    def forward(self, *batch: Tensor) -> Losses:
        return {
            network: {name: shares.sum() / len(batch[0]) for name, shares in losses.items()}
            for network, losses in self.replicas(*batch).items()
        }


class _WithAutocast(nn.Module):
    """A module that opens autocast itself: DataParallel's threads would open it without the dtype,
    and so compute in fp16 where bf16 was chosen."""

    def __init__(self, module: nn.Module, amp: Amp) -> None:
        super().__init__()
        self.module, self.amp = module, amp

    def forward(self, *inputs: Tensor) -> Any:
        with self.amp.autocast():
            return self.module(*inputs)


class _Share(_WithAutocast):
    """The losses of a share of a batch, times its size, of shape (1,) for them to be joined."""

    def forward(self, *batch: Tensor) -> Losses:
        return {
            network: {name: loss.reshape(1) * len(batch[0]) for name, loss in losses.items()}
            for network, losses in super().forward(*batch).items()
        }


def _data_parallel(module: nn.Module, amp: Amp) -> nn.Module:
    # Off CUDA, DataParallel would move the module to the first GPU it finds.
    return nn.DataParallel(module) if amp.device.type == "cuda" else module
