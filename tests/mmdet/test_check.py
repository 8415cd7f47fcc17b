import copy
import json

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config

from tests.detection import published
from tests.mmdet.helpers import NANO, load, small_config, train
from topodet.errors import ConfigError
from topodet.mmdet import check_detector


@pytest.fixture(scope="module")
def detector_config():
    register_all_modules()
    return Config({"model": load(NANO).model})


def detector(config, options=None, init=False):
    config = copy.deepcopy(config)
    config.merge_from_dict({f"model.{name}": value for name, value in (options or {}).items()})
    model = MODELS.build(config.model)
    if init:
        model.backbone.init_weights()
    return model


def test_accepts_what_fits(detector_config, nano):
    check_detector(detector(detector_config))
    check_detector(detector(detector_config, {"backbone.pretrained": str(nano.pth)}, init=True))
    check_detector(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"neck.in_channels": [256, 512, 1024, 2048]},
            r"FPN has in_channels=\[256, 512, 1024, 2048\], but toponet_nano with out_indices=\(0, 1, 2, 3\) gives "
            r"\[32, 64, 128, 256\]: set model.neck.in_channels=\[32, 64, 128, 256\]",
        ),
        ({"backbone.out_indices": (1, 2, 3)}, r"gives \[64, 128, 256\]"),
    ],
)
def test_names_the_necks_right_channels(detector_config, options, message):
    with pytest.raises(ConfigError, match=message):
        check_detector(detector(detector_config, options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"data_preprocessor.bgr_to_rgb": False},
            "feeds BGR images, the weights were trained on RGB",
        ),
        (
            {"data_preprocessor.mean": [103.53, 116.28, 123.675]},
            r"mean is \[103.53, 116.28, 123.675\], the weights were trained with \[123.675, 116.28, 103.53\]",
        ),
        ({"data_preprocessor.std": [1.0, 1.0, 1.0]}, r"std is \[1.0, 1.0, 1.0\]"),
        ({"data_preprocessor.mean": None, "data_preprocessor.std": None}, "has no mean and std"),
    ],
)
def test_names_both_sides_of_other_preprocessing(detector_config, nano, options, message):
    model = detector(detector_config, {**options, "backbone.pretrained": str(nano.pth)}, init=True)
    with pytest.raises(ConfigError, match=message) as caught:
        check_detector(model)
    assert "mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True" in str(caught.value)


def test_a_detector_within_another_module(detector_config):
    inner = detector(detector_config, {"neck.in_channels": [1, 2, 3, 4]})
    with pytest.raises(ConfigError, match=r"in_channels=\[1, 2, 3, 4\]"):
        check_detector(torch.nn.ModuleDict({"student": inner}))


def test_training_stops_before_its_first_step(digits, nano, tmp_path):
    options = {"model.backbone.pretrained": str(nano.pth), "model.data_preprocessor.bgr_to_rgb": False}
    config = small_config(NANO, digits, tmp_path, options)
    with pytest.raises(ConfigError, match="feeds BGR images"):
        train(config)
    assert not list(tmp_path.glob("*.pth"))


def test_a_card_without_statistics_is_no_disagreement(detector_config, tmp_path):
    files = published(tmp_path, "toponet_nano")
    model = detector(detector_config, {"data_preprocessor.mean": [0.0] * 3, "data_preprocessor.std": [1.0] * 3})
    model.backbone.card = {**json.loads(files.card.read_text()), "mean": None, "std": None}
    check_detector(model)
