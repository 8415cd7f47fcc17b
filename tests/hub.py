"""A cache of the Hugging Face hub without the hub: what huggingface_hub reads where it is offline."""

import shutil
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name


def go_offline(monkeypatch, cache):
    """Let huggingface_hub read `cache` alone; it takes both from the environment when it is imported."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def put(cache, repo, *files, revision="main", commit="1" * 40):
    """Lay files out as a download of `repo` at `revision` does: blobs, links to them, and the name of the commit."""
    folder = Path(cache) / repo_folder_name(repo_id=repo, repo_type="model")
    snapshot = folder / "snapshots" / commit
    for path in (folder / "blobs", folder / "refs", snapshot):
        path.mkdir(parents=True, exist_ok=True)
    (folder / "refs" / revision).write_text(commit)
    for file in map(Path, files):
        blob = shutil.copy(file, folder / "blobs" / f"{commit[:4]}{file.name}")
        (snapshot / file.name).symlink_to(blob)
