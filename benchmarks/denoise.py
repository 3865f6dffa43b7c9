"""Removing noise against other methods: `python -m benchmarks.denoise --checkpoint RUN`.

Each method gets the photographs of the template's image-to-image project that are set aside for
testing, with the noise that test.py gives them: Gaussian of a standard deviation of 25, rounded,
limited to 0 to 255. Prints a table in Markdown of the PSNR in dB of each image, of their mean, and
of the seconds for an image on all cores. Each method runs in a process of its own. One whose
package is missing is listed with the error. About a minute.

The other methods are told the standard deviation, or estimate it. CBM3D has the settings of its
authors; those of the others are the best of a few on these very photographs: the weight of total
variation out of 0.06 to 0.16, the wavelet out of db1 and db2, the strength of non-local means out
of 0.5 to 0.8.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.runner import render, run_child
from benchmarks.timing import Result, Spec

# From an image and the standard deviation of its noise to an image, float (H, W, 3) in [0, 1].
Method = Callable[[np.ndarray, float], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(
        "denoise", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    runs = "checkpoints of ours, or run folders for their best.pt"
    add("--checkpoint", nargs="+", type=Path, default=[], metavar="RUN", help=runs)
    names = f"some of {', '.join(METHODS)} (default: all)"
    add("--only", nargs="*", choices=METHODS, metavar="METHOD", default=[*METHODS], help=names)
    opt = parser.parse_args()
    if missing := [str(path) for path in opt.checkpoint if not path.exists()]:
        parser.error(f"--checkpoint {missing[0]}: no such file or folder")
    specs: dict[str, Spec] = {name: {"method": name} for name in opt.only}
    specs.update({str(path): {"checkpoint": str(path.resolve())} for path in opt.checkpoint})
    call = {"module": "benchmarks.denoise", "function": "measure"}
    with tempfile.TemporaryDirectory() as scratch:
        project = render(Path(scratch), "image-to-image")
        print(table({name: run_child({**call, **spec}, project) for name, spec in specs.items()}))


def measure(spec: Spec) -> Result:
    """The PSNR of each photograph by name, and the seconds; runs in the project's folder."""
    import torch

    import dataset  # type: ignore[import-not-found]
    import options  # type: ignore[import-not-found]
    from engine.data.sampler import (  # type: ignore[import-not-found]
        EvalBatchSampler,
        SeededDataset,
    )

    opt = options.make_parser().parse_args([])
    photographs = dataset.eval_set(opt, {}, "test")
    keys = EvalBatchSampler(len(photographs), 1).batches()  # a seed for each, as in test.py
    denoise = load(spec["checkpoint"]) if "checkpoint" in spec else METHODS[spec["method"]]
    rows: dict[str, float] = {}
    seconds = []
    for name, key in zip(photographs.names(), keys, strict=True):
        inputs, targets = SeededDataset(photographs).__getitems__(key)
        noisy, target = (image[0].permute(1, 2, 0).numpy() for image in (inputs, targets))
        if not rows:
            denoise(noisy[:64, :64] / 255, opt.noise / 255)  # what is slow the first time alone
        begun = time.perf_counter()
        output = denoise(noisy / 255, opt.noise / 255)
        seconds.append(time.perf_counter() - begun)
        rows[Path(name).stem] = psnr(to_uint8(output), target)
    return {"psnr": rows, "seconds": mean(seconds), "threads": torch.get_num_threads()}


def to_uint8(image: np.ndarray) -> np.ndarray:
    return np.clip(np.round(image * 255), 0, 255).astype(np.uint8)


def psnr(output: np.ndarray, target: np.ndarray) -> float:
    """In dB, of uint8 images: what test.py prints."""
    error = np.square(output.astype(float) - target.astype(float)).mean()
    return float(10 * np.log10(255**2 / error)) if error else 100.0


# The methods. They import what they need, so that a missing package is an error of one alone.


def noisy(image: np.ndarray, sigma: float) -> np.ndarray:
    return image


def total_variation(image: np.ndarray, sigma: float) -> np.ndarray:
    """Chambolle 2004."""
    from skimage.restoration import denoise_tv_chambolle

    return denoise_tv_chambolle(image, weight=0.08, channel_axis=-1)


def wavelets(image: np.ndarray, sigma: float) -> np.ndarray:
    """BayesShrink (Chang et al. 2000) of brightness and colours, whose noise differs: estimated."""
    from skimage.restoration import denoise_wavelet

    return denoise_wavelet(
        image, None, "db2", method="BayesShrink", convert2ycbcr=True, channel_axis=-1
    )


def nl_means(image: np.ndarray, sigma: float) -> np.ndarray:
    """Buades et al. 2005; each pixel's patch of 5 x 5 is compared with 13 x 13 others."""
    from skimage.restoration import denoise_nl_means

    return denoise_nl_means(
        image, 5, 6, h=0.8 * sigma, sigma=sigma, fast_mode=False, channel_axis=-1
    )


def cbm3d(image: np.ndarray, sigma: float) -> np.ndarray:
    """Dabov et al. 2007, in the build of its authors on PyPI."""
    from bm3d import bm3d_rgb

    return bm3d_rgb(image, sigma)


def load(checkpoint: str) -> Method:
    """The network of a checkpoint of ours, applied to whole images as test.py does."""
    import torch

    from engine import modules  # type: ignore[attr-defined]
    from engine.checkpoint import find_checkpoint  # type: ignore[import-not-found]
    from engine.devices import Amp, pick_device  # type: ignore[import-not-found]
    from model import Model  # type: ignore[import-not-found]

    device = pick_device("cpu")
    amp = Amp("auto", device)
    model: Any = Model.from_checkpoint(find_checkpoint(checkpoint))[0]
    modules.to_device(model, device).eval()

    def denoise(image: np.ndarray, sigma: float) -> np.ndarray:
        inputs = torch.from_numpy(to_uint8(image)).permute(2, 0, 1)[None]
        with amp.autocast():
            return model.translate(inputs)[0].permute(1, 2, 0).numpy() / 255

    return denoise


METHODS: dict[str, Method] = {
    "noisy": noisy,
    "total variation": total_variation,
    "wavelets": wavelets,
    "non-local means": nl_means,
    "CBM3D": cbm3d,
}


def table(results: dict[str, Result]) -> str:
    """The results of all methods by name, as a table in Markdown."""
    names = next((list(one["psnr"]) for one in results.values() if "psnr" in one), [])
    lines = [
        f"| PSNR in dB | {' | '.join([*names, 'mean', 's/image'])} |",
        "|---|" + "---|" * (len(names) + 2),
    ]
    for method, result in results.items():
        if "error" in result:
            cells = ["" for _ in names] + [result["error"].replace("|", "/"), ""]
        else:
            values = [result["psnr"][name] for name in names]
            cells = [f"{value:.2f}" for value in [*values, mean(values)]]
            cells += [f"{result['seconds']:.2f}"]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
