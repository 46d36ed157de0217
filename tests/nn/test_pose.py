"""Poses after motions, against scipy's rotations."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from jepa.nn.pose import moved


def test_motions_are_those_of_scipy() -> None:
    generator = torch.Generator().manual_seed(0)
    pose, motion = (torch.randn(50, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    pose[:, 6], motion[:, 6] = pose[:, 6].abs(), motion[:, 6]
    found = moved(pose, motion)
    turned = Rotation.from_euler("xyz", motion[:, 3:6]) * Rotation.from_euler("xyz", pose[:, 3:6])
    np.testing.assert_allclose(Rotation.from_euler("xyz", found[:, 3:6]).as_matrix(), turned.as_matrix(), atol=1e-12)
    np.testing.assert_allclose(found[:, 3:6], turned.as_euler("xyz"), atol=1e-9)
    torch.testing.assert_close(found[:, :3], pose[:, :3] + motion[:, :3])
    assert found[:, 6].min() == 0 and found[:, 6].max() == 1
    still = moved(found, torch.zeros_like(motion))
    torch.testing.assert_close(still, found, atol=1e-9, rtol=0)
