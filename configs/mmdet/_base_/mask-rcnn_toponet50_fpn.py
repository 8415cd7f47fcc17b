# MMDetection's model with toponet50.
_base_ = ["mmdet::_base_/models/mask-rcnn_r50_fpn.py", "./toponet50.py"]

model = dict(backbone=_base_.toponet50, neck=dict(in_channels=_base_.toponet50_channels))
