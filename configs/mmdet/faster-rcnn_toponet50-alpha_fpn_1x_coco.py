# Table 5, "complete, alpha": complete graphs, learned edges, no penalty. MMDetection's 1x.
_base_ = [
    "./_base_/models/faster-rcnn_toponet50_fpn.py",
    "mmdet::_base_/datasets/coco_detection.py",
    "./_base_/schedules/schedule_1x.py",
    "./_base_/default_runtime.py",
]
