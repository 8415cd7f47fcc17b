# faster-rcnn_toponet-nano_fpn_bccd.py with images resized by Pillow, as in Detectron2, instead of OpenCV. Only Pillow
# smooths when shrinking, which explains most of the difference between the frameworks on this dataset.
_base_ = "./faster-rcnn_toponet-nano_fpn_bccd.py"

train_pipeline = [dict(step, backend="pillow") if step["type"] == "Resize" else step for step in _base_.train_pipeline]
test_pipeline = [dict(step, backend="pillow") if step["type"] == "Resize" else step for step in _base_.test_pipeline]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
