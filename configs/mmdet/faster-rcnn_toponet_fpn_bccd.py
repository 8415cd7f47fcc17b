# faster-rcnn_toponet-nano_fpn_bccd.py with the backbone of any published file, graphs included, and without a penalty:
# --cfg-options model.backbone.pretrained=FILE model.neck.in_channels=[24,48,96,192] (2, 4, 8 and 16 times its width).
_base_ = ["./faster-rcnn_toponet-nano_fpn_bccd.py"]

model = dict(backbone=dict(arch="pretrained"))
custom_hooks = [dict(type="TopoNetCheckHook"), dict(type="AlphaLogHook")]
