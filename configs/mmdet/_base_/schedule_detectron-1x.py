# The paper's fine-tuning, Detectron's 1x of 2018: 90,000 iterations of 16 images (12.3 epochs), steps at 60,000 and
# 80,000, warm-up over 500 iterations from a third of the rate. MMDetection's 1x has 12 epochs, steps at 8 and 11
# (58,600 and 80,600), and 500 iterations of warm-up from 0.001; Detectron2 has 1000 from there. Detectron also
# freezes scale and shift of batch normalization (`requires_grad=False` in the configs). Images are the same in both:
# short side 800, at most 1333, only flips. Losses, proposals and RoIAlign are MMDetection's in both.
_base_ = "./schedule_1x.py"

train_cfg = dict(_delete_=True, type="IterBasedTrainLoop", max_iters=90000, val_interval=10000)
param_scheduler = [
    dict(type="LinearLR", start_factor=1 / 3, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", by_epoch=False, begin=0, end=90000, milestones=[60000, 80000], gamma=0.1),
]
