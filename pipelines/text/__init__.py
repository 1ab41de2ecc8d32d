"""From a prompt to features: styles, cleaning, tokens, T5, the prompt cache."""
