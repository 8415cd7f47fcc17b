# The ResNet-50 that the TopoNets are compared with: MMDetection's own config, which reports AP 37.4.
_base_ = "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"
