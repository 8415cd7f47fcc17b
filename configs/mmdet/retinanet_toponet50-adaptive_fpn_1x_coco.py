# RetinaNet with the adaptive backbone. MMDetection's 1x, with the learning rate that it gives RetinaNet.
_base_ = [
    "./_base_/models/retinanet_toponet50_fpn.py",
    "mmdet::_base_/datasets/coco_detection.py",
    "./_base_/schedules/schedule_1x.py",
    "./_base_/default_runtime.py",
]

optim_wrapper = dict(optimizer=dict(lr=0.01))

custom_hooks = [*_base_.custom_hooks, dict(type="SparsityHook", kind="adaptive", weight=1e-4)]
