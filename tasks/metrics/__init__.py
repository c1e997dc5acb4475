"""What tasks are judged by: torchmetrics whose states add up across ranks."""
