# MMDetection's model; stem and first stage frozen and batch normalisation at its stored statistics, as for ResNet-50.
_base_ = "mmdet::_base_/models/cascade-rcnn_r50_fpn.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="TopoNet",
        arch="toponet50",
        frozen_stages=1,
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=True,
        # A published backbone, as path or URL: --cfg-options model.backbone.pretrained=PATH
        pretrained=None,
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
