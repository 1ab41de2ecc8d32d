"""A recipe of five stages and two dozen pictures: everything real, everything small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

COLOURS = ("red", "green", "blue", "yellow")
NET = {"heads": 2, "head_dim": 24, "layers": 2}
EVERY_STEP = {"every": 2, "keep": 2}


def pictures(folder: Path, count: int = 24, size: tuple[int, int] = (64, 64)) -> Path:
    """Discs and squares in four colours, with captions and labels, as an image folder."""
    folder.mkdir(parents=True)
    lines = []
    for index in range(count):
        colour = COLOURS[index % len(COLOURS)]
        shape = "disc" if index // len(COLOURS) % 2 else "square"
        width, height = size if index % 3 else (size[0] + 32, size[1])
        picture = Image.new("RGB", (width, height), "white")
        draw = ImageDraw.Draw(picture)
        box = (4 + index, 6, 30 + index, 40)
        (draw.ellipse if shape == "disc" else draw.rectangle)(box, fill=colour)
        name = f"{index:03d}.png"
        picture.save(folder / name)
        row = {"file_name": name, "text": f"a {colour} {shape}", "label": shape}
        lines.append(json.dumps(row))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


def stage(name: str, method: str, **more: Any) -> dict[str, Any]:
    """A stage of four updates."""
    values: dict[str, Any] = {
        "name": name,
        "method": method,
        "seed": 3,
        "steps": 4,
        "batch": 4,
        "precision": "fp32",
        "log_every": 1,
        "data": {"source": "pictures", "side": 64, "held_out": 0.2, "tokens": 16},
        "optimizer": {"lr": 1e-3},
        "ema": {"decay": 0.9},
        "checkpoints": EVERY_STEP,
        "validation": {"every": 2, "pictures": 4, "timesteps": [100, 700]},
    }
    for key, value in more.items():
        known = values.get(key)
        values[key] = known | value if isinstance(known, dict) else value
    return values


def recipe() -> dict[str, Any]:
    """VAE, text encoder, and the three stages of the paper."""
    frozen = {"vae": "stage:vae", "text": "stage:text"}
    prompts = ["a red disc", "a blue square"]
    return {
        "title": "Small",
        "publish": {
            "id": "small",
            "title": "Small",
            "summary": "For tests.",
            "bins": "128",
            "size": "64x64",
            "max_side": 128,
        },
        "stage": [
            stage(
                "vae",
                "vae",
                net={"channels": [8, 8, 8, 8], "norm_num_groups": 4},
                data={"side": 32},
                preview={"every": 2},
            ),
            stage(
                "text",
                "text-encoder",
                net={
                    "vocabulary": 120,
                    "d_model": 32,
                    "d_kv": 16,
                    "d_ff": 64,
                    "num_layers": 1,
                    "num_decoder_layers": 1,
                    "num_heads": 2,
                },
            ),
            stage(
                "pixels",
                "class-to-image",
                net=NET,
                base={"vae": "stage:vae"},
                preview={"every": 2, "steps": 2},
            ),
            stage(
                "words",
                "text-to-image",
                base=frozen | {"transformer": "stage:pixels"},
                preview={"every": 2, "steps": 2, "prompts": prompts},
            ),
            stage(
                "beauty",
                "text-to-image",
                net={"micro_conditions": True},
                base=frozen | {"transformer": "stage:words"},
                data={"side": 64},
                objective={"min_snr": 5.0},
                preview={"every": 4, "steps": 2, "prompts": prompts},
            ),
        ],
    }
