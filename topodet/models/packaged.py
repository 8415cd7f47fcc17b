"""The weights that come with the package, by the network's name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, WeightsError
from ..files import sha256

FOLDER = Path(__file__).parent / "pretrained"


@dataclass(frozen=True)
class Packaged:
    """A published file, with its classifier, in the package.

    Attributes:
        tag: timm's tag of these weights: NETWORK.TAG.
        file: its name in `FOLDER`.
        sha256: SHA-256 of its bytes.
        num_classes: outputs of its classifier.
    """

    tag: str
    file: str
    sha256: str
    num_classes: int

    @property
    def path(self) -> Path:
        """Path of the file."""
        return FOLDER / self.file


PACKAGED = {
    "toponet_nano": Packaged(
        tag="tiny_imagenet",
        file="toponet_nano_tiny_imagenet.safetensors",
        sha256="21f81cb6b3a5860a538f8ce02e0994fe957a97643d15b495ef5ccfc25f9ec6e0",
        num_classes=200,
    ),
}


def packaged_weights(arch: str) -> Path:
    """Return the path of a network's weights in the package, whose SHA-256 has been checked.

    Raises:
        ConfigError: the package has none for this network.
        WeightsError: the file is missing or damaged.
    """
    if arch not in PACKAGED:
        raise ConfigError(
            f"the package has no weights of {arch!r}, only of {', '.join(PACKAGED)}: give the path or the URL of a "
            "published file"
        )
    known = PACKAGED[arch]
    if not known.path.is_file():
        raise WeightsError(f"{known.path} is missing: reinstall topodet")
    if sha256(known.path) != known.sha256:
        raise WeightsError(f"{known.path} is damaged or was changed: reinstall topodet")
    return known.path
