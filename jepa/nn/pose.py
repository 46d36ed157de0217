"""Where an end effector is after a motion: positions add up, rotations are composed, the gripper opens or closes.

Shapes: (..., 7): x, y, z, Euler angles about fixed x, y, z in radians, closedness of the gripper from 0 to 1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def moved(pose: Tensor, motion: Tensor) -> Tensor:
    """Poses (..., 7) after motions (..., 7) in the base's frame (DROID's convention, used by V-JEPA 2-AC's planner)."""
    angles = _angles(_matrix(motion[..., 3:6]) @ _matrix(pose[..., 3:6]))
    gripper = (pose[..., 6:] + motion[..., 6:]).clamp(0, 1)
    return torch.cat([pose[..., :3] + motion[..., :3], angles, gripper], dim=-1)


def _matrix(angles: Tensor) -> Tensor:
    """Rotations (..., 3, 3) by Euler angles (..., 3): about x first, then y, then z, all fixed axes."""
    (cx, cy, cz), (sx, sy, sz) = angles.cos().unbind(-1), angles.sin().unbind(-1)
    rows = [
        torch.stack([cy * cz, sx * sy * cz - cx * sz, cx * sy * cz + sx * sz], dim=-1),
        torch.stack([cy * sz, sx * sy * sz + cx * cz, cx * sy * sz - sx * cz], dim=-1),
        torch.stack([-sy, sx * cy, cx * cy], dim=-1),
    ]
    return torch.stack(rows, dim=-2)


def _angles(matrix: Tensor) -> Tensor:
    """Euler angles (..., 3) of rotations (..., 3, 3); the middle one lies in -pi / 2 .. pi / 2."""
    x = torch.atan2(matrix[..., 2, 1], matrix[..., 2, 2])
    y = torch.atan2(-matrix[..., 2, 0], (matrix[..., 2, 1] ** 2 + matrix[..., 2, 2] ** 2).sqrt())
    z = torch.atan2(matrix[..., 1, 0], matrix[..., 0, 0])
    return torch.stack([x, y, z], dim=-1)


__all__ = ["moved"]
