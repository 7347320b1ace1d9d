"""Reading and writing of single images with Pillow.

An image is read the way a person sees it: turned by its EXIF orientation (musubi-tuner ignores it), alpha apart,
palettes and grey expanded, 16 bits scaled to 8 (the reference clips them to white).
"""

from __future__ import annotations

import importlib.util
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ..contract.errors import DataError
from ..contract.files import whole_file
from ..contract.packages import how_to_install
from . import suffixes

_ORIENTATION = 0x0112  # the EXIF tag; 5..8 swap width and height


def _open(path: Path) -> Image.Image:
    if path.suffix.lower() == ".jxl":
        if ".jxl" not in suffixes.images():
            raise DataError(
                f"{path}: Pillow reads no JPEG XL without its plugin.", how_to_install(suffixes.JXL_PLUGINS[0])
            )
        for name in suffixes.JXL_PLUGINS:
            if importlib.util.find_spec(name):
                importlib.import_module(name if name == "pillow_jxl" else "jxlpy.JXLImagePlugin")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large photographs are fine here
        return Image.open(path)


def _unreadable(path: Path, error: Exception) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: there is no such image.", "Check the path where the image is named.")
    if isinstance(error, PermissionError):
        return DataError(f"{path}: the image may not be read (permission denied).", "Give yourself read access to it.")
    detail = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(f"{path}: this image cannot be read ({detail}).", "Replace the file, or leave it out.")


_FAULTS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)  # what Pillow's readers raise


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) as read_image would give it, from the header alone. Raises DataError."""
    path = Path(path)
    try:
        with _open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    except _FAULTS as error:
        raise _unreadable(path, error) from error
    return (height, width) if turned else (width, height)


def read_image(path: str | Path) -> np.ndarray:
    """One image as (height, width, 3), uint8 RGB 0..255; of an animation the first frame. Raises DataError."""
    path = Path(path)
    try:
        with _open(path) as image:
            return _as_rgb(ImageOps.exif_transpose(image))
    except _FAULTS as error:
        raise _unreadable(path, error) from error


def read_alpha(path: str | Path) -> np.ndarray | None:
    """The alpha channel of an image, (height, width) uint8 0..255, 255 is opaque; None where it has none. DataError."""
    path = Path(path)
    try:
        with _open(path) as image:
            if not image.has_transparency_data:
                return None
            return np.array(ImageOps.exif_transpose(image).convert("RGBA").getchannel("A"))
    except _FAULTS as error:
        raise _unreadable(path, error) from error


def _as_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # "I;16" and its kin; "I" is how some formats present 16 bits
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        grey_8 = ((grey * 255 + 32767) // 65535).astype(np.uint8)
        return np.repeat(grey_8[..., None], 3, axis=2)
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers; save it with 8 or 16 bits")
    return np.array(image.convert("RGB"))


def write_image(path: str | Path, image_HWC: np.ndarray, *, quality: int = 95) -> Path:
    """Write uint8 RGB 0..255 in the format of the suffix, complete or not at all. Raises DiskError.

    `quality` is that of JPEG and WebP.
    """
    path = Path(path)
    kind = Image.registered_extensions()[path.suffix.lower()]
    with whole_file(path) as temporary:
        temporary.write_bytes(encoded(Image.fromarray(image_HWC), kind, quality=quality))
    return path


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture in one of Pillow's formats. Written to a file by Pillow itself, some would end early on a full disk
    without an error (JPEG, BMP, GIF: it does not look at how much was written).
    """
    stream = io.BytesIO()
    image.save(stream, format=kind, **options)
    return stream.getvalue()
