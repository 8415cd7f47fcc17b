import pytest
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope

from tests.detection import backbone_files, coco, dilated, grey, nano, pruned, write_coco

__all__ = ["backbone_files", "coco", "dilated", "grey", "nano", "pruned"]


@pytest.fixture(autouse=True)
def _scope():
    """A runner without a scope leaves MMEngine's as the default of all that follows."""
    with DefaultScope.overwrite_default_scope("mmdet"):
        yield


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("digits") / "set", classes=tuple("0123456789"))


@pytest.fixture
def log(tmp_path):
    """Return a function for what was logged since the test began."""
    path = tmp_path / "log.txt"
    MMLogger.get_instance(str(tmp_path), log_file=str(path), log_level="INFO")
    return path.read_text
