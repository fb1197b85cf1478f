"""A worker process: blocks come in on standard input, results go out on standard output.

It is started with this module alone, so it never imports the program that uses datakit, needs no `__main__` guard and
inherits no threads. It ends when its input does, so it cannot outlive a parent that was killed.

The first worker of a pool can multiply: once it has imported and loaded what a run needs, it forks itself, and each
copy serves a pipe of its own. That is done only while it has no threads, which would be missing in the copies.

A message is a JSON header and any number of byte strings, each with its length before it.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from array import array
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import orjson
import pyarrow as pa

from datakit.errors import DatakitError, InternalError, UnreadableInput
from datakit.limit import ROOM, limit_memory
from datakit.output.rowgroup import RowGroup, encode
from datakit.reading import columnar
from datakit.reading.blocks import Block
from datakit.reading.columnar import columns_of, has_structs, layout_of, peek
from datakit.step import Result, StepPlan
from datakit.tally import Tally

if TYPE_CHECKING:
    from datakit.formatter import FormatStep


def _confine() -> None:
    """Limits for a process that runs templates. It may die of one; the pool finds the row that did it."""
    from datakit.templates.environment import deadline

    limit_memory(ROOM)
    deadline.lethal = True


def _of_formatter(name: str) -> Callable[..., Any]:
    """A question that the formatter answers, which is imported for it, under a limit."""

    def ask(*value: Any) -> Any:
        from datakit import formatter

        _confine()
        return getattr(formatter, name)(*value)

    return ask


QUESTIONS: Final[Mapping[str, Callable[..., Any]]] = {
    "layout": layout_of,
    "columns": columns_of,
    "structs": has_structs,
    "peek": peek,
    "probe": _of_formatter("probe"),
    "pieces": _of_formatter("pieces"),
}
"""What a worker is asked about files, templates and tokenizers, which only workers open."""


def write_message(stream: IO[bytes], header: Any, *parts: bytes | memoryview) -> None:
    data = orjson.dumps([header, [len(part) for part in parts]])
    stream.write(len(data).to_bytes(4, "little"))
    stream.write(data)
    for part in parts:
        stream.write(part)
    stream.flush()


def read_message(stream: IO[bytes]) -> tuple[Any, list[bytes]] | None:
    """The next message, or None at the end of the stream."""
    size = stream.read(4)
    if len(size) < 4:
        return None
    header, lengths = orjson.loads(_exactly(stream, int.from_bytes(size, "little")))
    return header, [_exactly(stream, length) for length in lengths]


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


def pack_block(block: Block) -> tuple[dict[str, Any], bytes]:
    names = ("source", "first", "offset", "size", "spans", "rows", "long", "notes", "header", "origins", "where")
    return {name: getattr(block, name) for name in names}, block.payload


def unpack_block(header: dict[str, Any], payload: bytes) -> Block:
    rows, where = header.pop("rows"), header.pop("where")
    return Block(**header, rows=tuple(rows) if rows else None, where=tuple(where) if where else None, payload=payload)


def write_result(stream: IO[bytes], result: Result, schema: pa.Schema) -> None:
    """Send a result, with its batch as the row group that it will be: encoding is work for many."""
    group = None if result.batch is None else _encoded(result.batch, schema)
    first = result.rows[0] if result.rows else 0
    consecutive = not result.rows or result.rows[-1] - first + 1 == len(result.rows) == len(set(result.rows))
    header = {
        "tally": result.tally.to_json(),
        "rejects": result.rejects,
        "wanted": result.wanted,
        "origins": result.origins,
        "rows": [first, len(result.rows)] if consecutive else result.rows,
        "consecutive": consecutive,
        "written": None if group is None else group.rows,
    }
    pages = () if group is None else (group.footer, group.pages)
    write_message(stream, ["ok", header], result.digests, result.conflicts, *pages)


def _encoded(batch: pa.RecordBatch, schema: pa.Schema) -> RowGroup:
    try:
        return encode(batch, schema)
    except MemoryError:
        raise
    except (pa.ArrowException, OSError) as error:  # of the input, these would be its damage
        raise InternalError(f"rows cannot be written: {error}", "Please report this.") from None


def read_result(header: dict[str, Any], parts: list[bytes]) -> Result:
    """The result that an answer holds."""
    digests, conflicts, *encoded = parts
    group = None if header["written"] is None else RowGroup(header["written"], encoded[1], encoded[0])
    rows = header["rows"]
    if header["consecutive"]:
        rows = range(rows[0], rows[0] + rows[1])
    else:  # 4 bytes a row, since they are kept for the time of the run
        rows = array("Q" if max(rows) >= 2**32 else "I", rows)
    tally = Tally.from_json(header["tally"])
    wanted, origins = header["wanted"], header["origins"]
    return Result(None, header["rejects"], tally, digests, conflicts, rows, wanted, origins, group)


def _plan(value: Mapping[str, Any]) -> StepPlan | FormatStep:
    """The plan of the step that this worker runs."""
    if value.get("name") != "format":
        return StepPlan.from_json(value)
    from datakit.formatter import FormatStep

    _confine()
    return FormatStep.from_json(value)


def _alone() -> bool:
    """Whether this process can be forked, since all its other threads belong to libraries that see to that themselves.

    Those are one of the allocator and, once a Parquet file was read, the one that Arrow reads with (ARROW_IO_THREADS).
    Any other may be one that a tokenizer waits for, and would be missing in the copies.
    """
    names = [(task / "comm").read_text("utf-8").strip() for task in Path("/proc/self/task").iterdir()]
    return sum(name != "jemalloc_bg_thd" for name in names) <= 1 + columnar.has_read()


def _fork(siblings: list[int]) -> list[int] | tuple[int, int]:
    """The pids of copies of this process, one for each pair of pipe ends; in a copy, its pair.

    No copies, and an empty list, where there are threads.
    """
    if not _alone():
        return []
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them here
    pids: list[int] = []
    for at in range(0, len(siblings), 2):
        pid = os.fork()
        if not pid:
            own = siblings[at : at + 2]
            for end in siblings:
                if end not in own:
                    os.close(end)
            return own[0], own[1]
        pids.append(pid)
    return pids


def main(siblings: str = "") -> None:
    """Serve requests until the input ends.

    Args:
        siblings: ends of pipes, two for each worker that may be forked off this one: its input and its output.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    sink = os.dup(1)
    os.dup2(2, 1)  # nothing that a library prints may end up among the results
    _serve(sys.stdin.buffer, os.fdopen(sink, "wb", buffering=1 << 20), [int(end) for end in siblings.split(",") if end])


