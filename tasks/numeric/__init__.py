"""Networks of policies that predict actions as numbers, not as pictures."""
