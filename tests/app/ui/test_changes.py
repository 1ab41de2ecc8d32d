"""Only what changed is sent, and nothing is forgotten."""

from __future__ import annotations

import gradio as gr

from app.ui.changes import Part, Sent, answer, enabled, ticking


def test_a_part_is_sent_once_until_it_changes() -> None:
    sent = Sent()
    assert sent.news({"a": Part(place="A", value="x"), "b": Part(place="B", value=1)}) == {
        "A": "x",
        "B": 1,
    }
    assert sent.news({"a": Part(place="A", value="x"), "b": Part(place="B", value=2)}) == {"B": 2}
    assert sent.news({"a": Part(place="A", value="x")}) == {}
    assert sent.news({"a": Part(place="A", value="y"), "b": Part(place="B", value=2)}) == {"A": "y"}


def test_an_empty_value_is_a_value() -> None:
    sent = Sent()
    assert sent.news({"a": Part(place="A", value="")}) == {"A": ""}
    assert sent.news({"a": Part(place="A", value="")}) == {}


def test_what_is_forgotten_is_sent_again() -> None:
    sent = Sent()
    parts = {"a": Part(place="A", value="x"), "b": Part(place="B", value="y")}
    sent.news(parts)
    sent.forget("a", "never told")
    assert sent.news(parts) == {"A": "x"}
    sent.forget()
    assert sent.news(parts) == {"A": "x", "B": "y"}


def test_two_browser_tabs_are_told_apart() -> None:
    first, second = Sent(), Sent()
    first.is_new("a", 1)
    assert second.is_new("a", 1)
    assert not first.is_new("a", 1)


def test_what_is_more_than_a_value_is_dressed_only_when_it_is_sent() -> None:
    sent = Sent()
    with gr.Blocks():
        timer, button = gr.Timer(5, active=False), gr.Button("Go")
    told = sent.news({"wait": ticking(timer, 0.5), "go": enabled(button, False)})
    assert told[timer].active is True
    assert told[timer].value == 0.5
    assert told[button]["interactive"] is False
    assert sent.news({"wait": ticking(timer, 0.5), "go": enabled(button, False)}) == {}


def test_nothing_new_is_said_as_gradio_wants_it() -> None:
    assert answer({}) == gr.skip()
    assert answer({"A": 1}) == {"A": 1}
