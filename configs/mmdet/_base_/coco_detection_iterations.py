# MMDetection's COCO set with a sampler that never ends, as schedules that count iterations need it.
_base_ = 'mmdet::_base_/datasets/coco_detection.py'
train_dataloader = dict(sampler=dict(type='InfiniteSampler', shuffle=True))
