"""One training step, four ways, side by side: `bench_step.py [ROUNDS]`.

The same small transformer, the same 32 pictures of 128 px and captions, in one process, in turns,
so that a slow spell of the machine meets all of them:

    ours            the step of training/loop/trainer.py on cached features
    ours online     the same step, with VAE and T5 computed in it
    plain           a loop in the manner of the diffusers examples, on cached latents and text
    plain online    the same with VAE and T5 in the step, as those examples do it

Prints the median images per second, the growth of the process at the peak of a step, and the
ratios to the first.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDPMScheduler, PixArtTransformer2DModel
from torch import Tensor
from transformers import T5EncoderModel

from pipelines.catalog import Catalog
from pipelines.memory.measured import measured
from pipelines.text import encoder
from pipelines.text.tokens import tokenize
from training import nets
from training.config import OptimizerConfig
from training.loop import optim
from training.loop.train_state import Learning
from training.methods.text_to_image import CaptionLoss
from training.objective import LINEAR
from training.recipes import find, read

BATCH, SIDE = 32, 128
WORDS = "a red apple next to a top hat in front of a blue backdrop".split()


class Bench:
    """Nets and a batch that all ways share."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = Catalog().find("nano")
        folder = self.model.folder
        self.vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32)
        self.t5 = T5EncoderModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
        self.vae.requires_grad_(False).eval()
        self.t5.requires_grad_(False).eval()
        self.pixels = torch.rand(BATCH, 3, SIDE, SIDE) * 2 - 1
        captions = [" ".join(WORDS[: 5 + i % 9]) for i in range(BATCH)]
        self.ids = [tokenize(caption, self.model).ids for caption in captions]
        self.accelerator = Accelerator(mixed_precision="bf16")
        with torch.no_grad():
            self.latents = self.encode_pixels()
            self.features = self.encode_text()

    def encode_pixels(self) -> Tensor:
        return self.vae.encode(self.pixels).latent_dist.sample() * self.vae.config.scaling_factor

    def encode_text(self) -> encoder.PromptFeatures:
        """Padded to the limit with a mask, as the examples do."""
        limit = self.model.tokens
        ids = torch.tensor([list(i) + [0] * (limit - len(i)) for i in self.ids])
        mask = torch.tensor([[1] * len(i) + [0] * (limit - len(i)) for i in self.ids])
        embeds = self.t5(input_ids=ids, attention_mask=mask).last_hidden_state
        return encoder.PromptFeatures(embeds=embeds, mask=mask.float())

    def transformer(self) -> PixArtTransformer2DModel:
        torch.manual_seed(1)
        return nets.pixart(
            {"heads": 6, "head_dim": 64, "layers": 6},
            channels=4,
            sample_size=SIDE // 8,
            caption_channels=256,
        )


def ours(bench: Bench, *, online: bool) -> Callable[[], None]:
    """A step with the parts of the loop: keyed noise, clip, AdamW, average."""
    config = read(find("nano")).stage("detail")
    net = bench.transformer()
    null = bench.features.embeds[0, :1]
    loss = CaptionLoss(net, null, config)
    weights = list(net.parameters())
    (optimizer,) = optim.build(net.named_parameters(), OptimizerConfig(lr=1e-4))
    learning = Learning(
        net=loss,
        plain=loss,
        names=[],
        weights=weights,
        ema=None,
        optimizers=[optimizer],
        scaler=None,
    )
    longest = max(len(i) for i in bench.ids)
    lengths = [len(i) for i in bench.ids]
    trimmed = encoder.batch([e[:n] for e, n in zip(bench.features.embeds, lengths, strict=True)])
    assert trimmed.embeds.shape[1] == longest
    count = iter(range(10**9))

    def step() -> None:
        latents, features = bench.latents, trimmed
        if online:
            with torch.no_grad():
                latents, features = bench.encode_pixels(), bench.encode_text()
        batch: dict[str, Any] = {
            "latents": latents,
            "embeds": features.embeds,
            "mask": features.mask,
        }
        batch |= {"resolution": None, "aspect_ratio": None}
        with bench.accelerator.autocast():
            value = loss(batch, next(count), None)["loss"].mean()
        bench.accelerator.backward(value)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        learning.step()
        learning.forget_gradients()

    return step


def plain(bench: Bench, *, online: bool) -> Callable[[], None]:
    """What the diffusers examples do: noise from the scheduler, squared error, AdamW."""
    net = bench.transformer()
    scheduler = DDPMScheduler(num_train_timesteps=1000, **LINEAR)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)

    def step() -> None:
        latents, features = bench.latents, bench.features
        if online:
            with torch.no_grad():
                latents, features = bench.encode_pixels(), bench.encode_text()
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (BATCH,))
        with bench.accelerator.autocast():
            output = net(
                scheduler.add_noise(latents, noise, timesteps),
                encoder_hidden_states=features.embeds,
                encoder_attention_mask=features.mask,
                timestep=timesteps,
                added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            ).sample.chunk(2, 1)[0]
            value = torch.nn.functional.mse_loss(output.float(), noise)
        bench.accelerator.backward(value)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def main(rounds: int) -> None:
    """Runs and prints."""
    bench = Bench()
    ways = {
        "ours": ours(bench, online=False),
        "ours online": ours(bench, online=True),
        "plain": plain(bench, online=False),
        "plain online": plain(bench, online=True),
    }
    peaks = {}
    for name, step in ways.items():
        step()
        with measured(torch.device("cpu")) as peak:
            step()
        peaks[name] = peak.bytes
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, step in ways.items():
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
    first = statistics.median(seconds["ours"])
    for name, values in seconds.items():
        median = statistics.median(values)
        low, high = np.percentile(values, [25, 75])
        print(
            f"{name:13} {BATCH / median:6.1f} images/s ({BATCH / high:.1f} to {BATCH / low:.1f}),"
            f" {median / first:.2f} x the time of ours, peak +{peaks[name] / 1e6:.0f} MB"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
