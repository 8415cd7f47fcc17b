import pytest
from mmengine.logging import MMLogger

from tests.detection import backbone_files, coco, nano, pruned, write_coco

__all__ = ["backbone_files", "coco", "nano", "pruned"]


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("digits") / "set", classes=tuple("0123456789"))


@pytest.fixture
def log(tmp_path):
    """Return a function for what was logged since the test began."""
    path = tmp_path / "log.txt"
    MMLogger.get_instance(str(tmp_path), log_file=str(path), log_level="INFO")
    return path.read_text
