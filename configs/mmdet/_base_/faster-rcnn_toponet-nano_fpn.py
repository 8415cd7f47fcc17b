# A small Faster R-CNN with FPN for images of a few hundred pixels and machines without a GPU. Everything is trained,
# including batch normalization statistics: small datasets differ from the pretraining data, and the same config
# trains from random initialization (pretrained=None).
_base_ = "mmdet::_base_/models/faster-rcnn_r50_fpn.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="TopoNet",
        arch="toponet_nano",
        frozen_stages=-1,
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=False,
        # A published backbone, as path or URL: --cfg-options model.backbone.pretrained=PATH
        pretrained=None,
    ),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64),
    roi_head=dict(
        # sampling_ratio=0 samples each pixel of a large box, which takes half of the time on a CPU.
        bbox_roi_extractor=dict(out_channels=64, roi_layer=dict(sampling_ratio=2)),
        bbox_head=dict(in_channels=64, fc_out_channels=256),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=400, max_per_img=200), rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(nms_pre=400, max_per_img=200)),
)
