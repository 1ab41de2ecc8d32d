"""A studio with one more field, declared where the others are and nowhere else.

Run as a process of its own: the tables are read when the modules are imported. Prints as JSON what
every door of the studio says of the field.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from pipelines import request_fields
from pipelines.field_spec import Column, CommandOption, FieldSpec, Infotext, Widget
from pipelines.request_fields import RequestFields


class _Wider(RequestFields):
    grain: Annotated[
        float,
        Field(ge=0, le=2, allow_inf_nan=False),
        FieldSpec(
            label="Film grain",
            help="How much grain is added.",
            option=CommandOption(metavar="F"),
            widget=Widget(kind="number", place="method", step=0.25, info="As in old films."),
            infotext=Infotext(key="Film grain"),
            column=Column(kind="number", term="grain"),
        ),
    ] = 0.5


def page(workspace: Path) -> dict[str, Any]:
    """What the page and its API say of it."""
    from app.ui.build import build
    from app.ui.create import fields
    from tests.app.ui.fake_studio import FakeStudio

    studio = FakeStudio(workspace)
    demo = build(studio)
    config = demo.get_config_file()
    parameters = demo.get_api_info()["named_endpoints"]["/generate"]["parameters"]
    (control,) = (c for c in config["components"] if c["props"].get("elem_id") == "grain")
    form = fields.first(studio) | {"prompt": "x", "grain": 1.5}
    painted = studio.request(fields.request_values(form))
    back = fields.from_request(painted)
    kept = fields.restored(form | {"grain": 9}, studio)
    studio.close()
    return {
        "control": {"type": control["type"], **control["props"]},
        "parameter": next(p for p in parameters if p["parameter_name"] == "grain"),
        "painted": painted.recipe(),
        "form": [back["grain"], fields.restored(back, studio)["grain"], kept["grain"]],
    }


def gallery(workspace: Path) -> dict[str, Any]:
    """What the gallery keeps and finds of it."""
    from PIL import Image

    from app.cli.gallery import _json
    from app.gallery import metadata
    from app.gallery.index import GalleryIndex
    from app.ui.gallery.detail import detail
    from pipelines.catalog import Catalog
    from pipelines.picture_record import PictureRecord
    from pipelines.request import complete

    catalog = Catalog()
    day = workspace / "outputs" / "2026-11-27"
    day.mkdir(parents=True)
    for number, grain in enumerate((0.5, 1.5)):
        one = complete({"prompt": "x", "seed": number, "grain": grain}, catalog)
        file = day / f"10153{number}-{number}-a1b2c3.png"
        Image.new("RGB", (8, 8)).save(file, pnginfo=metadata.chunks(PictureRecord(request=one)))
    index = GalleryIndex(workspace / "outputs", workspace / "cache" / "gallery.db")
    index.sync()
    (found,) = index.search("grain:1.5").entries
    assert found.request is not None
    return {
        "infotext": metadata.infotext(found.request),
        "found": found.name,
        "rest": [entry.name for entry in index.search("-grain:1.5").entries],
        "listed": _json(found)["grain"],
        "detail": detail(found, catalog, admin=True),
    }


def doors() -> dict[str, Any]:
    """What each door says of the new field."""
    from app import field_docs
    from app.cli import main
    from pipelines.catalog import Catalog
    from pipelines.errors import RequestError
    from pipelines.request import FIELDS, complete, from_mapping

    told: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        main.main(["generate", "--help"])
    told["help"] = " ".join(out.getvalue().split())
    told["docs"] = field_docs.option_table(FIELDS)
    request = complete({"prompt": "x", "seed": 1, "grain": "1.25"}, Catalog())
    told["recipe"] = request.recipe()
    told["again"] = from_mapping(request.recipe()) == request
    told["silent"] = complete({"prompt": "x"}, Catalog()).recipe()
    try:
        complete({"prompt": "x", "grain": 3}, Catalog())
    except RequestError as error:
        told["error"] = [error.field, str(error)]
    return told


if __name__ == "__main__":
    vars(request_fields)["RequestFields"] = _Wider
    told = doors() | page(Path(sys.argv[1])) | gallery(Path(sys.argv[1], "gallery"))
    json.dump(told, sys.stdout, default=str)
