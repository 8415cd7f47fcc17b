# Cascade R-CNN with the adaptive backbone. MMDetection's 1x.
_base_ = [
    "./_base_/cascade-rcnn_toponet50_fpn.py",
    "mmdet::_base_/datasets/coco_detection.py",
    "./_base_/schedule_1x.py",
    "./_base_/runtime.py",
    "./_base_/toponet_hooks_adaptive.py",
]
