"""What is measured: the cases, and the contenders of each."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.machine import cores
from benchmarks.make_images import Images

# Each lever of the project that has no flag: what it is replaced with (see ours._patch).
NCHW = {"engine.devices.MEMORY_FORMAT": "contiguous_format"}
UNFUSED = {"engine.optimizing.FUSED": "no"}
ALLOCATOR = {"engine.devices.keep_memory": "nothing"}


@dataclass(frozen=True)
class Contender:
    """Something to be measured.

    Attributes:
        name: How it is called in the results.
        call: `module:function` of what measures it.
        about: What it is, in a few words.
        flags: What train.py gets on top of the case's flags; for peers, what tells them the case.
        settings: What else the function wants to know.
        images: Its data set, if it is not the one of the case.
        by_workers: Measure it with several numbers of workers; the best counts.
        every: It is measured in each n-th round; 0: in the first round alone.
        fresh: Delete what earlier measurements have left beside its data set.
    """

    name: str
    call: str
    about: str
    flags: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    images: Images | None = None
    by_workers: bool = False
    every: int = 1
    fresh: bool = False


@dataclass(frozen=True)
class Case:
    """Contenders that are comparable.

    Attributes:
        name: How `--cases` calls it.
        kind: How it is reported: throughput, startup, scaling or accuracy.
        about: What it is, in one line.
        contenders: Who is measured, in this order.
        flags: Flags of train.py for all of them.
        images: The data set of all of them.
        rounds: How many rounds it takes; None: as many as `--rounds` says.
        wanted: The least ratio that is wanted of two contenders.
    """

    name: str
    kind: str
    about: str
    contenders: tuple[Contender, ...]
    flags: tuple[str, ...] = ()
    images: Images | None = None
    rounds: int | None = None
    wanted: dict[tuple[str, str], float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    small: int = 20_000
    photos: int = 1_024
    photo_pixels: int = 128
    gpu_photos: int = 10_240
    warmup: float = 2.0  # seconds
    seconds: float = 8.0
    workers: tuple[int, ...] = ()  # () chooses
    startup_rounds: int = 5
    listed: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    listed_steps: int = 400  # without the cache, no more of an epoch
    listed_batch: int = 256
    accuracy_epochs: int = 3


SMOKE = Sizes(
    small=256,
    photos=64,
    photo_pixels=32,
    gpu_photos=64,
    warmup=0.0,
    seconds=0.1,
    workers=(1,),
    startup_rounds=1,
    listed=(200, 400),
    listed_batch=50,
    accuracy_epochs=1,
)


def worker_counts(sizes: Sizes) -> tuple[int, ...]:
    """The numbers of workers that are tried: 0 to all cores, in between only some if many."""
    n = cores()
    return sizes.workers or tuple(sorted({0, 1, 2, n} if n <= 4 else {0, n // 4, n // 2, n}))


def throughput_contenders() -> tuple[Contender, ...]:
    ours, peers = "benchmarks.ours:throughput", "benchmarks.peers:"

    def lever(name: str, about: str, *flags: str, **more: Any) -> Contender:
        return Contender(f"ours-{name}", ours, about, flags, **{"every": 0, **more})

    def patched(name: str, about: str, patches: dict[str, str]) -> Contender:
        return lever(name, about, settings={"patches": patches})

    def limit(name: str, about: str, precision: str, tuned: bool) -> Contender:
        settings = {"precision": precision, "tuned": tuned}
        return Contender(name, peers + "pure", about, settings=settings)

    def peer(name: str, function: str, about: str, **settings: Any) -> Contender:
        return Contender(name, peers + function, about, settings=settings, by_workers=True)

    return (
        Contender("ours", ours, "train.py with its defaults"),
        Contender(
            "ours-beside-pure",
            "benchmarks.ours:beside_pure",
            "train.py and steps on preloaded data in turns, in one process",
        ),
        lever("fp32", "--precision fp32", "--precision=fp32", every=1),
        lever("no-cache", "--no-cache", "--no-cache"),
        lever("workers", "--workers N", by_workers=True),
        lever("no-cache-workers", "--no-cache --workers N", "--no-cache", by_workers=True),
        patched("nchw", "without channels_last", NCHW),
        patched("unfused", "without the fused optimizer", UNFUSED),
        patched("default-allocator", "without tuning the allocator", ALLOCATOR),
        lever("compile", "--compile, which is off by default", "--compile"),
        limit("pure", "preloaded tensors, our precision: the limit", "auto", True),
        limit("pure-fp32", "preloaded tensors, fp32", "fp32", True),
        limit("pure-guide", "preloaded tensors, fp32, NCHW, unfused", "fp32", False),
        peer("guide", "guide", "the style guide's loop, fp32"),
        peer("lightning", "lightning", "PyTorch Lightning, fp32", precision="32-true"),
        peer("lightning-bf16", "lightning", "the same, bf16", precision="bf16-mixed"),
        peer("timm", "timm", "timm's loader in a plain loop, fp32"),
    )


def small(sizes: Sizes) -> Case:
    return Case(
        "small",
        "throughput",
        f"{sizes.small:,} PNGs of 32x32 pixels, the small network, batch 64, on the CPU",
        throughput_contenders(),
        ("--device=cpu", "--img-size=32"),
        Images("png", sizes.small),
        wanted={
            ("ours", "guide"): 2.5,
            ("ours", "lightning"): 2.3,
            ("ours-fp32", "guide"): 1.5,
            ("ours-fp32", "lightning"): 1.5,
        },
    )


def photos(sizes: Sizes) -> Case:
    return Case(
        "photos",
        "throughput",
        f"{sizes.photos:,} JPEGs of 500x375 pixels, ResNet-18 at {sizes.photo_pixels} pixels, "
        "batch 64, on the CPU",
        throughput_contenders(),
        # An epoch of 16 steps has to hold some points of the curve, for the meter's figure.
        (
            "--device=cpu",
            "--network=resnet18",
            f"--img-size={sizes.photo_pixels}",
            "--log-every=4",
        ),
        Images("jpeg", sizes.photos),
        wanted={
            ("ours", "guide"): 2.0,
            ("ours", "lightning"): 2.0,
            ("ours-fp32", "guide"): 1.2,
            ("ours-fp32", "lightning"): 1.2,
        },
    )


def gpu(network: str) -> Callable[[Sizes], Case]:
    def case(sizes: Sizes) -> Case:
        return Case(
            f"gpu-{network}",
            "throughput",
            f"{sizes.gpu_photos:,} JPEGs of 500x375 pixels, {network} at 224 pixels, batch 256, "
            "on the GPU",
            throughput_contenders(),
            ("--device=cuda", f"--network={network}", "--batch-size=256", "--img-size=224"),
            Images("jpeg", sizes.gpu_photos),
            wanted={("ours", "guide"): 3.0} if "18" in network else {},
        )

    return case


def gpu_small(sizes: Sizes) -> Case:
    return Case(
        "gpu-small",
        "throughput",
        f"{sizes.small:,} PNGs of 32x32 pixels, the small network, batch 512, on the GPU",
        throughput_contenders(),
        ("--device=cuda", "--batch-size=512", "--img-size=32"),
        Images("png", sizes.small),
    )


def startup(sizes: Sizes) -> Case:
    """The imports stand beside train.py because no program can start faster than its imports."""
    alone = "benchmarks.ours:import_alone"
    return Case(
        "startup",
        "startup",
        "from the command to the end of the first step, with a warm file cache (wanted: 6 s)",
        (
            Contender("train.py", "benchmarks.ours:first_step", "the built-in images"),
            Contender("import torch", alone, "nothing else", settings={"modules": ["torch"]}),
            Contender(
                "import torch, torchvision",
                alone,
                "nothing else",
                settings={"modules": ["torch", "torchvision"]},
            ),
        ),
        rounds=sizes.startup_rounds,
    )


def scaling(sizes: Sizes) -> Case:
    """Time and memory against the number of listed images."""
    contenders = []
    for listed in sizes.listed:
        images = Images("tiny", listed)
        epoch = listed // sizes.listed_batch  # its steps; the second epoch is timed
        # Without the cache no more than some steps, after those that were loaded beforehand.
        some = (epoch, 2 * epoch) if epoch <= sizes.listed_steps else (50, 50 + sizes.listed_steps)
        for mode, steps, flags, fresh in (
            ("cache, first run", (epoch, 2 * epoch), ("--cache",), True),
            ("cache, later run", (epoch, 2 * epoch), ("--cache",), False),
            ("no cache", some, ("--no-cache", "--workers=1"), False),
        ):
            contenders.append(
                Contender(
                    f"{listed} images, {mode}",
                    "benchmarks.ours:growth",
                    mode,
                    flags,
                    {"first": steps[0], "last": steps[1], "batch_size": sizes.listed_batch},
                    images,
                    fresh=fresh,
                )
            )
    network = ("--width=8", "--blocks=0", "--img-size=8", f"--batch-size={sizes.listed_batch}")
    return Case(
        "scaling",
        "scaling",
        "time and memory against the number of listed images, a network next to nothing",
        tuple(contenders),
        ("--device=cpu", *network, "--epochs=1000", "--test-every=1000"),
        rounds=1,
    )


def accuracy(sizes: Sizes) -> Case:
    call, off = "benchmarks.ours:accuracy", {"patches": {**NCHW, **UNFUSED, **ALLOCATOR}}
    flags = ("--precision=fp32", "--no-cache")
    return Case(
        "accuracy",
        "accuracy",
        f"test accuracy on Fashion-MNIST after {sizes.accuracy_epochs} epochs; a seed a round",
        (
            Contender("ours", call, "train.py with its defaults"),
            Contender("ours-plain", call, "fp32, without any lever", flags, off),
        ),
        (f"--epochs={sizes.accuracy_epochs}", f"--test-every={sizes.accuracy_epochs}"),
        wanted={("ours", "ours-plain"): 1.0},
    )


CASES: dict[str, Callable[[Sizes], Case]] = {
    "small": small,
    "photos": photos,
    "startup": startup,
    "scaling": scaling,
    "accuracy": accuracy,
    "gpu-resnet18": gpu("resnet18"),
    "gpu-resnet50": gpu("resnet50"),
    "gpu-small": gpu_small,
}
ON_CPU = ("small", "photos", "startup")  # the default of --cases
ON_GPU = ("gpu-resnet18", "gpu-resnet50", "gpu-small", "startup")
IN_SMOKE = ("small", "startup", "scaling", "accuracy")  # of each kind one
