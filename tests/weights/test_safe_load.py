"""The reader of torch files: what it returns is what torch returns, and what is malformed ends in the named error."""

import argparse
import collections
import os
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch

from topodet import weights
from topodet.errors import WeightsError
from topodet.weights.safe_load import load_torch


def content():
    state_dict = collections.OrderedDict(
        plain=torch.randn(3, 4),
        transposed=torch.arange(6).view(2, 3).t(),
        channels_last=torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        scalar=torch.tensor(2.5, dtype=torch.bfloat16),
        empty=torch.empty(0, 3),
        flags=torch.tensor([True, False]),
        parameter=torch.nn.Parameter(torch.ones(2)),
    )
    state_dict["part"] = state_dict["plain"][1:]
    state_dict._metadata = {"": {"version": 1}}
    return {
        "state_dict": state_dict,
        "plain": [1, -1.5, None, True, (1, 2), {"a": {1, 2}}, 2**63, "text", b"\0\xff", float("inf")],
        "rng": torch.get_rng_state(),
        "new": torch.tensor([1, 2], dtype=torch.uint16),
        "types": [torch.Size([1, 2]), torch.float16, collections.Counter([1, 1])],
    }


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}])
def test_the_same_as_torch_reads(tmp_path, options):
    saved = content()
    if "_use_new_zipfile_serialization" in options:
        saved["new"] = torch.ones(2)  # torch itself cannot read a uint16 in its old format
    torch.save(saved, tmp_path / "a.pth", **options)
    ours, theirs = load_torch(tmp_path / "a.pth").content, torch.load(tmp_path / "a.pth", weights_only=False)
    for name, tensor in theirs.pop("state_dict").items():
        own = ours["state_dict"][name]
        assert torch.equal(own, tensor)
        assert (own.dtype, own.stride()) == (tensor.dtype, tensor.stride())
    ours["state_dict"]["plain"][1] = 7  # memory is shared as it was
    assert (ours.pop("state_dict")["part"][0] == 7).all()
    for name in ("rng", "new"):
        assert torch.equal(ours.pop(name), theirs.pop(name))
    assert ours == theirs


def test_signs_that_torch_put_off(tmp_path):
    numbers = torch.tensor([1 + 2j, 3 - 4j])
    saved = [torch._neg_view(torch.ones(2)), numbers.conj(), numbers.clone().conj().imag]
    torch.save(saved, tmp_path / "a.pth")
    ours, theirs = load_torch(tmp_path / "a.pth").content, torch.load(tmp_path / "a.pth", weights_only=True)
    assert all(torch.equal(own, their.resolve_neg()) for own, their in zip(ours, theirs))
    assert ours[0].tolist() == [-1, -1]


def test_objects_are_refused_or_passed_over(tmp_path):
    objects = {"model": {"w": torch.ones(2)}, "args": argparse.Namespace(lr=1), "n": np.float64(3), "a": np.ones(3)}
    torch.save(objects, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"a.pth is refused: .*\(argparse.Namespace\).* Nothing in it was executed"):
        load_torch(tmp_path / "a.pth")
    found = load_torch(tmp_path / "a.pth", skip_objects=True)
    assert torch.equal(found.content["model"]["w"], torch.ones(2))
    assert "argparse.Namespace" in found.skipped


def nested(levels, value):
    for _ in range(levels):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(1).expand(10**10), "needs 10,000,000,000 values, but the file contains 1 of them"),
        (nested(60, 1), "nested deeper than 50 levels"),
        (nested(25, 1), "expands to more than 500,000 values"),
        (torch.eye(2).to_sparse(), "a tensor that is sparse"),
        (torch.empty(2, device="meta"), "on the meta device"),
        (torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8), "a tensor that is quantized"),
        ([10**5000], "an integer of 16610 bits"),
        ("a\0", "NUL"),
        ({"\ud800": 1}, "not valid Unicode"),
        ({(1, (2, 3)): 1}, "a key of type tuple"),
    ],
)
def test_what_asks_for_too_much_or_cannot_be(tmp_path, value, message):
    torch.save({"value": value}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=f"a.pth is refused: .*{re.escape(message)}"):
        load_torch(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty (0 bytes)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "run `git lfs pull`"),
        (b"\n<!DOCTYPE html><html>", "web page (HTML)"),
        (b'{"a": 1}', "text (JSON?)"),
        (b"\x10\0\0\0\0\0\0\0" + b'{"w":{"dtype"', ".safetensors file with another suffix"),
        (b"\x1f\x8b123", "gzip archive"),
        (b"hello", "not a torch file"),
        (pickle.dumps([1, 2]), "a pickle that torch did not write"),
        (pickle.dumps({"model": os.system}), "could run code"),
        (b"\x80\x02" + b"K\x01" + b"\x85" * 10, "not a torch file"),
    ],
)
def test_what_is_no_torch_file_is_named(tmp_path, data, message):
    (tmp_path / "a.pth").write_bytes(data)
    with pytest.raises(WeightsError, match=f"a.pth .*{re.escape(message)}"):
        load_torch(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty (0 bytes)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "run `git lfs pull`"),
        (b"\n<!DOCTYPE html><html>", "web page (HTML)"),
        (b'{"error": "Repository not found"}', "text (JSON?)"),
        (b"PK\x03\x04" + bytes(40), "a torch file with another suffix: rename it to .pth"),
        (b"\x10\0\0\0\0\0\0\0" + b'{"w":{"dtype"', "truncated or damaged"),
    ],
)
@pytest.mark.parametrize("name", ["a.safetensors", "a.SafeTensors"])
def test_what_is_no_safetensors_file_is_named(tmp_path, data, message, name):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(WeightsError, match=f"{name} .*{re.escape(message)}"):
        weights.read(tmp_path / name)


def archive(path, entries, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in entries.items():
            file.writestr(name, data)


def test_archives_that_state_more_than_they_hold(tmp_path):
    torch.save({"w": torch.randn(100)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as file:
        entries = {name: file.read(name) for name in file.namelist()}
    whole = (tmp_path / "a.pth").read_bytes()
    archive(tmp_path / "short.pth", {**entries, "a/data/0": b"1234"})
    archive(tmp_path / "deflated.pth", entries, zipfile.ZIP_DEFLATED)
    archive(tmp_path / "without.pth", {name: data for name, data in entries.items() if name != "a/data/0"})
    (tmp_path / "flipped.pth").write_bytes(whole[:600] + bytes([whole[600] ^ 1]) + whole[601:])
    for name, message in (
        ("short", "has 4 bytes, not 100 values of 4"),
        ("deflated", "compressed"),
        ("without", "are missing"),
        ("flipped", "Bad CRC-32"),
    ):
        with pytest.raises(WeightsError, match=message):
            load_torch(tmp_path / f"{name}.pth")


def test_pickles_that_are_no_trees(tmp_path):
    for steps, message in (
        (b"}" + b"K\x01" + b"\x85" * 60_000 + b"K\x01s", "a key of type tuple"),
        (b"K\x01" + b"\x85" * 60_000, "nested deeper"),
        (b"}r\xff\xff\xff\xff0", "opcode POP"),
        (b"cos\nsystem\n(Vtrue\nt\x85R", "os.system"),
        (b"ccollections\nOrderedDict\n)R}(Va\nK\x01ub" + b"K\x01" * 500_001, "more than 500,000 steps"),
    ):
        archive(tmp_path / "a.pth", {"a/data.pkl": b"\x80\x02" + steps + b"."})
        with pytest.raises(WeightsError, match=message):
            load_torch(tmp_path / "a.pth")
