"""Locations of weights: a path, a URL or a Hugging Face repository; `fetch` returns a local path for each."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import torch

from ..errors import WeightsError

HUB = "hf-hub:"
# Also matches the copies of browsers and file managers.
NAME_HASH = re.compile(r"-([0-9a-f]{8,64})(?:[ _-]?(?:\(\d+\)|copy(?: \d+)?))?\.(?:pth|pt)$")
_REPOSITORY = re.compile(rf"{HUB}(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
_HUB_FILE = "model.safetensors"  # as timm and transformers name it


def fetch(source: str | os.PathLike) -> Path:
    """Return a local path of a weights file; downloads are cached.

    | source | |
    | --- | --- |
    | path, `~` and `file://` too | itself |
    | `http://`, `https://` | downloaded into torch's hub cache, the hash in a published file's name checked |
    | `hf-hub:USER/REPO[@revision]` | the repository's .pth, or its model.safetensors, in huggingface_hub's cache |

    The hub's own settings apply: HF_HOME, HF_TOKEN, HF_HUB_OFFLINE.

    Raises:
        WeightsError: a missing file, or a failed download.
    """
    text = os.fspath(source)
    if text.startswith(HUB):
        return _fetch_from_hub(text)
    try:
        url = urlparse(text)
        if url.scheme == "file":
            return fetch(url2pathname(url.path))
        if url.scheme not in ("http", "https"):
            path = Path(text).expanduser()
            if not path.is_file():
                raise WeightsError(f"no weights file at {path} (working folder {Path.cwd()}); check the path")
            return path
        # One folder per URL, since two URLs may end in the same file name.
        folder = Path(torch.hub.get_dir(), "checkpoints", f"topodet-{hashlib.sha256(text.encode()).hexdigest()[:16]}")
        path = folder / (Path(url.path).name or "weights.pth")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            match = NAME_HASH.search(path.name)
            # Writes to a temporary file and renames it once the hash agrees.
            torch.hub.download_url_to_file(text, str(path), hash_prefix=match and match[1])
    except WeightsError:
        raise
    except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
        raise WeightsError(f"could not download or open {text[:200]!r}: {error}") from error
    return path


def run_name(source: str | os.PathLike) -> str:
    """Return a name for the run that a checkpoint is from: its folder, its hub repository, or the file of a URL."""
    text = os.fspath(source)
    if match := _REPOSITORY.fullmatch(text):
        return match["repo"].partition("/")[2]
    url = urlparse(text)
    if url.scheme in ("http", "https"):
        return Path(NAME_HASH.sub("", url.path)).stem or "detector"
    path = Path(url2pathname(url.path) if url.scheme == "file" else text).expanduser()
    return path.resolve().parent.name or "detector"


def _fetch_from_hub(text: str) -> Path:
    match = _REPOSITORY.fullmatch(text)
    if match is None:
        raise WeightsError(
            f"{text[:200]!r} is not a repository of the hub: expected {HUB}USER/REPO or {HUB}USER/REPO@REVISION"
        )
    from huggingface_hub import hf_hub_download, snapshot_download

    try:
        folder = Path(snapshot_download(match["repo"], revision=match["revision"], allow_patterns="*.pth"))
        found = sorted(folder.glob("*.pth"))
        if not found:
            return Path(hf_hub_download(match["repo"], _HUB_FILE, revision=match["revision"]))
    except Exception as error:  # huggingface_hub also raises errors of its HTTP library
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(
            f"{text} is not in the cache and could not be fetched: {type(error).__name__}: {reason}. Check the name, "
            f"the revision and the network (HF_HUB_OFFLINE); the repository must have one .pth or {_HUB_FILE}"
        ) from error
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:4])
        raise WeightsError(f"{text} has {len(found)} weights files ({names}): download one of them and give its path")
    return found[0]
