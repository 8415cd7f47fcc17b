# MMDetection's own 1x: 12 epochs, steps at 8 and 11, warm-up over 500 iterations from 0.001, batch 16, lr 0.02.
_base_ = "mmdet::_base_/schedules/schedule_1x.py"

# Decay would pull the edge weights to 0: a penalty of its own, which the paper does not have.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={"wiring.alpha": dict(decay_mult=0.0)}))
