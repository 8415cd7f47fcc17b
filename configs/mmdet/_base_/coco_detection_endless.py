# MMDetection's COCO with a sampler that never ends, for schedules that count iterations.
_base_ = "mmdet::_base_/datasets/coco_detection.py"

train_dataloader = dict(sampler=dict(type="InfiniteSampler"))
