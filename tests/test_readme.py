import re
from pathlib import Path

import pytest
import timm

from tests.weights.helpers import checkpoint
from topodet import weights

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
DAMAGE = (ROOT / "docs" / "topology_damage.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README + DAMAGE, flags=re.DOTALL)
CONFIGS = [block for block in BLOCKS if block.startswith("# my_config.py")]
DETECTORS = [block for block in BLOCKS if block.startswith("# of MMDetection")]  # tests/test_detectors.py runs it
SCRIPTS = [block for block in BLOCKS if block not in CONFIGS + DETECTORS]
FRAMEWORK = re.compile(r"^from (detectron2)", flags=re.MULTILINE)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    model = timm.create_model("toponet_nano", num_classes=2)
    return weights.publish(checkpoint(folder / "last.pth.tar", model), folder).pth


@pytest.mark.parametrize("number", range(len(SCRIPTS)))
def test_python_blocks_run_and_print_what_they_say(published, number, capsys):
    if framework := FRAMEWORK.search(SCRIPTS[number]):
        pytest.importorskip(framework[1], reason=f"{framework[1]} is not installed")
    code = SCRIPTS[number].replace("toponet_nano-1a2b3c4d.pth", str(published))
    exec(compile(code, f"README block {number}", "exec"), {})
    printed = capsys.readouterr().out
    for line in code.splitlines():
        if line.startswith("print("):
            assert line.rpartition("  # ")[2] in printed


def test_the_config_block_builds(tmp_path, published):
    config = pytest.importorskip("mmengine.config", reason="needs the mmdet extra").Config
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    (block,) = CONFIGS
    path = tmp_path / "my_config.py"
    path.write_text(block)
    content = config.fromfile(path)
    init_default_scope("mmdet")
    content.model.backbone.pretrained = None
    content.model.backbone.width = 8
    content.model.neck.in_channels = [16, 32, 64, 128]
    assert type(MODELS.build(content.model).backbone).__name__ == "TopoNet"


def test_files_that_it_names_exist():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("https://") or (ROOT / link).exists(), link
    for path in re.findall(r"(?:configs|tools)/[\w./-]+\.(?:py|yaml)", README):
        is_stock = path in ("tools/train.py", "tools/test.py", "tools/dist_train.sh", "tools/lazyconfig_train_net.py")
        assert is_stock or (ROOT / path).exists(), path
