# RetinaNet with the adaptive backbone. MMDetection's 1x, with its learning rate for RetinaNet.
_base_ = [
    "./_base_/retinanet_toponet50_fpn.py",
    "mmdet::_base_/datasets/coco_detection.py",
    "./_base_/schedule_1x.py",
    "./_base_/runtime.py",
    "./_base_/toponet_hooks_adaptive.py",
]

optim_wrapper = dict(optimizer=dict(lr=0.01))
