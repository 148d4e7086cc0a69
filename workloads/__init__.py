"""Models, prompts and request lengths that every system is measured on."""
