"""MMEngine's checkpoint loading, preceded by topodet's reader.

MMEngine itself unpickles what `weights_only` refuses. Once topodet.mmdet is imported, as by `custom_imports` in
a config, MMEngine opens local files and those from http(s) and the hub only after topodet's reader has found no
executable content in them. The loaders are replaced for this process through MMEngine's own interface; those of other
addresses (s3://, open-mmlab://, ...) are not changed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mmengine.runner.checkpoint import CheckpointLoader, load_from_local

from .. import weights
from ..errors import WeightsError

# Objects in MMEngine's own checkpoints besides tensors and plain types: its log, as numpy numbers and statistics.
_BUFFER = "mmengine.logging.history_buffer.HistoryBuffer"
_OBJECTS = frozenset(
    [
        *(_BUFFER, *(f"{_BUFFER}.{method}" for method in ("min", "max", "mean", "current"))),
        *("numpy.ndarray", "numpy.dtype"),
        *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    ]
)


# MMEngine itself does not support hf-hub addresses.
@CheckpointLoader.register_scheme(prefixes=("", "http://", "https://", weights.HUB), force=True)
def load_from_checked_file(filename: str | os.PathLike, map_location: Any = None) -> dict[str, Any]:
    """Return the content of a checkpoint, with tensors on the CPU unless MMEngine has to open it for its log.

    Raises:
        WeightsError: missing, damaged, or with objects that MMEngine's checkpoints do not have.
    """
    path = weights.fetch(filename)
    if path.suffix.lower() == ".safetensors":
        file = weights.read(path)
        return {"state_dict": file.state_dict, "card": file.card}
    content, objects = weights.read_checkpoint_with_objects(path)
    refuse_strange_objects(path, objects)
    return load_from_local(str(path), map_location) if objects else content


def refuse_strange_objects(path: Path, objects: frozenset[str]) -> None:
    """Refuse a file with objects that MMEngine's checkpoints do not have.

    Raises:
        WeightsError: names them.
    """
    strange = sorted(objects - _OBJECTS)
    if strange:
        raise WeightsError(
            f"{path} is refused: it contains pickled Python objects ({', '.join(strange[:3])}) that no checkpoint of "
            "MMEngine has, and unpickling could run code. Nothing in it was executed. Ask for a file of plain tensors"
        )
