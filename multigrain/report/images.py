"""Pictures for a page, small: frames side by side, and figures."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from PIL.Image import Image

SIDE, FRAMES = 96, 8  # photographs in a strip: their height in pixels, and how many at most
GAP = 2  # pixels between the frames of a strip
WEB_DPI = 100  # resolution of figures in a page


def figure_png(figure: Figure, dpi: int = 150) -> bytes:
    """Draw a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def figure_image(figure: Figure, dpi: int = WEB_DPI) -> bytes:
    """Draw a figure for a page, in a tenth of the bytes of its PNG."""
    from PIL import Image

    return _webp(Image.open(io.BytesIO(figure_png(figure, dpi))).convert("RGB"), 70)


def strip(frames: NDArray[np.uint8]) -> bytes:
    """Put frames [n, height, width, 3] side by side, two pixels apart, in some kilobytes.

    Drawings keep every pixel, in a PNG with a palette. At most `FRAMES` photographs, at even steps, are shown, smaller.
    """
    from PIL import Image

    row = _side_by_side([Image.fromarray(frame) for frame in frames])
    if row.getcolors(256) is not None:
        buffer = io.BytesIO()
        # There are at most 256 colours, so the palette loses nothing.
        row.quantize(256, dither=Image.Dither.NONE).save(buffer, format="PNG", optimize=True)
        return buffer.getvalue()
    steps = min(FRAMES, len(frames))
    chosen = [frames[round(i * (len(frames) - 1) / max(1, steps - 1))] for i in range(steps)]
    height, width = frames.shape[1:3]
    size = (round(width * SIDE / height), SIDE) if height > SIDE else (width, height)
    return _webp(_side_by_side([Image.fromarray(frame).resize(size) for frame in chosen]), 60)


def data_url(image: bytes) -> str:
    """Return a PNG or WebP picture as an address that holds it."""
    mime = "png" if image.startswith(b"\x89PNG") else "webp"
    return f"data:image/{mime};base64,{base64.b64encode(image).decode()}"


def shown_width(image: bytes) -> int:
    """Return how many pixels of a page a figure takes for its text to be read."""
    from PIL import Image

    with Image.open(io.BytesIO(image)) as picture:
        dpi = picture.info.get("dpi", (WEB_DPI, WEB_DPI))[0]
        return round(picture.width / dpi * 80)


def _side_by_side(pictures: list[Image]) -> Image:
    from PIL import Image

    width, height = pictures[0].size
    row = Image.new("RGB", (len(pictures) * (width + GAP) - GAP, height), "white")
    for i, picture in enumerate(pictures):
        row.paste(picture, (i * (width + GAP), 0))
    return row


def _webp(image: Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=quality, method=4)
    return buffer.getvalue()
