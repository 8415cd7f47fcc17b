# Table 5, "complete, alpha, uniform": complete graphs, learned edges, uniform sparsity. MMDetection's 1x.
_base_ = [
    "./_base_/faster-rcnn_toponet50_fpn.py",
    "mmdet::_base_/datasets/coco_detection.py",
    "./_base_/schedule_1x.py",
    "./_base_/runtime.py",
    "./_base_/toponet_hooks_uniform.py",
]
