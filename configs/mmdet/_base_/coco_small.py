# A small dataset in COCO format: train.json and val.json under its data_root, eight images per batch. Configs that
# inherit it set data_root, metainfo, image folders and pipelines. The annotation files are checked as by `topodet
# check-coco` before they are read.
_base_ = "mmdet::_base_/datasets/coco_detection.py"

dataset_type = "CheckedCocoDataset"
train_dataloader = dict(batch_size=8, num_workers=1, dataset=dict(type=dataset_type, ann_file="train.json"))
val_dataloader = dict(batch_size=8, num_workers=1, dataset=dict(type=dataset_type, ann_file="val.json"))
test_dataloader = val_dataloader
