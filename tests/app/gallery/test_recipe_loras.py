"""What is said of a picture whose LoRAs are gone or others, and what its records hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.gallery import recipe_loras
from app.gallery.index import IndexedPicture
from app.ui.gallery import detail
from lora_manager.card import LoraUse
from lora_manager.library import LoraLibrary
from pipelines.catalog import Catalog
from pipelines.picture_record import PictureRecord
from pipelines.request import complete
from tests.small_loras import NANO, lora


@pytest.fixture
def library(tmp_path: Path) -> LoraLibrary:
    for seed, name in enumerate(("ink", "gold")):
        lora(tmp_path / "workspace" / "loras" / f"{name}.safetensors", seed, wide=NANO)
    return LoraLibrary(tmp_path / "workspace" / "loras")


@pytest.fixture
def record(library: LoraLibrary) -> PictureRecord:
    request = complete({"prompt": "a cat", "seed": 1, "steps": 2}, Catalog())
    uses = (LoraUse(name="ink", weight=0.5), LoraUse(name="gold"))
    return PictureRecord(
        request=request.model_copy(update={"loras": uses}),
        lora_hashes=tuple((name, library.content_hash(name)) for name in ("ink", "gold")),
    )


def said(record: PictureRecord, library: LoraLibrary) -> list[str]:
    return [one.sentence for one in recipe_loras.changed(record, library)]


def test_the_same_are_not_mentioned(record: PictureRecord, library: LoraLibrary) -> None:
    assert said(record, library) == []


def test_one_that_is_gone_and_one_that_is_another(
    record: PictureRecord, library: LoraLibrary
) -> None:
    then = dict(record.lora_hashes)
    lora(library.root / "gold.safetensors", seed=7, wide=NANO)
    library.rename("ink", "black-ink")
    now = library.content_hash("gold")
    assert said(record, library) == [
        f"The LoRA “ink” ({then['ink'][:10]}) of that picture is not here any more.",
        "The LoRA “gold” is another one than when that picture was painted"
        f" ({now[:10]} now, {then['gold'][:10]} then).",
    ]
    assert recipe_loras.renamed(record, "ink", library) == "black-ink"
    assert recipe_loras.renamed(record, "gold", library) == ""


def test_one_that_is_damaged_is_not_said_to_be_gone(
    record: PictureRecord, library: LoraLibrary
) -> None:
    (library.root / "gold.safetensors").write_bytes(b"x" * 100)
    assert said(record, library) == ["The LoRA “gold” of that picture is damaged."]


def test_a_recipe_of_before_knows_only_names(record: PictureRecord, library: LoraLibrary) -> None:
    old = PictureRecord(request=record.request)
    lora(library.root / "gold.safetensors", seed=7, wide=NANO)
    assert said(old, library) == []
    library.remove("ink")
    assert said(old, library) == ["The LoRA “ink” of that picture is not here any more."]
    assert recipe_loras.renamed(old, "ink", library) == ""


def test_the_gallery_says_it(record: PictureRecord, library: LoraLibrary, tmp_path: Path) -> None:
    catalog = Catalog(loras=library.root)
    entry = IndexedPicture(name="n", path=tmp_path / "n.png", size=9, record=record)
    assert "another one than" not in detail.detail(entry, catalog, admin=True)
    lora(library.root / "gold.safetensors", seed=7, wide=NANO)
    shown = detail.detail(entry, catalog, admin=True)
    assert "“gold” is another one than when that picture was painted" in shown
