# MMDetection's Faster R-CNN with FPN; stem and first stage frozen, batch norm statistics fixed, as for ResNet-50 there.
_base_ = 'mmdet::_base_/models/faster-rcnn_r50_fpn.py'
model = dict(
    backbone=dict(_delete_=True, type='TopoNet', arch='toponet50', frozen_stages=1, norm_eval=True, pretrained=None),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
