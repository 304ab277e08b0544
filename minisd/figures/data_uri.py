"""Pictures inside a page's own text."""

import base64
import io

from PIL import Image, features


def data_uri(image: Image.Image, exact: bool) -> str:
    """The picture as a data: URI. `exact` keeps every pixel; without it, WebP may change them."""
    file = io.BytesIO()
    # WebP is smaller, but cannot be larger than this a side.
    kind = "webp" if features.check("webp") and max(image.size) < 16384 else "png"
    if kind == "webp":
        image.save(file, "WEBP", lossless=exact, quality=90 if exact else 85, method=6)
    else:
        image.save(file, "PNG", optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
