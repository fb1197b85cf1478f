"""Datasets of the Hugging Face library as sharded sources, and a source by what its files are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Final

from datakit.easydata.files import (
    ArrowShardedSource,
    CsvShardedSource,
    DataFiles,
    JsonShardedSource,
    Options,
    ParquetShardedSource,
    TextShardedSource,
    expand_data_files,
    type_of,
)
from datakit.easydata.sources import CompositeShardedSource, Row, ShardedDataSource, ShardInfo
from datakit.errors import UsageError

CLASSES: Final[Mapping[str, Callable[..., ShardedDataSource]]] = {
    "parquet": ParquetShardedSource,
    "json": JsonShardedSource,
    "csv": CsvShardedSource,
    "arrow": ArrowShardedSource,
    "txt": TextShardedSource,
}
ALSO: Final = {"jsonl": "json", "text": "txt", "pq": "parquet"}


class HFDatasetShardedSource(ShardedDataSource):
    """A `datasets.Dataset` or `IterableDataset` as one shard."""

    def __init__(self, dataset: Any, name: str | None = None) -> None:
        self.dataset, self.name = dataset, name or "dataset"

    @property
    def shard_names(self) -> Sequence[str]:
        return [self.name]

    def open_shard(self, shard_name: str) -> Iterator[Row]:
        return self.open_shard_at_row(shard_name, 0)

    def open_shard_at_row(self, shard_name: str, row: int) -> Iterator[Row]:
        self._number(shard_name)
        if row < 0:
            raise UsageError(f"row {row} of shard {shard_name}", "Rows are counted from 0.")
        count = self._count()
        if count is not None and row >= count:
            return iter(())
        return iter(self.dataset.skip(row) if row else self.dataset)

    def get_shard_info(self, shard_name: str) -> ShardInfo:
        return ShardInfo(self._number(shard_name), shard_name, self._count())

    def _count(self) -> int | None:
        return len(self.dataset) if hasattr(self.dataset, "__len__") else None


class HuggingFaceShardedSource(HFDatasetShardedSource):
    """A dataset by its name on the Hub, or by the path of one; loaded when its first row is wanted."""

    def __init__(
        self,
        dataset_name: str,
        split: str = "train",
        subset: str | None = None,
        streaming: bool = True,
        cache_dir: str | None = None,
    ) -> None:
        self.name = f"{dataset_name}:{split}"
        self._how = {
            "path": dataset_name,
            "name": subset,
            "split": split,
            "streaming": streaming,
            "cache_dir": cache_dir,
        }

    @cached_property
    def dataset(self) -> Any:
        """What `datasets.load_dataset` gives."""
        try:
            import datasets
        except ImportError:
            raise UsageError(f"{self.name} needs `datasets`", "pip install 'datakit-trainglue[hf]'") from None
        return datasets.load_dataset(**self._how)


def create_source(
    data_files: DataFiles, type: str | None = None, storage_options: Options | None = None
) -> ShardedDataSource:
    """A source for files of one kind or of several, or for `hf:NAME`.

    Args:
        data_files: as in `expand_data_files`; or `hf:NAME` for a dataset on the Hub.
        type: parquet, json (jsonl), csv, arrow or txt for all files; by default each by its suffix.
        storage_options: for fsspec.

    Raises:
        UnreadableInput: nothing is there.
        UsageError: a file's suffix does not say what it is, or there is no such type.
    """
    if isinstance(data_files, str) and data_files.startswith("hf:"):
        return HuggingFaceShardedSource(data_files.removeprefix("hf:"))
    kind = None if type is None else ALSO.get(type, type)
    if kind is not None and kind not in CLASSES:
        raise UsageError(f"type {type!r}", f"There are {', '.join((*CLASSES, *ALSO))}.")
    groups: list[tuple[str, list[str]]] = []
    for name in expand_data_files(data_files, storage_options):
        own = kind or type_of(name)
        if own is None:
            raise UsageError(f"{name}: its suffix does not say what it is", f"Say it: type={next(iter(CLASSES))!r}.")
        if not groups or groups[-1][0] != own:
            groups.append((own, []))
        groups[-1][1].append(name)
    sources = [CLASSES[own](names, storage_options) for own, names in groups]
    return sources[0] if len(sources) == 1 else CompositeShardedSource(sources)
