"""Features from one layout to another."""

from __future__ import annotations

from functools import cache

from crisscross.kernels.configuration import Configuration
from crisscross.kernels.engine import Engine
from crisscross.kernels.geometry import merge_positions
from crisscross.kernels.launch import Block, launch_strips
from crisscross.view import ITEM_BYTES, View

_CHANNELS, _RUN_BYTES, _THREADS = 32, 512, 256  # as in copy_features.cu


@cache
def configure_copy(from_dtype: str, to_dtype: str) -> Configuration:
    """Return the configuration that copies, and rounds where the dtypes differ."""
    return Configuration("copy_features", to_dtype, partial_dtype=from_dtype)


def copy_features(engine: Engine, source: View, target: View) -> None:
    """Copy features (N, heads, *S, D) into another array, whatever the strides of both."""
    source, target = merge_positions(source, target)
    channels = source.shape[-1]
    channel_tiles = -(-channels // _CHANNELS)
    launch_strips(
        engine,
        configure_copy(source.dtype, target.dtype),
        len(source.shape) - 4,  # the last one
        {"from": source, "to": target},
        {
            "channels": channels,
            "channel_tiles": channel_tiles,
            "reads_along_positions": is_along_positions(source),
            "writes_along_positions": is_along_positions(target),
        },
        block=Block(_RUN_BYTES // ITEM_BYTES[source.dtype], _THREADS, share=channel_tiles),
    )


def is_along_positions(view: View) -> bool:
    """Whether neighbours in memory are positions (of the last axis) rather than channels."""
    return abs(view.strides[-2]) < abs(view.strides[-1])
