"""The policy of `ai-wam demo`."""
