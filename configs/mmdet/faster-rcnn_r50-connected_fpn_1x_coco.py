# MMDetection's ResNet-50, connected: the blocks of a stage are the nodes of a graph that starts as the original
# chain. Its wiring is learned with adaptive sparsity in fine-tuning. MMDetection's 1x. To start from a detector that
# was trained without wiring: --cfg-options load_from=PATH
_base_ = [
    "mmdet::_base_/models/faster-rcnn_r50_fpn.py",
    "mmdet::_base_/datasets/coco_detection.py",
    "./_base_/schedule_1x.py",
    "./_base_/runtime.py",
    "./_base_/toponet_hooks_adaptive.py",
]

model = dict(backbone=dict(_delete_=True, type="Connected", backbone=_base_.model.backbone, nodes="auto"))
