# Table 5, ResNet-50, the baseline of the TopoNets. The paper's schedule, Detectron's 1x.
_base_ = [
    "mmdet::_base_/models/faster-rcnn_r50_fpn.py",
    "./_base_/coco_detection_endless.py",
    "./_base_/schedule_detectron-1x.py",
    "./_base_/runtime_iterations.py",
]

model = dict(backbone=dict(norm_cfg=dict(requires_grad=False)))
