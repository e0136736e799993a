"""The small trained net that the tests of the driver compress."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def problem(seed=0, dtype=torch.float32):
    """A model trained on 256 samples of four classes; inputs; labels."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 4)).to(dtype)
    x = torch.randn(256, 12, dtype=dtype)
    y = (x[:, :4] + 0.3 * x[:, 4:8]).argmax(1)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(150):
        step(model, optimizer, x, y)
    return model, x, y


def step(model, optimizer, x, y, extra=lambda: 0.0):
    """One step of training; returns the loss."""
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y) + extra()
    loss.backward()
    optimizer.step()
    return loss.item()
