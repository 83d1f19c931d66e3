"""Figures as people read them: three digits and a unit that fits."""

from __future__ import annotations

__all__ = ["count", "data", "flops", "joules", "percent", "rate", "ratio", "seconds", "watts"]


def seconds(value: float) -> str:
    """Such as 85.3 µs, 12.3 ms, 1.63 s."""
    sign, size = ("-", -value) if value < 0 else ("", value)
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if size >= scale:
            return f"{sign}{_digits(size / scale)} {unit}"
    return f"{sign}{_digits(size / 1e-6)} µs"


def data(value: float) -> str:
    """Bytes, in decimal units: 3.72 MB."""
    return _scaled(value, ("B", "kB", "MB", "GB", "TB"))


def flops(value: float) -> str:
    """Floating-point operations: 2.60 GFLOP."""
    return _scaled(value, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"))


def rate(value: float) -> str:
    """A rate whose unit stands beside it: 85.1."""
    return _digits(value)


def ratio(value: float) -> str:
    """How many times: 4.31×."""
    return f"{_digits(value)}×"


def percent(value: float) -> str:
    """A share: 0.085 is 8.50 %."""
    return f"{_digits(100 * value)} %"


def count(value: float) -> str:
    """Whole things: 3,136."""
    return f"{value:,.0f}"


def watts(value: float) -> str:
    """Power: 26.7 W."""
    return f"{_digits(value)} W"


def joules(value: float) -> str:
    """Energy: 41.2 J."""
    return f"{_digits(value)} J"


def _scaled(value: float, units: tuple[str, ...]) -> str:
    power = 0
    while value >= 1000 and power + 1 < len(units):
        value /= 1000
        power += 1
    return f"{_digits(value) if power else count(value)} {units[power]}"


def _digits(value: float) -> str:
    """Three digits, or all those before the point."""
    size = abs(value)
    if size < 1:
        return f"{value:.3g}"
    return f"{value:.{0 if size >= 99.95 else 1 if size >= 9.995 else 2}f}"
