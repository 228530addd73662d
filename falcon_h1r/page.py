"""HTML pages that stand alone: one file, one style sheet inside it, and how numbers are written on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

STYLES = Path(__file__).parent  # where page.css.j2 is, which every page includes
ABSENT = "–"


def render_page(template: Path, content: Mapping[str, Any], filters: Mapping[str, Callable[..., Any]]) -> str:
    """The template with its content, all text escaped; besides `filters` it has those of this module.

    Half a surrogate pair, which a model may write and UTF-8 cannot, is shown by its number.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, STYLES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": format_percent, "points": format_points, "number": format_number, **filters}
    page = environment.get_template(template.name).render(content)
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def format_percent(value: float | None) -> str:
    """0.4123 as 41.2%."""
    return ABSENT if value is None else f"{100 * value:.1f}%"


def format_share(count: int, total: int) -> str:
    """Of counts, as a percentage; what is there is told apart from what is not, however small."""
    if not total:
        return ABSENT
    return "<0.1%" if 0 < count / total < 0.0005 else format_percent(count / total)


def format_points(value: float | None) -> str:
    """A difference of shares in percentage points, signed, with a true minus."""
    return ABSENT if value is None else f"{100 * value:+.1f}".replace("-", "−")


def format_number(value: object) -> str:
    """Counts with thousands separators, other numbers to four digits, everything else as it is."""
    if value is None:
        return ABSENT
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def format_decimal(value: float | None) -> str:
    """All digits that a rounded number has, up to four, but no zeros at its end."""
    return ABSENT if value is None else f"{value:,.4f}".rstrip("0").rstrip(".")
