from pathlib import Path

import pytest

from topodet import cli

ROOT = Path(__file__).resolve().parents[2]


def test_all_configs_are_listed(capsys):
    assert cli.main(["configs"]) == 0
    first, *names = capsys.readouterr().out.splitlines()
    folder = Path(first.removeprefix("in ").removesuffix(":"))
    assert folder == ROOT / "configs"
    assert {"mmdet/faster-rcnn_toponet-nano_fpn_digits.py", "pretrain/resnet50_imagenet.yaml"} <= set(names)
    assert all((folder / name).is_file() for name in names)
    assert not any("_base_" in name for name in names)


@pytest.mark.parametrize("name", ["toponet_nano_quick.yaml", "pretrain/toponet_nano_quick.yaml"])
def test_a_path_is_printed(name, capsys):
    assert cli.main(["configs", name]) == 0
    assert Path(capsys.readouterr().out.strip()) == ROOT / "configs" / "pretrain" / "toponet_nano_quick.yaml"


def test_an_unknown_name_is_told_with_the_nearest(capsys):
    assert cli.main(["configs", "toponet_nano_quik.yaml"]) == 1
    assert "Did you mean 'toponet_nano_quick.yaml'" in capsys.readouterr().err
