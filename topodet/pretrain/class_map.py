"""timm's class maps. Read here to check every line, and to limit what a .pkl from others can do."""

from __future__ import annotations

import io
from pathlib import Path

from topodet.errors import DataError, TopodetError
from topodet.weights.plain_pickle import PlainUnpickler, Storage, pickled_objects


def read_class_map(class_map: str, root: str | None) -> dict[str, int]:
    """Return the index of each class name in a file: .txt with one name per line, or .pkl with the dict itself.

    Args:
        class_map: path of the file, or its path within `root`.
        root: folder of the images.

    Raises:
        DataError: it cannot be read, is not a regular file, or has a blank line or a duplicate name.
    """
    path = Path(class_map)
    if not path.exists():
        path = Path(root or "", class_map)
    try:
        if path.exists() and not path.is_file():
            raise DataError("it is not a regular file")  # opening a pipe would block
        if path.suffix.lower() == ".txt":
            with open(path, encoding="utf-8") as file:
                names = [line.strip() for line in file]
            known = {name: index for index, name in enumerate(names)}
            if "" in known or len(known) < len(names):
                raise DataError("it has a blank line or a duplicate name: each line must name one class")
        elif path.suffix.lower() == ".pkl":
            content = path.read_bytes()
            known = PlainUnpickler(_no_tensor, False, len(content)).run(io.BytesIO(content))
            if not isinstance(known, dict) or not all(type(index) is int for index in known.values()):
                raise DataError("it is not a dict of class names and indices")
        else:
            raise DataError("give a .txt or .pkl file")
    except (TopodetError, OSError, ValueError, EOFError, IndexError, KeyError, TypeError) as error:
        # Bytes that are not a pickle can raise any of these.
        raise DataError(f"cannot read --class-map {class_map}: {error}") from error
    return known


def _no_tensor(kind: str, key: str, values: int) -> Storage:
    raise DataError(pickled_objects("a tensor"))
