# Table 5, ResNet-50, the baseline of the TopoNets: MMDetection's own config (AP 37.4 there).
_base_ = "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"
