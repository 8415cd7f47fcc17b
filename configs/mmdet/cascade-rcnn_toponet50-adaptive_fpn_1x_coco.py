# Cascade R-CNN with the adaptive backbone. MMDetection's 1x.
_base_ = [
    "./_base_/models/cascade-rcnn_toponet50_fpn.py",
    "mmdet::_base_/datasets/coco_detection.py",
    "./_base_/schedules/schedule_1x.py",
    "./_base_/default_runtime.py",
]

custom_hooks = [*_base_.custom_hooks, dict(type="SparsityHook", kind="adaptive", weight=1e-4)]
