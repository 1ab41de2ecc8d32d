"""Templates: every text is escaped, what is missing is a fault, line breaks are for readers."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from jinja2.exceptions import TemplateNotFound

from app import markup
from app.markup import joined, render

APP = Path(markup.__file__).parent
TEMPLATES = sorted(p.relative_to(APP).as_posix() for p in APP.rglob("*.html"))
# What `shell` writes into the scripts that gradio put into the page.
GRADIO_S_SCRIPT = '<script nonce="'
EVIL = "<img src=x onerror=alert(1)> & \"two\" 'one'"


def test_a_text_stays_a_text() -> None:
    html = render("ui/create/words.html", "sentence", text=EVIL)
    assert html == (
        '<p class="count" data-over>&lt;img src=x onerror=alert(1)&gt; &amp;'
        " &#34;two&#34; &#39;one&#39;</p>"
    )
    # gradio writes it as JSON, so that it has to be a plain string.
    assert type(html) is str


def test_a_value_that_is_missing_is_a_fault() -> None:
    with pytest.raises(UndefinedError):
        render("ui/create/words.html", "sentence")
    with pytest.raises(TypeError):
        render("ui/create/words.html", "sentence", text="x", other=1)
    with pytest.raises(AttributeError):
        render("ui/create/words.html", "no_such_part")
    with pytest.raises(TemplateNotFound):
        render("../launch.py", "x")


@pytest.mark.parametrize(
    ("source", "made"),
    [
        ("<ul>\n  <li>a</li>\n  <li>b</li>\n</ul>\n", "<ul><li>a</li><li>b</li></ul>"),
        ("<p>\n  one\n  two\n</p>", "<p>one two</p>"),
        ("<p>a <b>b</b> c\n  d</p>", "<p>a <b>b</b> c d</p>"),
        ('<i class="x"\n  id="y">\n</i>', '<i class="x" id="y"></i>'),
        (
            "<i\n  {% if a > b %} data-x{% endif %}\n  id=y>",
            "<i{% if a > b %} data-x{% endif %} id=y>",
        ),
        ("{% if a %}\n  x\n{% endif %}\n", "{% if a %}x{% endif %}"),
        ("<b>{{ a }}</b>\n  of {{ n }}", "<b>{{ a }}</b>of {{ n }}"),
        ("{{ a }} and\n{{ b }}", "{{ a }} and {{ b }}"),
        ("{{ a }}\n{{ b }}", "{{ a }}{{ b }}"),
        ("{{ a }}\n<b>", "{{ a }}<b>"),
        ("{# a <note\n\n over lines #}\nx", "{# a <note\n\n over lines #}x"),
    ],
)
def test_line_breaks_are_for_those_who_read(source: str, made: str) -> None:
    assert joined(source) == made


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_part_of_a_template_compiles_and_has_a_use(name: str) -> None:
    module = markup._environment().get_template(name).module
    parts = {part for part in vars(module) if not part.startswith("_")}
    used = {
        (call.args[0], call.args[1])
        for file in APP.rglob("*.py")
        for call in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(call, ast.Call)
        and getattr(call.func, "id", "") == "render"
        and len(call.args) > 1
    }
    called = {part.value for _, part in used if isinstance(part, ast.Constant)}
    texts = [path.read_text("utf-8") for path in APP.rglob("*.html")]
    for part in parts - called:
        assert any(f"import {part}" in text or f", {part}" in text for text in texts), part


def test_no_html_is_written_by_hand() -> None:
    """In a string of Python nothing is escaped but by whoever thinks of it."""
    for file in [*(APP / "ui").rglob("*.py"), *(APP / "gallery" / "exports").glob("*.py")]:
        tree = ast.parse(file.read_text("utf-8"))
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        said = {ast.get_docstring(n, False) for n in ast.walk(tree) if isinstance(n, documented)}
        for node in ast.walk(tree):
            assert not (isinstance(node, ast.ImportFrom) and node.module == "html"), file
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                markup_of_its_own = re.search(r"</[a-z]|<[a-z]+[ >]", node.value)
                known = node.value in said or node.value == GRADIO_S_SCRIPT
                assert known or not markup_of_its_own, f"{file}:{node.lineno}"
