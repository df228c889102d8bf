"""Post-training of speech models with reinforcement learning: prepare, pretrain, reward, rl, eval."""

__version__ = "0.1.0"
