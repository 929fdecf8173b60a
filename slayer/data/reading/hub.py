"""Datasets of the Hugging Face hub (or a local folder that `datasets` can load), whole as Arrow files or streamed shard by shard."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from slayer.config import SourceConfig
from slayer.data.document import BadRecord, Document, SourceError
from slayer.data.reading.fields import Reading
from slayer.data.reading.files import TextFile, text_file
from slayer.data.reading.line_rows import Row
from slayer.data.reading.records import document_of
from slayer.errors import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class HubShard:
    """One shard of a streamed dataset: position n is the n-th record of the shard, whatever was read before.

    The library's own saved state is not used: it stands still after a second resume (huggingface/datasets issue 8308).
    """

    name: str
    source_name: str
    source: SourceConfig
    index: int
    n_shards: int
    reading: Reading

    def read(self, skip: int) -> Iterator[Document | BadRecord]:
        """Records behind the first `skip`.

        SourceError when the dataset cannot be reached (any longer) or a file of it is broken: the library reads ahead, so where it
        meets the damage differs from time to time, and putting the rest aside would change the order.
        """
        dataset = _streamed(self.source_name, self.source).shard(num_shards=self.n_shards, index=self.index)
        needed = {name if name in (dataset.features or ()) else name.split(".")[0] for name in self.reading.fields}
        if dataset.features is not None and needed <= set(dataset.features):
            dataset = dataset.select_columns(sorted(needed))  # pictures and sounds beside the text are not unpacked
        rows = iter(dataset.skip(skip) if skip else dataset)
        number = skip
        while True:
            with _as_source_error(self.source_name, self.source):
                fields = next(rows, None)
            if fields is None:
                return
            number += 1
            row = Row(id=f"{self.name}:{number}", record=number, offset_bytes=None, fields=fields)
            yield document_of(row, self.name, self.reading)


def hub_files(name: str, source: SourceConfig) -> list[TextFile]:
    """The Arrow files of a dataset, downloaded and converted once into the cache of `datasets`.

    Raises SourceError when it cannot be reached, has no such subset or split, or no revision is named.
    """
    import pyarrow as pa

    dataset = _load(name, source, streaming=False)
    paths = [Path(one["filename"]) for one in dataset.cache_files]
    files = [text_file(path, f"{source.hub}/{path.name}") for path in paths]
    n_rows = 0
    for path in paths:
        with pa.memory_map(str(path)) as mapped:
            n_rows += sum(batch.num_rows for batch in pa.ipc.open_stream(mapped))
    if n_rows != dataset.num_rows:  # a part of a split: its rows lie in files that hold others too
        key = f"data.sources.{name}.split"
        why = f"is a part of a split; whole ones can be read ({dataset.num_rows:,} of {n_rows:,} records)"
        raise SourceError(Problem(key=key, value=source.split, why=why, fix=f"{key}={source.split.split('[')[0]}"))
    return files


def hub_shards(name: str, source: SourceConfig, reading: Reading) -> list[HubShard]:
    """The shards of a dataset that is streamed, in its own order; SourceError as for hub_files."""
    n_shards = max(1, _streamed(name, source).num_shards)
    return [
        HubShard(
            name=f"{source.hub}/{source.split}-{index:05d}-of-{n_shards:05d}",
            source_name=name,
            source=source,
            index=index,
            n_shards=n_shards,
            reading=reading,
        )
        for index in range(n_shards)
    ]


def _streamed(name: str, source: SourceConfig) -> Any:
    return _opened(name, source.model_dump_json())


@lru_cache(maxsize=16)
def _opened(name: str, source_json: str) -> Any:
    """The streamed dataset, once a process: opening it lists its files at the hub."""
    return _load(name, SourceConfig.model_validate_json(source_json), streaming=True)


def _load(name: str, source: SourceConfig, *, streaming: bool) -> Any:
    import datasets

    assert source.hub is not None
    if source.revision is None:
        raise SourceError(revision_problem(name))
    with _quiet(), _as_source_error(name, source):
        return datasets.load_dataset(source.hub, source.subset, split=source.split, revision=source.revision, streaming=streaming)


def revision_problem(name: str) -> Problem:
    """A dataset of the hub without the commit that is meant."""
    key = f"data.sources.{name}.revision"
    return Problem(key=key, value=None, why="is required with hub: the dataset may change there, the text of a run may not", fix=f"{key}=COMMIT")


@contextmanager
def _as_source_error(name: str, source: SourceConfig) -> Iterator[None]:
    """Errors of the library as SourceError with the key they come from."""
    try:
        yield
    except Exception as error:  # the library passes on the errors of every client and format it knows
        generating = type(error).__name__ == "DatasetGenerationError"
        cause = error.__cause__ if generating and error.__cause__ else error
        said = (str(cause) or type(cause).__name__).splitlines()[0]
        named = isinstance(error, ValueError)  # splits and subsets that there are not
        part = "split" if named and "split" in said else "subset" if named and "onfig" in said else "hub"
        key = f"data.sources.{name}.{part}"
        if part != "hub":
            fix = f"{key}=NAME"
        elif isinstance(cause, (ConnectionError, FileNotFoundError)):
            fix = f"{key}=NAME   (without a network only what was loaded before can be read)"
        else:
            command = f"hf download --repo-type dataset {source.hub} --revision {source.revision} --local-dir FOLDER"
            fix = f"{key}=null data.sources.{name}.path=FOLDER after {command}   (bad records in files are put aside)"
        raise SourceError(Problem(key=key, value=getattr(source, part), why=f"cannot be read: {said}", fix=fix)) from error


@contextmanager
def _quiet() -> Iterator[None]:
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
