# BCCD, blood cells in COCO format: data/bccd with train.json (292 images), val.json (72) and images/, 640 x 480
# pixels read at 512 x 384. They are the trainval and test lists of github.com/Shenggan/BCCD_Dataset, with boxes as
# COCO JSON. A dataset at another path: --cfg-options for the three data_root and the two ann_file below.
_base_ = [
    "./_base_/faster-rcnn_toponet-nano_fpn.py",
    "./_base_/coco_small.py",
    "./_base_/schedule_1x.py",
    "./_base_/runtime.py",
    "./_base_/toponet_hooks_adaptive.py",
]

data_root = "data/bccd/"
metainfo = dict(classes=("RBC", "WBC", "Platelets"))

model = dict(roi_head=dict(bbox_head=dict(num_classes=3)))

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=(512, 384), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(512, 384), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(
    dataset=dict(data_root=data_root, data_prefix=dict(img="images/"), metainfo=metainfo, pipeline=train_pipeline)
)
val_dataloader = dict(
    dataset=dict(data_root=data_root, data_prefix=dict(img="images/"), metainfo=metainfo, pipeline=test_pipeline)
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "val.json")
test_evaluator = val_evaluator

# The 1x schedule, with lr 0.02 per 16 images and a shorter warm-up: an epoch has 37 iterations.
train_cfg = dict(max_epochs=12)
optim_wrapper = dict(optimizer=dict(lr=0.01))
auto_scale_lr = dict(base_batch_size=8)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=100),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=1))
