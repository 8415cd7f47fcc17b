# MMDetection's own 1x: 12 epochs, steps after 8 and 11, warm-up over 500 iterations, 16 images an iteration.
_base_ = 'mmdet::_base_/schedules/schedule_1x.py'
# Decay would draw the edge weights to 0, which is the penalty's business.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'wiring.alpha': dict(decay_mult=0.0)}))
