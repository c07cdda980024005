r"""Units and remarks behind the value of an answer: what is taken off, and what converts."""

import re
from fractions import Fraction
from typing import NamedTuple

from math_grader import notation


def words_of(text: str) -> frozenset[str]:
    """The words of a text: how the lists here are written."""
    return frozenset(text.split())


class Measure(NamedTuple):
    """What a unit is: `factor * pi**pis` of the product of base units to these powers."""

    powers: tuple[tuple[str, int], ...]
    factor: Fraction = Fraction(1)
    pis: int = 0


# (names, how many, of which). Those of SI take prefixes.
_SI = (
    ("m meter meters metre metres", "1", ""),
    ("g gram grams", "1", ""),
    ("s sec secs second seconds", "1", ""),
    ("mol", "1", ""),
    ("L l liter liters litre litres", "1/1000", "m^3"),
    ("N newton newtons", "1000", "g m/s^2"),
    ("J joule joules", "1", "N m"),
    ("W watt watts", "1", "J/s"),
    ("Pa pascal pascals", "1", "N/m^2"),
    ("V volt volts", "1", ""),
    ("Hz hertz", "1", ""),
    ("eV", "1", ""),
)
_OTHER = (
    ("in inch inches", "0.0254", "m"),
    ("ft foot feet", "12", "in"),
    ("yd yard yards", "3", "ft"),
    ("mi mile miles", "5280", "ft"),
    ("Angstrom Angstroms angstrom angstroms", "1e-10", "m"),
    ("lb lbs", "453.59237", "g"),
    ("oz ounce ounces", "1/16", "lb"),
    ("min mins minute minutes", "60", "s"),
    ("h hr hrs hour hours", "60", "min"),
    ("day days", "24", "h"),
    ("week weeks", "7", "day"),
    ("month months", "1", ""),
    ("year years yr yrs", "12", "month"),
    ("mph", "1", "mi/h"),
    ("kph", "1", "km/h"),
    ("cent cents", "1", ""),
    ("dollar dollars", "100", "cent"),
    ("degree degrees deg", "1", ""),
)
_PREFIXES = {
    **{"k": "1e3", "M": "1e6", "G": "1e9", "d": "0.1", "c": "0.01", "m": "1e-3"},
    **{"µ": "1e-6", "n": "1e-9", "kilo": "1e3", "mega": "1e6", "centi": "0.01"},
    **{"milli": "1e-3", "micro": "1e-6", "nano": "1e-9"},
}
DEGREE = Measure((("degree", 1),))
RADIAN = DEGREE._replace(factor=Fraction(180), pis=-1)
_KNOWN = dict.fromkeys(("rad", "radian", "radians"), RADIAN)
_FACTORS = re.compile(r"(/)|([A-Za-zµ]+)(?:\^\{?(-?[0-9])\}?)?|[ .()]+|\\cdot ?|\*|(.)")
_POWERS = {"square": "2", "sq": "2", "cubic": "3", "cu": "3"}
_POWER_WORD = re.compile(r"(square|sq|cubic|cu)\.? +([A-Za-z]+)")

_END_SPACE = re.compile(r"(?:\\[,;:! ]|[~ ])+$")
_TEXT = r"\\(?:text|textrm|mathrm|mbox)\s*\{([^{}]*)\}(?:\s*\^\s*(?:\{-?[0-9]\}|-?[0-9]))?\s*"
_UNITS = re.compile(rf"(?:{_TEXT}(?:(?:/|\\cdot(?![a-zA-Z])|\\[,;: ]|~)\s*)*)+\.?$")
_LONE_UNITS = frozenset("msghlLJNWVAKCFT")  # only inside \text: a letter may be a variable
# With one of these the text is no unit: it gives another value, a range, a multiple, a denial.
_NO_UNITS = words_of(
    "or and less more than greater fewer least most over under up only except without plus "
    "minus times mod modulo base dozen hundred hundreds thousand thousands million millions "
    "billion billions trillion trillions half halves third thirds quarter quarters double twice "
    "triple squared cubed percent factorial where both some one two three four five six seven "
    "eight nine ten to power root of if pi sqrt sin cos tan cot sec csc log ln exp max gcd lcm "
    "infinity infty inf theta alpha beta gamma delta lambda omega sigma "
    "not no never neither nor wrong incorrect false"
)
_WORDS = re.compile(r"[A-Za-zµΩ]+")
_LETTERS = re.compile(r"[A-Za-zµΩ/ .()*~-]+")
_PERCENT = re.compile(r"(?<=[0-9}]) *(?:\\ )?(?:\\text\{ *percent *\}|percent)$")
_ROUNDED = re.compile(r"(?<=[0-9A-Za-z})]) *\\approx *-?[0-9]*\.?[0-9]+$")  # 1/3 \approx .33


