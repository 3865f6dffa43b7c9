"""Turns a data set of torchvision into folders of images that train.py reads.

    python -m tools.prepare_data CIFAR10                        downloads it, writes data/CIFAR10
    python -m tools.prepare_data FashionMNIST --root my_files   from files that are on disk already

Images that torchvision keeps as files are copied unchanged; others are written as PNG.
"""

# ruff: noqa: E402
from engine.errors import DONE, BadInput, begin, run_program

begin(__name__)  # before the slow imports: Ctrl-C ends in one line from here on

import gzip
import inspect
import json
import re
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import Dataset
from torchvision import datasets

from engine import terminal
from engine.arguments import Parser
from engine.checkpoint import naming

Keywords = dict[str, object]


@dataclass
class Source:
    """How torchvision names the splits of a data set, and whether a mirror keeps the classes."""

    train: Keywords
    test: Keywords
    flip: bool = True


BY_TRAIN: tuple[Keywords, Keywords] = ({"train": True}, {"train": False})
BY_SPLIT: tuple[Keywords, Keywords] = ({"split": "train"}, {"split": "test"})
SOURCES = {
    "CIFAR10": Source(*BY_TRAIN),
    "CIFAR100": Source(*BY_TRAIN),
    "DTD": Source(*BY_SPLIT),
    "FashionMNIST": Source(*BY_TRAIN),
    "Flowers102": Source(*BY_SPLIT),
    "Food101": Source(*BY_SPLIT),
    "GTSRB": Source(*BY_SPLIT, flip=False),
    "KMNIST": Source(*BY_TRAIN, flip=False),
    "MNIST": Source(*BY_TRAIN, flip=False),
    "OxfordIIITPet": Source({"split": "trainval"}, {"split": "test"}),
    "STL10": Source(*BY_SPLIT),
    "SVHN": Source(*BY_SPLIT, flip=False),
    "USPS": Source(*BY_TRAIN, flip=False),
}


def main() -> int:
    parser = Parser(description="Turns a data set of torchvision into folders of images.")
    add = parser.add_argument
    add("name", choices=sorted(SOURCES), metavar="NAME", help=", ".join(sorted(SOURCES)))
    add("--root", metavar="DIR", default="data/downloads", help="folder of the files, or for them")
    add("--out", metavar="DIR", help="what to write, for train.py --data (default: data/NAME)")
    opt = parser.parse_args()
    out = Path(opt.out or f"data/{opt.name}")
    if out.exists():
        raise BadInput(f"{out}: exists already; delete it, or name another with --out")

    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a call that was killed
    try:
        with naming(out):
            write_folders(opt.name, SOURCES[opt.name], Path(opt.root), partial)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"wrote {out}: python train.py --data {out}")
    return DONE


def write_folders(name: str, source: Source, root: Path, folder: Path) -> None:
    """Writes train/, test/ and dataset.json into `folder`."""
    folder.mkdir(parents=True)
    root = find_idx_files(root, name, folder / ".files")
    for split, keywords in (("train", source.train), ("test", source.test)):
        write_split(open_dataset(name, root, keywords), folder / split)
    shutil.rmtree(folder / ".files", ignore_errors=True)
    about = {"name": name, "source": f"torchvision.datasets.{name}", "flip": source.flip}
    (folder / "dataset.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def open_dataset(name: str, root: Path, keywords: Keywords) -> Dataset:
    """The data set of torchvision, from the files in `root` or else downloaded to there.

    Its samples are pairs of an image and a label. If torchvision takes a function that reads the
    files, the image is the path of its file.

    Raises:
        BadInput: The files are not there and cannot be downloaded.
    """
    kind = getattr(datasets, name)
    more = {"loader": Path} if "loader" in inspect.signature(kind).parameters else {}
    try:
        try:
            return kind(str(root), **keywords, **more, download=False)
        except RuntimeError:  # how torchvision says that files are missing
            print(f"{name}: not in {root}, downloading")
        return kind(str(root), **keywords, **more, download=True)
    except ModuleNotFoundError as error:  # some are published in formats that others read
        raise BadInput(f"{name}: needs {error.name}; python -m pip install {error.name}") from None
    except (OSError, RuntimeError) as error:
        raise BadInput(
            f"{name}: not in {root}, and cannot be downloaded ({error}); "
            "name the folder of its files with --root"
        ) from None


def find_idx_files(root: Path, name: str, work: Path) -> Path:
    """The folder in which torchvision finds the files of `root`.

    It expects those of the MNIST family unpacked in NAME/raw. If they are in `root` itself, packed
    as they are published, they are unpacked into NAME/raw in the folder `work`.
    """
    packed = sorted(root.glob("*-ubyte.gz"))
    if not packed:
        return root
    raw = work / name / "raw"
    raw.mkdir(parents=True)
    for path in packed:
        try:
            with gzip.open(path) as source, open(raw / path.stem, "wb") as target:
                shutil.copyfileobj(source, target)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise BadInput(f"{path}: damaged ({error}); download it again") from None
    return work


def write_split(dataset: Dataset, folder: Path) -> None:
    """Writes each image into the folder of its class, with a progress bar."""
    images = len(dataset)  # type: ignore[arg-type]
    names = getattr(dataset, "classes", None)
    for i in terminal.bar(range(images), desc=folder.name, unit="image"):
        image, label = dataset[i]
        directory = folder / folder_name(names[label] if names else f"{label:03d}")
        directory.mkdir(parents=True, exist_ok=True)
        if isinstance(image, Path):
            (directory / f"{i:06d}{image.suffix.lower()}").write_bytes(image.read_bytes())
        else:
            image.save(directory / f"{i:06d}.png")


def folder_name(name: str | tuple[str, ...]) -> str:
    """The name of a class, without the characters that file systems do not allow."""
    text = name if isinstance(name, str) else name[0]
    return re.sub(r"[^\w .,()+&-]", "-", text).strip(" .") or "-"


if __name__ == "__main__":
    run_program(main)
