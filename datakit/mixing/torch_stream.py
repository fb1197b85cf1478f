"""A stream as a torch dataset. Imported where it is asked for, since it needs torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch.utils.data import IterableDataset, get_worker_info

if TYPE_CHECKING:
    from datakit.mixing.streaming import Stream


class TorchStream(IterableDataset[dict[str, Any]]):
    """Gives the rows of a stream, and in each worker of a `DataLoader` a part of them.

    Every iteration begins at the position of the stream, so that a second epoch has rows too.

    `state_dict` and `load_state_dict` are those of the stream, as torchdata's `StatefulDataLoader` wants them. Without
    it, and with workers, count the rows that training has taken and set `position`.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._part = stream

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        ranks = self.stream.world_size
        self._part = self.stream.part(self.stream.rank + ranks * worker, ranks * workers)
        yield from self._part

    def __len__(self) -> int:
        return len(self.stream)

    def state_dict(self) -> dict[str, Any]:
        return self._part.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stream.load_state_dict(state)
