# mypy: allow-subclassing-any
"""The network and the training loop of the PyTorch original, written anew, to compare with.

It has the original's layers, arithmetic and habits: each item of the data goes through PIL, a
`DataLoader` shuffles and collates batches in the same process, labels become one-hot vectors in
the loop, and every loss is fetched.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import data


class TorchCVAE(nn.Module):
    """The conditional VAE with the original's five layers and their names.

    Shapes: image (B, ...), one_hot (B, Y), mean, logvar and latent (B, Z), pixels (B, D).
    """

    def __init__(
        self,
        num_pixels: int = 784,
        hidden_dim: int = 600,
        latent_dim: int = 50,
        num_classes: int = 10,
    ) -> None:
        """Create the layers, with PyTorch's own initial weights."""
        super().__init__()
        self.latent_dim, self.num_classes = latent_dim, num_classes
        self.fc1 = nn.Linear(num_pixels + num_classes, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, latent_dim)  # mean
        self.fc3 = nn.Linear(hidden_dim, latent_dim)  # logvar
        self.fc4 = nn.Linear(latent_dim + num_classes, hidden_dim)
        self.fc5 = nn.Linear(hidden_dim, num_pixels)

    def encode(self, image: Tensor, one_hot: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and log-variance of q(z | x, y), each (B, Z)."""
        hidden = F.relu(self.fc1(torch.cat([image.flatten(1), one_hot], dim=1)))
        return self.fc2(hidden), self.fc3(hidden)

    def decode(self, latent: Tensor, one_hot: Tensor) -> Tensor:
        """Return the probabilities of the pixels, (B, D)."""
        hidden = F.relu(self.fc4(torch.cat([latent, one_hot], dim=1)))
        return torch.sigmoid(self.fc5(hidden))


def loss_terms(
    model: TorchCVAE, image: Tensor, one_hot: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the reconstruction loss and the KL divergence, each summed over the batch, in nats.

    Args:
        model: the network.
        image: (B, ...) in [0, 1].
        one_hot: (B, Y).
        noise: (B, Z) from a standard normal.
    """
    mean, logvar = model.encode(image, one_hot)
    latent = mean + noise * torch.exp(0.5 * logvar)
    pixels = model.decode(latent, one_hot)
    reconstruction = F.binary_cross_entropy(pixels, image.flatten(1), reduction="sum")
    kl = 0.5 * torch.sum(logvar.exp() + mean.pow(2) - logvar - 1)
    return reconstruction, kl


class PictureItems(data.Dataset[tuple[Tensor, int]]):
    """Items as torchvision makes them: array, PIL picture, array, scaled tensor."""

    def __init__(self, image: np.ndarray, label: np.ndarray) -> None:
        """Store images (N, H, W, 1) uint8 and labels (N,)."""
        self.image, self.label = torch.tensor(image[..., 0]), torch.tensor(label)

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.label)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return one image (1, H, W) float32 in [0, 1] and its label."""
        picture = Image.fromarray(self.image[index].numpy())
        grey = torch.from_numpy(np.array(picture, np.uint8, copy=True))
        channels_first = grey.view(picture.height, picture.width, 1).permute(2, 0, 1).contiguous()
        return channels_first.float().div(255), int(self.label[index])


def make_loader(
    image: np.ndarray, label: np.ndarray, batch_size: int = 128
) -> data.DataLoader[tuple[Tensor, int]]:
    """Return shuffled batches of all images (N, H, W, 1) uint8 and labels (N,)."""
    return data.DataLoader(PictureItems(image, label), batch_size=batch_size, shuffle=True)


def make_optimizer(model: TorchCVAE, learning_rate: float = 1e-3) -> torch.optim.Adam:
    """Return the original's optimizer."""
    return torch.optim.Adam(model.parameters(), lr=learning_rate)


def default_device() -> torch.device:
    """Return the device that the original chooses: CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train_step(
    model: TorchCVAE, optimizer: torch.optim.Optimizer, image: Tensor, label: Tensor
) -> float:
    """Take one step on a batch and return its summed loss before the step, in nats."""
    one_hot = F.one_hot(label.long(), model.num_classes).float()
    noise = torch.randn(len(label), model.latent_dim, device=image.device)
    reconstruction, kl = loss_terms(model, image, one_hot, noise)
    loss = reconstruction + kl
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def train_epoch(
    model: TorchCVAE,
    optimizer: torch.optim.Optimizer,
    loader: data.DataLoader[tuple[Tensor, int]],
) -> float:
    """Train on every batch of the loader once; return the mean loss in nats per image."""
    device = model.fc1.weight.device
    total, num_examples = 0.0, 0
    for image, label in loader:
        total += train_step(model, optimizer, image.to(device), label.to(device))
        num_examples += len(label)
    return total / num_examples
