"""A critic of patches, which makes a VAE sharp where an average of errors would blur.

PatchGAN (arXiv 1611.07004) with the hinge losses of VQGAN (arXiv 2012.09841). Critic and VAE learn
in one backward pass and by one optimizer, so a checkpoint holds both and the loop knows of neither.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.func import functional_call

_WIDTH = 48
_GROUPS = 16


class Adversary(nn.Module):
    """Judges patches of about 30 pixels: positive for what looks like a picture of the data."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.critic = nn.Sequential(
            nn.Conv2d(channels, _WIDTH, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(_WIDTH, 2 * _WIDTH, 4, stride=2, padding=1),
            nn.GroupNorm(_GROUPS, 2 * _WIDTH),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * _WIDTH, 2 * _WIDTH, 4, padding=1),
            nn.GroupNorm(_GROUPS, 2 * _WIDTH),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * _WIDTH, 1, 4, padding=1),
        )

    def forward(self, rebuilt: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(what the VAE has to lower, what the critic has to lower), each (B,).

        `rebuilt` and `pixels` are (B, 3, H, W) in [-1, 1]. The first gives no gradient to the
        critic, the second none to `rebuilt`.
        """
        fixed = {name: weight.detach() for name, weight in self.critic.named_parameters()}
        fooled = functional_call(self.critic, fixed, (rebuilt,))
        real, fake = self.critic(pixels), self.critic(rebuilt.detach())
        hinge = nn.functional.relu(1 - real.float()) + nn.functional.relu(1 + fake.float())
        return -fooled.float().flatten(1).mean(1), hinge.flatten(1).mean(1) / 2
