"""Everything random is a pure function of (seed, n_iter), so that a resumed run repeats itself.

No state of a generator is ever saved: whoever draws seeds first, from a key that says what is
drawn. The data order of an epoch comes from ("order", epoch), the augmentation of a batch from
("augment", n_iter), dropout and the like of a step from ("step", n_iter), and each sample carries a
seed of its own for random transforms.
"""

import random
import zlib

import numpy as np
import torch


def mix(*key: int | str) -> int:
    """A seed in [0, 2**32) made from `key`; the same in every process and Python version."""
    # 32 bits because torch's CPU generator keeps no more. `seed + epoch` would make epoch 1 of
    # seed 0 equal epoch 0 of seed 1; a hash of the pair doesn't.
    return zlib.crc32(repr(key).encode())


def seed_step(device: torch.device, *key: int | str) -> None:
    """Seeds what a model on `device` draws from in one step: torch's generators, random, numpy."""
    seed = mix(*key)
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:  # seeds all devices, and takes its time if there is no CUDA
        torch.manual_seed(seed)
    _seed_python(seed)


def generator(device: torch.device, *key: int | str) -> torch.Generator:
    """A generator on `device` of its own for what `key` names."""
    return torch.Generator(device).manual_seed(mix(*key))


def seed_sample(seed: int) -> None:
    """Seeds what a transform may draw from (torch on the CPU, random, numpy) for one sample.

    Without worker processes this runs between two steps of the model, which is harmless because
    each step seeds itself; the generators of the accelerators are left alone.
    """
    torch.default_generator.manual_seed(seed)
    _seed_python(seed)


def _seed_python(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # the generator of transforms written for numpy
