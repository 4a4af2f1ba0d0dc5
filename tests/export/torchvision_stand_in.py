"""Stand-in for the names of torchvision that timm imports, so that tests can use timm without torchvision.

The tested models call none of them; a call would fail.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType

from torch import nn


class InterpolationMode(enum.Enum):
    """The members that timm uses."""

    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


class NotHere:
    """Stand-in for a class that timm imports and the tests do not use."""

    def __init__(self, *_: object, **__: object) -> None:
        raise NotImplementedError("torchvision is not installed; this is a stand-in for timm's imports")


class FrozenBatchNorm2d(nn.Module):
    """A separate class, so that no module passes timm's isinstance checks."""


_DATASETS = ("CIFAR10", "CIFAR100", "MNIST", "KMNIST", "FashionMNIST", "ImageFolder")
_TRANSFORMS = ("CenterCrop", "Compose", "Normalize", "RandomCrop", "RandomResizedCrop", "Resize", "ToTensor")
_MODULES: dict[str, dict[str, object]] = {
    "torchvision": {"__version__": "0"},
    "torchvision.datasets": dict.fromkeys(_DATASETS, NotHere),
    "torchvision.models": {},
    "torchvision.models.feature_extraction": {
        "create_feature_extractor": NotHere,
        "get_graph_node_names": NotHere,
    },
    "torchvision.ops": {},
    "torchvision.ops.misc": {"FrozenBatchNorm2d": FrozenBatchNorm2d},
    "torchvision.transforms": dict.fromkeys(_TRANSFORMS, NotHere),
    "torchvision.transforms.functional": {"InterpolationMode": InterpolationMode},
}


@contextmanager
def torchvision_stand_in() -> Iterator[None]:
    """Replace torchvision by the stand-in; afterwards remove it and the timm that imported it."""
    for name, contents in _MODULES.items():
        module = ModuleType(name)
        module.__dict__.update(contents)
        module.__path__ = []
        module.__spec__ = ModuleSpec(name, None, is_package=True)
        sys.modules[name] = module
        if "." in name:
            parent, _, child = name.rpartition(".")
            setattr(sys.modules[parent], child, module)
    try:
        yield
    finally:
        for name in list(sys.modules):
            if name.split(".")[0] in ("torchvision", "timm"):
                del sys.modules[name]
