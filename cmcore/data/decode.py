"""One image file -> uint8 (C, H, W), with nothing that a hostile or broken file could use."""

import io
import warnings
from typing import TYPE_CHECKING

import numpy as np

from cmcore.data.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # 8 bits a channel: deeper ones would be clipped
PIXEL_LIMIT = 2**26  # 8192 x 8192: a larger picture is taken for a decompression bomb
ORIENTATION = 0x0112  # EXIF tag


def decode(data: bytes, channels: int, *, name: str, pixel_limit: int = PIXEL_LIMIT) -> np.ndarray:
    """The image in grey (channels=1) or colour (3), uint8 (C, H, W), turned upright.

    Raises:
        DataError: not an image, truncated, deeper than 8 bits a channel, or larger than the limit.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata, palettes with transparency
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
            _check(image, name, pixel_limit)
            if image.getexif().get(ORIENTATION, 1) != 1:
                image = ImageOps.exif_transpose(image)
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name}: {_too_large(pixel_limit)}") from error
    except Exception as error:  # decoders of broken files raise OSError, SyntaxError, struct.error, zlib.error, ...
        raise DataError(f"{name}: cannot be read as an image ({error})") from error
    return np.ascontiguousarray(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1))


def _too_large(limit: int) -> str:
    return f"expected at most {limit} pixels, got a larger picture, which may be a decompression bomb"


def _check(image: "Image.Image", name: str, pixel_limit: int) -> None:
    """Look at the header only: no pixel has been decoded yet."""
    if image.width * image.height > pixel_limit:
        raise DataError(f"{name}: {_too_large(pixel_limit)}: {image.width} x {image.height}")
    if image.mode not in MODES:
        raise DataError(f"{name}: expected 8 bits a channel, got mode {image.mode}; convert it first")


def fit(image: np.ndarray, resolution: int) -> np.ndarray:
    """Crop uint8 (C, H, W) to its central square and resize that (Lanczos, antialiased); equal sizes pass untouched."""
    _, height, width = image.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[:, top : top + side, left : left + side]
    if side == resolution:
        return square
    from PIL import Image

    size = (resolution, resolution)
    return np.stack([np.asarray(Image.fromarray(c).resize(size, Image.Resampling.LANCZOS)) for c in square])
