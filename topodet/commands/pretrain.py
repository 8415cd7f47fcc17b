"""Train an image classifier on an image folder, arrays or any dataset of timm's, with or without learned edges."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def parser() -> argparse.ArgumentParser:
    from topodet.pretrain.command_line import build_parser

    return build_parser()


def main(words: Sequence[str]) -> int:
    from topodet import pretrain

    return pretrain.main(words)
