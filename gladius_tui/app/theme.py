"""Themes for colour-blind users, and the colours of charts in every theme.

No meaning rests on a colour alone.
"""

from __future__ import annotations

from textual.app import App
from textual.theme import Theme

# The palette of M. Okabe and K. Ito, "Color universal design" (2008), which people with any of the
# usual colour blindnesses can distinguish; lighter ones on dark ground, darker ones on light.
_SAFE_DARK = ("#56b4e9", "#e69f00", "#f0e442", "#cc79a7", "#009e73")
_SAFE_LIGHT = ("#0072b2", "#d55e00", "#8a5a83", "#007a5a", "#5a5a5a")

# Paler than the colours of metrics: a former run is recognised by its colour.
_FORMER_DARK = ("#d9c9a3", "#9fd6ca", "#e6a9c0", "#b7bfe6", "#c7dba0")
_FORMER_LIGHT = ("#7d6a33", "#2f7468", "#94506b", "#4d568f", "#5c7429")

_DARK = ("#5aa9ff", "#ffa62b", "#4ebf71", "#c08cf0", "#f0716a")
_LIGHT = ("#0059b3", "#b35900", "#1c7a3e", "#7a3fb0", "#b3261e")

THEMES = (
    Theme(
        name="colour-blind-dark",
        primary="#56b4e9",
        secondary="#0072b2",
        accent="#e69f00",
        foreground="#e6e6e6",
        background="#121212",
        success="#56b4e9",
        warning="#e69f00",
        error="#d55e00",
        dark=True,
        variables={f"chart-{n}": colour for n, colour in enumerate(_SAFE_DARK, 1)},
    ),
    Theme(
        name="colour-blind-light",
        primary="#0072b2",
        secondary="#56b4e9",
        accent="#d55e00",
        background="#f2f2f2",
        surface="#e8e8e8",
        panel="#dedede",
        success="#0072b2",
        warning="#a65e00",
        error="#b34700",
        dark=False,
        variables={
            "footer-key-foreground": "#0072b2",
            **{f"chart-{n}": colour for n, colour in enumerate(_SAFE_LIGHT, 1)},
        },
    ),
)


def chart_defaults(dark: bool) -> dict[str, str]:
    """The variables $chart-1 to $chart-5 for themes that do not define them."""
    return {f"chart-{n}": colour for n, colour in enumerate(_DARK if dark else _LIGHT, 1)}


def chart_colours(app: App) -> tuple[str, ...]:
    """The colours of series in charts, as #rrggbb, in the order of their use."""
    variables = app.theme_variables
    return tuple(variables[f"chart-{n}"] for n in range(1, 6))


def former_run_colours(app: App) -> tuple[str, ...]:
    """The colours of former runs in charts, one for each run, as #rrggbb."""
    return _FORMER_DARK if app.current_theme.dark else _FORMER_LIGHT
