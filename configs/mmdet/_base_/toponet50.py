# The paper's backbone for any detector, set up like MMDetection's ResNet-50: stem and first stage frozen, batch
# normalization with stored statistics.
toponet50 = dict(
    _delete_=True,
    type="TopoNet",
    arch="toponet50",
    frozen_stages=1,
    norm_cfg=dict(type="BN", requires_grad=True),
    norm_eval=True,
    # A published backbone, as path or URL: --cfg-options model.backbone.pretrained=PATH
    pretrained=None,
)
toponet50_channels = [128, 256, 512, 1024]
