"""Controls of figures: an entry sets what differs among the views and nothing else; their room can be taken away."""

import numpy as np
import plotly.graph_objects as go
import pytest

from nml_kit.plots import add_control, finish, without_room


def view(y: list[float], title: str = "t", **line) -> go.Figure:
    figure = go.Figure(go.Scatter(x=[1, 2], y=np.array(y), line=line, name="a"))
    return finish(figure, title, height=100, legend="L")


def test_an_entry_sets_only_what_differs():
    views = {"one": view([1.0, np.nan]), "two": view([3.0, 4.0], "other", color="red")}
    figure = add_control(go.Figure(views["one"]), views, "menu")
    one, two = figure.layout.updatemenus[0].buttons
    assert (one.label, one.method, two.label) == ("one", "update", "two")
    assert one.args[0] == {"y": [[1.0, None]], "line.color": [None]}
    assert two.args[0] == {"y": [[3.0, 4.0]], "line.color": ["red"]}
    assert (one.args[1], two.args[1]) == ({"title.text": "t"}, {"title.text": "other"})


def test_several_controls_lie_above_each_other_and_leave_each_other_alone():
    figure = view([1.0, 2.0])
    bare = figure.to_plotly_json()["layout"]
    add_control(figure, {"log": view([1.0, 2.0]).update_yaxes(type="log"), "linear": view([1.0, 2.0])}, "buttons")
    add_control(figure, {"a": view([1.0, 2.0]), "b": view([2.0, 1.0])}, "slider")
    [menu], [slider] = figure.layout.updatemenus, figure.layout.sliders
    assert menu.buttons[0].args == ({}, {"yaxis.type": "log"})
    assert slider.steps[1].args == ({"y": [[2.0, 1.0]]}, {})
    assert slider.pad.b > menu.pad.b
    shown = without_room(figure.to_plotly_json()["layout"])
    assert all(shown[key] == bare[key] for key in ("height", "margin", "legend"))
    pixels = [(1 - layout["legend"]["y"]) * layout["height"] for layout in (bare, figure.layout.to_plotly_json())]
    np.testing.assert_allclose(*pixels)  # from the top
    assert without_room(shown) == shown


@pytest.mark.parametrize("meta", [None, "without_controls", {"room": {"b": 60}}, {"without_controls": [1]}])
def test_layouts_of_others_are_left_alone(meta):
    layout = {"meta": meta, "height": 300, "margin": {"b": 100}}
    assert without_room(layout) == layout
