# MMDetection's DINO with toponet50, and adaptive sparsity. MMDetection's 12 epochs.
_base_ = ["mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py", "./_base_/toponet_hooks_adaptive.py"]

model = dict(
    backbone=dict(
        _delete_=True,
        type="TopoNet",
        arch="toponet50",
        out_indices=(1, 2, 3),
        frozen_stages=1,
        norm_eval=True,
        # A published backbone: --cfg-options model.backbone.pretrained=PATH
        pretrained=None,
    ),
    neck=dict(in_channels=[256, 512, 1024]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={"wiring.alpha": dict(decay_mult=0.0, lr_mult=0.1)}))
vis_backends = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
visualizer = dict(vis_backends=vis_backends)
