"""Models, prompts and request shapes that every system is measured on."""
