# mypy: allow-subclassing-any
"""The same training in PyTorch, tuned by hand for speed.

The whole data set is one tensor of bytes on the device; a batch is gathered by a permutation.
Mean and log-variance come from one product, the loss comes from logits, Adam is fused, and nothing
is fetched before the end of an epoch. Three changes were tried and were no faster on a CPU: the
data set in floats, with its one-hot labels appended; flushing denormals; `torch.compile` with
"max-autotune".
"""

from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import environment
from benchmarks.contest import Work, timed
from benchmarks.torch_original import default_device
from cvae_jax.data.sources import load_dataset

_NUM_PIXELS, _NUM_CLASSES, _HIDDEN_DIM, _LATENT_DIM = 784, 10, 600, 50
_BATCH_SIZE = 128


class TunedCVAE(nn.Module):
    """The original's network with its two heads as one layer."""

    def __init__(self) -> None:
        """Create the layers, with PyTorch's own initial weights."""
        super().__init__()
        self.encoder_hidden = nn.Linear(_NUM_PIXELS + _NUM_CLASSES, _HIDDEN_DIM)
        self.encoder_moments = nn.Linear(_HIDDEN_DIM, 2 * _LATENT_DIM)
        self.decoder_hidden = nn.Linear(_LATENT_DIM + _NUM_CLASSES, _HIDDEN_DIM)
        self.decoder_logits = nn.Linear(_HIDDEN_DIM, _NUM_PIXELS)

    def forward(self, grey: Tensor, label: Tensor) -> Tensor:
        """Return the loss, BCE plus KL summed over a batch, in nats.

        Args:
            grey: (B, D) uint8.
            label: (B,) int64.
        """
        image = grey.float() / 255
        one_hot = F.one_hot(label, _NUM_CLASSES).float()
        hidden = F.relu(self.encoder_hidden(torch.cat([image, one_hot], dim=1)))
        mean, logvar = self.encoder_moments(hidden).chunk(2, dim=1)
        latent = mean + torch.randn_like(mean) * torch.exp(0.5 * logvar)
        hidden = F.relu(self.decoder_hidden(torch.cat([latent, one_hot], dim=1)))
        logits = self.decoder_logits(hidden)
        reconstruction = F.binary_cross_entropy_with_logits(logits, image, reduction="sum")
        return reconstruction + 0.5 * (logvar.exp() + mean.square() - 1 - logvar).sum()


def train_epoch(
    model: TunedCVAE, optimizer: torch.optim.Optimizer, image: Tensor, label: Tensor
) -> float:
    """Train on every image (N, D) once, in a random order; return the mean loss per image."""
    total = torch.zeros((), device=image.device)
    for rows in torch.randperm(len(image), device=image.device).split(_BATCH_SIZE):
        loss = model(image.index_select(0, rows), label.index_select(0, rows))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach()
    return total.item() / len(image)


def prepare_epoch(is_compiled: bool) -> Work:
    """Return work that trains one epoch further each time."""
    torch.manual_seed(0)
    torch.set_num_threads(environment.num_threads())
    device = default_device()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, also JAX's default there
    arrays = (np.asarray(array) for array in load_dataset(source="bundled").train)
    image, label = (torch.tensor(array, device=device) for array in arrays)
    model = TunedCVAE().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    # Once this much was freed, glibc keeps memory for the next step instead of returning it to the
    # system: at least a tenth less time.
    torch.empty(30 * 2**20, dtype=torch.uint8)
    if is_compiled:
        # Two shapes, because the last batch is short; on a GPU its kernels go into one graph.
        model.compile(dynamic=False, mode="reduce-overhead" if device.type == "cuda" else None)
    return timed(partial(train_epoch, model, optimizer, image.flatten(1), label.long()))
