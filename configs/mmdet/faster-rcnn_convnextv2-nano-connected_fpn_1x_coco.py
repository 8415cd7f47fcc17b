# ConvNeXt V2 Nano from timm's ImageNet weights, its blocks connected, wiring learned with adaptive sparsity in
# fine-tuning. MMDetection's 1x, with its optimizer and warm-up for Swin in 1x; nothing is frozen.
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
        name="convnextv2_nano",
        options=dict(drop_path_rate=0.1),
        # timm's; or a published backbone, plain or connected: --cfg-options model.backbone.pretrained=PATH
        pretrained=True,
    ),
    neck=dict(in_channels=[80, 160, 320, 640]),
)

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="AdamW", lr=0.0001, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
