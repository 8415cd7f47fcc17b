# RTMDet-tiny with a connected ResNet-50 as backbone and adaptive sparsity. MMDetection's 300 epochs.
_base_ = "mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py"

# As _base_/toponet_hooks_adaptive.py; RTMDet has hooks of its own.
custom_imports = dict(imports=["topodet.mmdet"], allow_failed_imports=False)
custom_hooks = [
    *_base_.custom_hooks,
    dict(type="TopoNetCheckHook"),
    dict(type="AlphaLogHook"),
    dict(type="SparsityHook", kind="adaptive", weight=1e-4),
]

model = dict(
    # RTMDet's own backbone reads BGR.
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    backbone=dict(
        _delete_=True,
        type="Connected",
        nodes="auto",
        backbone=dict(
            type="ResNet",
            depth=50,
            out_indices=(1, 2, 3),
            norm_cfg=dict(type="SyncBN"),
            norm_eval=False,
            style="pytorch",
            init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet50"),
        ),
    ),
    neck=dict(in_channels=[512, 1024, 2048]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={"wiring.alpha": dict(decay_mult=0.0)}))
auto_scale_lr = dict(base_batch_size=256)
vis_backends = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
visualizer = dict(vis_backends=vis_backends)
