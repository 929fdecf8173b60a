"""Rows of columnar files: Parquet, and Arrow IPC files and streams (what `datasets` writes), a few megabytes at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from slayer.data.document import BadRecord
from slayer.data.reading.fields import Reading
from slayer.data.reading.files import ARROW_MAGIC, Slice
from slayer.data.reading.line_rows import Row
from slayer.data.reading.lines import BLOCK_BYTES, Damage, attempt, guarded

BATCH_BYTES = 4 << 20
"""Columns become Python values in stretches of about this size."""

BATCH_ROWS = 1_000


def parquet_rows(part: Slice, reading: Reading) -> Iterator[Row | BadRecord]:
    """Rows by row groups; where one cannot be read on, that is one bad record, and the next group is read."""
    import pyarrow.parquet as pq

    file, row = part.file.shown, part.first_row
    table: Any = attempt(lambda: pq.ParquetFile(part.file.path, buffer_size=BLOCK_BYTES, pre_buffer=False))
    if isinstance(table, Damage):
        yield BadRecord(file=file, record=row + 1, offset_bytes=None, reason=table.reason)
        return
    with table:
        names = _columns(table.schema_arrow.names, reading)
        for group in range(part.start, part.end or table.num_row_groups):
            meta = table.metadata.row_group(group)
            batch_rows = max(1, min(BATCH_ROWS, BATCH_BYTES * meta.num_rows // max(1, meta.total_byte_size)))
            done = row
            for batch in guarded(table.iter_batches(batch_size=batch_rows, row_groups=[group], columns=names)):
                if isinstance(batch, Damage):
                    yield BadRecord(file=file, record=done + 1, offset_bytes=None, reason=f"{batch.reason} (row group {group})")
                else:
                    yield from _batch_rows(file, batch, names, done)
                    done += batch.num_rows
            row += meta.num_rows


def arrow_rows(part: Slice, reading: Reading) -> Iterator[Row | BadRecord]:
    """Rows by record batches, memory-mapped."""
    import pyarrow as pa

    file, row = part.file.shown, part.first_row
    if part.file.size_bytes == 0:  # cannot be mapped
        yield BadRecord(file=file, record=row + 1, offset_bytes=None, reason="cannot be read from here on: holds no bytes")
        return
    with pa.memory_map(str(part.file.path)) as mapped:
        opened = attempt(lambda: _arrow_batches(mapped, part))
        if isinstance(opened, Damage):
            yield BadRecord(file=file, record=row + 1, offset_bytes=None, reason=opened.reason)
            return
        schema, batches = opened
        names = _columns(schema.names, reading)
        for batch in guarded(batches):
            if isinstance(batch, Damage):
                yield BadRecord(file=file, record=row + 1, offset_bytes=None, reason=batch.reason)
                return
            step = max(1, min(BATCH_ROWS, BATCH_BYTES * batch.num_rows // max(1, batch.nbytes)))
            for start in range(0, batch.num_rows, step):
                yield from _batch_rows(file, batch.slice(start, step), names, row + start)
            row += batch.num_rows


def _arrow_batches(mapped: Any, part: Slice) -> tuple[Any, Iterator[Any]]:
    """(schema, record batches) of an Arrow file or stream; a file without its footer is read as the stream that it contains."""
    import pyarrow as pa

    if mapped.read(len(ARROW_MAGIC)) == ARROW_MAGIC:
        try:
            table = pa.ipc.open_file(mapped)
            return table.schema, (table.get_batch(number) for number in range(part.start, part.end or table.num_record_batches))
        except pa.ArrowInvalid:
            mapped.seek(8)  # behind the magic and its padding
    else:
        mapped.seek(0)
    stream = pa.ipc.open_stream(mapped)
    return stream.schema, iter(stream)


def _columns(there: Sequence[str], reading: Reading) -> list[str]:
    """The columns that the text needs; all of them where one is missing, so that the reason can name what there is."""
    needed = [name if name in there else name.split(".")[0] for name in reading.fields]
    return list(dict.fromkeys(needed if set(needed) <= set(there) else there))


def _batch_rows(file: str, batch: Any, names: Sequence[str], first_row: int) -> Iterator[Row]:
    columns = [_values(batch.column(batch.schema.get_field_index(name))) for name in names]
    for number in range(batch.num_rows):
        record = first_row + number + 1
        fields = {name: values[number] for name, values in zip(names, columns, strict=True)}
        yield Row(id=f"{file}:{record}", record=record, offset_bytes=None, fields=fields)


def _values(column: Any) -> list[object]:
    """Python values of a column; texts stay bytes, so that one that is not UTF-8 spoils no other."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type):
        column = column.cast(pa.binary())
    elif pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        column = column.cast(pa.large_binary())
    values: list[object] = column.to_pylist()
    return values
