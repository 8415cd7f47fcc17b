# faster-rcnn_toponet-nano_fpn_bccd.py with MobileNetV2 of half width and connected residual blocks. All edge weights
# start at 1, where the output equals MobileNetV2's, and are learned with the adaptive penalty.
# faster-rcnn_mobilenetv2_fpn_bccd.py is the same without edges.
_base_ = "./faster-rcnn_toponet-nano_fpn_bccd.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="ConnectedTimm",
        name="mobilenetv2_050",
        wiring="learned",
        frozen_stages=-1,
        norm_eval=False,
        # A published backbone, plain or connected, as path or URL: --cfg-options model.backbone.pretrained=PATH
        pretrained=None,
    ),
    neck=dict(in_channels=[16, 16, 48, 160]),
)
