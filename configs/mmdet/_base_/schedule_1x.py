# MMDetection's own 1x: 12 epochs, steps at 8 and 11, warm-up over 500 iterations from 0.001, batch 16, lr 0.02.
_base_ = "mmdet::_base_/schedules/schedule_1x.py"

# The paper is silent on weight decay of the edge weights. It would pull them to 0 as a penalty of its own does: at 1e-4 an
# edge weight of 1 as hard as the paper's penalty. Here they have none.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={"wiring.alpha": dict(decay_mult=0.0)}))
