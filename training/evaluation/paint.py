"""Pictures for the judge: painted by a model, or drawn right to see what the judge can tell."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from PIL import Image

from pipelines.catalog import ROW_FILE, Catalog, ModelSpec
from pipelines.denoising import latents
from pipelines.denoising.samplers import DEFAULT_SAMPLER
from pipelines.engine import Engine
from pipelines.errors import ModelError, RequestError, printable
from pipelines.progress import Report, ShouldStop
from pipelines.request import complete
from training.evaluation.measure import Paint
from training.evaluation.prompts import ScenePrompt
from training.scenes.compose import Scene, draw, sample_scene
from training.scenes.grounds import PLAIN
from training.scenes.objects import SceneObject

STEPS, GUIDANCE = 20, 4.5


class EvaluationPainter:
    """One model, painting every prompt with the settings that all models are measured with.

    `model` is an id of the catalog or a model's folder, `loras` a folder of LoRAs. Raises
    UnknownNameError, RequestError, ModelError, OutOfMemoryError.
    """

    def __init__(
        self,
        model: str,
        *,
        workspace_models: Path,
        inputs: Path,
        report: Report,
        should_stop: ShouldStop,
        loras: Path | None = None,
    ) -> None:
        self._catalog, self.model = _find(model, workspace_models, loras)
        self._engine = Engine(self._catalog, inputs=inputs)
        self._should_stop = should_stop
        self.vae: AutoencoderKL = self._engine.load(self.model.id, report).vae

    def __call__(self, prompt: str, seed: int, loras: str = "") -> Image.Image | None:
        """The picture of `prompt` at the model's default size; None where it was stopped. `loras`
        are written as in a request: "my-dog:0.5"."""
        request = complete(
            {
                "prompt": prompt,
                "model": self.model.id,
                "seed": seed,
                "sampler": DEFAULT_SAMPLER,
                "steps": STEPS,
                "guidance": GUIDANCE,
                "loras": loras,
            },
            self._catalog,
        )
        for picture in self._engine.generate(request, lambda progress: None, self._should_stop):
            return picture.image
        return None


def _find(
    model: str, workspace_models: Path, loras: Path | None = None
) -> tuple[Catalog, ModelSpec]:
    """The model by id or folder, and a catalog that holds it."""
    catalog = Catalog(user_models=workspace_models, loras=loras)
    folder = Path(model)
    if any(spec.id == model for spec in catalog) or not folder.is_dir():
        return catalog, catalog.find(model)
    folder = folder.resolve()
    known = [spec for spec in catalog if spec.folder.resolve() == folder]
    if known:
        return catalog, known[0]
    if not (folder / ROW_FILE).is_file():
        raise RequestError(
            "model",
            f"{printable(model, 200)} holds no {ROW_FILE}, so it is not a model's folder.",
            "Give the folder that a training published, or the name of a model.",
        )
    catalog = Catalog(user_models=folder.parent, loras=loras)
    spec = catalog.find(folder.name)
    if spec.folder.resolve() != folder:
        raise ModelError(
            f"Another model is called “{spec.id}” already.", "Give the folder another name."
        )
    return catalog, spec


def drawer(
    things: Sequence[SceneObject],
    prompts: Sequence[ScenePrompt],
    side: int,
    vae: AutoencoderKL | None = None,
) -> Paint:
    """Draws what the prompts say, `side` pixels square, as training pictures are drawn.

    Through `vae`, if given: then they are the best that a model with this VAE could paint.
    """
    by_prompt = {asked.prompt: asked for asked in prompts}

    def paint(prompt: str, seed: int) -> Image.Image:
        asked = by_prompt[prompt]
        picture = draw(_scene(asked, asked.things(tuple(things)), seed), side, side)
        return picture if vae is None else through(vae, picture)

    return paint


def _scene(asked: ScenePrompt, shown: Sequence[SceneObject], seed: int) -> Scene:
    """The first scene of its kind that happens to be as `asked`."""
    place = {"pair": "next", "placed": asked.place}.get(asked.kind)
    names = tuple(thing.name for thing in shown) * asked.count
    for attempt in count():
        scene = sample_scene(asked.kind, f"{seed}/{attempt}", shown)
        ground = scene.ground
        if asked.colour and (ground.kind, ground.colours) != (PLAIN, (asked.colour,)):
            continue
        if place is not None and scene.arrangement != place:
            continue
        if tuple(item.object.name for item in scene.items) == names:
            return scene
    raise AssertionError("count() never ends")


@torch.inference_mode()
def through(vae: AutoencoderKL, picture: Image.Image) -> Image.Image:
    coded = latents.encode(vae, latents.to_tensor(picture))
    return latents.to_picture(latents.decode(vae, coded))
