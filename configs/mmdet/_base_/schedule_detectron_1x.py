# The paper's fine-tuning: Detectron's 1x, 90,000 iterations of 16 images (12.3 epochs), steps at 60,000 and 80,000,
# warm-up over 1000 iterations from 0.001 of the rate. Short side 800 as in MMDetection's own 1x.
_base_ = './schedule_1x.py'
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=90000, val_interval=10000)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', by_epoch=False, begin=0, end=90000, milestones=[60000, 80000], gamma=0.1),
]