def _serve(source: IO[bytes], sink: IO[bytes], siblings: list[int]) -> None:
    run: Callable[[Block], Result] | None = None
    schema = pa.schema([])
    while (message := read_message(source)) is not None:
        (request, value), parts = message
        try:
            if request in QUESTIONS:
                write_message(sink, ["ok", QUESTIONS[request](*value)])
            elif request == "plan":
                plan = _plan(value)
                run, schema = plan.start(), plan.schema()
                write_message(sink, ["ok", None])
            elif request == "fork":
                made = _fork(siblings)
                if isinstance(made, tuple):
                    source.close()
                    sink.close()
                    source, sink = os.fdopen(made[0], "rb", 1 << 20), os.fdopen(made[1], "wb", 1 << 20)
                else:
                    for end in siblings:
                        os.close(end)
                    write_message(sink, ["ok", made])
                siblings = []
            elif run is not None:
                write_result(sink, run(unpack_block(value, parts[0])), schema)
        except BrokenPipeError:
            return
        except MemoryError:
            os._exit(1)  # the pool finds the row that does this
        except DatakitError as error:
            write_message(sink, ["refused", [type(error).__name__, error.message, error.hint]])
        except (pa.ArrowException, OSError) as error:
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            write_message(sink, ["refused", [UnreadableInput.__name__, text, "Fetch or write the file again."]])
        except Exception:
            write_message(sink, ["failed", traceback.format_exc()])
