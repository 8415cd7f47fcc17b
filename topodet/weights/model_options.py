"""Allowed network descriptions in untrusted files: a timm name, and options that only shape layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from pathlib import Path
from typing import Any

from ..errors import WeightsError

# Sizes, counts, rates and kinds of layers. Other options may refer to files, URLs or code.
_ALLOWED = frozenset(
    """
    act_layer aa_layer always_partition attn_drop attn_drop_rate attn_layer attn_pool base_width block_reduce_first
    cardinality channels class_token conv_bias conv_mlp depth depth_multiplier depths dilations dims downscale_mode drop
    drop_block_rate drop_path drop_path_rate drop_rate dynamic_img_pad dynamic_img_size edge_weights embed_dim
    embed_dims expand_ratio fc_norm fix_stem global_pool group_size head_dim head_dropout head_hidden_size
    head_init_scale head_norm_first img_size in_chans init_values kernel_size kernel_sizes layer_scale_init_value layers
    ls_init_value
    mlp_ratio mlp_ratios no_embed_class nodes norm_eps norm_layer num_features num_heads output_stride patch_padding
    patch_size pos_drop_rate pos_embed proj_drop_rate qk_norm qkv_bias reg_tokens replace_stem_pool rd_ratio
    se_layer se_ratio seed share_rel_pos stem_chs stem_kernel_size stem_norm stem_size stem_stride stem_type
    stem_width strict_img_size strides topology use_grn use_rel_pos width width_multiplier window_ratio window_size
    zero_init_last
    """.split()  # noqa: SIM905 - a list would be a line each
)
MAX_NUMBER = 100_000
# Each unit of these has tensors of its own, so the file limits how many there can be.
_COUNTS = {"depth", "depths", "layers", "nodes"}


def check_network(path: Path, name: Any, options: Any, state_dict: Sized) -> dict[str, Any]:
    """Return the options of the network in a file, if they are safe and in proportion to the file's size.

    Args:
        path: path of the file.
        name: name of the network.
        options: arguments of `timm.create_model` in the file.
        state_dict: the tensors of the file.

    Raises:
        WeightsError: a name with a source ("hf-hub:..."), an option that is not on the allow-list, or more layers than
            the file has tensors.
    """
    if not isinstance(name, str) or ":" in name or "/" in name:
        raise WeightsError(f"{path} is refused: its network {str(name)[:80]} refers to other files")
    if not isinstance(options, Mapping) or not all(isinstance(option, str) for option in options):
        raise WeightsError(f"{path} is damaged: the options of its network are not a dict")
    asked = [option for option in options if option.lower() not in _ALLOWED]
    if asked:
        raise WeightsError(
            f"{path} is refused: its network {name} has options that may refer to other files or to "
            f"code ({', '.join(asked)[:200]}). If you trust it, build the network yourself and use weights.load"
        )
    for option, value in options.items():
        numbers = list(_numbers(value))
        count = sum(numbers) if option.lower() in _COUNTS else 0
        if any(abs(number) > MAX_NUMBER for number in numbers) or count > len(state_dict):
            raise WeightsError(
                f"{path} is refused: its network {name} has {option}={str(value)[:80]}, but the file contains "
                f"{len(state_dict)} tensors"
            )
    return dict(options)


def check_numbers(path: Path, content: Any, limit: float, what: str) -> None:
    """Refuse a part of a file's config with an implausibly large number, because sizes and counts determine memory.

    Raises:
        WeightsError: names the first number beyond `limit`, or one that is NaN.
    """
    for number in _numbers(content):
        if not abs(number) <= limit:
            raise WeightsError(f"{path} is refused: {what} in its config has {number:.6g}; the maximum is {limit:,}")


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _numbers(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _numbers(part)
