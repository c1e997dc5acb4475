"""Mathematics of diffusion, without networks: noise paths and the solvers that walk them."""
