"""What readers of foreign files share: pictures, text, videos, depth, rotations, restricted pickles."""
