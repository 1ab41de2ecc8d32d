"""Colours, radii and type of gradio's own widgets. Everything else is in assets/css."""

from __future__ import annotations

import gradio as gr

_SANS = ("InterVariable", "system-ui", "sans-serif")
_MONO = ("ui-monospace", "Menlo", "monospace")


def theme() -> gr.themes.Base:
    """Calm and flat, dark first, one violet accent."""
    base = gr.themes.Base(
        primary_hue=gr.themes.colors.violet,
        neutral_hue=gr.themes.colors.zinc,
        radius_size=gr.themes.sizes.radius_md,
        font=[gr.themes.Font(name) for name in _SANS],
        font_mono=[gr.themes.Font(name) for name in _MONO],
    )
    return _controls(_surfaces(base))


def _surfaces(base: gr.themes.Base) -> gr.themes.Base:
    return base.set(
        body_background_fill="#f7f7f9",
        body_background_fill_dark="#0b0b0f",
        body_text_color="#1c1c22",
        body_text_color_dark="#ececf1",
        body_text_color_subdued="#5a5a66",
        body_text_color_subdued_dark="#a3a3b0",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#15151c",
        background_fill_secondary="#f1f1f4",
        background_fill_secondary_dark="#1b1b23",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_shadow="none",
        block_shadow_dark="none",
        block_padding="0px",
        block_label_text_size="13px",
        block_title_text_size="13px",
        block_title_text_weight="500",
        block_title_text_color="#3d3d47",
        block_title_text_color_dark="#c9c9d3",
        block_info_text_size="12px",
        block_info_text_color="#5a5a66",
        block_info_text_color_dark="#a3a3b0",
        border_color_primary="#dcdce3",
        border_color_primary_dark="#2a2a34",
        border_color_accent="#7c4dff",
        border_color_accent_dark="#8b5cf6",
        input_background_fill="#ffffff",
        input_background_fill_dark="#0e0e14",
        input_border_color="#c9c9d3",
        input_border_color_dark="#2f2f3a",
        input_border_color_focus="#6d3cf5",
        input_border_color_focus_dark="#9d7bff",
        input_placeholder_color="#6b6b78",
        input_placeholder_color_dark="#85858f",
        input_shadow="none",
        input_shadow_focus="none",
        input_text_size="15px",
    )


def _controls(base: gr.themes.Base) -> gr.themes.Base:
    return base.set(
        slider_color="#6d3cf5",
        slider_color_dark="#8b5cf6",
        checkbox_background_color_selected="#6d3cf5",
        checkbox_background_color_selected_dark="#8b5cf6",
        checkbox_border_color_selected="#6d3cf5",
        checkbox_border_color_selected_dark="#8b5cf6",
        button_primary_background_fill="#6d3cf5",
        button_primary_background_fill_dark="#7c4dff",
        button_primary_background_fill_hover="#5f2fe0",
        button_primary_background_fill_hover_dark="#6b3af0",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff",
        button_primary_shadow="none",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_dark="#1b1b23",
        button_secondary_background_fill_hover="#f1f1f4",
        button_secondary_background_fill_hover_dark="#23232d",
        button_secondary_border_color="#c9c9d3",
        button_secondary_border_color_dark="#32323e",
        button_secondary_text_color="#1c1c22",
        button_secondary_text_color_dark="#ececf1",
        button_border_width="1px",
        button_large_text_weight="600",
        button_medium_text_weight="550",
        button_transition="background-color .12s ease",
    )
