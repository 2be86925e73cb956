"""Draw ten images of one digit in PyTorch, one at a time, as the original does.

`sampling_speed.py` runs it from the root of the repository, as
`python -m benchmarks.torch_sample --checkpoint model.pth --out digits.png`.
"""

import argparse
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from torch.nn import functional as F

from benchmarks.torch_original import TorchCVAE, default_device

_NUM_IMAGES = 10


def draw(checkpoint: Path, digit: int, out: Path) -> None:
    """Load the model, draw the digit ten times and save a figure of two rows."""
    device = default_device()
    model = TorchCVAE().to(device)
    content = torch.load(checkpoint, map_location=device, weights_only=True)
    model.load_state_dict(content["model_state_dict"])
    model.eval()
    images = []
    with torch.no_grad():
        for _ in range(_NUM_IMAGES):
            label = torch.tensor([digit], device=device)
            one_hot = F.one_hot(label, model.num_classes).float()
            latent = torch.randn(1, model.latent_dim).to(device)
            images.append(model.decode(latent, one_hot).view(28, 28).cpu().numpy())

    figure, grid = plt.subplots(2, _NUM_IMAGES // 2, figsize=(12, 6))
    figure.suptitle(f"Samples of class {digit}", fontsize=18, y=0.95)
    for axes, image in zip(grid.flat, images, strict=True):
        axes.imshow(image, cmap="gray")
        axes.set_title(str(digit), fontsize=12, pad=8)
        axes.axis("off")
    plt.tight_layout()
    plt.savefig(out, dpi=150, bbox_inches="tight")
    print(f"wrote {out}")


def main() -> None:
    """Parse the arguments, with the standard library alone since this is timed, and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--digit", type=int, default=6, choices=range(10))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if not arguments.checkpoint.is_file():
        parser.error(f"{arguments.checkpoint} does not exist")
    draw(arguments.checkpoint, arguments.digit, arguments.out)


if __name__ == "__main__":
    main()
