# faster-rcnn_mobilenetv2-connected_fpn_bccd.py without edges: timm's MobileNetV2 of half width, from the same weights.
_base_ = "./faster-rcnn_mobilenetv2-connected_fpn_bccd.py"

model = dict(backbone=dict(wiring="none"))
custom_hooks = [hook for hook in _base_.custom_hooks if hook["type"] == "TopoNetCheckHook"]
