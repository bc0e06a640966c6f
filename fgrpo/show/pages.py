"""Pages that hold everything and need nothing: no script, no font, no address."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fgrpo.errors import RunError
from fgrpo.show.text import number, printable

_HERE = Path(__file__).parent


def write_page(path: Path, template: str, folder: Path = _HERE, **values: Any) -> None:
    """Render one of the templates beside this file, or in another folder and with what is here to extend.

    Raises:
        RunError: the page cannot be written.
    """
    environment = Environment(
        loader=FileSystemLoader([folder, _HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Names, reasons and samples come from outside.
    environment.filters |= {"printable": printable, "printable_lines": _printable_lines, "number": number}
    html = environment.get_template(template).render(values)
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_text(html, encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path}: the page cannot be written: {error.strerror}") from None


def _printable_lines(text: str) -> str:
    return "\n".join(printable(line) for line in text.splitlines())
