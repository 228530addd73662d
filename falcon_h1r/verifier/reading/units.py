"""Words that may follow a value without changing it."""

from __future__ import annotations

import re

# Read as a unit where they follow a number directly; single letters are variables first and units only where the
# other answer is a plain number (see `without_unit`).
ABBREVIATIONS = frozenset(
    "cm mm km dm nm kg mg ml cl ft yd mi lb lbs oz hr hrs min mins sec secs ms mph kmh kph rpm Hz kHz MHz "
    "kW kJ kPa Pa eV mol rad deg sq cu in inch feet foot mile miles hour hours day days week weeks year years cent "
    "cents units unit USD EUR dollar dollars".split()
)
# Units in words, also behind variables: 3x cm.
UNITS = ABBREVIATIONS | frozenset(
    "s m g h L J N W V K C F A meter meters metre metres centimeter centimeters centimetre centimetres kilometers "
    "kilometres grams kilograms liters litres minutes minute seconds second degrees degree radians radian percent "
    "square cubic pounds euros inches yards ohms volts watts joules newtons".split()
)
_NUMBER_AND_UNIT = re.compile(
    r"(-?\d+(?:\.\d+)?)\s*(?:(?:\\(?:text|mathrm|rm)\s*)?"
    r"\{?\s*(?:s|m|g|h|L|l|N|J|W|V|K|C|F|A)\s*\}?(?:\^\{?[23]\}?)?"
    r"|(?:\\(?:text|mathrm)\s*\{\s*)?[kM]?\s*\\Omega\s*\}?"
    r"|\\mu\s*(?:\\(?:text|mathrm)\s*\{\s*[A-Za-z]{1,2}\s*\}|[mgsFA])"
    r"|(?:m|km|cm|mm|mi|ft|g|kg|mg|J|N|W|V|L|mol|rad|rev|C)/(?:s|h|hr|min|sec|kg|m|L|mol|g|cm|K)(?:\^\{?[23]\}?)?)"
)
_PLAIN_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


def is_plain_number(cleaned: str) -> bool:
    """Whether a cleaned answer is just an integer or a decimal."""
    return _PLAIN_NUMBER.fullmatch(cleaned) is not None


def without_unit(cleaned: str) -> str | None:
    r"""The number of "3s", "3\mathrm{m}" or "5 m/s", whose letters could be variables; None for the rest."""
    match = _NUMBER_AND_UNIT.fullmatch(cleaned)
    return match.group(1) if match else None
