"""The target model: checkpoint reading, expert conversion, the experts hook, the KV cache."""
