"""slayer: continual pretraining through new shallow layers, with what was learnt and what was forgotten side by side."""

__version__ = "0.1.0"
