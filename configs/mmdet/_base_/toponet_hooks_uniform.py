# toponet_hooks.py, with the uniform sparsity penalty continued in fine-tuning.
_base_ = "./toponet_hooks.py"

custom_hooks = [*_base_.custom_hooks, dict(type="SparsityHook", kind="uniform", weight=1e-4)]
