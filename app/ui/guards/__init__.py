"""Between the network and gradio: who may ask, for what, how much, and how fast."""
