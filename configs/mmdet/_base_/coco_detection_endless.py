# MMDetection's COCO with an infinite sampler, for schedules in iterations.
_base_ = "mmdet::_base_/datasets/coco_detection.py"

train_dataloader = dict(sampler=dict(type="InfiniteSampler"))
