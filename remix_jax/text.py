"""Values as text for people: one definition of each format."""

import math
from collections.abc import Callable

MISSING = "-"


def number(value: float | None) -> str:
    """Three significant digits without an exponent where that is readable; '-' for None."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return str(float(value))
    if value == 0:
        return "0"
    if abs(value) >= 1e5 or abs(value) < 1e-4:
        return f"{value:.1e}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def fine(value: float | None) -> str:
    """Four decimals, for a ratio whose drift from 1 matters; '-' for None."""
    return MISSING if value is None else f"{value:.4f}"


def percent(value: float | None) -> str:
    """A share in [0, 1] as a percentage with one decimal; '-' for None."""
    if value is None:
        return MISSING
    return f"{100 * value:.1f} %" if math.isfinite(value) else str(float(value))


def count(value: float | None) -> str:
    """A whole number with thousands separated; '-' for None."""
    if value is None:
        return MISSING
    return f"{value:,.0f}" if math.isfinite(value) else str(float(value))


def duration(seconds: float | None) -> str:
    """h:mm:ss, or m:ss below an hour; '-' for None."""
    if seconds is None:
        return MISSING
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size_text(n: float) -> str:
    """Bytes in the largest binary unit that they fill."""
    unit = "B"
    for larger in ("KiB", "MiB", "GiB"):
        if n >= 1024:
            n, unit = n / 1024, larger
    return f"{n:,.0f} {unit}" if unit == "B" else f"{n:,.1f} {unit}"


def one_line(error: BaseException, limit: int = 200) -> str:
    """What an exception says, on one line of at most `limit` characters; its name if nothing."""
    text: object = error
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
    elif isinstance(error, KeyError) and error.args:
        text = error.args[0]
    return " ".join(str(text).split())[:limit] or type(error).__name__


FORMATS: dict[str, Callable[[float | None], str]] = {
    "number": number,
    "fine": fine,
    "percent": percent,
    "count": count,
}
