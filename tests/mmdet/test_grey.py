"""Images of one channel, in MMDetection: loaded, trained on, published and predicted on."""

import numpy as np
import pytest
from mmdet.apis import inference_detector
from mmengine.runner import Runner
from PIL import Image

from tests.detection import write_coco
from tests.mmdet.helpers import LOADERS, NANO, small_config, train
from topodet import weights
from topodet.datasets.images import read_image, to_grey
from topodet.errors import ConfigError
from topodet.mmdet import load_detector, predict, publish_detector

CLASSES = tuple(map(str, range(10)))


def grey_config(folder, grey, **options):
    coco = write_coco(folder / "set", classes=CLASSES)
    config = small_config(
        NANO,
        coco,
        folder,
        {
            "train_cfg.max_epochs": 1,
            "model.backbone.pretrained": str(grey.pth),
            "model.backbone.in_channels": 1,
            "model.data_preprocessor.mean": [0.4 * 255],
            "model.data_preprocessor.std": [0.25 * 255],
            "model.data_preprocessor.bgr_to_rgb": False,
            **options,
        },
    )
    for loader in LOADERS:
        for step in config[loader].dataset.pipeline:
            if step["type"] == "LoadImageFromFile":
                step["color_type"] = "grayscale"
    return config


def test_a_grey_detector_from_training_to_prediction(tmp_path, grey):
    config = grey_config(tmp_path, grey, **{"model.test_cfg.rcnn.score_thr": 0.0})
    config.dump(tmp_path / "config.py")
    runner = train(config)
    assert runner.model.backbone.stem.conv.in_channels == 1
    published = publish_detector(tmp_path / "epoch_1.pth", tmp_path / "config.py", tmp_path / "published")
    detector = load_detector(published, device="cpu")
    assert (detector.backbone.card["channel_order"], len(detector.backbone.card["mean"])) == ("L", 1)
    file = tmp_path / "set" / "images" / "0.jpg"
    found = predict(detector, read_image(file), score_threshold=0.0)
    assert len(found.scores)
    # What MMDetection reads of a grey file, by its own pipeline.
    Image.fromarray(to_grey(read_image(file))).save(tmp_path / "grey.png")
    model = Runner.from_cfg(config).model
    model.load_state_dict(weights.read_trained(tmp_path / "epoch_1.pth").state_dict)
    model.cfg = config
    expected = inference_detector(model.eval(), str(tmp_path / "grey.png")).pred_instances
    np.testing.assert_allclose(found.scores, expected.scores.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("mean", "words"),
    [
        ([0.5 * 255], r"mean=\[102.0\], std=\[63.75\], bgr_to_rgb=False, and color_type='grayscale'"),
        ([123.675, 116.28, 103.53], "feeds RGB images, the weights were trained on L"),
    ],
)
def test_what_the_weights_were_not_trained_on_is_refused_in_the_words_of_the_config(tmp_path, grey, mean, words):
    options = {"model.data_preprocessor.mean": mean, "model.data_preprocessor.std": [0.25 * 255] * len(mean)}
    config = grey_config(tmp_path, grey, **options, **{"model.data_preprocessor.bgr_to_rgb": len(mean) == 3})
    with pytest.raises(ConfigError, match=words):
        train(config)