def split(text: str) -> tuple[str, Measure | None]:
    """The value of an answer as it was written, and the unit behind it, if one is known here.

    Taken off is text at the end, none of whose words changes the value ("or", "million", "not"), or
    a bare abbreviation; so is a rounded value beside an exact one.
    """
    text = _PERCENT.sub(r"\%", notation.unwrap(text.strip().rstrip("$").rstrip()))
    text = notation.plain(text).replace(r"\AA", "Angstrom")
    degrees = re.search(rf"\s*{notation.DEGREE}\.?$", text)
    if degrees and not notation.TRIGONOMETRY.search(text):
        return text[: degrees.start()], DEGREE
    found = _UNITS.search(text)
    if found is None or not _is_unit(" ".join(re.findall(_TEXT, found.group()))):
        found = _BARE_UNIT.search(text)
    value = _END_SPACE.sub("", text[: found.start()]) if found else ""
    unit = None
    if re.search(r"[0-9]|\\pi|\\sqrt", value) and not value.endswith(("\\", "^", "_", "{", "(")):
        unit = measure(found.group()) if found else None
        text = value
    elif text.startswith(r"\$"):
        unit = _KNOWN["dollar"]
    return _ROUNDED.sub("", text), unit


def _is_unit(text: str) -> bool:
    words = _WORDS.findall(text)
    if not words or not _LETTERS.fullmatch(text):
        return False
    lone = len(words) == len(words[0]) == 1
    return words[0] in _LONE_UNITS if lone else _NO_UNITS.isdisjoint(map(str.lower, words))


def measure(unit: str) -> Measure | None:
    r"""What a unit is, as `\text{ km}/\text{h}^2` or `square feet`; None if a part is unknown."""
    text = re.sub(r"\\(?:text|textrm|mathrm|mbox)\s*\{([^{}]*)\} *", r"\1", unit)
    text = re.sub(r"\\[,;: ]|~", " ", text).replace(" per ", "/").strip().rstrip(".")
    text = _POWER_WORD.sub(lambda found: f"{found[2]}^{_POWERS[found[1]]}", text)
    powers, factor, pis, sign = dict[str, int](), Fraction(1), 0, 1
    for slash, name, exponent, other in _FACTORS.findall(text):
        if other or (name and name not in _KNOWN):
            return None
        if slash:
            sign = -1
        elif name:
            times, part = sign * int(exponent or 1), _KNOWN[name]
            factor *= part.factor**times
            pis += part.pis * times
            for base, power in part.powers:
                powers[base] = powers.get(base, 0) + power * times
            sign = 1
    return Measure(tuple(sorted(p for p in powers.items() if p[1])), factor, pis)


def _learn() -> None:
    for table, prefixes in ((_SI, _PREFIXES), (_OTHER, {})):
        for names, number, of in table:
            first, *others = names.split()
            base = measure(of) if of else Measure(((first, 1),))
            assert base is not None
            for name in (first, *others):
                one = base._replace(factor=base.factor * Fraction(number))
                _KNOWN[name] = one
                for prefix, tens in prefixes.items():
                    if (len(prefix) == 1) == (len(name) < 3):
                        _KNOWN[prefix + name] = one._replace(factor=one.factor * Fraction(tens))


_learn()
# Without \text: words, and what is no product of variables.
_ABBREVIATIONS = words_of(
    "cm mm km nm dm kg mg ml mL ft yd mi hr hrs min sec ms mph kph Hz kHz MHz eV keV MeV GeV "
    "kJ kW Pa kPa mol oz lb lbs am pm m/s km/h deg rad day units"
)
_BARE = "|".join({*_ABBREVIATIONS, *(name for name in _KNOWN if len(name) > 3 or name == "inch")})
_BARE_UNIT = re.compile(
    rf"(?<=[0-9}}) ])(?:(?:square|sq\.?|cubic) )?(?:{_BARE})(?:\^\{{?[0-9]\}}?)?\.?$"
)
