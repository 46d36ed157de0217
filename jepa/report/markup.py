"""HTML that cannot be injected into: every value is escaped unless it is already markup made here.

Run names, configurations, class labels and file contents are untrusted. All of the report is put together with
`html`, which escapes whatever is not of type `Html`; nothing else in this package turns text into markup.
"""

from __future__ import annotations

import base64
import html as _html
import io
import math
from collections.abc import Iterable

from PIL import Image, features


class Html(str):
    """Text that is markup already and must not be escaped again."""


def html(template: str, /, **values: object) -> Html:
    """`template` with {name} fields filled in; every value that is not `Html` is escaped, quotes too."""
    return Html(template.format_map({k: escape(v) for k, v in values.items()}))


def escape(value: object) -> Html:
    return value if isinstance(value, Html) else Html(_html.escape(str(value), quote=True))


def join(parts: Iterable[object], separator: str = "") -> Html:
    """Parts one after the other, escaped where they are not markup."""
    return Html(separator.join(escape(part) for part in parts))


def image(picture: Image.Image, alt: str, css: str = "") -> Html:
    """An <img> with the picture inside the page: PNG, or where that is much smaller (photographs) JPEG, or WebP if the
    picture is transparent."""
    kind, data = "png", _encode(picture, "png")
    if len(data) > 30_000 and (picture.mode != "RGBA" or features.check("webp")):
        lossy = "webp" if picture.mode == "RGBA" else "jpeg"
        other = _encode(picture, lossy)
        if 3 * len(other) < len(data):  # a smaller gain is not worth the ringing around enlarged pixels and outlines
            kind, data = lossy, other
    return html(
        '<img class="{css}" width="{w}" height="{h}" alt="{alt}" src="data:image/{kind};base64,{text}">',
        css=css, w=picture.width, h=picture.height, alt=alt, kind=kind, text=base64.b64encode(data).decode("ascii"),
    )  # fmt: skip


def film(data: bytes, kind: str, still: Image.Image, alt: str) -> Html:
    """An animation ("webp" or "gif") inside the page; who asks for less motion, or prints, gets one still picture."""
    quiet = io.BytesIO()
    still.save(quiet, kind, quality=80)
    first, second = (base64.b64encode(x).decode("ascii") for x in (quiet.getvalue(), data))
    return html(
        '<picture class="film"><source media="(prefers-reduced-motion: reduce), print" '
        'srcset="data:image/{kind};base64,{still}"><img width="{w}" height="{h}" alt="{alt}" '
        'src="data:image/{kind};base64,{text}"></picture>',
        kind=kind, still=first, w=still.width, h=still.height, alt=alt, text=second,
    )  # fmt: skip


def _encode(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "png":
        picture.save(buffer, "PNG", optimize=True)
    elif kind == "webp":
        picture.save(buffer, "WEBP", quality=85)
    else:
        picture.convert("RGB").save(buffer, "JPEG", quality=88, subsampling=0)
    return buffer.getvalue()


# --- numbers as people read them ----------------------------------------------------------------------------------


def number(value: float, digits: int = 3) -> str:
    """Three significant digits, thousands grouped, tiny and huge ones in powers of ten."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-4 or size >= 1e7:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        power = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return _minus(f"{mantissa}×10{power}")
    if size >= 1000 or value == int(value):
        return _minus(f"{value:,.0f}".replace(",", "\u202f"))
    text = f"{value:.{max(0, digits - 1 - math.floor(math.log10(size)))}f}"
    return _minus(text.rstrip("0").rstrip(".") if "." in text else text)


def percent(value: float, decimals: int = 1) -> str:
    return _minus(f"{100 * value:.{decimals}f}\u00a0%") if math.isfinite(value) else number(value)


def measure(value: float, metric: str) -> str:
    """A probe's figure: accuracies in per cent, R² and F1 with three decimals, everything else as a number."""
    if metric.startswith(("top", "recall", "miou")):
        return percent(value)
    return (
        _minus(f"{value:.3f}") if metric.startswith(("r2", "f1", "pearson")) and math.isfinite(value) else number(value)
    )


def duration(seconds: float) -> str:
    if not math.isfinite(seconds) or seconds < 0:
        return "unknown"
    for unit, size, below in (("s", 1, 90), ("min", 60, 5400), ("h", 3600, 172800)):
        if seconds < below:
            return f"{number(seconds / size)}\u00a0{unit}"
    return f"{number(seconds / 86400)}\u00a0days"


def energy(joules: float) -> str:
    """In the unit that fits: J, Wh, kWh or MWh."""
    hours = joules / 3600
    for limit, size, unit in ((0.1, 1 / 3600, "J"), (1e3, 1.0, "Wh"), (1e6, 1e3, "kWh")):
        if hours < limit:
            return f"{number(hours / size)}\u00a0{unit}"
    return f"{number(hours / 1e6)}\u00a0MWh"


def count(value: int | float, thing: str, things: str | None = None) -> str:
    """'1 step', '1 200 steps'."""
    return f"{number(value)} {thing if value == 1 else things or thing + 's'}"


def _minus(text: str) -> str:
    return text.replace("-", "\u2212", 1) if text.startswith("-") else text
