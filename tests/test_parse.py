import os
import re

import pytest

from topodet.errors import ConfigError, WeightsError
from topodet.parse import check_file_name, parse_json, parse_yaml, read_json, read_yaml

ALIASES = "a0: &a0 [x]\n" + "".join(f"a{k}: &a{k} [*a{k - 1}, *a{k - 1}]\n" for k in range(1, 60))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{k}: &a{k} {{<<: [*a{k - 1}, *a{k - 1}]}}\n" for k in range(1, 60))


def test_yaml_and_json_as_they_are(tmp_path):
    assert parse_yaml("a: &x [1, 2.5, null]\nb: *x\nc: {d: yes}", "it") == {
        "a": [1, 2.5, None],
        "b": [1, 2.5, None],
        "c": {"d": True},
    }
    assert parse_yaml("", "it") is None
    assert parse_json('{"a": [1, 2.5, null]}', "it") == {"a": [1, 2.5, None]}
    (tmp_path / "a").write_text('{"a": "ü"}')
    assert read_json(tmp_path / "a") == read_yaml(tmp_path / "a") == {"a": "ü"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.mkdir [executed]", "could run code, nothing in it was executed"),
        pytest.param(ALIASES, "expands to more than 100,000 values through its aliases", id="aliases"),
        pytest.param(MERGES, "expands to more than 100,000 values through its aliases", id="merges"),
        ("&a [*a]", "expands"),
        pytest.param("[" * 5000, "nesting", id="deep"),
        pytest.param("a: " + "9" * 6000, "digits", id="digits"),
        pytest.param("a: [0x" + "f" * 5000 + "]", "an integer of 5,002 digits; 100 are allowed", id="hexadecimal"),
        ("a: !!timestamp never", "cannot be read as YAML"),
        ("2001-99-99", "month"),
        ("? [a]\n: b", "unhashable"),
        (b"\xff\xfe\x00", "cannot be read as YAML"),
        ("a: [1", "cannot be read as YAML"),
        pytest.param(" " * 600_000, "more than 512 KB", id="long"),
    ],
)
def test_yaml_that_is_none_or_asks_for_too_much(text, message):
    with pytest.raises(ConfigError, match=f"^it .*{re.escape(message)}"):
        parse_yaml(text, "it", ConfigError)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "9" * 6000, b"\xff", "{", ""], ids=["deep", "digits", "bytes", "open", "empty"]
)
def test_json_that_is_none(text):
    with pytest.raises(WeightsError, match="it cannot be read as JSON"):
        parse_json(text, "it", WeightsError)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(ConfigError, match="no file at .*a.json"):
        read_json(tmp_path / "a.json", ConfigError)
    with pytest.raises(ConfigError, match="cannot read"):
        read_yaml(tmp_path, ConfigError)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="cannot read .*a pipe"):  # whose reading would not end
        read_json(tmp_path / "pipe", ConfigError)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ConfigError, match="cannot read"):
        read_json(tmp_path / "loop", ConfigError)


@pytest.mark.parametrize("name", ["../a", "/a", "a/b", "", ".a", "a\0", "a b", "a" * 200, None, "a\\b"])
def test_names_are_no_paths(name):
    with pytest.raises(ConfigError, match="the name .* cannot be a file name"):
        check_file_name(name, "the name", ConfigError)
    assert check_file_name("faster-rcnn_toponet-nano_fpn.v1+x", "the name", ConfigError)
