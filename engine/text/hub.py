"""Stream the text of Hub data sets, or of local folders laid out like them, with `datasets`.

Pieces are read over the network as they are needed; no data set is downloaded completely.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.errors import GladiusError, MissingError, UsageError
from engine.text.examples import LeftOut
from engine.text.forms import KEYS, read_table_row
from engine.text.parquet import text_column
from engine.text.pieces import Item
from engine.text.sources import HubText, need_datasets

_REMEDY = (
    "check the name and the network (a gated data set needs HF_TOKEN), or train without it: "
    "--set data.corpora=[] and your own text with --data"
)


class HubPieces:
    """A split of a data set: each piece is one file, each part one row group of Parquet."""

    def __init__(self, text: HubText, title: str, cache_dir: Path) -> None:
        """Open the data set; its examples are read later.

        Raises:
            MissingError: it can't be reached.
            UsageError: it has no such split or column.
        """
        need_datasets(title)
        self.title = title
        self.size: int | None = None
        self.files_left_out: tuple[LeftOut, ...] = ()
        self._dataset, self._column, name, files = _open(text, title, cache_dir)
        self.pieces: int = self._dataset.num_shards
        # File names without the commit: an edit of the data set's card leaves the text as it is.
        self.fingerprint = f"{text} {name} {re.sub('@[0-9a-f]{40}', '', files)}"

    def read(self, piece: int, part: int, passed: int) -> Iterator[tuple[int, Item]]:
        """See `TextPieces.read`."""
        try:
            shard = self._dataset.shard(self.pieces, piece)
            # One part for each row group of Parquet; other files, and older versions of `datasets`,
            # have a single part.
            parts = shard.reshard() if hasattr(shard, "reshard") else shard
            for number in range(part, parts.num_shards):
                skip = passed if number == part else 0
                rows = parts.shard(parts.num_shards, number)
                for row, values in enumerate(rows.skip(skip) if skip else rows, start=skip + 1):
                    source = f"{self.title}, file {piece}, part {number}, row {row}"
                    yield number, read_table_row(values, self._column, source)
        except GladiusError:
            raise
        except Exception as error:  # any error of fsspec, httpx and pyarrow over a network
            raise GladiusError(
                f"{self.title} can no longer be read ({_line(error)}); continue from the last "
                "checkpoint with: gladius_train resume"
            ) from error


def _open(text: HubText, title: str, cache_dir: Path) -> tuple[Any, str | None, str, str]:
    """(streaming data set, chosen column, name of the column or form, names of its files)"""
    from importlib import import_module

    datasets: Any = import_module("datasets")
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    options: dict[str, Any] = {"name": text.config, "revision": text.revision}
    options["cache_dir"] = str(cache_dir / "datasets")
    try:
        builder = datasets.load_dataset_builder(text.dataset, **options)
        if builder.name == "parquet" and (columns := _needed_columns(builder, text.column)):
            # Only these columns go over the network.
            builder = datasets.load_dataset_builder(text.dataset, columns=columns, **options)
        splits = builder.as_streaming_dataset()
        names = list(splits)
        if text.split not in splits:
            raise UsageError(f"{title} has no split {text.split}, only {', '.join(names)}")
        dataset = splits[text.split]
        columns = dataset.column_names or list(next(iter(dataset.take(1)), {}))
    except GladiusError:
        raise
    except (datasets.exceptions.DatasetNotFoundError, FileNotFoundError) as error:
        raise MissingError(f"{title} was not found ({_line(error)}); {_REMEDY}") from error
    except ValueError as error:
        # An unknown config or column: the library's message lists those that exist.
        raise UsageError(f"{title}: {_line(error)}") from error
    except Exception as error:  # any error of the network and its libraries
        raise MissingError(f"{title} can't be reached ({_line(error)}); {_REMEDY}") from error
    files = (builder.config.data_files or {}).get(text.split, [])
    chosen = text_column(columns, text.column, title)
    name = chosen or next((key for key in ("messages", "text") if key in columns), "form")
    return dataset, chosen, name, str(list(files))


def _needed_columns(builder: Any, column: str | None) -> list[str]:
    """The columns that are read, as far as they are known without reading; empty for all."""
    known: list[str] = list(builder.info.features or ())
    if column is not None and (column in ("text", "content") or not known):
        return [column] if column in ("text", "content") else []
    needed = [key for key in (column, *dict.fromkeys(KEYS)) if key in known]
    return needed if column is None or column in known else []


def _line(error: BaseException) -> str:
    """The error's message on one line, at most 200 characters."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 200 else words[:197] + "..."
