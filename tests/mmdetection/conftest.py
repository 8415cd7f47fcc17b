import pytest
from mmengine.logging import MMLogger

from tests.mmdetection.helpers import published, write_coco


@pytest.fixture(scope="session")
def coco(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("coco") / "set")


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("digits") / "set", classes=tuple("0123456789"))


@pytest.fixture(scope="session")
def nano(tmp_path_factory):
    return published(tmp_path_factory.mktemp("nano"), "toponet_nano")


@pytest.fixture(scope="session")
def backbone_files(tmp_path_factory):
    """Return a published file for an architecture, made once."""
    made = {}

    def get(arch):
        if arch not in made:
            made[arch] = published(tmp_path_factory.mktemp(arch), arch).pth
        return made[arch]

    return get


@pytest.fixture
def log(tmp_path):
    """Return a function for what was logged since the test began."""
    path = tmp_path / "log.txt"
    MMLogger.get_instance(str(tmp_path), log_file=str(path), log_level="INFO")
    return path.read_text
