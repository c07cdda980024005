"""Values as text for people: one definition of each format. None is "-" everywhere."""

import datetime
import math

MISSING = "-"


def number(value: float | None) -> str:
    """Three significant digits, without an exponent where that is readable."""
    if value is None:
        return MISSING
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 1e5 or abs(value) < 1e-4:
        return f"{value:.1e}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def percent(value: float | None) -> str:
    """A share in [0, 1] with one decimal."""
    return MISSING if value is None else f"{100 * value:.1f} %"


def count(value: float | None) -> str:
    """A whole number with thousands separated."""
    return MISSING if value is None else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """h:mm:ss, after the days if there are any."""
    return MISSING if seconds is None else str(datetime.timedelta(seconds=round(seconds)))


def size_text(n: float) -> str:
    """Bytes in the largest binary unit that they fill."""
    unit = min(max(0, int(n).bit_length() - 1) // 10, 3)
    return f"{n / 1024**unit:,.{min(unit, 1)}f} {('B', 'KiB', 'MiB', 'GiB')[unit]}"


def one_line(error: BaseException, limit: int = 200) -> str:
    """What an exception says, on one line of at most `limit` characters; its name if nothing."""
    text: object = error
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
    elif isinstance(error, KeyError) and error.args:
        text = error.args[0]
    return " ".join(str(text).split())[:limit] or type(error).__name__
