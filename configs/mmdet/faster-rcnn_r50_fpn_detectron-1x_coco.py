# Table 5's baseline with the paper's schedule: Detectron's 1x.
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    './_base_/coco_detection_iterations.py',
    './_base_/schedule_detectron_1x.py',
    './_base_/runtime_iterations.py',
]
