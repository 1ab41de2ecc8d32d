"""A LoRA step of ours and of a plain loop with PEFT and diffusers, by turns in one process.

The same net (blocks as wide as those of PixArt-XL/2, random, in bf16), the same LoRA, optimizer,
cached latents and text features; captions of 12 to 30 tokens. The plain loop is that of PixArt's
and diffusers' LoRA scripts: texts padded to 120 tokens with a mask, what learns in float32 under
autocast. Prints medians of the processor time of a step:
python tests/training/bench_lora_step.py [ROUNDS] [BLOCKS]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, PixArtTransformer2DModel
from diffusers.training_utils import cast_training_params
from peft import LoraConfig as PeftConfig
from peft import inject_adapter_in_model

from lora_manager import targets
from pipelines.text import encoder
from training import nets
from training.adapter_config import LoraConfig
from training.config import OptimizerConfig, RunConfig
from training.loop import optim
from training.loop.task import trained
from training.loop.tensors import numbers_of
from training.loop.train_state import Learning
from training.methods import adapted
from training.methods.text_to_image import CaptionLoss
from training.objective import LINEAR
from training.recipes import find, read

RANK, TOKENS, CHANNELS = 16, 120, 4096
Step = Callable[[], None]


class Bench:
    """What both loops share: `batch` pictures of `side` pixels."""

    def __init__(self, batch: int, side: int, blocks: int) -> None:
        draw = torch.Generator().manual_seed(0)
        self.batch, self.side, self.blocks = batch, side, blocks
        self.latents = torch.randn(batch, 4, side // 8, side // 8, generator=draw)
        lengths = [12 + 7 * n % 19 for n in range(batch)]
        self.texts = [torch.randn(n, CHANNELS, generator=draw) for n in lengths]
        self.accelerator = Accelerator(mixed_precision="bf16", cpu=True)

    def net(self) -> PixArtTransformer2DModel:
        torch.manual_seed(1)
        net: Any = nets.pixart(
            {"heads": 16, "head_dim": 72, "layers": self.blocks},
            channels=4,
            sample_size=self.side // 8,
            caption_channels=CHANNELS,
        )
        for weight in net.parameters():
            # Where a new net begins with zeros, a DoRA has no direction to learn.
            if not weight.any():
                torch.nn.init.normal_(weight, std=0.03)
        net.to(torch.bfloat16).requires_grad_(False)
        assert isinstance(net, PixArtTransformer2DModel)
        return net


def ours(bench: Bench, *, dora: bool = False) -> Step:
    """The parts of the loop: keyed noise, the sizes that are told, clip, AdamW, the numbers."""
    config: RunConfig = read(find("lora-style"), ['base.model="nano"']).stages[0]
    net = adapted.with_lora(bench.net(), LoraConfig(rank=RANK, dora=dora))
    loss = CaptionLoss(net, bench.texts[0][:1], config)
    named = trained(loss)
    weights = [weight for _, weight in named]
    learning = Learning(
        net=loss,
        plain=loss,
        names=[name for name, _ in named],
        weights=weights,
        ema=None,
        optimizers=optim.build(named, OptimizerConfig(lr=1e-4)),
        scaler=None,
    )
    features = encoder.batch(bench.texts)
    count = iter(range(10**9))

    def step() -> None:
        batch: dict[str, Any] = {"latents": bench.latents, "embeds": features.embeds}
        batch |= {"mask": features.mask, "resolution": None, "aspect_ratio": None}
        with bench.accelerator.autocast():
            losses = loss(batch, next(count), None)
        bench.accelerator.backward(losses["loss"].mean())
        norm = torch.nn.utils.clip_grad_norm_(weights, 1.0)
        numbers_of([{name: values.detach() for name, values in losses.items()}], norm)
        learning.step()
        learning.forget_gradients()

    return step


def plain(bench: Bench) -> Step:
    """As the scripts do it."""
    net = bench.net()
    inject_adapter_in_model(
        PeftConfig(
            r=RANK,
            lora_alpha=RANK,
            target_modules=list(
                targets.paths(bench.blocks, targets.ATTENTION | targets.FEED_FORWARD)
            ),
        ),
        net,
    )
    cast_training_params(net, torch.float32)
    net.train()
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4)
    scheduler = DDPMScheduler(num_train_timesteps=1000, **LINEAR)
    embeds = torch.zeros(bench.batch, TOKENS, CHANNELS)
    mask = torch.zeros(bench.batch, TOKENS)
    for index, text in enumerate(bench.texts):
        embeds[index, : len(text)], mask[index, : len(text)] = text, 1
    latents, embeds = bench.latents.bfloat16(), embeds.bfloat16()

    def step() -> None:
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (bench.batch,))
        with bench.accelerator.autocast():
            output = net(
                scheduler.add_noise(latents, noise, timesteps),
                encoder_hidden_states=embeds,
                encoder_attention_mask=mask,
                timestep=timesteps,
                added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            ).sample.chunk(2, 1)[0]
            value = torch.nn.functional.mse_loss(output.float(), noise.float())
        bench.accelerator.backward(value)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        value.item()
        optimizer.step()
        optimizer.zero_grad()

    return step


def compared(bench: Bench, rounds: int) -> dict[str, list[float]]:
    """Seconds of processor time of each step, by turns."""
    ways = {"ours": ours(bench), "plain": plain(bench), "a DoRA": ours(bench, dora=True)}
    for step in ways.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        order = list(ways.items())
        for name, step in order if turn % 2 else reversed(order):
            started = time.process_time()
            step()
            seconds[name].append(time.process_time() - started)
    return seconds


def main(rounds: int, blocks: int) -> None:
    """Runs and prints."""
    torch.set_num_threads(1)
    for batch, side in ((1, 256), (4, 256), (1, 512)):
        seconds = compared(Bench(batch, side, blocks), rounds)
        own, other, dora = (statistics.median(values) for values in seconds.values())
        turns = zip(seconds["ours"], seconds["plain"], strict=True)
        pairs = statistics.median(theirs / mine for mine, theirs in turns)
        print(
            f"batch {batch}, {side} px, {blocks} blocks: ours {own:.2f} s, plain {other:.2f} s:"
            f" {other / own:.2f} x as fast (median of the pairs {pairs:.2f}); a DoRA {dora:.2f} s",
            flush=True,
        )


if __name__ == "__main__":
    given = [int(one) for one in sys.argv[1:]]
    main(*given, *(9, 4)[len(given) :])
