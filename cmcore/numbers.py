"""Numbers as text for people: significant digits, counts, sizes and durations. Files for programs keep every digit."""

from typing import Any

GAP = "\u202f"  # narrow no-break space


def short(value: Any, digits: int = 3) -> str:
    """A float in so many significant digits; anything else as it is."""
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def rounded(value: float, spread: float = 0.0, most: int = 6) -> tuple[str, str]:
    """`value` and `spread` as text: the spread with one digit (two if it starts with 1), the value to the same decimal.

    Without a spread the value keeps three significant digits, and never more than `most` of them. A spread that would
    be 0 at the decimals of the value keeps a digit of its own.
    """
    if spread <= 0:
        return _fixed(value, _decimals(value, 3)), ""
    two = any(f"{spread:.{digits}e}".startswith("1") for digits in (0, 1))  # 0.096 is 0.10, like 0.104
    decimals = _decimals(spread, 1) + two
    if value:
        decimals = min(decimals, _decimals(value, most))
    shown, over = _fixed(value, decimals), _fixed(spread, decimals)
    return shown, over if float(over) else f"{spread:.1g}"


def _decimals(value: float, digits: int) -> int:
    """Decimals that show `digits` significant digits of `value`."""
    return digits - 1 - int(f"{abs(value):.{digits - 1}e}".split("e")[1]) if value else digits - 1


def _fixed(value: float, decimals: int) -> str:
    text = f"{round(value, decimals):.{max(0, decimals)}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def grouped(number: int) -> str:
    """A whole number in groups of three digits."""
    return f"{number:,}".replace(",", GAP)


def count(number: int) -> str:
    """A whole number: in groups of three digits, or in millions from ten million on."""
    if number < 1e7:
        return grouped(number)
    return f"{number / 1e6:.4g}{GAP}M" if number < 1e9 else f"{grouped(round(number / 1e6))}{GAP}M"


def size(number: float, unit: str = "", gap: str = "", digits: int = 3) -> str:
    """A number of 0 or more with a decimal prefix: "12.5k", or with a unit and a gap "12.5 MB"."""
    prefixes = ("", "k", "M", "G", "T", "P")
    for prefix in prefixes[:-1]:
        if number < 1000 * (1 - 0.5 * 10.0**-digits):
            return f"{number:.{digits}g}{gap}{prefix}{unit}".rstrip()
        number /= 1000
    return f"{number:.{digits}g}{gap}{prefixes[-1]}{unit}"


def duration(seconds: float, gap: str = " ") -> str:
    """A time in three digits, in the largest unit of which there are at least two."""
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g}{gap}{unit}"
    return f"{seconds:.3g}{gap}s"


def about(seconds: float) -> str:
    """An expected time, no more precise than it can be: whole minutes, or steps of five seconds."""
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes else f"{max(round(seconds / 5), 1) * 5} s"
