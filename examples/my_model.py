"""A network of your own, from nothing: the score of two moons, trained in seconds (docs/reference/models_own.md).

python my_model.py                       # trains, and writes moons.safetensors
research model=own model._target_=my_model.build metrics=none images_per_prompt=500
"""

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from research.models import wrap


def two_moons(n: int = 2000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points [n, 2] of two half circles, about 1 across, and which of the two each is from, [n]."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    angle = torch.pi * torch.rand(n, generator=generator)
    upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], 1)
    points = torch.where(labels[:, None] == 0, upper, -upper)
    return points + 0.05 * torch.randn(n, 2, generator=generator), labels


def data(n: int = 2000, label: int | None = None) -> Tensor:
    """Points that were not trained on, for metrics: of both moons, or of one."""
    points, labels = two_moons(n, seed=1)
    return points if label is None else points[labels == label]


class Score(nn.Module):
    """The gradient of the log-density of x = data + sigma * noise (Karras et al., arXiv:2206.00364, eq. 3 and 7)."""

    def __init__(self, width: int = 96):
        super().__init__()
        self.of_label = nn.Embedding(3, width)  # two moons, and 2 for neither
        self.first = nn.Linear(2 + 8, width)
        self.rest = nn.Sequential(
            nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
        )

    def denoised(self, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        sigma, std = sigma[:, None], 0.6
        total = (sigma**2 + std**2).sqrt()
        waves = sigma.log() / 4 * 2.0 ** torch.arange(4)
        seen = torch.cat([x / total, waves.sin(), waves.cos()], 1)
        found = self.rest(self.first(seen) + self.of_label(labels))
        return (std / total) ** 2 * x + sigma * std / total * found

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        return (self.denoised(x, sigma, labels) - x) / sigma[:, None] ** 2


def train(steps: int = 800, width: int = 96, seed: int = 0) -> Score:
    """Denoising score matching, with one label in eight dropped for classifier-free guidance."""
    torch.manual_seed(seed)
    points, labels = two_moons(8000)
    network = Score(width)
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    slower = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(points), (256,))
        sigma = (1.4 * torch.randn(256) - 1.0).exp()
        told = torch.where(torch.rand(256) < 1 / 8, 2, labels[rows])
        noisy = points[rows] + sigma[:, None] * torch.randn(256, 2)
        wrong = (network.denoised(noisy, sigma, told) - points[rows]) ** 2
        weight = (sigma**2 + 0.6**2) / (0.6 * sigma) ** 2
        optimiser.zero_grad()
        (weight[:, None] * wrong).mean().backward()
        optimiser.step()
        slower.step()
    return network.eval()


def build(weights: str = "moons.safetensors", width: int = 96):
    """The model, for ``model._target_=my_model.build``; weights and width are keys beside it."""
    network = Score(width)
    network.load_state_dict(load_file(weights))
    return wrap(network.eval(), predicts="score", levels="edm", shape=(2,), labels=2, extent=(-2.0, 2.0))


if __name__ == "__main__":
    save_file(train().state_dict(), "moons.safetensors")
