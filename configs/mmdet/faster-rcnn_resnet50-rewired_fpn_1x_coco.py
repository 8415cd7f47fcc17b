# A rewired ResNet-50 (topodet.models.rewire); the paper rewires only ResNets with BasicBlocks. It is a different
# network from ResNet-50 and must be pretrained itself (topodet pretrain). Adaptive sparsity. MMDetection's 1x.
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
        name="resnet50",
        rewire=True,
        frozen_stages=1,
        norm_eval=True,
        # A published backbone, as path or URL: --cfg-options model.backbone.pretrained=PATH
        pretrained=None,
    ),
)
