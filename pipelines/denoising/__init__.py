"""From noise to latents to pixels: samplers, the loop, the transformer, the VAE."""
