"""Pictures of scenes composed of emoji, with captions written from what was drawn."""
