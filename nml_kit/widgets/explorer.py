"""What all explorers share: controls above figures, and one synced dict, `view`, of all that was chosen."""

import html
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Any

import ipywidgets
import numpy as np
import plotly.graph_objects as go
import traitlets

from nml_kit.errors import InvalidInputError, NMLError, unknown_name
from nml_kit.plots import png_uri, without_title
from nml_kit.widgets.view import FigureView

_WRAPPING = {"flex_flow": "row wrap", "align_items": "flex-start"}
_CARD = (
    '<figure style="margin:0;width:104px"><img alt="{0}" src="{1}" width="64" height="64" '
    'style="image-rendering:pixelated;border:1px solid #d5d8dd">'
    '<figcaption style="font-size:12px;line-height:1.3;overflow-wrap:anywhere">{0}</figcaption></figure>'
)


class Card(ipywidgets.VBox):
    """A figure under its title, as wide as its place, which is `width` pixels or the whole page if that is narrower."""

    def __init__(self, width: int) -> None:
        self.title, self.view = ipywidgets.HTML(), FigureView()
        place = {"flex": f"1 1 {width}px", "min_width": "300px", "max_width": "100%", "display": "block"}
        super().__init__([self.title, self.view], layout=place)

    @property
    def figure(self) -> go.Figure:
        """What is drawn."""
        return self.view.figure

    def show(self, figure: go.Figure) -> None:
        """Draw `figure`, whose title stands above it as a text that wraps as the page does."""
        words = (figure.layout.title.text or "").replace("<br>", " ")
        self.title.value = f'<div style="font-size:17px;line-height:1.3;margin-top:8px">{words}</div>'
        self.view.show(without_title(figure), html.unescape(words))


class Explorer(ipywidgets.VBox):
    """Controls over what they draw. `view` holds every choice by name: read it, save it, set it again.

    Setting a part of `view` leaves the other choices. Raises UnknownNameError for a choice that there is not,
    InvalidInputError for a value that its control does not offer.
    """

    view = traitlets.Dict().tag(sync=True)

    def __init__(
        self, controls: Mapping[str, ipywidgets.ValueWidget], *parts: ipywidgets.Widget | Sequence[Card]
    ) -> None:
        """Below the controls come the `parts`: cards of a list side by side where there is room, a widget alone."""
        self._controls, self._is_busy = dict(controls), False
        for control in self._controls.values():
            control.layout.width, control.style.description_width = "300px", "100px"
            control.observe(self._control_changed, "value")
        rows = []
        for part in (list(self._controls.values()), *parts):
            is_alone = isinstance(part, ipywidgets.Widget)
            rows.append(part if is_alone else ipywidgets.Box(list(part), layout=_WRAPPING))
        super().__init__(rows)
        self._control_changed(None)

    def redraw(self, changed: Set[str]) -> None:
        """Draw what `view` says, after the choices named in `changed` have changed."""
        raise NotImplementedError

    def offered(self, choices: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        """What controls that depend on others are to offer, by name, before `choices` are made."""
        return {}

    def _offer(self, choices: Mapping[str, Any]) -> None:
        for name, options in self.offered(choices).items():
            if self._controls[name].options != options:  # set anew, they would set the value back
                self._controls[name].options = options

    def static(self) -> go.Figure:
        """A figure for the same question that needs no kernel."""
        raise NotImplementedError

    def choose(self, **choices: Any) -> None:
        """Set some choices by name, with values as `view` holds them, and draw once."""
        if unknown := set(choices) - set(self._controls):
            raise unknown_name("choice", unknown.pop(), list(self._controls))
        before = self._choices()
        with self._unheard():
            try:
                self._offer(choices)
                for name, value in choices.items():
                    _require_offered(name, self._controls[name], value)
                self._set(choices)
            except NMLError:
                self._offer(before)
                self._set(before)
                raise
        self._publish()

    @traitlets.validate("view")
    def _view_set(self, proposal: Any) -> dict[str, Any]:
        if not self._is_busy:
            self.choose(**proposal["value"])
        return self._choices()

    def _set(self, choices: Mapping[str, Any]) -> None:
        for name, value in choices.items():
            self._controls[name].value = tuple(value) if isinstance(value, list) else value

    def _choices(self) -> dict[str, Any]:
        values = {name: control.value for name, control in self._controls.items()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def _control_changed(self, _: Any) -> None:
        if not self._is_busy:
            with self._unheard():
                self._offer(self._choices())
            self._publish()

    def _publish(self) -> None:
        before, now = self.view, self._choices()
        with self._unheard():
            self.view = now
        if changed := {name for name in now if name not in before or before[name] != now[name]}:
            self.redraw(changed)

    @contextmanager
    def _unheard(self) -> Iterator[None]:
        """While one of our own changes is under way, the changes that it brings are part of it."""
        self._is_busy = True
        try:
            yield
        finally:
            self._is_busy = False


def _require_offered(name: str, control: ipywidgets.ValueWidget, value: Any) -> None:
    chosen = value if isinstance(value, list | tuple) else [value]
    if isinstance(control, ipywidgets.Checkbox) and not isinstance(value, bool):
        raise InvalidInputError(f"Expected {name} to be True or False, got {value!r}.")
    if hasattr(control, "options"):
        offered = [option[1] if isinstance(option, tuple) else option for option in control.options]
        if not all(item in offered for item in chosen):
            raise InvalidInputError(f"Expected {name} among {offered}, got {value!r}.")
    elif hasattr(control, "min") and not all(control.min <= item <= control.max for item in chosen):
        raise InvalidInputError(f"Expected {name} from {control.min} to {control.max}, got {value!r}.")


def gallery_html(images: np.ndarray, captions: Sequence[str], heading: str) -> str:
    """Images (n, height, width, 3) uint8 with a line of text under each, as HTML; texts are escaped."""
    texts = [html.escape(caption) for caption in captions]
    cards = [_CARD.format(text, png_uri(image)) for text, image in zip(texts, images, strict=True)]
    row = '<div style="display:flex;flex-wrap:wrap;gap:10px">{}</div>'.format("".join(cards))
    return f'<p style="margin:4px 0;line-height:1.4">{html.escape(heading)}</p>{row}'
