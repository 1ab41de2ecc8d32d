"""What a LoRA is, where it lies, and how it is put on a net."""
