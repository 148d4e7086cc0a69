"""Expert memory: the slow tier, the link, the device arena and what stays resident in it."""
