"""How well a small scene model does what its prompts say: painted, judged and counted."""
