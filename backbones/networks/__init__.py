"""Networks behind the families, where diffusers has not what a canvas needs."""
