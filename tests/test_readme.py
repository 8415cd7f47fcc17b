import re
from pathlib import Path

import pytest
import timm

from tests.weights.helpers import checkpoint
from topodet import connectivity, weights

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {"README.md": README}
PAGES |= {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted((ROOT / "docs").rglob("*.md"))}
BLOCKS = {
    f"{name} {number}": block
    for name, page in PAGES.items()
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL))
}
CONFIGS = {name: block for name, block in BLOCKS.items() if block.startswith("# my_config.py")}
# Run by tests/test_detectors.py and tests/mmdet/test_connected.py
DETECTORS = [name for name, block in BLOCKS.items() if block.startswith("# of MMDetection")]
SCRIPTS = {name: block for name, block in BLOCKS.items() if name not in [*CONFIGS, *DETECTORS]}
FRAMEWORK = re.compile(r"^from (detectron2)", flags=re.MULTILINE)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    model = timm.create_model("toponet_nano", num_classes=2)
    return weights.publish(checkpoint(folder / "last.pth.tar", model), folder).pth


def test_no_block_is_left_out():
    assert [name.split()[0] for name in DETECTORS] == ["docs/connect.md", "docs/own_data.md"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_python_blocks_run_and_print_what_they_say(published, name, capsys):
    if framework := FRAMEWORK.search(SCRIPTS[name]):
        pytest.importorskip(framework[1], reason=f"{framework[1]} is not installed")
    code = SCRIPTS[name].replace("toponet_nano-1a2b3c4d.pth", str(published))
    exec(compile(code, name, "exec"), {})
    printed = capsys.readouterr().out
    for line in code.splitlines():
        if line.startswith("print("):
            assert line.rpartition("  # ")[2] in printed


@pytest.mark.parametrize("name", CONFIGS)
def test_the_config_block_builds(name, tmp_path):
    config = pytest.importorskip("mmengine.config", reason="needs the mmdet extra").Config
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    path = tmp_path / "my_config.py"
    path.write_text(CONFIGS[name])
    content = config.fromfile(path)
    init_default_scope("mmdet")
    backbone = content.model.backbone
    if backbone.type == "Connected":
        backbone.backbone.init_cfg = None  # a download
        made = MODELS.build(content.model).backbone
        assert sum(wiring.topology.num_edges for wiring in connectivity.wirings(made).values()) == 27
        return
    if isinstance(backbone.pretrained, str):  # a name that stands for a file
        backbone.update(pretrained=None, width=8)
        content.model.neck.in_channels = [16, 32, 64, 128]
    made = MODELS.build(content.model).backbone
    made.init_weights()
    assert type(made).__name__ == "TopoNet"
    assert made.has_weights == (backbone.pretrained is True)


@pytest.mark.parametrize("name", [*PAGES, *(path.name for path in ROOT.glob("*.md") if path.name not in PAGES)])
def test_links_lead_somewhere(name):
    page = re.sub(r"```.*?```", "", (ROOT / name).read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", page):
        path, _, anchor = link.partition("#")
        if path.startswith(("https://", "http://")):
            continue
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, link


def test_files_that_readme_names_exist():
    for path in re.findall(r"(?:configs|tools)/[\w./-]+\.(?:py|yaml)", README):
        assert (ROOT / path).exists(), path


def test_readme_is_one_screen():
    assert len(README.splitlines()) <= 120
