"""One image file -> uint8 (C, H, W), also for hostile and broken files, which are refused."""

import io
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from cmcore import limits
from cmcore.errors import DataError, reason

Resize = Literal["lanczos", "adm"]
Background = Literal["", "white", "black"]

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
EIGHT_BITS = (
    "1",
    "L",
    "LA",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "CMYK",
    "YCbCr",
)  # 8 bits a channel: deeper ones would be clipped
ORIENTATION = 0x0112  # EXIF tag


def decode(
    data: bytes, channels: int, *, name: str, background: Background = "", pixel_limit: int = limits.PIXELS
) -> np.ndarray:
    """The image in grey (channels=1) or colour (3), uint8 (C, H, W), turned upright, laid over the background.

    Raises:
        DataError: not an image, truncated, deeper than 8 bits a channel, larger than the limit, or transparent where no
            background is given.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata, palettes with transparency
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image: Any = Image.open(io.BytesIO(data), formats=FORMATS)
            _check(image, name, pixel_limit)
            if image.getexif().get(ORIENTATION, 1) != 1:
                image = ImageOps.exif_transpose(image)
            pixels = np.asarray(_opaque(image, name, background).convert("L" if channels == 1 else "RGB"))
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name}: {_too_large(pixel_limit)}") from error
    except Exception as error:  # decoders of broken files raise OSError, SyntaxError, struct.error, zlib.error, ...
        unknown = isinstance(error, UnidentifiedImageError)
        why = f"expected one of {', '.join(FORMATS)}" if unknown else reason(error)
        raise DataError(f"{name}: cannot be read as an image ({why})") from error
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _opaque(image: Any, name: str, background: Background) -> Any:
    """The image without transparency. What lies under transparent pixels is arbitrary, so it is never shown."""
    from PIL import Image

    if not image.has_transparency_data:
        return image
    layered = image.convert("RGBA")
    if layered.getextrema()[3][0] == 255:  # it has the channel, or names a colour that it does not use
        return image
    if not background:
        raise DataError(f"{name}: expected an opaque image, got transparency; see `data.background`")
    return Image.alpha_composite(Image.new("RGBA", layered.size, background), layered)


def decode_all(
    files: Sequence[tuple[str, bytes]], channels: int, resolution: int, resize: Resize, background: Background = ""
) -> np.ndarray:
    """Named image files as uint8 (N, C, resolution, resolution)."""
    images = np.empty((len(files), channels, resolution, resolution), np.uint8)
    for row, (name, data) in enumerate(files):
        images[row] = fit(decode(data, channels, name=name, background=background), resolution, resize)
    return images


def _too_large(limit: int) -> str:
    return f"expected at most {limit} pixels, got a larger picture, which may be a decompression bomb"


def _check(image: Any, name: str, pixel_limit: int) -> None:
    """Check the header, before any pixel is decoded."""
    if image.width * image.height > pixel_limit:
        raise DataError(f"{name}: {_too_large(pixel_limit)}: {image.width} x {image.height}")
    # Pillow opens PNG, TIFF and PPM files of 16 bits a channel in modes of 8 bits, and only their tiles tell.
    deep = image.format in ("PNG", "TIFF") and ";16" in str(image.tile)
    deep = deep or (image.format == "PPM" and any(type(part) is int and part > 255 for part in _arguments(image)))
    if image.mode not in EIGHT_BITS or deep:
        got = f"16 bits in mode {image.mode}" if deep and image.mode in EIGHT_BITS else f"mode {image.mode}"
        raise DataError(f"{name}: expected 8 bits a channel, got {got}; convert it first")


def _arguments(image: Any) -> tuple[Any, ...]:
    """Arguments of the decoder of the first tile."""
    arguments = image.tile[0][3] if image.tile else ()
    return arguments if isinstance(arguments, tuple) else (arguments,)


def fit(image: np.ndarray, resolution: int, resize: Resize = "lanczos") -> np.ndarray:
    """Resize and crop uint8 (C, H, W) to a square; an image of the right size is returned unchanged.

    - "lanczos": the central square is cut out, then shrunk (antialiased);
    - "adm": halved by averaging while that keeps it large enough, then shrunk bicubically, then its central square is
      cut out, as ADM prepares ImageNet (arXiv 2105.05233); EDM calls it center-crop-dhariwal.
    """
    _, height, width = image.shape
    if height == width == resolution:
        return image
    if resize == "lanczos":
        image = _central(image, min(height, width))
        return _resized(image, resolution, resolution, "LANCZOS")
    while min(height, width) >= 2 * resolution:
        height, width = height // 2, width // 2
        image = _resized(image, height, width, "BOX")
    scale = resolution / min(height, width)
    return _central(_resized(image, round(height * scale), round(width * scale), "BICUBIC"), resolution)


def _central(image: np.ndarray, side: int) -> np.ndarray:
    _, height, width = image.shape
    top, left = (height - side) // 2, (width - side) // 2
    return image[:, top : top + side, left : left + side]


def _resized(image: np.ndarray, height: int, width: int, method: Literal["LANCZOS", "BOX", "BICUBIC"]) -> np.ndarray:
    if image.shape[1:] == (height, width):
        return image
    from PIL import Image

    pixels = Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
    resized = np.asarray(pixels.resize((width, height), Image.Resampling[method]))
    return resized[None] if len(image) == 1 else resized.transpose(2, 0, 1)
