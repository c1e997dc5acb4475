"""LightningModules over any backbone: a file a task."""
