# What every TopoNet config adds to MMDetection's runtime: the registration, the check of the detector against its
# backbone, the record of the edge weights, TensorBoard.
_base_ = "mmdet::_base_/default_runtime.py"

custom_imports = dict(imports=["topodet.mmdet"], allow_failed_imports=False)

custom_hooks = [
    dict(type="TopoNetCheckHook"),
    dict(type="AlphaLogHook", interval=1),
]

vis_backends = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
visualizer = dict(vis_backends=vis_backends)
