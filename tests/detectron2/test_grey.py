"""Images of one channel, in Detectron2: loaded, trained on, published and predicted on."""

import numpy as np
import pytest
import torch

from tests.detectron2.helpers import CLASSES, small_config, trainable_config
from topodet.datasets.images import read_image, to_grey
from topodet.detectron2 import Trainer, load_detector, predict, publish_detector
from topodet.errors import ConfigError

GREY = {"INPUT__FORMAT": "L", "MODEL__PIXEL_MEAN": [0.4 * 255], "MODEL__PIXEL_STD": [0.25 * 255]}


def test_a_grey_detector_from_training_to_prediction(tmp_path, coco, grey):
    cfg = trainable_config(coco, tmp_path / "run", MODEL__TOPONET__PRETRAINED=str(grey.pth), **GREY)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(cfg.dump())
    trainer = Trainer(cfg)
    trainer.train()
    assert trainer.model.backbone.bottom_up.stem.conv.in_channels == 1
    run = tmp_path / "run"
    published = publish_detector(run / "model_final.pth", run / "config.yaml", tmp_path / "published", classes=CLASSES)
    detector = load_detector(published, device="cpu", score_threshold=0.0)
    image = read_image(coco / "images" / "0.jpg")
    found = predict(detector, image, score_threshold=0.0)
    assert len(found.scores)
    # The model itself on the brightness of the image, resized as the predictor does.
    resized = detector.aug.get_transform(image).apply_image(to_grey(image)[:, :, None])
    pixels = torch.as_tensor(resized.astype("float32").transpose(2, 0, 1))
    with torch.no_grad():
        height, width = image.shape[:2]
        (expected,) = trainer.model.eval()([{"image": pixels, "height": height, "width": width}])
    kept = expected["instances"].scores.numpy()
    np.testing.assert_allclose(found.scores[: len(kept)], kept, rtol=1e-4, atol=1e-5)


def test_color_for_a_grey_backbone_is_refused_in_the_words_of_the_config(tmp_path, coco, grey):
    changes = {**GREY, "MODEL__PIXEL_MEAN": [0.5 * 255], "MODEL__TOPONET__PRETRAINED": str(grey.pth)}
    with pytest.raises(ConfigError, match=r"INPUT.FORMAT L, MODEL.PIXEL_MEAN \[102.0\], MODEL.PIXEL_STD \[63.75\]"):
        Trainer(small_config(**changes))
