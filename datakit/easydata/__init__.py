"""Sharded sources: files, datasets and what is made of them as named shards of rows, opened at any row.

For training scripts that were written against EasyDeL's EasyData; docs/easydata.md has its names beside ours.
"""

from datakit.easydata.files import (
    ArrowShardedSource,
    CsvShardedSource,
    JsonShardedSource,
    ParquetShardedSource,
    TextShardedSource,
    expand_data_files,
)
from datakit.easydata.making import HFDatasetShardedSource, HuggingFaceShardedSource, create_source
from datakit.easydata.sources import (
    CompositeShardedSource,
    FilteredShardedSource,
    LimitedShardedSource,
    MappedShardedSource,
    ShardedDataSource,
    ShardInfo,
    TransformedShardedSource,
)

__all__ = [
    "ArrowShardedSource",
    "CompositeShardedSource",
    "CsvShardedSource",
    "FilteredShardedSource",
    "HFDatasetShardedSource",
    "HuggingFaceShardedSource",
    "JsonShardedSource",
    "LimitedShardedSource",
    "MappedShardedSource",
    "ParquetShardedSource",
    "ShardInfo",
    "ShardedDataSource",
    "TextShardedSource",
    "TransformedShardedSource",
    "create_source",
    "expand_data_files",
]
