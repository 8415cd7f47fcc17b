import csv
import os
import resource
import stat

import pytest
import torch

from topodet.files import atomic_csv, atomic_json, atomic_path, atomic_torch_save, atomic_write, sha256


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


def test_a_full_disk_is_named_and_costs_nothing(tmp_path):
    # No file can grow beyond this: the system answers as it does on a full disk.
    path = atomic_write(tmp_path / "a", "old")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    for write in (lambda: atomic_write(path, bytes(10_000)), lambda: atomic_torch_save(torch.zeros(10_000), path)):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
        try:
            with pytest.raises(
                OSError,
                match=r"no space left for .*a \(needs (10|40),000 bytes\): .*existing file is unchanged. Free some",
            ):
                write()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert path.read_text() == "old"
        assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only_is_named(tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    for write in (lambda: atomic_write(folder / "a", "x"), lambda: atomic_write(folder / "b" / "a", "x")):
        with pytest.raises(
            OSError, match=r"could not write .*closed.*Permission denied; nothing was left behind. Let .*"
        ):
            write()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        OSError, match=r"could not write .*file/a: (File exists|Not a directory); nothing was left behind. .*folder"
    ):
        atomic_write(tmp_path / "file" / "a", "x")


def test_rows_become_csv_with_every_key(tmp_path):
    path = atomic_csv(tmp_path / "rows.csv", [{"a": 1, "b": None}, {"a": 2.5, "c": "x, y"}])
    assert path.read_text() == 'a,b,c\n1,,\n2.5,,"x, y"\n'
    assert [row["c"] for row in csv.DictReader(path.open())] == ["", "x, y"]
