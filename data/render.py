"""From SVG and grey arrays to 32×32 pixels."""

import io

import numpy as np
import resvg_py
from PIL import Image
from scipy.ndimage import binary_erosion

SIZE = 32
OVERSAMPLING = 2


def svg_of(icon: dict, defaults: dict) -> str:
    """Return a whole SVG document for one entry of an Iconify set, currentColor replaced by black."""
    left, top, width, height = (
        icon.get(key, defaults.get(key, value))
        for key, value in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    side = SIZE * OVERSAMPLING
    body = icon["body"].replace("currentColor", "#000")
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{side}" height="{side}" viewBox="{left} {top} {width} {height}">{body}</svg>'
    )


def render(svg: str) -> np.ndarray | None:
    """Rasterise one SVG on white at 64×64 pixels: uint8 (64, 64, 3), or None when it cannot be drawn."""
    try:
        png = resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True, background="#ffffff")
    except ValueError:
        return None
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    side = SIZE * OVERSAMPLING
    return np.asarray(picture) if picture.size == (side, side) else None


def downsample(pixels: np.ndarray) -> np.ndarray:
    """Average non-overlapping boxes: uint8 (64, 64, 3) to (32, 32, 3), rounded to nearest."""
    boxes = pixels.reshape(SIZE, OVERSAMPLING, SIZE, OVERSAMPLING, 3).astype(np.uint16)
    return ((boxes.sum((1, 3)) + OVERSAMPLING**2 // 2) // OVERSAMPLING**2).astype(np.uint8)


def solid_share(pixels: np.ndarray, radius: int = 4) -> float:
    """Return the fraction of dark ink that lies deeper than `radius` pixels: near 0 for line drawings."""
    ink = pixels.mean(-1) < 128
    return float(binary_erosion(ink, iterations=radius).sum() / max(ink.sum(), 1))


def is_blank(image: np.ndarray) -> bool:
    """Tell whether an image shows (almost) nothing."""
    return bool(image.reshape(-1, 3).astype(float).std(0).max() < 6)


def upscale(grey: np.ndarray) -> np.ndarray:
    """Resize a grey uint8 image to 32×32 with a bilinear filter, three equal channels."""
    resized = Image.fromarray(grey).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return np.repeat(np.asarray(resized)[..., None], 3, axis=-1)


def pad(grey: np.ndarray) -> np.ndarray:
    """Centre a smaller grey uint8 image on a black 32×32 ground, three equal channels."""
    rows, columns = ((SIZE - side) // 2 for side in grey.shape)
    padded = np.pad(grey, ((rows, rows), (columns, columns)))
    return np.repeat(padded[..., None], 3, axis=-1)
