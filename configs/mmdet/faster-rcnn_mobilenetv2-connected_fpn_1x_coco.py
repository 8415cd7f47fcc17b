# MobileNetV2 from timm's ImageNet weights, its residual blocks connected, wiring learned with adaptive sparsity in
# fine-tuning. MMDetection's 1x.
_base_ = [
    "mmdet::_base_/models/faster-rcnn_r50_fpn.py",
    "mmdet::_base_/datasets/coco_detection.py",
    "./_base_/schedule_1x.py",
    "./_base_/runtime.py",
    "./_base_/toponet_hooks_adaptive.py",
]

model = dict(
    backbone=dict(
        _delete_=True,
        type="ConnectedTimm",
        name="mobilenetv2_100",
        frozen_stages=1,
        norm_eval=True,
        # timm's; or a published backbone, plain or connected: --cfg-options model.backbone.pretrained=PATH
        pretrained=True,
    ),
    neck=dict(in_channels=[24, 32, 96, 320]),
)
