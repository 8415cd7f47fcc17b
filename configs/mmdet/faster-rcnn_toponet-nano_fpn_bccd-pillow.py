# faster-rcnn_toponet-nano_fpn_bccd.py with images resized by Pillow, which smooths when it shrinks, instead of OpenCV,
# which does not: what Detectron2 does, and the reason for most of the difference between the frameworks on this set.
_base_ = "./faster-rcnn_toponet-nano_fpn_bccd.py"

train_pipeline = [dict(step, backend="pillow") if step["type"] == "Resize" else step for step in _base_.train_pipeline]
test_pipeline = [dict(step, backend="pillow") if step["type"] == "Resize" else step for step in _base_.test_pipeline]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
