"""Files of weights: found, checked, loaded, adapted (LoRA), converted and saved."""
