# faster-rcnn_toponet-nano_fpn_bccd.py with MobileNetV2 of half width, whose residual blocks are connected: all edge
# weights 1 at the start, where it computes what MobileNetV2 does, and learned with the adaptive penalty from then on.
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
