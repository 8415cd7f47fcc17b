# runtime.py for schedules in iterations.
_base_ = "./runtime.py"

default_hooks = dict(checkpoint=dict(by_epoch=False, interval=10000))
log_processor = dict(by_epoch=False)
