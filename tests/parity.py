"""Five steps of the original in PyTorch, which `test_parity.py` compares `train_step` with.

The small fixture lets the comparison run without PyTorch. To write it anew:
`python -m tests.parity` (with the extra "parity" installed).
"""

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from cvae_jax.config import ModelConfig
from cvae_jax.models.family import Params

FIXTURE = Path(__file__).parent / "data" / "parity.npz"
NUM_STEPS = 5
SMALL = ModelConfig(image_shape=(5, 4, 1), num_classes=3, hidden_dim=7, latent_dim=4)
BATCH_SIZE = 6

# The layers here and there; PyTorch keeps the two heads apart and its weights as (out, in).
TORCH_LAYERS = {
    "encoder_hidden": ["fc1"],
    "encoder_moments": ["fc2", "fc3"],
    "decoder_hidden": ["fc4"],
    "decoder_logits": ["fc5"],
}


class Steps(NamedTuple):
    """The inputs of the steps, and the original's results."""

    image: np.ndarray  # (S, B, H, W, C) float32
    label: np.ndarray  # (S, B) int32
    noise: np.ndarray  # (S, B, Z) float32
    loss: np.ndarray  # (S, 2): reconstruction and KL, summed
    params: Params  # before the first step
    gradient: Params  # of the first step
    new_params: Params  # after the last


def noise_key() -> jax.Array:
    """Return the run's key; step s draws its noise from `fold_in(key, s)`."""
    return jax.random.key(11)


def make_noise(batch_size: int, latent_dim: int) -> np.ndarray:
    """Return the noise (S, B, Z) that `train_step` draws with `noise_key`."""
    keys = [jax.random.fold_in(noise_key(), step) for step in range(NUM_STEPS)]
    return np.stack([jax.random.normal(key, (batch_size, latent_dim)) for key in keys])


def run_original(image: np.ndarray, label: np.ndarray, config: ModelConfig) -> Steps:
    """Train the original for five steps on images (S, B, H, W, C) and labels (S, B)."""
    import torch
    from torch.nn import functional as F

    from benchmarks import torch_original

    def as_params(tensors: dict[str, torch.Tensor]) -> Params:
        """Copy the tensors, because the optimizer works in place."""
        return {
            layer: {
                "kernel": np.concatenate([tensors[f"{n}.weight"].numpy().T for n in names], 1),
                "bias": np.concatenate([tensors[f"{n}.bias"].numpy() for n in names]),
            }
            for layer, names in TORCH_LAYERS.items()
        }

    torch.manual_seed(0)
    num_pixels = int(np.prod(config.image_shape))
    model = torch_original.TorchCVAE(
        num_pixels, config.hidden_dim, config.latent_dim, config.num_classes
    )
    optimizer = torch_original.make_optimizer(model)
    noise = make_noise(label.shape[1], config.latent_dim)
    params = as_params(model.state_dict())
    losses, gradients = [], []
    for step in range(NUM_STEPS):
        one_hot = F.one_hot(torch.tensor(label[step]).long(), config.num_classes).float()
        terms = torch_original.loss_terms(
            model, torch.tensor(image[step]), one_hot, torch.tensor(noise[step])
        )
        optimizer.zero_grad()
        (terms[0] + terms[1]).backward()
        gradients.append(
            {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        )
        optimizer.step()
        losses.append([term.item() for term in terms])
    return Steps(
        image=image,
        label=label,
        noise=noise,
        loss=np.array(losses),
        params=params,
        gradient=as_params(gradients[0]),
        new_params=as_params(model.state_dict()),
    )


def save(steps: Steps) -> None:
    """Write the fixture, each array of a tree under the name of its path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(steps._asdict())
    FIXTURE.parent.mkdir(exist_ok=True)
    np.savez_compressed(
        FIXTURE, **{"/".join(str(key.key) for key in path): leaf for path, leaf in leaves}
    )


def load() -> Steps:
    """Read the fixture."""
    tree: dict[str, Params] = {}
    with np.load(FIXTURE, allow_pickle=False) as arrays:
        for path in arrays.files:
            *parents, name = path.split("/")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[name] = arrays[path]
    return Steps(**tree)


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(NUM_STEPS, BATCH_SIZE, *SMALL.image_shape)).astype(np.float32)
    labels = rng.integers(SMALL.num_classes, size=(NUM_STEPS, BATCH_SIZE)).astype(np.int32)
    save(run_original(images, labels, SMALL))
    print(f"wrote {FIXTURE}")
