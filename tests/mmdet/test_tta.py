"""MMDetection's own test-time augmentation around a detector with a TopoNet."""

import copy

import numpy as np
import torch
from mmcv.transforms import Compose
from mmdet.registry import MODELS
from mmengine.config import ConfigDict

from tests.detection import SIZE, noise_images, spread_out
from tests.mmdet.helpers import NANO, load, narrow

PACKED = ("ori_shape", "img_shape", "scale_factor", "flip", "flip_direction")
# As stock test.py --tta has them.
AUGMENTATION = {"nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": 100}
PIPELINE = [
    {"type": "LoadImageFromNDArray"},
    {"type": "Resize", "scale": SIZE, "keep_ratio": True},
    {
        "type": "TestTimeAug",
        "transforms": [
            [{"type": "RandomFlip", "prob": 1.0}, {"type": "RandomFlip", "prob": 0.0}],
            [{"type": "PackDetInputs", "meta_keys": PACKED}],
        ],
    },
]


def test_stock_augmentation(nano):
    """An image and its mirror image are the same two views, so that what is found is the same, mirrored."""
    torch.manual_seed(0)
    config = narrow(copy.deepcopy(load(NANO)), str(nano.pth))
    made = ConfigDict(type="DetTTAModel", tta_cfg=AUGMENTATION, module=config.model)
    model = MODELS.build(made).eval()
    model.module.init_weights()
    pipeline = Compose(PIPELINE)

    def find(image):
        data = pipeline({"img": np.ascontiguousarray(image)})
        with torch.no_grad():
            [found] = model.test_step({key: [[view] for view in values] for key, values in data.items()})
        return found.pred_instances

    spread_out(model.module, find, {"rpn_cls": 3.0, "rpn_reg": 0.3, "fc_cls": 3.0, "fc_reg": 0.5})
    image = noise_images()[0]
    found, mirrored = find(image), find(image[:, ::-1])
    assert len(found) == len(mirrored) > 5
    x1, y1, x2, y2 = mirrored.bboxes.unbind(dim=1)
    torch.testing.assert_close(torch.stack([96 - x2, y1, 96 - x1, y2], dim=1), found.bboxes, rtol=0, atol=1e-3)
    torch.testing.assert_close(mirrored.scores, found.scores, rtol=0, atol=1e-5)
    # Not each view alone.
    with torch.no_grad():
        data = pipeline({"img": image})
        [plain] = model.module.test_step({key: values[1:] for key, values in data.items()})
    assert not torch.equal(plain.pred_instances.scores[: len(found)], found.scores[: len(plain.pred_instances)])
