"""Detectron2's own test-time augmentation around a detector with a TopoNet."""

import numpy as np
import torch
from detectron2.modeling import GeneralizedRCNNWithTTA

from tests.detection import noise_images, spread_out
from tests.detectron2.helpers import CLASSES, small_config, write_run
from topodet.detectron2 import load_detector


def test_stock_augmentation(nano, tmp_path):
    """An image and its mirror image are the same two views, so that what is found is the same, mirrored."""
    torch.manual_seed(0)
    folder = write_run(tmp_path, nano)
    changes = {"TEST__AUG__MIN_SIZES": [64], "TEST__AUG__MAX_SIZE": 96}
    cfg = small_config(**changes)
    made = load_detector(folder / "model_final.pth", config=cfg, classes=CLASSES, device="cpu")
    spread_out(made.model, made, {"objectness_logits": 3.0, "cls_score": 3.0, "bbox_pred": 0.5})
    model = GeneralizedRCNNWithTTA(made.cfg, made.model)

    def find(image):
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        with torch.no_grad():
            return model([{"image": pixels, "height": 64, "width": 96}])[0]["instances"]

    image = noise_images()[0]
    found, mirrored = find(image), find(image[:, ::-1])
    assert len(found) == len(mirrored) > 5
    x1, y1, x2, y2 = mirrored.pred_boxes.tensor.unbind(dim=1)
    expected = torch.stack([96 - x2, y1, 96 - x1, y2], dim=1)
    torch.testing.assert_close(expected, found.pred_boxes.tensor, rtol=0, atol=1e-3)
    torch.testing.assert_close(mirrored.scores, found.scores, rtol=0, atol=1e-5)
    plain = made(image[:, :, ::-1])["instances"]  # not each view alone
    assert not torch.equal(plain.scores[: len(found)], found.scores[: len(plain)])
