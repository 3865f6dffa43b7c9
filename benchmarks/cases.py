"""What is measured: the cases, and the contenders of each."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks import ours, peers
from benchmarks.make_images import KINDS, Images
from benchmarks.report import AUGMENTED
from benchmarks.timing import Result, Spec

ON_CPU = ("small", "photos", "startup")  # the default of --cases
ON_GPU = ("gpu-resnet18", "gpu-resnet50", "gpu-small", "startup")
IN_SMOKE = ("small", "startup", "scaling", "accuracy")  # one of each kind
ENDLESS = ("--epochs=1000", "--val-every=1000")  # the run is stopped in time


@dataclass(frozen=True)
class Contender:
    """One of the things that are compared.

    Attributes:
        name: Its name in the results.
        about: A few words on it.
        call: Measures it, in a process of its own.
        flags: Flags of train.py.
        settings: More for `call`.
        images: Its data set; None takes what the flags say.
        by_workers: Measure it with several numbers of workers; the best one counts.
        once: Measure it in the first round alone.
        fresh: Delete the cache beside its data set first.
    """

    name: str
    about: str
    call: Callable[[Spec], Result]
    flags: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    images: Images | None = None
    by_workers: bool = False
    once: bool = False
    fresh: bool = False


@dataclass(frozen=True)
class Case:
    """Contenders that are comparable, in the order in which they are measured."""

    about: str
    contenders: list[Contender]


def make_cases(smoke: bool = False, fashion: Path | None = None) -> dict[str, Case]:
    """All cases by name.

    Args:
        smoke: In tiny.
        fashion: The folder of Fashion-MNIST, for the accuracy; None takes the built-in images.
    """
    pngs = Images("png", 512 if smoke else 20_000)
    jpegs = Images("jpeg", 64 if smoke else 1_024)
    many = Images("jpeg", 512 if smoke else 10_240)
    pixels, cpu, cuda = 32 if smoke else 128, "--device=cpu", "--device=cuda"
    resnet18 = f"ResNet-18 at {pixels} pixels, batch 64, on the CPU"
    at_224 = "at 224 pixels, batch 256, on the GPU"
    return {
        "small": _throughput("the small network, batch 64, on the CPU", pngs, cpu, "--img-size=32"),
        # An epoch of 16 steps has to hold some points of the curve, for the meter's figure.
        "photos": _throughput(
            resnet18, jpegs, cpu, "--network=resnet18", f"--img-size={pixels}", "--log-every=4"
        ),
        "startup": _startup(),
        "scaling": _scaling((300, 600) if smoke else (1_000, 10_000, 100_000, 1_000_000)),
        "accuracy": _accuracy(fashion),
        "augmentation": _augmentation(
            resnet18, jpegs, cpu, "--network=resnet18", f"--img-size={pixels}", "--log-every=4"
        ),
        "gpu-small": _throughput(
            "the small network, batch 512, on the GPU", pngs, cuda, "--batch-size=512"
        ),
        "gpu-resnet18": _throughput(
            f"ResNet-18 {at_224}", many, cuda, "--network=resnet18", "--batch-size=256"
        ),
        "gpu-resnet50": _throughput(
            f"ResNet-50 {at_224}", many, cuda, "--network=resnet50", "--batch-size=256"
        ),
    }


def _throughput(about: str, images: Images, *flags: str) -> Case:
    def lever(name: str, *flags: str, **more: Any) -> Contender:
        about = " ".join(flags) or "--workers N"
        return Contender(f"ours-{name}", about, ours.throughput, flags, once=True, **more)

    def without(name: str, about: str) -> Contender:
        return replace(lever(name, settings={"without": [name]}), about=about)

    def limit(name: str, about: str, precision: str | None, tuned: bool) -> Contender:
        settings = {"precision": precision, "tuned": tuned}
        return Contender(name, about, peers.pure, settings=settings)

    def peer(name: str, about: str, call: Callable[[Spec], Result], **more: str) -> Contender:
        return Contender(name, about, call, settings=more, by_workers=True)

    turns = "train.py and steps on preloaded data in turns, in one process"
    contenders = (
        Contender("ours", "train.py with its defaults", ours.throughput),
        Contender("ours-beside-pure", turns, ours.beside_pure),
        replace(lever("fp32", "--precision=fp32"), once=False),
        lever("no-cache", "--no-cache"),
        lever("workers", by_workers=True),
        lever("no-cache-workers", "--no-cache", by_workers=True),
        lever("compile", "--compile"),
        without("nchw", "without channels_last"),
        without("unfused", "without the fused optimizer"),
        without("default-allocator", "without tuning the allocator"),
        limit("pure", "preloaded tensors, our precision: the limit", "auto", True),
        limit("pure-fp32", "preloaded tensors, fp32", "fp32", True),
        limit("pure-guide", "preloaded tensors, fp32, NCHW, unfused", None, False),
        peer("guide", "the style guide's loop, fp32", peers.guide),
        peer("lightning", "PyTorch Lightning, fp32", peers.lightning, precision="32-true"),
        peer("lightning-bf16", "the same, bf16", peers.lightning, precision="bf16-mixed"),
        peer("timm", "timm's loader in a plain loop, fp32", peers.timm),
    )
    flags = (*flags, *ENDLESS)
    return Case(
        f"{images.train:,} {KINDS[images.kind]}, {about}",
        [replace(one, images=images, flags=(*flags, *one.flags)) for one in contenders],
    )


def _augmentation(about: str, images: Images, *flags: str) -> Case:
    contenders = [Contender("none", "flips alone", ours.throughput)]
    for name in AUGMENTED:
        contenders.append(Contender(name, f"--{name}", ours.throughput, (f"--{name}",)))
    flags = (*flags, *ENDLESS)
    return Case(
        f"{images.train:,} {KINDS[images.kind]} from the cache, {about}, with augmentation",
        [replace(one, images=images, flags=(*flags, *one.flags)) for one in contenders],
    )


def _startup() -> Case:
    about = "from the command to the end of the first step, with a warm file cache (wanted: 6 s)"
    return Case(
        about,
        [
            Contender("train.py", "the built-in images", ours.first_step),
            Contender("imports", "torch and torchvision alone", ours.imports),
        ],
    )


def _scaling(sizes: tuple[int, ...]) -> Case:
    batch, first = 256, 20  # workers start after five steps
    flags = ("--device=cpu", "--width=8", "--blocks=0", "--img-size=8", f"--batch-size={batch}")
    contenders = []
    for mode, cache, most, fresh in (
        ("cache, first run", ("--cache",), sys.maxsize, True),
        ("cache, later run", ("--cache",), sys.maxsize, False),
        ("no cache", ("--no-cache", "--workers=1"), 400, False),
    ):
        for listed in sizes:
            steps = min(max(50, listed // batch), most)  # of an epoch, but enough to be timed
            contenders.append(
                Contender(
                    f"{listed:,}, {mode}",
                    " ".join(cache),
                    ours.growth,
                    (*flags, *ENDLESS, *cache),
                    {"first": first, "last": first + steps, "images": steps * batch},
                    Images("tiny", listed),
                    once=True,
                    fresh=fresh,
                )
            )
    about = "time and memory against the number of listed images, a network next to nothing"
    return Case(about, contenders)


def _accuracy(fashion: Path | None) -> Case:
    flags = ["--epochs=3", "--val-every=3", *([f"--data={fashion.resolve()}"] if fashion else [])]
    plain, off = ("--precision=fp32", "--no-cache"), {"without": list(ours.LEVERS)}
    return Case(
        "Fashion-MNIST, after 3 epochs; a seed a round",
        [
            Contender("ours", "train.py with its defaults", ours.accuracy, (*flags,)),
            Contender("ours-plain", "fp32, no lever", ours.accuracy, (*flags, *plain), off),
        ],
    )
