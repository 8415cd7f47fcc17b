"""timm's interface for classifiers with sequential stages, shared by all networks of this package."""

# No `annotations` from __future__: torch.fx copies those of `forward` into its graphs, and pickles only types.
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from timm.layers import ClassifierHead
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ..errors import ConfigError, unknown_name
from .trunk import init_weights

# The pooling types of timm's SelectAdaptivePool2d besides "".
POOLINGS = ("avg", "avgmax", "catavgmax", "fast", "fastavg", "fastavgmax", "fastcatavgmax", "fastmax", "max")


def make_head(in_features: int, num_classes: int, *, pool_type: str, **options: Any) -> ClassifierHead:
    """Return timm's head: pooling, dropout and a linear layer.

    Raises:
        ConfigError: a classifier without pooling, or a pooling that timm does not know.
    """
    check_pooling(num_classes, pool_type)
    return ClassifierHead(in_features, num_classes, pool_type=pool_type, **options)


def check_pooling(num_classes: int, pool_type: str) -> None:
    """Refuse a classifier without pooling.

    Raises:
        ConfigError: there are classes and no pooling, or a pooling that timm does not know.
    """
    if num_classes and not pool_type:
        raise ConfigError(
            f"global_pool={pool_type!r} with {num_classes} classes: the classifier needs pooled features. Give "
            "global_pool='avg', or num_classes=0 for the feature map itself"
        )
    if pool_type and pool_type not in POOLINGS:
        raise ConfigError(unknown_name("global_pool", pool_type, POOLINGS))


class StagedClassifier(nn.Module, ABC):
    """Stages in series and a head: [B, in_chans, H, W] to [B, num_classes].

    Subclasses build them and implement iteration over the stages (`stage_features`) and dropping the last ones
    (`keep_stages`).

    Attributes:
        head: pooling, dropout and the classifier.
        num_classes: outputs of the classifier.
        in_chans: channels of the image.
        num_features, head_hidden_size: channels of the last stage.
        feature_info: timm's description of each stage: channels, stride, name of the module.
    """

    head: ClassifierHead
    in_chans: int
    num_classes: int
    num_features: int
    head_hidden_size: int
    feature_info: list[dict[str, Any]]

    @abstractmethod
    def stage_features(self, x: Tensor) -> Iterator[Tensor]:
        """Yield each stage's feature map in turn; stages after the last one requested are not computed."""

    @abstractmethod
    def keep_stages(self, count: int) -> None:
        """Drop the stages after the first `count`."""

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last stage's feature map, [B, num_features, H / stride, W / stride]."""
        for features in self.stage_features(x):
            last = features
        return last

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify a feature map; with `pre_logits` only pool."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, num_classes]."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the feature maps of the stages in `indices`, and the final one unless `intermediates_only`.

        `norm` is accepted for compatibility with timm: there is no layer between the last stage and the pooling.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r}: {type(self).__name__} returns NCHW feature maps only")
        take, last = feature_take_indices(len(self.feature_info), indices)
        intermediates = []
        for k, x in enumerate(self.stage_features(x)):  # noqa: B020
            if k in take:
                intermediates.append(x)
            if stop_early and k == last:
                break
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last of `indices`, and the classifier if `prune_head`; return the indices.

        If stages are dropped, so is the classifier, because its input no longer exists. A new one reads the last
        remaining stage.
        """
        stages = len(self.feature_info)
        take, last = feature_take_indices(stages, indices)
        self.feature_info = self.feature_info[: last + 1]
        self.keep_stages(last + 1)
        self.num_features = self.head_hidden_size = self.feature_info[-1]["num_chs"]
        if prune_head or last + 1 < stages:
            self.reset_classifier(0, "")
        return take

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the linear layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one with `num_classes` outputs, on the network's device and dtype.

        `global_pool` is timm's pooling type; None keeps the current one.

        Raises:
            ConfigError: see `check_pooling`.
        """
        check_pooling(num_classes, self.head.global_pool.pool_type if global_pool is None else global_pool)
        like = next(self.parameters())
        self.num_classes = num_classes
        self.head.in_features = self.num_features
        with torch.device(like.device):
            self.head.reset(num_classes, pool_type=global_pool)
        init_weights(self.head)
        self.head.to(dtype=like.dtype)
