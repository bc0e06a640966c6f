"""The colours of pictures that are not data, and the two that data has most of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Theme:
    """Colours for a paper of one brightness. Those of data are of Okabe and Ito: the colour-blind tell them apart."""

    paper: str
    ink: str
    faint: str
    data: str
    warning: str


LIGHT = Theme(paper="#ffffff", ink="#222222", faint="#c4c7cc", data="#0072B2", warning="#D55E00")
DARK = Theme(paper="#16181d", ink="#e4e6ea", faint="#555a64", data="#56B4E9", warning="#E69F00")
