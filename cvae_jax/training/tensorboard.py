"""A run for TensorBoard: the rows of metrics.csv, sample grids and reconstructions.

The event files are made of other files of the workdir and hold nothing of their own. Each start
writes them anew, so that a run that was resumed, or whose event files were lost, has every epoch in
them once. The horizontal axis is the epoch; the relative time is time of training, without pauses.
"""

import contextlib
import io
import struct
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from cvae_jax.config import RunConfig
from cvae_jax.data.dataset import Dataset
from cvae_jax.drawing.modes import grey_levels
from cvae_jax.drawing.pictures import Table
from cvae_jax.errors import ConfigError, UserError
from cvae_jax.models import build_model
from cvae_jax.models.family import Params
from cvae_jax.runtime.files import reason, remove_leftovers, whole_file
from cvae_jax.storage import workdir
from cvae_jax.storage.history import EpochMetrics, shown

try:
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary
    from tensorboardX.record_writer import masked_crc32c
except ImportError as error:
    raise ConfigError(
        f"--tensorboard needs tensorboardX, which can't be imported ({error}); install the extra "
        "tensorboard: pip install 'cvae_jax[tensorboard]', or leave the option out"
    ) from error

TENSORBOARD = "tensorboard"
"""The folder of all this in a workdir. Its subfolders train and test are TensorBoard's "runs", so
that both losses are in one chart."""

_RECONSTRUCTIONS = "reconstructions"
_MOST_IMAGES = 10
_DPI = 100


class Board:
    """The event files of a run, and the reconstructions, which no other file has."""

    def __init__(self, folder: Path, run: RunConfig, test: Dataset) -> None:
        """Choose the images to reconstruct; nothing is written yet.

        Args:
            folder: the workdir.
            run: the settings.
            test: the test set on the host; the first image of each class is chosen, up to ten.
        """
        label = np.asarray(test.label)
        chosen = np.unique(label, return_index=True)[1][:_MOST_IMAGES]
        self._image, self._label = grey_levels(np.asarray(test.image)[chosen]), label[chosen]
        self._folder, self._dataset = folder, run.train.dataset
        self._name, self._began, self._seconds = "", 0.0, 0.0
        model = build_model(run.model)

        @jax.jit
        def reconstruct(params: Params, image: jax.Array, label: jax.Array) -> jax.Array:
            noise = jnp.zeros((len(label), model.latent_dim))
            return jax.nn.sigmoid(model.autoencode(params, image, label, noise).logits)

        self._reconstruct = reconstruct

    def start(self, history: Sequence[EpochMetrics]) -> None:
        """Replace the event files of an earlier start by those of the epochs so far.

        Raises:
            UserError: a file can't be written.
        """
        now = time.time()
        self._name = f"events.out.tfevents.{time.time_ns()}"
        self._began, self._seconds = now - sum(row.seconds for row in history), 0.0
        for split in ("train", "test"):
            # A TensorBoard that is already running drops all points that it has read.
            restart = Event(wall_time=now, session_log=SessionLog(status=SessionLog.START))
            self._append(split, Event(wall_time=now, file_version="brain.Event:2"), restart)
            for path in (self._folder / TENSORBOARD / split).glob("events.out.tfevents.*"):
                if path.name != self._name:
                    path.unlink(missing_ok=True)
        remove_leftovers(self._folder / TENSORBOARD / _RECONSTRUCTIONS, "*")
        for row in history:
            self.add(row)

    def draw(self, params: Params, epoch: int) -> None:
        """Draw test images, and under each its reconstruction from the centre of q(z | x, y).

        Args:
            params: the parameters that are tested.
            epoch: the number of the epoch.

        Raises:
            UserError: the picture can't be written.
        """
        # The parameters may be on the devices of other processes, too, which don't draw.
        again = self._reconstruct(jax.device_get(params), self._image, self._label)
        table = Table(
            np.concatenate([self._image, np.asarray(again)]),
            f"{self._dataset}: test images, and under each its reconstruction",
            num_columns=len(self._image),
            rows=["image", "again"],
            note=f"after epoch {epoch}",
        )
        with whole_file(self._pictures(epoch)[_RECONSTRUCTIONS]) as file:
            table.figure(_DPI).savefig(file, format="png")

    def add(self, row: EpochMetrics) -> None:
        """Add an epoch: its numbers as metrics.csv shows them, and its pictures where it has some.

        Raises:
            UserError: a file can't be written.
        """
        self._seconds += row.seconds
        texts = shown(row)
        for split in ("train", "test"):
            numbers = {
                f"nats per image/{part}": texts[f"{split}_{part}"]
                for part in ("loss", "reconstruction", "kl")
            }
            values = []
            if split == "train":
                numbers["seconds"] = texts["seconds"]
            else:
                for tag, path in self._pictures(row.epoch).items():
                    with contextlib.suppress(OSError):  # not drawn, or deleted, or damaged
                        values.append(Summary.Value(tag=tag, image=_read_picture(path)))
            values += [
                Summary.Value(tag=tag, simple_value=float(text)) for tag, text in numbers.items()
            ]
            summary, wall_time = Summary(value=values), self._began + self._seconds
            self._append(split, Event(wall_time=wall_time, step=row.epoch, summary=summary))

    def _pictures(self, epoch: int) -> dict[str, Path]:
        name = f"epoch_{epoch:03d}.png"
        return {
            "samples": self._folder / workdir.SAMPLES / name,
            _RECONSTRUCTIONS: self._folder / TENSORBOARD / _RECONSTRUCTIONS / name,
        }

    def _append(self, split: str, *events: Event) -> None:
        path = self._folder / TENSORBOARD / split / self._name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:  # not whole at every moment; the next start replaces it
                file.write(b"".join(map(_record, events)))
        except OSError as error:
            raise UserError(f"{path} can't be written: {reason(error, path)}") from error


def _read_picture(path: Path) -> Summary.Image:
    """Read a PNG.

    Raises:
        OSError: it is not there, or is something else.
    """
    content = path.read_bytes()
    width, height = Image.open(io.BytesIO(content)).size
    colours = 4  # red, green, blue and opacity
    return Summary.Image(
        height=height, width=width, colorspace=colours, encoded_image_string=content
    )


def _record(event: Event) -> bytes:
    """Return an event as a record of an event file: size, content, and a checksum of each."""
    content = event.SerializeToString()
    size = struct.pack("<Q", len(content))
    sums = (struct.pack("<I", masked_crc32c(part)) for part in (size, content))
    return size + next(sums) + content + next(sums)
