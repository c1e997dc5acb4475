"""Small tools on top of torch and the standard library."""
