"""Pictures of what changes between two pictures: optical flow in colours, and numbers of tokens as heat."""

from __future__ import annotations

import colorsys

import numpy as np

_WHEEL = np.array([colorsys.hsv_to_rgb(hue / 360, 1.0, 1.0) for hue in range(360)])


def flow_picture(flow_HW2: np.ndarray, full: float) -> np.ndarray:
    """Optical flow -> uint8 RGB [H, W, 3]: the direction is the hue (right red, down green, left cyan, up violet).

    White is no motion; a length of `full`, in the flow's units, or more has the full colour.
    """
    length = np.clip(np.hypot(flow_HW2[..., 0], flow_HW2[..., 1]) / full, 0, 1)[..., None]
    angle = np.degrees(np.arctan2(flow_HW2[..., 1], flow_HW2[..., 0])).astype(int) % 360
    return (255 * (1 - length + length * _WHEEL[angle])).astype(np.uint8)


def heat(shades_HW: np.ndarray) -> np.ndarray:
    """Numbers 0..1 -> uint8 RGB [H, W, 3], from dark blue to orange."""
    return np.stack([255 * shades_HW, 90 * shades_HW, 40 * (1 - shades_HW)], -1).astype(np.uint8)


def heat_over(picture: np.ndarray, shades_HW: np.ndarray) -> np.ndarray:
    """The heat of a grid of numbers 0..1 over a grey picture, uint8 RGB [h, w, 3], whose sides are multiples of it."""
    rows, columns = (side // cells for side, cells in zip(picture.shape[:2], shades_HW.shape, strict=True))
    grey = picture.mean(-1, keepdims=True) * np.ones(3)
    return (0.35 * grey + 0.65 * heat(np.kron(shades_HW, np.ones((rows, columns))))).astype(np.uint8)
