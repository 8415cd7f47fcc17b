# MMDetection's DINO with a connected ResNet-50 and adaptive sparsity. MMDetection's 12 epochs. To start from a
# detector that was trained without wiring: --cfg-options load_from=PATH
_base_ = ["mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py", "./_base_/toponet_hooks_adaptive.py"]

model = dict(backbone=dict(_delete_=True, type="Connected", backbone=_base_.model.backbone, nodes="auto"))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={"wiring.alpha": dict(decay_mult=0.0, lr_mult=0.1)}))
vis_backends = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
visualizer = dict(vis_backends=vis_backends)
