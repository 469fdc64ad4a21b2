"""Rotary position embedding: the table of angles, made once."""

import torch
from torch import Tensor

__all__ = ["rotary_table"]


def rotary_table(head_dim: int, positions: int, theta: float, device: torch.device) -> Tensor:
    """[positions, head_dim] float32: cosines in the left half, sines in the right."""
    frequency = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)  # [head_dim / 2]
    angle = torch.arange(positions).float()[:, None] * frequency  # [positions, head_dim / 2]
    return torch.cat((angle.cos(), angle.sin()), dim=-1).to(device)
