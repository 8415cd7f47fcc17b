# Scenes of handwritten digits, 192 x 192, from tools/quickstart.py (topodet.datasets.digits): 10 classes in COCO
# format. A dataset at another path: --cfg-options for the three data_root and the two ann_file below.
_base_ = [
    "./_base_/faster-rcnn_toponet-nano_fpn.py",
    "./_base_/coco_small.py",
    "./_base_/schedule_1x.py",
    "./_base_/runtime.py",
    "./_base_/toponet_hooks_adaptive.py",
]

data_root = "runs/quickstart/scenes/"
metainfo = dict(classes=("0", "1", "2", "3", "4", "5", "6", "7", "8", "9"))

# Digits are 18 to 68 pixels large, so anchors start at 20. A scene has at most six.
# Half the channels of the base config, to save time on a CPU.
model = dict(
    neck=dict(out_channels=32),
    rpn_head=dict(in_channels=32, feat_channels=32, anchor_generator=dict(scales=[5])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32),
        bbox_head=dict(in_channels=32, num_classes=10),
    ),
    train_cfg=dict(rcnn=dict(sampler=dict(num=32))),
)

# No flips: a mirrored digit is another shape.
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=(192, 192), keep_ratio=True),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(192, 192), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(
    dataset=dict(data_root=data_root, data_prefix=dict(img="train/"), metainfo=metainfo, pipeline=train_pipeline)
)
val_dataloader = dict(
    dataset=dict(data_root=data_root, data_prefix=dict(img="val/"), metainfo=metainfo, pipeline=test_pipeline)
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "val.json")
test_evaluator = val_evaluator

# The 1x schedule scaled down: 6 epochs of 320 scenes, steps at 8/12 and 11/12, lr 0.02 per 16 images. MultiStepLR would
# miss a step that falls between two iterations; ConstantLR begins with the first of them, and its end is never reached.
train_cfg = dict(max_epochs=6, val_interval=2)  # an evaluation takes a sixth of an epoch's time
optim_wrapper = dict(optimizer=dict(lr=0.01))
auto_scale_lr = dict(base_batch_size=8)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=50),
    dict(type="ConstantLR", factor=0.1, by_epoch=True, convert_to_iter_based=True, begin=4, end=10**6),
    dict(type="ConstantLR", factor=0.1, by_epoch=True, convert_to_iter_based=True, begin=5.5, end=10**6),
]
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=1))
