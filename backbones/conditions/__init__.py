"""What conditions a denoiser: prompts, pictures, cameras, and the ways they enter it."""
