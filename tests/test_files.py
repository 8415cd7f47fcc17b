import os
import stat

import pytest
import torch

from topodet.files import atomic_json, atomic_path, atomic_torch_save, atomic_write, sha256


def test_content_appears_whole(tmp_path):
    path = atomic_write(tmp_path / "new" / "a.txt", "text")
    assert path.read_text() == "text"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]
    assert sha256(path) == "982d9e3eb996f559e633f4d194def3761d909f5a3b647d1a851fead67c32c9d1"
    assert atomic_json(tmp_path / "a.json", {"a": 1}).read_text() == '{\n  "a": 1\n}\n'
    assert torch.load(atomic_torch_save({"a": 1}, tmp_path / "a.pth"), weights_only=True) == {"a": 1}


def test_others_may_read_it(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(os.stat(atomic_write(tmp_path / "ours", b"x")).st_mode) == stat.S_IMODE(os.stat(plain).st_mode)


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = atomic_write(tmp_path / "a", "old")
    with pytest.raises(KeyboardInterrupt):
        _write_half(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def _write_half(path):
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt


def test_json_refuses_what_json_cannot_say(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic_json(tmp_path / "a.json", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("writer", ["text", "torch"])
def test_a_full_disk_is_named_and_costs_nothing(tmp_path, writer):
    path = atomic_write(tmp_path / "a", "old")
    with pytest.raises(OSError, match=r"could not write .*a: .*No space left.*the file that was there is untouched"):
        _write_to_a_full_disk(path, writer)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def _write_to_a_full_disk(path, writer):
    with atomic_path(path) as temporary, open("/dev/full", "wb", buffering=0) as full:
        assert temporary.exists()
        if writer == "text":
            full.write(b"x")
        else:
            torch.save(torch.zeros(10), full)
