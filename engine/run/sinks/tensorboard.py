"""Write TensorBoard event files with the package `tensorboard`; needs neither torch nor TensorFlow.

Look at them with: tensorboard --logdir ROOT/tmp/tensorboard
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata  # pyright: ignore
from tensorboard.compat.proto.tensor_pb2 import TensorProto  # pyright: ignore
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto  # pyright: ignore
from tensorboard.compat.proto.types_pb2 import DT_STRING  # pyright: ignore
from tensorboard.summary.writer.event_file_writer import EventFileWriter  # pyright: ignore

from engine.run.sinks.sink import RunInfo


class TensorBoardSink:
    """One folder of event files for each run."""

    def __init__(self, run: RunInfo) -> None:
        self._writer = EventFileWriter(str(run.folder / run.run_id))
        config = json.dumps(run.config, indent=2, default=str)
        self.text(0, 0.0, "config", f"{run.name}\n\n```\n{config}\n```")

    def log(self, step: int, time: float, values: Mapping[str, float]) -> None:
        summary = Summary(
            value=[
                Summary.Value(tag=name, simple_value=np.float32(value).item())
                for name, value in values.items()
            ]
        )
        self._writer.add_event(Event(step=step, wall_time=time, summary=summary))

    def text(self, step: int, time: float, name: str, text: str) -> None:
        tensor = TensorProto(
            dtype=DT_STRING,
            string_val=[text.encode()],
            tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
        )
        plugin = SummaryMetadata.PluginData(plugin_name="text")
        value = Summary.Value(tag=name, tensor=tensor, metadata=SummaryMetadata(plugin_data=plugin))
        self._writer.add_event(Event(step=step, wall_time=time, summary=Summary(value=[value])))

    def close(self, status: str) -> None:
        self._writer.close()


def open_sink(run: RunInfo) -> TensorBoardSink:
    """Open the event file of this attempt; TensorBoard reads those of all attempts as one run."""
    run.folder.mkdir(parents=True, exist_ok=True)
    return TensorBoardSink(run)
