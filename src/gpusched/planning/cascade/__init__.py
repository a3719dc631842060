"""Cascades of models of growing size: which answers move up, and which GPUs serve which model."""
