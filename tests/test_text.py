"""Values as text."""

import errno
import math

from remix_jax.text import count, duration, number, one_line, percent, size_text


def test_numbers_are_readable():
    assert [number(v) for v in (None, 0.0, 1.0042, 0.01234, 12345.0, 1e-6, -math.inf)] == [
        *("-", "0", "1.00", "0.0123", "12,345", "1.0e-06", "-inf")
    ]
    assert (percent(0.4321), percent(None), percent(math.nan)) == ("43.2 %", "-", "nan %")
    assert (count(79360.0), count(None)) == ("79,360", "-")
    assert [duration(v) for v in (None, 59.6, 3725)] == ["-", "0:01:00", "1:02:05"]
    assert [size_text(n) for n in (1023, 1024, 3 * 2**30)] == ["1,023 B", "1.0 KiB", "3.0 GiB"]


def test_one_line_of_any_exception():
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(KeyError()) == "KeyError"
    assert one_line(KeyError("x = y: no such thing")) == "x = y: no such thing"
    assert len(one_line(ValueError("x" * 999))) == 200
    assert one_line(OSError(errno.ENOSPC, "No space left", "/a/b")) == "No space left: /a/b"
