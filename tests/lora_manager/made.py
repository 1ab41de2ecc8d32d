"""LoRA files of every family, written by hand from one set of numbers and not by the studio's map.

The layers are those of `tiny.transformer()`: two blocks, 48 wide, captions of 32.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

WIDE, RANK, ALPHA = 48, 4, 3.0
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Reference:
    """A (r, in), B (out, r) and alpha of a layer; its change is alpha / r * B @ A."""

    a: Tensor
    b: Tensor
    alpha: float

    def change(self, alpha: float | None = None) -> Tensor:
        scale = (self.alpha if alpha is None else alpha) / self.a.shape[0]
        product = self.b.flatten(1).double() @ self.a.flatten(1).double()
        return scale * product.view(self.b.shape[0], *self.a.shape[1:])


# diffusers' name, the original one, rows, columns.
BLOCK = [
    ("attn1.to_q", "attn.qkv", WIDE, WIDE),
    ("attn1.to_k", "attn.qkv", WIDE, WIDE),
    ("attn1.to_v", "attn.qkv", WIDE, WIDE),
    ("attn1.to_out.0", "attn.proj", WIDE, WIDE),
    ("attn2.to_q", "cross_attn.q_linear", WIDE, WIDE),
    ("attn2.to_k", "cross_attn.kv_linear", WIDE, WIDE),
    ("attn2.to_v", "cross_attn.kv_linear", WIDE, WIDE),
    ("attn2.to_out.0", "cross_attn.proj", WIDE, WIDE),
    ("ff.net.0.proj", "mlp.fc1", 4 * WIDE, WIDE),
    ("ff.net.2", "mlp.fc2", WIDE, 4 * WIDE),
]
OUTER = [
    ("caption_projection.linear_1", "y_embedder.y_proj.fc1", WIDE, 32),
    ("caption_projection.linear_2", "y_embedder.y_proj.fc2", WIDE, WIDE),
    ("adaln_single.emb.timestep_embedder.linear_1", "t_embedder.mlp.0", WIDE, 256),
    ("adaln_single.emb.timestep_embedder.linear_2", "t_embedder.mlp.2", WIDE, WIDE),
    ("adaln_single.linear", "t_block.1", 6 * WIDE, WIDE),
    ("proj_out", "final_layer.linear", 32, WIDE),
]
CONV = ("pos_embed.proj", "x_embedder.proj")
ORIGINAL = {name: original for name, original, _, _ in OUTER} | {CONV[0]: CONV[1]}
for _n in range(2):
    for _name, _original, _, _ in BLOCK:
        ORIGINAL[f"transformer_blocks.{_n}.{_name}"] = f"blocks.{_n}.{_original}"


def reference(
    seed: int = 0, rank: int = RANK, alpha: float = ALPHA, outer: bool = True, wide: int = WIDE
) -> dict[str, Reference]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.2

    layers = [
        (f"transformer_blocks.{n}.{name}", rows, columns)
        for n in range(2)
        for name, _, rows, columns in BLOCK
    ]
    layers += [(name, rows, columns) for name, _, rows, columns in OUTER] if outer else []
    grown = wide // WIDE
    made = {
        name: Reference(random(rank, columns * grown), random(rows * grown, rank), alpha)
        for name, rows, columns in layers
    }
    if outer:
        made[CONV[0]] = Reference(random(rank, 4, 2, 2), random(WIDE, rank, 1, 1), alpha)
    return made


def peft_names(reference: dict[str, Reference], prefix: str) -> Tensors:
    found: Tensors = {}
    for path, one in reference.items():
        found[f"{prefix}{path}.lora_A.weight"] = one.a.clone()
        found[f"{prefix}{path}.lora_B.weight"] = one.b.clone()
    return found


def patterned(reference: dict[str, Reference]) -> dict[str, Any]:
    """As PEFT writes it: what most layers have, and the others by name."""
    first = next(iter(reference.values()))
    return {
        "r": first.a.shape[0],
        "lora_alpha": first.alpha,
        "rank_pattern": {
            p: one.a.shape[0] for p, one in reference.items() if len(one.a) != len(first.a)
        },
        "alpha_pattern": {p: one.alpha for p, one in reference.items() if one.alpha != first.alpha},
    }


def f1(reference: dict[str, Reference], folder: Path) -> Path:
    noted = {f"transformer.{key}": value for key, value in patterned(reference).items()}
    file = folder / "pytorch_lora_weights.safetensors"
    metadata = {"lora_adapter_metadata": json.dumps(noted), "format": "pt"}
    save_file(peft_names(reference, "transformer."), file, metadata)
    return file


def f2(reference: dict[str, Reference], folder: Path) -> Path:
    file = folder / "bare.safetensors"
    metadata = {"lora_adapter_metadata": json.dumps(patterned(reference))}
    save_file(peft_names(reference, ""), file, metadata)
    return file


def config(folder: Path, reference: dict[str, Reference], **change: Any) -> None:
    values = {"peft_type": "LORA", "base_model_name_or_path": "PixArt-alpha/x", "bias": "none"}
    text = json.dumps({**values, **patterned(reference), **change})
    (folder / "adapter_config.json").write_text(text)


def f3(reference: dict[str, Reference], folder: Path, **change: Any) -> Path:
    """A PEFT folder; `folder` becomes it."""
    config(folder, reference, **change)
    tensors = peft_names(reference, "base_model.model.")
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


def f3_bin(reference: dict[str, Reference], folder: Path) -> Path:
    config(folder, reference)
    torch.save(peft_names(reference, "base_model.model."), folder / "adapter_model.bin")
    return folder


def f3_rslora(reference: dict[str, Reference], folder: Path) -> Path:
    """The same change, noted for a factor of alpha / √r."""
    shrunk = {p: Reference(r.a, r.b, r.alpha / len(r.a) ** 0.5) for p, r in reference.items()}
    return f3(shrunk, folder, use_rslora=True)


def f4(reference: dict[str, Reference], folder: Path) -> Path:
    file = folder / "pytorch_lora_weights.safetensors"
    save_file(peft_names(reference, "unet.base_model.model."), file)
    return file


def f5(reference: dict[str, Reference], folder: Path) -> Path:
    found: Tensors = {"bundle_emb.dog.t5": torch.zeros(2, 32)}
    found["lora_te_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight"] = torch.ones(4, 32)
    for path, one in reference.items():
        flat = "lora_transformer_" + path.replace(".", "_")
        found[f"{flat}.lora_down.weight"] = one.a.clone()
        found[f"{flat}.lora_up.weight"] = one.b.clone()
        found[f"{flat}.alpha"] = torch.tensor(one.alpha)
    save_file(found, folder / "onetrainer.safetensors")
    return folder / "onetrainer.safetensors"


def fused(reference: dict[str, Reference]) -> dict[str, list[Reference]]:
    groups: dict[str, list[Reference]] = {}
    for path, one in reference.items():
        groups.setdefault(ORIGINAL[path], []).append(one)
    return groups


def block_diagonal(parts: list[Reference]) -> Reference:
    """Exact: n times the rank and n times alpha."""
    if len(parts) == 1:
        return parts[0]
    a = torch.cat([part.a for part in parts])
    b = torch.block_diag(*[part.b for part in parts])
    return Reference(a, b, parts[0].alpha * len(parts))


def originals(reference: dict[str, Reference]) -> dict[str, Reference]:
    return {name: block_diagonal(parts) for name, parts in fused(reference).items()}


def f6(reference: dict[str, Reference], folder: Path) -> Path:
    found: Tensors = {}
    for name, one in originals(reference).items():
        flat = "lora_unet_" + name.replace(".", "_")
        found[f"{flat}.lora_down.weight"] = one.a.clone()
        found[f"{flat}.lora_up.weight"] = one.b.clone()
        found[f"{flat}.alpha"] = torch.tensor(one.alpha)
    save_file(found, folder / "kohya.safetensors")
    return folder / "kohya.safetensors"


def lycoris(reference: dict[str, Reference], folder: Path) -> Path:
    """A plain LoRA of LyCORIS around diffusers' net: OneTrainer's names behind another word."""
    file = f5(reference, folder)
    tensors = {
        key.replace("lora_transformer_", "lycoris_"): value
        for key, value in load_file(file).items()
        if key.startswith("lora_transformer_")
    }
    file.unlink()
    save_file(tensors, folder / "lycoris.safetensors")
    return folder / "lycoris.safetensors"


def lycoris_original(reference: dict[str, Reference], folder: Path) -> Path:
    """The same around the original net."""
    file = f6(reference, folder)
    tensors = {
        key.replace("lora_unet_", "lycoris_"): value for key, value in load_file(file).items()
    }
    save_file(tensors, file)
    return file


def f7(reference: dict[str, Reference], folder: Path, prefix: str = "") -> Path:
    found: Tensors = {}
    for name, one in originals(reference).items():
        found[f"{prefix}{name}.lora_A.weight"] = one.a.clone()
        found[f"{prefix}{name}.lora_B.weight"] = one.b.clone()
        found[f"{prefix}{name}.alpha"] = torch.tensor([one.alpha])
    save_file(found, folder / "original.safetensors")
    return folder / "original.safetensors"


def f8(reference: dict[str, Reference], folder: Path) -> Path:
    return f7(reference, folder, "diffusion_model.")


def f9(reference: dict[str, Reference], folder: Path, alpha: bool = True) -> Path:
    """Halves of fused layers one behind the other, as no product of the two would be right."""
    found: Tensors = {}
    for name, parts in fused(reference).items():
        flat = "lora_unet_" + name.replace(".", "_")
        found[f"{flat}.lora_down.weight"] = torch.cat([part.a for part in parts])
        found[f"{flat}.lora_up.weight"] = torch.cat([part.b for part in parts])
        if alpha:
            found[f"{flat}.alpha"] = torch.tensor(parts[0].alpha)
    save_file(found, folder / "extra.safetensors")
    return folder / "extra.safetensors"


Maker = Callable[[dict[str, Reference], Path], Path]
FAMILIES: dict[str, Maker] = {
    "F1": f1,
    "F2": f2,
    "F3": f3,
    "F3 bin": f3_bin,
    "F3 rslora": f3_rslora,
    "F5": f5,
    "F6": f6,
    "LyCORIS": lycoris,
    "LyCORIS, original": lycoris_original,
    "F7": f7,
    "F8": f8,
    "F9": f9,
}
"""All that note alpha; F4 notes none."""
