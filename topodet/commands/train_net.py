"""Train a detector with Detectron2, like its own train_net.py, from a config with a topodet backbone.

The command line is Detectron2's: --config-file, --num-gpus, --num-machines, --dist-url, --resume, --eval-only and KEY
VALUE pairs at the end. In addition, --dataset registers your own COCO-format dataset, and --epochs sets the training
length in epochs.

topodet train-net --config-file CONFIG.yaml --dataset mine_train train.json images/ --dataset mine_val val.json images/
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from topodet.commands import make_parser
from topodet.frameworks import require_framework


def parser() -> argparse.ArgumentParser:
    require_framework("detectron2")
    from topodet.detectron2.train_net import parser

    return make_parser(__name__, __doc__, parents=[parser()], add_help=False, conflict_handler="resolve")


def main(words: Sequence[str]) -> None:
    args = parser().parse_args(words)
    from topodet.detectron2.train_net import start

    start(args)
