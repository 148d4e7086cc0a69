"""Recipes that train the committed models: text, tokenizer, training loop, prompts and card."""
