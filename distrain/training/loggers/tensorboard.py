"""Writes the TensorBoard files: scalars, a few input images, and the graph of the model."""

import shutil
import warnings

from torch.utils.tensorboard import SummaryWriter

from distrain.training.anomaly import FORWARD_STACK
from distrain.training.loggers.protocol import LoggerContext, Record


class TensorboardLogger:
    """Writes TensorBoard's event files again from `metrics.jsonl` at each start, then adds to them.

    Event files are not on disk until they are flushed, so what a killed run left of them is not to be relied on.
    """

    def __init__(self, context: LoggerContext) -> None:
        shutil.rmtree(context.run.tensorboard, ignore_errors=True)
        self._writer = SummaryWriter(str(context.run.tensorboard))
        self._writer.add_images("train/images", context.samples.visible, global_step=context.first_step)
        if context.model is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the tracer warns of Python values in any model: it is only drawn
                warnings.filterwarnings("always", FORWARD_STACK)  # from the training, which has the same filters
                self._writer.add_graph(context.model, context.samples.images[:1])
        for record in context.history:
            self.write(record)
        self._writer.flush()

    def write(self, record: Record) -> None:
        """Add a record's metrics as scalars."""
        for name, value in record.items():
            if "/" in name:
                self._writer.add_scalar(name, value, global_step=int(record["step"]))

    def close(self) -> None:
        """Flush and close the files."""
        self._writer.close()
