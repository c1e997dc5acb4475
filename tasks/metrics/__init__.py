"""Metrics of tasks: torchmetrics whose states add up across ranks."""
